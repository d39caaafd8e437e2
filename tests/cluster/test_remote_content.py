from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from blitzgw.core.card import content_digest
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.peer import Content, Fetch
from blitzgw.errors import PeerLost, ProtocolError
from blitzgw.gossip import content
from blitzgw.gossip.content import (
    CHUNK_BYTES,
    MAX_FETCHES,
    MAX_REPLIES,
    ContentClient,
    ContentServer,
)
from blitzgw.gossip.snapshots import MAX_SNAPSHOTS, SHARED_BYTES, SNAPSHOT_S, Snapshots
from tests.cluster.link_kit import FAST, HIGH, LOW, End, Recorder, until

BIG = os.urandom(5 * CHUNK_BYTES + 17)


class Library(Recorder):
    """What has content, and fetches it."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf: dict[str, Any] = {}
        self.asked: list[str] = []

    def join(self, end: End) -> None:
        self.server = ContentServer(end.links, self.provide)
        self.client = ContentClient(end.links, end.clock)

    def provide(self, what: str) -> Any:
        self.asked.append(what)
        found = self.shelf.get(what)
        return found() if callable(found) else found

    def on_message(self, boot: str, message: Any) -> None:
        super().on_message(boot, message)
        if isinstance(message, Fetch):
            self.server.on_fetch(boot, message)
        else:
            self.client.on_content(boot, message)

    def on_link_lost(self, boot: str, reason: str) -> None:
        super().on_link_lost(boot, reason)
        self.server.link_lost(boot)
        self.client.link_lost(boot, reason)


class Shelves:
    """`a` fetches from `b`."""

    def __init__(self, dilation: float = 1.0) -> None:
        self.a = End(LOW, Library(), dilation)
        self.b = End(HIGH, Library(), dilation)

    async def __aenter__(self) -> Shelves:
        for end in (self.a, self.b):
            await end.__aenter__()
            end.seen.join(end)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for end in (self.a, self.b):
            await end.__aexit__()
            await end.seen.server.stop()

    async def fetch(self, what: str, max_bytes: int = 8 << 20, timeout_s: float = 8.0) -> bytes:
        client = self.a.seen.client
        return await client.fetch(HIGH, self.b.address, what, max_bytes, timeout_s)

    def put(self, data: Any, what: str = "") -> str:
        what = what or f"blob/{content_digest(data)}"
        self.b.seen.shelf[what] = data
        return what


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(BIG)])
async def test_content_of_any_size_arrives(size):
    async with Shelves() as shelves:
        assert await shelves.fetch(shelves.put(BIG[:size])) == BIG[:size]
        assert not shelves.a.seen.client._pulls
        assert not shelves.b.seen.server._snapshots._own


async def test_a_provider_may_take_its_time_and_is_asked_once_for_one_picture():
    async with Shelves() as shelves:
        versions = iter([BIG, BIG[::-1], BIG[1:], BIG[2:]])

        async def requests() -> bytes:
            data = next(versions)
            await asyncio.sleep(0.02)
            return data

        shelves.put(requests, "requests")
        assert await shelves.fetch("requests") == BIG
        assert shelves.b.seen.asked == ["requests"]


async def test_content_is_pulled_two_chunks_at_a_time():
    async with Shelves() as shelves:
        most = 0

        def watch(boot: str, message: Any) -> None:
            nonlocal most
            fetched = len([m for m in shelves.b.seen.messages if isinstance(m, Fetch)])
            most = max(most, fetched - len(shelves.a.seen.messages))

        shelves.b.seen.react = watch
        await shelves.fetch(shelves.put(BIG))
        assert len(shelves.a.seen.messages) == 6
        assert most <= 2 + 1


async def test_many_fetches_at_once():
    async with Shelves() as shelves:
        parts = [BIG[i * 1000 :] for i in range(3 * MAX_FETCHES)]
        names = [shelves.put(part) for part in parts]
        assert await asyncio.gather(*map(shelves.fetch, names)) == parts
        assert len(shelves.a.seen.client._turns) == 1


async def test_what_is_not_there_is_said_so():
    async with Shelves() as shelves:
        with pytest.raises(PeerLost, match="does not have"):
            await shelves.fetch("blob/" + "0" * 64)

        def fail() -> bytes:
            raise OSError("disk")

        shelves.put(fail, "requests")
        with pytest.raises(PeerLost, match="does not have"):
            await shelves.fetch("requests")


@pytest.mark.parametrize("kind", ["blob", "card"])
@pytest.mark.parametrize("data", [b"forged", BIG], ids=["small", "big"])
async def test_content_is_checked_against_its_digest(kind, data):
    async with Shelves() as shelves:
        what = shelves.put(data, f"{kind}/{content_digest(b'genuine')}")
        with pytest.raises(ProtocolError, match="digest"):
            await shelves.fetch(what)
        assert await shelves.fetch(shelves.put(data, "requests")) == data


async def test_content_above_the_limit_is_not_taken():
    async with Shelves() as shelves:
        what = shelves.put(BIG)
        with pytest.raises(ProtocolError, match="limit"):
            await shelves.fetch(what, max_bytes=len(BIG) - 1)
        assert len(shelves.a.seen.messages) <= 1
        assert await shelves.fetch(what, max_bytes=len(BIG)) == BIG


async def test_a_link_that_breaks_fails_what_was_under_way():
    async with Shelves() as shelves:
        never = asyncio.Event()
        shelves.put(never.wait, "requests")
        fetches = [asyncio.ensure_future(shelves.fetch("requests")) for _ in range(3)]
        await until(lambda: len(shelves.b.seen.asked) == 3)
        assert shelves.a.seen.client.count(HIGH) == 3
        shelves.b.link(LOW).drop("test")
        for result in await asyncio.gather(*fetches, return_exceptions=True):
            assert isinstance(result, PeerLost)
        await until(lambda: not shelves.b.seen.server._replies.get(LOW))


async def test_a_peer_out_of_reach_fails_the_fetch():
    async with Shelves(FAST) as shelves:
        shelves.b.hush()
        with pytest.raises(PeerLost, match="not reached"):
            await shelves.fetch("requests", timeout_s=30.0)


async def test_a_fetch_takes_no_longer_than_it_may_and_can_be_cancelled():
    async with Shelves() as shelves:
        never = asyncio.Event()
        shelves.put(never.wait, "requests")
        with pytest.raises(PeerLost, match="has not come"):
            await shelves.fetch("requests", timeout_s=0.05)
        waiting = asyncio.ensure_future(shelves.fetch("requests"))
        await until(lambda: len(shelves.b.seen.asked) == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not shelves.a.seen.client._pulls


@pytest.mark.parametrize(
    "answer",
    [
        (0, -2, b""),
        (0, 1 << 60, b""),
        (0, 10, b"short"),
        (0, 10, b"much too long"),
        (1, 10, b"x" * 9),
        (CHUNK_BYTES, 10, b""),
        (-CHUNK_BYTES, 10, b"x" * 10),
    ],
)
async def test_answers_that_make_no_sense_fail_the_fetch_only(answer):
    offset, total, data = answer
    async with Shelves() as shelves:
        b = shelves.b
        b.seen.server.on_fetch = lambda boot, m: b.links.send(
            boot, None, Content(m.id, offset, total, data)
        )
        with pytest.raises(ProtocolError):
            await shelves.fetch("requests")
        assert not shelves.a.seen.losses
        assert shelves.a.links.statistics().up == 1


async def test_content_that_nobody_waits_for_is_dropped():
    async with Shelves() as shelves:
        what = shelves.put(b"x")
        await shelves.fetch(what)
        shelves.b.links.send(LOW, None, Content(1, 0, 1, b"y"))
        shelves.b.links.send(LOW, None, Content(99, 0, 1, b"y"))
        assert await shelves.fetch(what) == b"x"


async def test_what_one_peer_can_make_a_server_hold_is_bounded():
    async with Shelves() as shelves:
        a, server = shelves.a, shelves.b.seen.server
        shelves.put(BIG, "requests")
        for n in range(3 * MAX_SNAPSHOTS):
            a.links.send(HIGH, shelves.b.address, Fetch(1000 + n, "requests", 0))
            await until(lambda n=n: len(a.seen.messages) == n + 1)
        assert len(server._snapshots) == MAX_SNAPSHOTS
        never = asyncio.Event()
        shelves.put(never.wait, "slow")
        a.seen.messages.clear()
        for n in range(MAX_REPLIES + 5):
            a.links.send(HIGH, None, Fetch(5000 + n, "slow", 0))
        await until(lambda: len(a.seen.messages) == 5)
        assert {m.total for m in a.seen.messages} == {-1}
        a.links.send(HIGH, None, Fetch(9000, "requests", -1))
        assert len(server._replies[LOW]) == MAX_REPLIES


def slowly(shelves: Shelves, delay_s: float) -> None:
    """Let every chunk take its time."""
    server, loop = shelves.b.seen.server, asyncio.get_running_loop()
    answer = server.on_fetch
    server.on_fetch = lambda boot, m: loop.call_later(delay_s, answer, boot, m)


async def test_a_slow_link_is_waited_for_while_something_comes():
    async with Shelves() as shelves:
        slowly(shelves, 0.3)
        began = asyncio.get_running_loop().time()
        assert await shelves.fetch(shelves.put(BIG), timeout_s=0.7) == BIG
        assert asyncio.get_running_loop().time() - began > 1.0


async def test_what_comes_too_slowly_as_a_whole_is_given_up(monkeypatch):
    monkeypatch.setattr(content, "MIN_BYTES_PER_S", 1 << 40)
    async with Shelves() as shelves:
        slowly(shelves, 0.3)
        with pytest.raises(PeerLost, match="slowly"):
            await shelves.fetch(shelves.put(BIG), timeout_s=0.7)
        assert shelves.a.seen.messages


async def test_a_fetch_that_stops_half_way_fails():
    async with Shelves() as shelves:
        server = shelves.b.seen.server
        answer = server.on_fetch
        server.on_fetch = lambda boot, m: m.offset or answer(boot, m)
        with pytest.raises(PeerLost, match="has not come"):
            await shelves.fetch(shelves.put(BIG), timeout_s=0.1)
        assert len(shelves.a.seen.messages) == 1


async def test_content_named_by_its_digest_is_kept_once_and_not_for_ever():
    async with Shelves() as shelves:
        server = shelves.b.seen.server
        server._clock = MonotonicClock(0.2 / SNAPSHOT_S)
        what = shelves.put(BIG)
        assert await asyncio.gather(*(shelves.fetch(what) for _ in range(6))) == [BIG] * 6
        assert shelves.b.seen.asked == [what]
        assert server._snapshots.size_bytes == len(BIG)
        shelves.put(BIG, "requests")
        shelves.a.links.send(HIGH, shelves.b.address, Fetch(1000, "requests", 0))
        await until(lambda: server._snapshots.size_bytes == 2 * len(BIG))
        await until(lambda: server._snapshots.size_bytes == 0)
        assert await shelves.fetch(what) == BIG
        assert shelves.b.seen.asked.count(what) == 2


def test_snapshots_end_with_the_link_of_their_only_reader():
    kept = Snapshots()
    for boot in (LOW, HIGH):
        assert kept.share(boot, "blob/1", b"x" * 10, 0.0) == b"x" * 10
    kept.keep(LOW, 7, b"y", 0.0)
    kept.lost(LOW)
    assert kept.find(LOW, 7, "requests", 1.0) is None
    assert kept.find(HIGH, 3, "blob/1", 1.0) is not None
    kept.lost(HIGH)
    assert len(kept) == 0
    kept.share(LOW, "blob/2", b"z", 2.0)
    kept.finished(LOW, 1, "blob/2")
    kept.lost(LOW)
    assert kept.find(HIGH, 4, "blob/2", 3.0) == b"z"
    kept.expire(3.0 + SNAPSHOT_S)
    assert len(kept) == 0


def test_what_peers_share_has_a_limit():
    kept, part = Snapshots(), bytes(SHARED_BYTES // 4)
    for n in range(6):
        kept.share(LOW, f"blob/{n}", part, 0.0)
        assert kept.find(LOW, n, "blob/0", 0.0) is not None
    assert kept.size_bytes == 4 * len(part)
    assert kept.find(LOW, 9, "blob/1", 0.0) is None
    kept.share(LOW, "blob/large", bytes(SHARED_BYTES + 1), 0.0)
    assert len(kept) == 1
