"""Content that nodes fetch from each other over peer links: blobs of text models, cards, lists.

The receiver pulls chunk by chunk, WINDOW chunks at a time, so what stands before a token is never
more than those. What is named by its digest is checked against it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from blitzgw.core.card import content_digest
from blitzgw.core.clock import Clock, MonotonicClock
from blitzgw.core.peer import Content, Fetch
from blitzgw.errors import PeerLost, ProtocolError
from blitzgw.gossip.events import Address
from blitzgw.gossip.links import Links
from blitzgw.gossip.snapshots import SNAPSHOT_S, Snapshots

log = logging.getLogger(__name__)

CHUNK_BYTES = 256 << 10
"""Bytes of one `Content`: 2 ms of a gigabit; both ends count on it."""

WINDOW = 2
"""Chunks asked for at once: one is under way while another is being put in place."""

MAX_FETCHES = 4
"""Fetches under way from one peer; more wait their turn, `timeout_s` of `fetch` at most."""

MIN_BYTES_PER_S = 64 << 10
"""Slowest a content may come as a whole: 64 MiB in 17 minutes. Below that another source, or
another time, is the better choice."""

MAX_REPLIES = MAX_FETCHES * WINDOW * 2
"""Chunks of one peer that may be waited for here; one that asks for more is told that it is not."""

CHECKED = ("blob/", "card/")
"""Beginnings of names that end in the BLAKE2b-256 digest of the content, in hexadecimal."""

ABSENT = -1
"""`Content.total` of what is not here."""

Provider = Callable[[str], bytes | Awaitable[bytes | None] | None]
"""Returns the content of that name, or None. Its time is bounded by the asking side's patience."""


class ContentServer:
    """Answers `Fetch`es of peers with what a provider has. Without a clock: the machine's own."""

    def __init__(self, links: Links, provider: Provider, clock: Clock | None = None) -> None:
        self._links, self._provider = links, provider
        self._clock: Clock = clock or MonotonicClock()
        self._snapshots = Snapshots()
        self._replies: dict[str, set[asyncio.Task[None]]] = {}
        self._sweeping: asyncio.Task[None] | None = None

    def on_fetch(self, boot: str, message: Fetch) -> None:
        """Send a chunk, at once or when the provider has it."""
        kept = self._kept(boot, message)
        if kept is not None:
            self._send(boot, message, kept)
            return
        replies = self._replies.setdefault(boot, set())
        if len(replies) >= MAX_REPLIES:
            log.warning("content_refused peer=%s fetch=%d", boot, message.id)
            self._send(boot, message, None)
            return
        task = asyncio.get_running_loop().create_task(self._reply(boot, message))
        replies.add(task)
        task.add_done_callback(replies.discard)

    def link_lost(self, boot: str) -> None:
        """Forget what was under way for a peer."""
        self._snapshots.lost(boot)
        for task in self._replies.pop(boot, ()):
            task.cancel()

    async def stop(self) -> None:
        """End what is under way."""
        tasks = {task for replies in self._replies.values() for task in replies}
        for boot in [*self._replies]:
            self.link_lost(boot)
        if self._sweeping is not None:
            self._sweeping.cancel()
            tasks.add(self._sweeping)
        if tasks:
            await asyncio.wait(tasks)  # bounded: they are cancelled

    async def _reply(self, boot: str, message: Fetch) -> None:
        data = self._kept(boot, message)  # perhaps by now
        if data is not None:
            self._send(boot, message, data)
            return
        try:
            provided = self._provider(message.what)
            data = await provided if inspect.isawaitable(provided) else provided
        except Exception:  # the peer is told, and asks somebody else
            log.exception("content_failed peer=%s fetch=%d", boot, message.id)
            data = None
        if data is not None and len(data) > CHUNK_BYTES:
            data = self._keep(boot, message, data)
        self._send(boot, message, data)

    def _kept(self, boot: str, message: Fetch) -> bytes | None:
        return self._snapshots.find(boot, message.id, message.what, self._clock.now())

    def _keep(self, boot: str, message: Fetch, data: bytes) -> bytes:
        """Keep content for the next chunks; return what they are all of."""
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        now = self._clock.now()
        if message.what.startswith(CHECKED):
            return self._snapshots.share(boot, message.what, data, now)
        return self._snapshots.keep(boot, message.id, data, now)

    def _send(self, boot: str, message: Fetch, data: bytes | None) -> None:
        if data is None or not 0 <= message.offset <= len(data):
            self._links.send(boot, None, Content(message.id, message.offset, ABSENT, b""))
            return
        stop = message.offset + CHUNK_BYTES
        if stop >= len(data):
            self._snapshots.finished(boot, message.id, message.what)
        chunk = data[message.offset : stop]
        self._links.send(boot, None, Content(message.id, message.offset, len(data), chunk))

    async def _sweep(self) -> None:
        """Drop snapshots that are not used any more, as long as there are any."""
        try:
            while True:
                await self._clock.sleep(SNAPSHOT_S / 2)
                self._snapshots.expire(self._clock.now())
                if not self._snapshots:
                    return
        finally:
            self._sweeping = None


@dataclass(slots=True)
class _Pull:
    """A fetch under way. `asked` is the offset of the next chunk to ask for.

    `heard_s` is when it began or its last chunk came.
    """

    boot: str
    what: str
    max_bytes: int
    done: asyncio.Future[bytes]
    began_s: float
    heard_s: float
    asked: int = 0
    total: int | None = None
    chunks: dict[int, bytes] = field(default_factory=dict)


