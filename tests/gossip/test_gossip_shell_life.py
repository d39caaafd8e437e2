"""Gossip threads over real sockets: joining, publishing, dying, leaving, stopping, failing."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from blitzgw.core.rumours import Rumour, Status, Update
from blitzgw.crypto.handshake import Purpose
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import Session
from blitzgw.crypto.streams import connect_secure, receive_record
from blitzgw.gossip import shell, sockets
from blitzgw.gossip.events import (
    LinkBroke,
    MemberChanged,
    SeedsFound,
    StateChanged,
    StatePublished,
    TimePassed,
)
from tests.gossip.shell_kit import KEY, Node, Quiet, running, until

KEYRING = Keyring((KEY,))


def member(n: int) -> MemberChanged:
    return MemberChanged(Rumour(f"{n:016x}", "n", "127.0.0.1", 1, 1, 0, Status.ALIVE))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_two_meet_and_know_what_the_other_publishes(host):
    ann = Node(host=host)
    async with running(ann):
        bob = Node(ann.seed, host=host)
        bob.gossip.publish({"before/start": b"0"})
        async with running(bob):
            ann.gossip.publish({"node": b"a"})
            bob.gossip.publish({"node": b"b", "gone": b"x"})
            bob.gossip.publish({"gone": None})
            await until(lambda: bob.boot in ann.alive() and ann.boot in bob.alive())
            await until(lambda: ann.entries.get((bob.boot, "node")) == b"b")
            await until(lambda: bob.entries.get((ann.boot, "node")) == b"a")
            assert ann.entries[bob.boot, "before/start"] == b"0"
            assert ann.entries.get((bob.boot, "gone")) is None
            await until(lambda: ann.gossip.statistics().syncs_done >= 1)  # a packet may be sooner
            figures = ann.gossip.statistics()
            await until(lambda: ann.gossip.statistics().packets_in > figures.packets_in)
            assert sum(figures.rejected.values()) == 0


async def test_three_meet_through_one_and_a_death_is_noticed():
    ann = Node()
    async with running(ann):
        bob, cat = Node(ann.seed), Node(ann.seed)
        async with running(bob):
            async with running(cat):
                await until(lambda: all(len(n.alive() | {n.boot}) == 3 for n in (ann, bob, cat)))
            # cat's sockets are closed without a word
            await until(lambda: ann.members[cat.boot] is Status.DEAD)
            await until(lambda: bob.members[cat.boot] is Status.DEAD)
            assert bob.boot in ann.alive()


async def test_a_departure_is_told():
    ann = Node()
    async with running(ann):
        bob = Node(ann.seed)
        async with running(bob):
            await until(lambda: bob.boot in ann.alive() and ann.boot in bob.alive())
            assert await bob.gossip.leave(5.0)
        await until(lambda: ann.members[bob.boot] is Status.LEFT)


async def test_time_may_be_dilated():
    ann = Node(dilation=3.0)
    async with running(ann):
        bob = Node(ann.seed, dilation=3.0)
        async with running(bob):
            await until(lambda: bob.boot in ann.alive() and ann.boot in bob.alive())


@pytest.mark.parametrize("slice_s", [0.02, 1.0])
async def test_a_busy_node_still_answers(slice_s):
    ann = Node()
    async with running(ann):
        bob = Node(ann.seed)
        async with running(bob):
            await until(lambda: bob.boot in ann.alive() and ann.boot in bob.alive())
            before = ann.gossip.statistics().packets_out
            ann.news.clear()
            started = time.monotonic()
            while time.monotonic() - started < 1.0:
                time.sleep(slice_s)  # this is the main event loop of both
            assert ann.gossip.statistics().packets_out - before >= 8
            await asyncio.sleep(0.05)
            assert not [n for n in ann.news if isinstance(n, MemberChanged)]


async def test_peer_links_are_handed_over_with_nothing_lost():
    ann = Node(decider=Quiet())
    async with running(ann):
        sock, session, boot = await connect_secure(ann.address, KEYRING, "aa" * 8, Purpose.LINK)
        with sock:
            assert boot == ann.boot
            await asyncio.get_running_loop().sock_sendall(sock, session.seal(b"at once"))
            await until(lambda: ann.links)
            theirs, other, peer = ann.links[0]
            assert peer == "aa" * 8
            assert await receive_record(theirs, other, 100) == b"at once"


async def test_links_that_the_node_does_not_take_in_time_are_closed(monkeypatch):
    monkeypatch.setattr(shell, "MAX_LINKS_WAITING", 2)
    ann = Node(decider=Quiet())
    session = Session(bytes(32), bytes(32), "aa" * 8)
    pairs = [socket.socketpair() for _ in range(4)]
    async with running(ann):
        for ours, _ in pairs[:3]:
            ann.gossip._hand_over(ours, session)
        assert [ours.fileno() < 0 for ours, _ in pairs[:3]] == [False, False, True]
        await until(lambda: len(ann.links) == 2)
        ann.gossip._hand_over(pairs[3][0], session)
    await until(lambda: pairs[3][0].fileno() < 0)  # it came after the end
    assert len(ann.links) == 2
    for _, theirs in pairs:
        theirs.close()


async def test_what_the_node_says_is_merged_while_gossip_is_busy():
    quiet = Quiet()
    quiet.react = lambda event: time.sleep(0.2) or [] if isinstance(event, LinkBroke) else []
    ann = Node(decider=quiet)
    async with running(ann):
        ann.gossip.link_broke("slow")
        await until(lambda: quiet.events)
        for n in range(1000):
            ann.gossip.publish({"load": str(n).encode(), f"k{n % 2}": None})
            ann.gossip.link_broke("b")
        await until(lambda: len(quiet.events) >= 3)
    assert quiet.events[1:] == [
        StatePublished({"load": b"999", "k0": None, "k1": None}),
        LinkBroke("b"),
    ]


async def test_what_gossip_says_is_merged_while_the_node_is_busy():
    quiet = Quiet()

    def react(event):
        if not isinstance(event, LinkBroke):
            return []
        n = int(event.boot)
        update = Update(f"{n % 3:016x}", "load", n, str(n).encode())
        return [member(n % 3), StateChanged((update,))]

    quiet.react = react
    ann = Node(decider=quiet)
    async with running(ann):
        for n in range(300):
            ann.gossip.link_broke(str(n))
        time.sleep(0.3)
        await until(lambda: ann.news)
        assert len(ann.news) <= 6
        assert {v for (_, k), v in ann.entries.items()} == {b"297", b"298", b"299"}


async def test_seeds_are_resolved_and_oneself_left_out():
    quiet = Quiet()
    ann = Node("localhost:7", "localhost", "10.1.2.3:9", "no-such-name.invalid", decider=quiet)
    async with running(ann):
        await until(lambda: any(isinstance(e, SeedsFound) for e in quiet.events))
    found = next(e for e in quiet.events if isinstance(e, SeedsFound)).addresses
    assert ("127.0.0.1", 7) in found
    assert ("10.1.2.3", 9) in found
    assert ann.address not in found
    assert all(host in ("127.0.0.1", "::1", "10.1.2.3") for host, _ in found)


async def test_a_seed_that_cannot_be_meant_is_said_at_once():
    ann = Node("a:b:c")
    with pytest.raises(ValueError, match="a:b:c"):
        await ann.gossip.start()
    await ann.gossip.stop()


async def test_the_timer_keeps_to_the_deadline_and_does_not_spin():
    quiet = Quiet()
    quiet.due = 0.0
    ann = Node(decider=quiet)
    async with running(ann):
        await asyncio.sleep(0.3)
    assert 3 < len(quiet.events) < 400
    assert set(map(type, quiet.events)) == {TimePassed}


async def test_a_port_that_is_taken_is_an_os_error():
    ann = Node(decider=Quiet())
    async with running(ann):
        bob = Node(decider=Quiet())
        bob.gossip._settings = ann.gossip._settings.__class__(bob.boot, port=ann.port)
        with pytest.raises(OSError, match="in use"):
            await bob.gossip.start()
        await bob.gossip.stop()


def test_both_sockets_share_a_port_even_where_the_first_choice_is_taken(monkeypatch):
    taken = iter([True, True, False])
    real = sockets._bind

    def bind(host, port, kind):
        if kind == socket.SOCK_DGRAM and next(taken):
            raise OSError(98, "in use")
        return real(host, port, kind)

    monkeypatch.setattr(sockets, "_bind", bind)
    udp, tcp, port = sockets.bind_both("127.0.0.1", 0)
    with udp, tcp:
        assert udp.getsockname()[1] == tcp.getsockname()[1] == port


async def test_a_fault_in_the_thread_is_reported_and_ends_it(caplog):
    quiet = Quiet()

    def react(event):
        raise RuntimeError("a defect")

    quiet.react = react
    ann = Node(decider=quiet)
    port = await ann.gossip.start()
    ann.gossip.link_broke("b")
    await until(lambda: ann.failures)
    assert str(ann.failures[0]) == "a defect"
    assert "gossip_failed" in caplog.text
    assert not await ann.gossip.leave(5.0)
    ann.gossip.publish({"x": b""})
    await ann.gossip.stop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", port))


async def test_entries_beyond_the_limits_cost_only_themselves(caplog):
    quiet = Quiet()

    def react(event):
        if isinstance(event, StatePublished) and any(map(bool, event.entries.values())):
            raise ValueError("too much")
        return []

    quiet.react = react
    ann = Node(decider=quiet)
    async with running(ann):
        ann.gossip.publish({"bad": b"x", "good": b""})
        await until(lambda: len(quiet.events) == 3)
    assert quiet.events[-1] == StatePublished({"good": b""})
    assert "key=bad" in caplog.text


async def test_stopping_is_quick_final_and_can_be_repeated():
    ann = Node("a-name-that-is-slow.invalid")
    await ann.gossip.start()
    started = time.monotonic()
    await ann.gossip.stop()
    await ann.gossip.stop()
    assert time.monotonic() - started < 2
    assert not [t for t in threading.enumerate() if t.name == "gossip" and t.is_alive()]
    assert not await ann.gossip.leave(1.0)
    assert Node().gossip.statistics() is None
    await Node().gossip.stop()
