"""Where members may be: the names of the configuration, resolved again and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Collection

from blitzgw.core.clock import Clock
from blitzgw.gossip.events import Address
from blitzgw.gossip.sockets import address_version

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.25
"""Wait after the first try: nodes that start together find each other at the second."""

RETRY_FACTOR = 2.0
"""Growth of the wait while alone."""

LAST_RETRY_S = 10.0
"""Longest wait while alone: what a node that starts before all others costs its name server."""

REFRESH_S = 60.0
"""Wait between rounds while in company: heals a partition that outlived the memory of members."""

RESOLVE_S = 5.0
"""How long a round waits for names; a slower one counts in the round after it has answered."""

MAX_ADDRESSES = 64
"""Addresses taken of one name: a headless service may have hundreds, and a few lead to all."""

_Answer = tuple[Address, ...] | OSError


class Seeds:
    """Resolves the names of `join` for as long as it runs, and tells where members may be.

    Names are looked up in threads of their own rather than an executor's: a name server that does
    not answer holds a thread for half a minute, and a node that stops must not wait for it.
    """

    def __init__(
        self,
        names: Collection[Address],
        own: Collection[Address],
        clock: Clock,
        on_found: Callable[[tuple[Address, ...]], None],
    ) -> None:
        self._names, self._own = tuple(dict.fromkeys(names)), frozenset(own)
        self._clock, self._on_found = clock, on_found
        self._lookups: dict[Address, asyncio.Future[_Answer]] = {}
        self._known: dict[Address, tuple[Address, ...]] = {}
        self._troubles: dict[Address, str] = {}
        self._alone = True
        self._moved = asyncio.Event()

    def set_alone(self, alone: bool) -> None:
        """Say whether no other member is known: names are then asked for more often."""
        if alone != self._alone:
            self._alone = alone
            self._moved.set()

    async def run(self) -> None:
        """Resolve, tell, wait, until cancelled."""
        retry_s = FIRST_RETRY_S
        while self._names:
            found = await self._resolve()
            if found:
                self._on_found(found)
            await self._wait(retry_s if self._alone else REFRESH_S)
            retry_s = min(retry_s * RETRY_FACTOR, LAST_RETRY_S) if self._alone else FIRST_RETRY_S

    async def _wait(self, duration_s: float) -> None:
        """Wait, but no longer than until the last other member is lost."""
        self._moved.clear()
        sleeping = asyncio.ensure_future(self._clock.sleep(duration_s))
        moving = asyncio.ensure_future(self._moved.wait())
        try:
            # Bounded by the sleep.
            await asyncio.wait({sleeping, moving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            moving.cancel()

    async def _resolve(self) -> tuple[Address, ...]:
        """Return what the names stand for, without this node's own addresses.

        A name that cannot be resolved now stands for what it stood for last.
        """
        waiting = [self._look_up(name) for name in self._names if not address_version(name[0])]
        if waiting:
            await asyncio.wait(waiting, timeout=RESOLVE_S)
        for name, lookup in list(self._lookups.items()):
            if lookup.done():
                del self._lookups[name]
                self._judge(name, lookup.result())
        found: dict[Address, None] = {}
        for name in self._names:
            literal = address_version(name[0]) != 0
            found |= dict.fromkeys((name,) if literal else self._known.get(name, ()))
        return tuple(address for address in found if address not in self._own)

    def _look_up(self, name: Address) -> asyncio.Future[_Answer]:
        """Return the lookup of a name, one that is still under way where there is one."""
        if name not in self._lookups:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[_Answer] = loop.create_future()
            self._lookups[name] = future
            target = _look_up_blocking
            threading.Thread(
                target=target, args=(name, loop, future), name="gossip-names", daemon=True
            ).start()
        return self._lookups[name]

    def _judge(self, name: Address, answer: _Answer) -> None:
        """Keep the addresses of an answer; log what is wrong with it, if that is new."""
        trouble = ""
        if isinstance(answer, OSError):
            trouble = answer.strerror or str(answer)
        else:
            self._known[name] = answer
        if trouble == self._troubles.get(name, ""):
            return
        self._troubles[name] = trouble
        if trouble:
            log.warning("seed_unresolvable host=%s error=%s", name[0], trouble)
        else:
            log.info("seed_resolved host=%s", name[0])


def _look_up_blocking(
    name: Address, loop: asyncio.AbstractEventLoop, future: asyncio.Future[_Answer]
) -> None:
    """Resolve a name and hand the answer to a loop, which may be closed by then."""
    answer: _Answer
    try:
        found = socket.getaddrinfo(*name, type=socket.SOCK_STREAM)
        answer = tuple(dict.fromkeys((str(to[0]), name[1]) for *_, to in found))[:MAX_ADDRESSES]
    except OSError as e:
        answer = e
    except UnicodeError as e:  # a label that is empty or too long
        answer = OSError(str(e))
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(_settle, future, answer)


def _settle(future: asyncio.Future[_Answer], answer: _Answer) -> None:
    if not future.done():
        future.set_result(answer)