class ContentClient:
    """Fetches content from peers."""

    def __init__(self, links: Links, clock: Clock) -> None:
        self._links, self._clock = links, clock
        self._pulls: dict[int, _Pull] = {}
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._n = 0

    async def fetch(
        self, boot: str, address: Address, what: str, max_bytes: int, timeout_s: float
    ) -> bytes:
        """Return content that a peer has, of at most `max_bytes`.

        Raises PeerLost where the link breaks, nothing comes for `timeout_s`, not all has come after
        `timeout_s` and as long as MIN_BYTES_PER_S takes, or the peer does not have it; and
        ProtocolError for content that is too long or not what its digest says.
        """
        now = self._clock.now()
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        pull = _Pull(boot, what, max_bytes, done, now, now)
        pulling = asyncio.ensure_future(self._pull(pull, address))
        limit = asyncio.ensure_future(self._until_late(pull, timeout_s))
        try:
            await asyncio.wait({pulling, limit}, return_when=asyncio.FIRST_COMPLETED)
            if not pulling.done():
                raise PeerLost(f"{what[:80]} has not come: nothing for {timeout_s:g} s, or slowly")
            data = pulling.result()
        finally:
            pulling.cancel()
            limit.cancel()
            await asyncio.wait({pulling, limit})  # at once
            if not pulling.cancelled():
                pulling.exception()  # looked at, also where the caller has been cancelled
        if what.startswith(CHECKED):
            await _check(what, data)
        return data

    def on_content(self, boot: str, message: Content) -> None:
        """Take a chunk. What nobody waits for is dropped."""
        pull = self._pulls.get(message.id)
        if pull is None or pull.boot != boot or pull.done.done():
            return
        try:
            self._take(message, pull)
        except (PeerLost, ProtocolError) as error:
            pull.done.set_exception(error)

    def link_lost(self, boot: str, reason: str) -> None:
        """Fail all fetches from a peer."""
        for pull in self._pulls.values():
            if pull.boot == boot and not pull.done.done():
                pull.done.set_exception(PeerLost(reason))

    def count(self, boot: str) -> int:
        """Return how many fetches from a peer are under way."""
        return sum(pull.boot == boot for pull in self._pulls.values())

    async def _pull(self, pull: _Pull, address: Address) -> bytes:
        async with self._turn(pull.boot):
            self._n += 1
            fetch = self._n
            self._pulls[fetch] = pull
            try:
                self._ask(fetch, pull, address)
                return await pull.done  # bounded by the time-out of `fetch`
            finally:
                del self._pulls[fetch]

    async def _until_late(self, pull: _Pull, timeout_s: float) -> None:
        """Wait until a fetch has made no progress for too long, or takes too long altogether."""
        while True:  # bounded by the size of what is fetched
            whole_s = (pull.total or 0) / MIN_BYTES_PER_S
            late_s = min(pull.heard_s, pull.began_s + whole_s) + timeout_s
            left_s = late_s - self._clock.now()
            if left_s <= 0:
                return
            await self._clock.sleep(left_s)

    def _turn(self, boot: str) -> asyncio.Semaphore:
        """Return a peer's semaphore; those of peers from whom nothing is fetched are forgotten."""
        busy = {pull.boot for pull in self._pulls.values()}
        for other in [b for b in self._turns if b not in busy and b != boot]:
            if not self._turns[other].locked():
                del self._turns[other]
        return self._turns.setdefault(boot, asyncio.Semaphore(MAX_FETCHES))

    def _ask(self, fetch: int, pull: _Pull, address: Address | None = None) -> None:
        self._links.send(pull.boot, address, Fetch(fetch, pull.what, pull.asked))
        pull.asked += CHUNK_BYTES

    def _take(self, message: Content, pull: _Pull) -> None:
        total, offset = message.total, message.offset
        if total == ABSENT:
            raise PeerLost(f"the peer does not have {pull.what[:80]}")
        if not 0 <= total <= pull.max_bytes:
            raise ProtocolError(f"content of {total} bytes; the limit is {pull.max_bytes}")
        if pull.total is None:
            pull.total = total
        asked_for = offset in range(0, pull.asked, CHUNK_BYTES) and offset not in pull.chunks
        if total != pull.total or not asked_for:
            raise ProtocolError("content that was not asked for")
        if len(message.data) != min(CHUNK_BYTES, total - offset):
            raise ProtocolError(f"a chunk of {len(message.data)} bytes")
        pull.chunks[offset] = message.data
        pull.heard_s = self._clock.now()
        if pull.asked >= total and len(pull.chunks) * CHUNK_BYTES >= total:
            pull.done.set_result(b"".join(pull.chunks[at] for at in sorted(pull.chunks)))
            return
        under_way = pull.asked // CHUNK_BYTES - len(pull.chunks)
        for _ in range(WINDOW - under_way):
            if pull.asked < total:
                self._ask(message.id, pull)


async def _check(what: str, data: bytes) -> None:
    """Raise ProtocolError where content is not what its name says; a thread does the arithmetic."""
    if len(data) <= CHUNK_BYTES:
        found = content_digest(data)
    else:
        found = await asyncio.to_thread(content_digest, data)
    if found != what.partition("/")[2]:
        raise ProtocolError(f"content whose digest is not that of {what[:80]}")
