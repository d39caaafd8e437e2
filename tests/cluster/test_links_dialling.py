from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from blitzgw.core.peer import Tokens
from blitzgw.crypto.handshake import Purpose
from blitzgw.crypto.streams import connect_secure, send_record
from blitzgw.wire import dump
from tests.cluster.link_kit import HIGH, KEYRING, LOW, End, both_loops, until


@both_loops
async def test_simultaneous_dials_leave_one_link_and_lose_nothing():
    for _ in range(15):
        async with End(LOW) as a, End(HIGH) as b:
            for n in range(5):
                a.say(b, n)
                b.say(a, n)
            await until(lambda a=a, b=b: len(a.heard()) == len(b.heard()) == 5)
            await until(lambda a=a, b=b: len(a.links._links) == len(b.links._links) == 1)
            assert a.heard() == b.heard() == [*range(5)]
            assert a.link(HIGH).dialled
            assert not b.link(LOW).dialled
            assert not a.seen.losses + b.seen.losses


@pytest.mark.parametrize("seed", range(12))
async def test_dials_that_cross_at_any_moment_lose_nothing(seed):
    """Accepted connections reach the loop late, as they do from gossip's thread."""
    dice = random.Random(seed)
    async with End(LOW) as a, End(HIGH) as b:
        a.delay_s, b.delay_s = dice.choice([0, 0.01, 0.05]), dice.choice([0, 0.01, 0.05])
        sent = {LOW: 0, HIGH: 0}
        for _ in range(20):
            speaker, hearer = (a, b) if dice.random() < 0.5 else (b, a)
            speaker.say(hearer, sent[speaker.boot])
            sent[speaker.boot] += 1
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.01]))
        await until(lambda: len(b.heard()) == sent[LOW] and len(a.heard()) == sent[HIGH])
        await asyncio.sleep(0.12)  # late connections have arrived
        assert b.heard() == [*range(sent[LOW])]
        assert a.heard() == [*range(sent[HIGH])]
        assert not a.seen.losses + b.seen.losses
        assert len(a.links._links) == len(b.links._links) == 1


async def test_a_refused_dial_is_tried_again_where_the_other_sides_never_arrives():
    async with End(LOW) as a, End(HIGH) as b:
        b.hush()  # a's dial hangs, while b's is refused because of it
        a.say(b)
        await until(lambda: a.dials == 1)
        b.say(a, 1)
        await until(lambda: b.dials >= 3)
        assert not a.heard()
        a.links.drop(HIGH, "test")
        await until(lambda: a.heard() == [1])
        assert not b.seen.losses


@both_loops
async def test_a_connection_of_a_peer_that_has_lost_the_link_replaces_it():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        old = a.link(HIGH)
        b.links._peers.clear()  # it has forgotten, and the end of the old one has not been seen
        order = []
        a.seen.mourn = lambda _: order.append("lost")
        a.seen.react = lambda _, m: order.append(m.attempt)
        b.say(a, 1)
        b.say(a, 2)
        await until(lambda: a.heard() == [1, 2])
        assert order == ["lost", 1, 2]
        assert a.seen.losses == [(HIGH, "replaced by a new link")]
        assert a.link(HIGH) is not old
        assert old.dropped
        a.say(b, 9)
        await until(lambda: b.heard()[-1] == 9)
        await until(lambda: len(a.links._links) == len(b.links._links) == 1)
        assert len(a.seen.losses) == 1


@both_loops
async def test_a_connection_that_its_peer_has_abandoned_replaces_nothing():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        for _ in range(3):
            sock, _, _ = await connect_secure(a.address, KEYRING, HIGH, Purpose.LINK)
            await until(lambda: len(a.links._links) == 2)
            sock.close()
            await until(lambda: len(a.links._links) == 1)
        b.say(a, 4)
        await until(lambda: a.heard() == [4])
        assert not a.seen.losses + b.seen.losses


async def test_of_several_connections_put_aside_the_last_one_counts():
    async with End(LOW) as a, End(HIGH) as b:
        a.say(b)
        await until(b.heard)
        b.links._peers.clear()
        first, early, _ = await connect_secure(a.address, KEYRING, HIGH, Purpose.LINK)
        await until(lambda: len(a.links._links) == 2)
        second, late, _ = await connect_secure(a.address, KEYRING, HIGH, Purpose.LINK)
        with first, second:
            await until(lambda: a.links._peers[HIGH].candidate is not None)
            await asyncio.sleep(0.05)
            with contextlib.suppress(OSError):  # it has been closed
                await send_record(first, early, dump(Tokens([])))
            await asyncio.sleep(0.05)
            assert not a.seen.messages
            assert not a.seen.losses
            await send_record(second, late, dump(Tokens([])))
            await until(lambda: a.seen.messages)
            assert len(a.seen.losses) == 1


async def test_a_late_connection_of_a_stopped_node_is_closed():
    async with End(LOW) as a, End(HIGH) as b:
        a.delay_s = 0.05
        b.say(a)
        await asyncio.sleep(0.02)
        await a.links.stop()
        await asyncio.sleep(0.1)
        assert not a.links._links
        assert not a.seen.ups
