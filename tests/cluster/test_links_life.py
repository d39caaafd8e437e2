from __future__ import annotations

import asyncio
import socket
import time

import pytest

from blitzgw.core.peer import Heartbeat, LoadReport, Lost, PlainTokens, Tokens
from blitzgw.core.request import FinishReason
from blitzgw.crypto.handshake import Purpose
from blitzgw.crypto.streams import connect_secure, receive_record, send_record
from blitzgw.errors import ProtocolError
from blitzgw.gossip import link as link_module
from blitzgw.gossip import links as links_module
from blitzgw.gossip.conversation import MAX_WAITING_MESSAGES
from blitzgw.gossip.link import HIGH_WATER_BYTES, MAX_RECORD_BYTES
from blitzgw.wire import dump
from tests.cluster.link_kit import (
    FAST,
    HIGH,
    KEYRING,
    LOW,
    End,
    Recorder,
    both_loops,
    event,
    until,
)


@both_loops
async def test_messages_arrive_in_order_both_ways_over_one_connection():
    async with End(LOW) as a, End(HIGH) as b:
        for n in range(200):
            a.say(b, n)
        await until(lambda: len(b.heard()) == 200)
        for n in range(200):
            b.say(a, n)
            a.say(b, 200 + n)
        await until(lambda: len(a.heard()) == 200 and len(b.heard()) == 400)
        assert a.heard() == [*range(200)]
        assert b.heard() == [*range(400)]
        assert (a.dials, b.dials) == (1, 0)
        assert (a.seen.ups, b.seen.ups) == ([HIGH], [LOW])
        await until(lambda: a.links.rtt_s(HIGH) and b.links.rtt_s(LOW))
        assert 0 < a.links.rtt_s(HIGH) < 1
        assert not a.seen.losses + b.seen.losses


@both_loops
async def test_an_answer_needs_no_address_and_opens_nothing():
    async with End(LOW) as a, End(HIGH) as b:
        a.links.send(HIGH, None, Tokens([]))
        assert a.links.statistics().dialling == 0
        b.seen.react = lambda boot, _: b.links.send(boot, None, Tokens([event("r", 1)]))
        a.say(b)
        await until(lambda: a.seen.messages)
        assert a.seen.messages == [Tokens([event("r", 1)])]


@both_loops
async def test_death_is_told_once_and_the_next_message_opens_a_new_link():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        b.link(LOW).drop("test")
        for _ in range(10):
            b.say(a, 7)  # on the dead link: lost with it
        assert not b.links.usable(LOW)
        assert not b.seen.losses  # not from within `say`
        await until(lambda: a.seen.losses and b.seen.losses)
        await asyncio.sleep(0.05)
        assert b.seen.losses == [(LOW, "test")]
        assert len(a.seen.losses) == 1
        assert a.links.usable(HIGH)
        a.say(b, 1)
        await until(lambda: b.heard() == [0, 1])
        assert not a.heard()


@both_loops
async def test_a_loss_may_be_answered_by_sending_again_at_once():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        a.seen.mourn = lambda _: a.say(b, 5)
        a.links.drop(HIGH, "test")
        assert len(a.seen.losses) == 1  # told before `drop` returns
        await until(lambda: b.heard() == [0, 5])
        await asyncio.sleep(0.05)
        assert len(a.seen.losses) == 1


@both_loops
async def test_an_address_without_a_listener_is_a_loss():
    async with End(LOW) as a, End(HIGH) as b:
        b._socket.close()
        b.hush()
        a.say(b)
        assert not a.seen.losses
        await until(lambda: a.seen.losses)
        assert len(a.seen.losses) == 1


@both_loops
async def test_a_peer_that_accepts_and_says_nothing_is_a_loss_after_two_seconds():
    async with End(LOW, dilation=FAST) as a, End(HIGH) as b:
        b.hush()  # the kernel still completes connections
        a.say(b)
        await until(lambda: a.seen.losses)
        assert a.seen.losses == [(HIGH, "not reached within 2 s")]
        assert not a.links._peers


@both_loops
async def test_another_process_at_the_address_is_a_loss():
    async with End(LOW) as a, End(HIGH) as b:
        a.links.send("aa" * 8, b.address, Tokens([]))
        await until(lambda: a.seen.losses)
        assert a.seen.losses == [("aa" * 8, "not reached: another process is at its address")]
        assert not b.seen.messages


