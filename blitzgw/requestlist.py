"""Requests of the whole cluster, for operators: rarely asked for, and no more than can be read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from blitzgw.core.clock import Clock
from blitzgw.core.view import NodeView, RequestFacts, RequestList
from blitzgw.errors import ProtocolError
from blitzgw.network import Network
from blitzgw.router.router import Router
from blitzgw.wire import decode_requests, encode_requests

REQUESTS = "requests"
"""The name of the list of a node's requests among what peers can fetch."""

NODE_REQUESTS = 1000
"""So many of a node's requests are told, the oldest: more than run at once on any of them."""

ALL_REQUESTS = 10_000
"""So many are told of the whole cluster: nobody reads more, and rendering them takes 50 ms."""

SHARED_S = 1.0
"""For so long an answer is good for everybody who asks, so that asking often costs nothing."""


class RequestLists:
    """What is under way: here, for peers that ask, and everywhere, for who asks this node."""

    def __init__(self, router: Router, network: Network, clock: Clock) -> None:
        self._router, self._network, self._clock = router, network, clock
        self._own, self._own_until_s = b"", 0.0
        self._asking: asyncio.Task[RequestList] | None = None
        self._until_s = 0.0

    def own(self) -> bytes:
        """Return this node's requests for a peer: one more than are told tells that some are not.

        All peers that ask within SHARED_S get the same.
        """
        now = self._clock.now()
        if now >= self._own_until_s:
            self._own = encode_requests(self._router.requests(now)[: NODE_REQUESTS + 1])
            self._own_until_s = now + SHARED_S
        return self._own

    async def everywhere(self, others: Sequence[NodeView]) -> RequestList:
        """Return the requests of this node and the others, the same to all who ask at a time."""
        if self._asking is None or (self._asking.done() and self._clock.now() >= self._until_s):
            self._asking = asyncio.get_running_loop().create_task(self._ask(others))
        # bounded by the network's patience with peers; who does not wait any more ends only himself
        return await asyncio.shield(self._asking)

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})  # at once, or as soon as a thread has decoded

    async def _ask(self, others: Sequence[NodeView]) -> RequestList:
        self._until_s = 0.0  # whatever goes wrong, who comes next asks anew
        answers = await self._network.ask_all(others, REQUESTS)
        own = self._router.requests(self._clock.now())
        names = [node.name for node in others]
        found = await asyncio.to_thread(gathered, own, names, answers)
        self._until_s = self._clock.now() + SHARED_S
        return found


def gathered(
    own: Sequence[RequestFacts], names: Sequence[str], answers: Sequence[bytes | None]
) -> RequestList:
    """Put a node's own requests and the answers of others, by name, together, within the limits.

    Runs in a thread, and lets the event loop have the interpreter after every answer.
    """
    found, truncated = [*own[:NODE_REQUESTS]], len(own) > NODE_REQUESTS
    silent = []
    for name, answer in zip(names, answers, strict=True):
        time.sleep(0)
        try:
            theirs = decode_requests(answer or b"")
        except ProtocolError:
            silent.append(name)
            continue
        truncated |= len(theirs) > NODE_REQUESTS
        found += theirs[:NODE_REQUESTS]
        if len(found) > 2 * ALL_REQUESTS:
            truncated, found = True, _oldest(found)
    truncated |= len(found) > ALL_REQUESTS
    return RequestList(tuple(_oldest(found)), tuple(sorted(silent)), truncated)


def _oldest(requests: list[RequestFacts]) -> list[RequestFacts]:
    return sorted(requests, key=lambda facts: -facts.age_s)[:ALL_REQUESTS]
