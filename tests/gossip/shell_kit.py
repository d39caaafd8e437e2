"""Gossip threads on loopback, with what they told remembered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.rumours import Rumour, Status
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import Session
from blitzgw.gossip.crossing import News
from blitzgw.gossip.events import (
    Address,
    Departed,
    Effect,
    Event,
    MemberChanged,
    MemberForgotten,
    StateChanged,
)
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.membership import Membership
from blitzgw.gossip.shell import GossipThread
from blitzgw.gossip.terms import GossipSettings

KEY, NEW_KEY, FOREIGN_KEY = "k" * 40, "n" * 40, "f" * 40


class Quiet:
    """A decider that remembers what it is told and does what a test wants."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.react: Callable[[Event], list[Effect]] = lambda event: []
        self.due: float | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.events.append(event)
        return self.react(event)

    def deadline(self) -> float | None:
        return self.due

    def statistics(self) -> int:
        return len(self.events)


class Node:
    """A gossip thread and its listener."""

    def __init__(
        self,
        *join: str,
        keys: tuple[str, ...] = (KEY,),
        host: str = "127.0.0.1",
        decider: Any = None,
        interval_s: float = 0.1,
        dilation: float = 1.0,
    ) -> None:
        self.boot = secrets.token_hex(8)
        self.news: list[News] = []
        self.links: list[tuple[socket.socket, Session, str]] = []
        self.failures: list[BaseException] = []
        self.members: dict[str, Status] = {}
        self.entries: dict[tuple[str, str], bytes | None] = {}
        self.keyring, self.host, self.port = Keyring(keys), host, 0
        self.decider = decider
        self.membership: Any = None
        self._interval_s = interval_s
        self.gossip = GossipThread(
            GossipSettings(self.boot, host, join=join, dilation=dilation),
            self.keyring,
            MonotonicClock(dilation),
            self._make,
            on_effects=self._take,
            on_link=lambda *link: self.links.append(link),
            on_failure=self.failures.append,
        )

    @property
    def seed(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> Address:
        return self.host, self.port

    def alive(self) -> set[str]:
        return {boot for boot, status in self.members.items() if status is Status.ALIVE}

    def _make(self, address: Address) -> Any:
        if self.decider is not None:
            return self.decider
        me = Rumour(self.boot, self.boot[:4], *address, 1, 0, Status.ALIVE)
        return Membership(me, Knobs.of(self._interval_s), random.Random(self.boot))

    def _take(self, news: list[News]) -> None:
        self.news += news
        for item in news:
            match item:
                case MemberChanged(member):
                    self.members[member.boot] = member.status
                case MemberForgotten(boot):
                    self.members.pop(boot, None)
                case StateChanged(updates):
                    self.entries |= {(u.boot, u.key): u.value for u in updates}
                case Departed():
                    pass


@contextlib.asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Start nodes and stop them, and fail where a thread has."""
    try:
        for node in nodes:
            node.port = await node.gossip.start()
        yield
    finally:
        for node in nodes:
            await node.gossip.stop()
            for sock, _, _ in node.links:
                sock.close()
    for node in nodes:
        assert not node.failures
        statistics = node.gossip.statistics()
        assert statistics is not None
        assert not statistics.faults


async def until(condition: Callable[[], Any], limit_s: float = 10.0) -> None:
    """Wait until a condition holds; fail where it does not within `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)