@both_loops
async def test_what_waits_for_a_link_is_bounded_and_lost_together():
    async with End(LOW) as a, End(HIGH) as b:
        for n in range(MAX_WAITING_MESSAGES + 100):
            a.say(b, n)
        assert not a.links.usable(HIGH)
        assert not a.seen.losses
        await until(lambda: a.seen.losses)
        assert len(a.seen.losses) == 1
        await asyncio.sleep(0.05)
        assert not b.heard()


@both_loops
async def test_a_frozen_peer_is_dropped_and_a_pause_of_our_own_is_not_taken_for_one():
    async with End(LOW, dilation=FAST) as a, End(HIGH, dilation=FAST) as b:
        a.say(b)
        await until(b.heard)
        for _ in range(3):
            time.sleep(0.2)  # 10 s by this clock
            await asyncio.sleep(0.02)
        assert not a.seen.losses
        b.link(LOW)._transport.pause_reading()
        for task in b.links._tasks:
            task.cancel()  # no heartbeats either
        await until(lambda: a.seen.losses)
        assert a.seen.losses == [(HIGH, "no sign of life for 5 s")]


@both_loops
async def test_idle_links_are_closed_by_the_one_that_dialled_and_are_no_loss():
    ticks = (links_module.IDLE_TICKS, links_module.IDLE_SLACK_TICKS)
    links_module.IDLE_TICKS, links_module.IDLE_SLACK_TICKS = 12, 8
    try:
        async with End(LOW, dilation=FAST) as a, End(HIGH, dilation=FAST) as b:
            a.seen.busy = True
            a.say(b)
            await until(b.heard)
            await asyncio.sleep(0.15)
            assert a.links.connected() == [HIGH]
            a.seen.busy = False
            for _ in range(5):  # which is no use of it
                a.links.send(HIGH, b.address, LoadReport(()))
                b.links.send(LOW, a.address, LoadReport(()))
            await until(lambda: not a.links._peers and not b.links._peers)
            assert not a.seen.losses + b.seen.losses
    finally:
        links_module.IDLE_TICKS, links_module.IDLE_SLACK_TICKS = ticks


@both_loops
async def test_a_handler_that_fails_costs_its_link_only():
    async with End(LOW) as a, End(HIGH) as b, End("88" * 8) as c:
        a.say(b)
        c.say(b)
        await until(lambda: len(b.heard()) == 2)

        def fail(boot, _):
            if boot == LOW:
                raise ValueError("test")

        b.seen.react = fail
        a.say(b, 1)
        c.say(b, 2)
        await until(lambda: a.seen.losses and 2 in b.heard())
        assert [boot for boot, _ in b.seen.losses] == [LOW]
        assert not c.seen.losses


@both_loops
async def test_stop_lets_the_last_messages_through():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        b.link(LOW)._transport.pause_reading()
        for n in range(3000):
            a.links.send(HIGH, None, Tokens([event("r", *range(n * 200, n * 200 + 200))]))
        a.links.send(HIGH, None, Lost((), "drained", planned=True))
        stopping = asyncio.ensure_future(a.links.stop())
        await asyncio.sleep(0.01)
        b.link(LOW).beat()  # answered no more, which must not cost what is on its way
        b.say(a)
        await asyncio.sleep(0.05)
        b.link(LOW)._transport.resume_reading()
        await stopping
        await until(lambda: b.seen.losses)
        assert isinstance(b.seen.messages[-1], Lost)
        tokens = [t for m in b.seen.messages if isinstance(m, Tokens) for t in m.events[0].tokens]
        assert tokens == [*range(600_000)]
        assert not a.seen.losses


@both_loops
async def test_stop_cuts_a_peer_that_does_not_read():
    async with End(LOW, dilation=FAST) as a, End(HIGH, dilation=FAST) as b:
        a.say(b)
        await until(b.heard)
        b.link(LOW)._transport.pause_reading()
        for _ in range(2000):
            a.links.send(HIGH, None, Lost((), "x" * 2000))
        a.links.send("77" * 8, ("127.0.0.1", 9), Lost((), ""))  # stopped while it dials
        await a.links.stop()
        assert not a.links._links
        assert not a.seen.losses
        a.say(b)
        assert not a.links._peers


