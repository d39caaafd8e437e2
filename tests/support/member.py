"""A member of gossip without a node around it: the production thread and membership, by command.

Commands come as lines on the standard input: `publish` changes its state, `statistics` reports what
went over its sockets; the end of the input is a goodbye. What happens is told as JSON lines, each
with the machine's monotonic time in `at`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.rumours import Rumour, Status
from blitzgw.crypto.keys import Keyring
from blitzgw.gossip.crossing import News
from blitzgw.gossip.events import Address, MemberChanged, StateChanged
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.membership import Membership
from blitzgw.gossip.shell import GossipThread
from blitzgw.gossip.terms import GossipSettings

ENTRIES, ENTRY_BYTES = 6, 1000
LEAVE_S = 1.0


class Member:
    """One member called `name`; `seed` may be empty."""

    def __init__(self, name: str, port: int, seed: str) -> None:
        self._name = name
        self._names: dict[str, str] = {}
        self._boot = secrets.token_hex(8)
        settings = GossipSettings(self._boot, port=port, join=(seed,) if seed else ())
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gossip = GossipThread(
            settings,
            Keyring([os.environ["BLITZGW_CLUSTER_KEY"]]),
            MonotonicClock(),
            self._make,
            on_effects=self._on_effects,
            on_link=lambda sock, *_: sock.close(),
            on_failure=self._failed.set_exception,
        )

    async def run(self) -> None:
        """Obey until the input ends or gossip fails."""
        await self._gossip.start()
        tell("listening")
        obeying = asyncio.ensure_future(self._obey())
        try:
            await asyncio.wait({obeying, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            await (self._failed if self._failed.done() else obeying)
            await self._gossip.leave(LEAVE_S)
        finally:
            obeying.cancel()
            await self._gossip.stop()

    async def _obey(self) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():  # until whoever commands has had enough
            match line.decode().split():
                case ["publish"]:
                    self._publish()
                case ["statistics"]:
                    if (figures := self._gossip.statistics()) is not None:
                        tell("statistics", bytes_in=figures.bytes_in, bytes_out=figures.bytes_out)

    def _make(self, address: Address) -> Membership:
        me = Rumour(self._boot, self._name, *address, 0, 0, Status.ALIVE)
        return Membership(me, Knobs.of(), random.Random())

    def _publish(self) -> None:
        entries = {f"entry/{n}": secrets.token_bytes(ENTRY_BYTES) for n in range(ENTRIES)}
        at_s = time.monotonic()
        self._gossip.publish(entries)
        sums = {key: zlib.crc32(value) for key, value in entries.items()}
        tell("published", at_s, of=self._name, sums=sums)

    def _on_effects(self, news: Sequence[News]) -> None:
        at_s = time.monotonic()
        for item in news:
            match item:
                case MemberChanged(member=member):
                    self._names[member.boot] = member.name
                    tell("member", at_s, name=member.name, status=member.status.name.lower())
                case StateChanged(updates=updates):
                    sums: dict[str, dict[str, int]] = {}
                    for update in updates:
                        of = self._names.get(update.boot, update.boot)
                        sums.setdefault(of, {})[update.key] = zlib.crc32(update.value or b"")
                    for of, each in sums.items():
                        tell("state", at_s, of=of, sums=each)


def tell(event: str, at_s: float | None = None, **fields: Any) -> None:
    """Print an event at once."""
    at_s = time.monotonic() if at_s is None else at_s
    print(json.dumps({"at": at_s, "event": event, **fields}), flush=True)


async def run_member(name: str, port: int, seed: str) -> None:
    """Be a member until the input ends."""
    await Member(name, port, seed).run()


class States:
    """What members have published, and hold of each other."""

    def __init__(self) -> None:
        self.published: dict[str, tuple[float, dict[str, int]]] = {}
        self._held: dict[tuple[str, str], dict[str, int]] = {}
        self._at_s: dict[tuple[str, str], float] = {}
        self.figures: dict[str, dict[str, Any]] = {}

    def hear(self, name: str, _at_s: float, line: str) -> None:
        """Take an event, by the time that the member itself gives."""
        event: dict[str, Any] = json.loads(line) if line.startswith("{") else {"event": ""}
        match event["event"]:
            case "published":
                self.published[name] = event["at"], event["sums"]
            case "state":
                pair = name, event["of"]
                self._at_s[pair] = event["at"]  # before what the other thread looks for
                self._held.setdefault(pair, {}).update(event["sums"])
            case "statistics":
                self.figures[name] = event

    def spread_s(self, of: str, observers: Sequence[str]) -> float | None:
        """How long the latest change took to reach everybody; None while somebody lacks it."""
        at_s, sums = self.published[of]
        if any(self._held.get((name, of)) != sums for name in observers):
            return None
        return max(self._at_s[name, of] for name in observers) - at_s