@both_loops
async def test_a_message_above_its_limit_is_refused_and_nothing_else():
    async with End(LOW) as a, End(HIGH) as b:
        with pytest.raises(ProtocolError):
            a.links.send(HIGH, b.address, Lost((), "x" * (5 << 20)))
        a.say(b)
        await until(b.heard)
        with pytest.raises(ProtocolError):
            a.links.send(HIGH, b.address, Lost((), "x" * (5 << 20)))
        a.say(b, 1)
        await until(lambda: b.heard() == [0, 1])


# Plain tokens.


class Taker(Recorder):
    """Takes plain tokens apart from messages; cannot take those of `bad` requests."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: list[tuple[str, int, int]] = []

    def on_plain(self, boot, tokens):
        self.plain += tokens
        if tokens[0][0] == "bad":
            raise RuntimeError("a defect")


@both_loops
async def test_plain_tokens_are_told_apart_and_count_as_use():
    async with End(LOW) as a, End(HIGH, Taker()) as b:
        a.say(b)
        await until(b.heard)
        link = b.link(LOW)
        link.used, link.idle_ticks = False, 7
        a.links.send(HIGH, None, PlainTokens([("r", 0, 1), ("s", 0, 2)]))
        await until(lambda: b.seen.plain)
        assert b.seen.plain == [("r", 0, 1), ("s", 0, 2)]
        assert (link.used, link.idle_ticks) == (True, 0)


@both_loops
async def test_plain_tokens_that_cannot_be_handled_end_the_link():
    async with End(LOW) as a, End(HIGH, Taker()) as b:
        a.say(b)
        await until(b.heard)
        a.links.send(HIGH, None, PlainTokens([("bad", 0, 1)]))
        await until(lambda: b.seen.losses)
        assert "could not be handled" in b.seen.losses[0][1]


@both_loops
async def test_a_node_that_stops_hears_no_plain_tokens():
    async with End(LOW) as a, End(HIGH, Taker()) as b:
        a.say(b)
        await until(b.heard)
        stopping = asyncio.ensure_future(b.links.stop())
        await asyncio.sleep(0)
        a.links.send(HIGH, None, PlainTokens([("r", 0, 1)]))
        await stopping
        assert not b.seen.plain


# Flow control.


@both_loops
async def test_tokens_for_a_stalled_reader_are_merged_and_all_arrive():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        b.seen.messages.clear()
        b.link(LOW)._transport.pause_reading()
        steps, streams = 20_000, 8
        names = [f"request-{i}" for i in range(streams)]
        most = 0
        for n in range(steps):
            finish = FinishReason.LENGTH if n == steps - 1 else None
            if finish or n % 4 == 0:
                a.links.send(HIGH, None, Tokens([event(i, n, finish=finish) for i in names]))
            else:
                a.links.send(HIGH, None, PlainTokens([(i, 0, n) for i in names]))
            most = max(most, a.links.statistics().unsent_bytes)
            if n % 500 == 0:
                await asyncio.sleep(0)
        assert a.links.statistics().merged_events > 0
        assert most < 2 * HIGH_WATER_BYTES + 5 * steps * streams + 200 * streams
        b.link(LOW)._transport.resume_reading()
        await until(
            lambda: sum(bool(e.finish) for m in b.seen.messages for e in m.events) == streams
        )
        got = {i: [] for i in names}
        for message in b.seen.messages:
            for e in message.events:
                got[e.request_id] += e.tokens
        assert all(tokens == [*range(steps)] for tokens in got.values())
        assert len(b.seen.messages) < steps  # the stalled part came in few frames
        assert not a.seen.losses + b.seen.losses


@both_loops
async def test_one_step_is_one_message_while_the_reader_keeps_up():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        b.seen.messages.clear()
        for n in range(50):
            a.links.send(HIGH, None, Tokens([event(f"r{i}", n) for i in range(64)]))
            await asyncio.sleep(0.001)
        await until(lambda: len(b.seen.messages) == 50)
        assert [m.events[0].tokens for m in b.seen.messages] == [[n] for n in range(50)]
        assert a.links.statistics().merged_events == 0


@both_loops
async def test_a_peer_that_reads_nothing_is_dropped_at_the_cap():
    cap = link_module.MAX_UNSENT_BYTES
    link_module.MAX_UNSENT_BYTES = 2 << 20
    try:
        async with End(LOW) as a, End(HIGH) as b:
            a.say(b)
            await until(b.heard)
            b.link(LOW)._transport.pause_reading()
            for _ in range(100):
                a.links.send(HIGH, None, Lost((), "x" * (1 << 20)))
                assert a.links.statistics().unsent_bytes < 4 << 20
            assert not a.links.usable(HIGH)
            assert not a.seen.losses
            await until(lambda: a.seen.losses)
            b.link(LOW).drop("test over")
            assert a.seen.losses == [(HIGH, f"left more than {2 << 20} bytes unread")]
    finally:
        link_module.MAX_UNSENT_BYTES = cap


@both_loops
async def test_merged_tokens_go_before_the_news_that_the_rest_is_lost():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        b.seen.messages.clear()
        b.link(LOW)._transport.pause_reading()
        sent = 0
        while not a.links.statistics().merged_events:
            a.links.send(HIGH, None, Tokens([event("r", *range(sent, sent + 500))]))
            sent += 500
        a.links.send(HIGH, None, Lost((), "drained", planned=True))
        b.link(LOW)._transport.resume_reading()
        await until(lambda: isinstance(b.seen.messages[-1], Lost) if b.seen.messages else False)
        tokens = [t for m in b.seen.messages[:-1] for e in m.events for t in e.tokens]
        assert tokens == [*range(sent)]


# Peers that misbehave.


@pytest.mark.parametrize(
    ("payload", "sealed"),
    [
        (b"", True),
        (b"\xff garbage", True),
        (b"\x01\x80", True),  # a worker's message
        (b"\x0d\xc1", True),
        (b"\x00" * 64, False),
        (b"\xff\xff\xff\x7f" + b"x" * 64, False),
        ((MAX_RECORD_BYTES + 100).to_bytes(4, "little") + b"x" * 64, False),
        (b"\x20\x00\x00\x00" + b"x" * 32, False),
    ],
)
async def test_nonsense_ends_the_link_and_is_told_once(payload, sealed):
    async with End(LOW) as a, End("88" * 8) as c:
        c.say(a, 3)
        await until(a.heard)
        a.seen.messages.clear()
        await _impostor_beside(a, c, payload, sealed)
        assert [boot for boot, _ in a.seen.losses] == [HIGH]
        assert "protocol" in a.seen.losses[0][1]
        c.say(a, 4)
        await until(lambda: a.heard() == [4])


async def _impostor_beside(a: End, c: End, payload: bytes, sealed: bool) -> None:
    sock, session, _ = await connect_secure(a.address, KEYRING, HIGH, Purpose.LINK)
    with sock:
        await send_record(sock, session, dump(Tokens([])))
        await until(lambda: a.seen.messages)
        if sealed:
            await send_record(sock, session, payload)
        else:
            await asyncio.get_running_loop().sock_sendall(sock, payload)
        await until(lambda: a.seen.losses)
    await until(lambda: len(a.links._links) == 1)


async def test_a_peer_that_dribbles_a_record_is_alive_and_understood():
    async with End(LOW) as a:
        sock, session, _ = await connect_secure(a.address, KEYRING, HIGH, Purpose.LINK)
        with sock:
            for byte in session.seal(dump(Tokens([event("r", 1)]))):
                await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
            await until(lambda: a.seen.messages)
            assert a.seen.messages == [Tokens([event("r", 1)])]


async def test_a_link_that_was_never_used_is_no_loss():
    async with End(LOW) as a:
        sock, _, _ = await connect_secure(a.address, KEYRING, HIGH, Purpose.LINK)
        await until(lambda: a.seen.ups)
        sock.close()
        await until(lambda: not a.links._peers)
        assert not a.seen.losses


async def test_heartbeats_go_out_at_the_opening_and_every_second_and_are_echoed():
    async with End(LOW, dilation=0.05) as a:
        sock, session, _ = await connect_secure(a.address, KEYRING, HIGH, Purpose.LINK)
        with sock:
            opening = await receive_record(sock, session, 1000)
            began = time.monotonic()
            await send_record(sock, session, dump(Heartbeat(123.0)))
            assert await receive_record(sock, session, 1000) == dump(Heartbeat(123.0, echo=True))
            await receive_record(sock, session, 1000)
            await receive_record(sock, session, 1000)
            assert time.monotonic() - began < 5
            assert opening[0] == dump(Heartbeat(0.0))[0]


def test_sockets_of_other_families_are_left_alone():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link_module.tune(ours)


def test_records_are_long_enough_for_every_message():
    assert MAX_RECORD_BYTES == (4 << 20) + 1
