"""Orders to scale, from this node's API to the owner of the model, and what is told of operations.

API ── scale, cancel ──► ScaleOrders ── ScaleOrder, CancelOrder ──► owner, here or elsewhere
    ◄── facts ──             ◄────────────── ScaleAnswer ──────────
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from blitzgw.core.clock import Clock
from blitzgw.core.operation import CancelOrder, OperationFacts, ScaleAnswer, ScaleOrder
from blitzgw.core.scale import AUTOMATIC, WhyFacts
from blitzgw.core.view import ClusterView
from blitzgw.errors import InvalidRequest, ProtocolError, RequestError, Unavailable, UnknownModel
from blitzgw.network import Network
from blitzgw.wire import decode_operations, decode_whys, encode_operations, encode_whys

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""How long an owner may take to answer. An order that is only tried is answered with its plan:
after VIEW_PATIENCE_S (scaling/claiming.py) for facts to arrive, and tens of milliseconds for the
plan itself; the others at once. The rest is for a link to be opened."""

OPERATIONS = "operations"
"""The name of the list of a node's operations among what peers can fetch."""

OPERATION = "operation/"
"""Before the id of one of them, with all its parts."""

WHYS = "whys"
"""The name of what a node tells of the models that it owns, among what peers can fetch."""

WHY = "why/"
"""Before the name of one of these models."""

_ID = re.compile(r"[0-9a-f]{1,64}")

TOLD = 200
"""So many operations are told of all nodes together: the newest."""

Tell = Callable[[str, ScaleOrder | CancelOrder], None]
"""(boot, order): gives an order to the owner, this node itself perhaps."""


class ScaleOrders:
    """The API's way to scale: implements `api.status.ScalePort`."""

    def __init__(
        self,
        local: str,
        view: Callable[[], ClusterView],
        own: Callable[[], Sequence[OperationFacts]],
        own_whys: Callable[[str], Sequence[WhyFacts]],
        owner_of: Callable[[str], str],
        tell: Tell,
        clock: Clock,
    ) -> None:
        self._local, self._view = local, view
        self._own, self._own_whys = own, own_whys
        self._owner_of, self._tell, self._clock = owner_of, tell, clock
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[str, asyncio.Future[ScaleAnswer]]] = {}
        self._network: Network | None = None
        self._owners: dict[str, str] = {}
        """Who has answered for an operation."""

    def join(self, network: Network) -> None:
        """Ask other nodes over this network."""
        self._network = network

    async def scale(
        self,
        model: str,
        instances: int,
        *,
        dry_run: bool = False,
        strategy: str = "",
        policy: str = "",
    ) -> OperationFacts | None:
        """Have the model's owner begin or plan an operation; None: it goes by its policy.

        Raises RequestError.
        """
        order = ScaleOrder(next(self._ids), model, instances, dry_run, strategy, policy)
        answer = await self._ask(self._owner_of(model), order)
        if instances == AUTOMATIC and answer.operation is None and not answer.code:
            return None
        return _facts(answer)

    async def why(self, model: str) -> WhyFacts | None:
        """Return what a model's owner tells; None where it does not answer, or is another now."""
        owner = self._owner_of(model)
        if owner == self._local or self._network is None:
            return next(iter(self._own_whys(model)), None)
        nodes = [node for node in self._view().living() if node.boot == owner]
        answers = await self._network.ask_all(nodes, f"{WHY}{model}")
        return next((why for answer in answers for why in _decoded_whys(answer)), None)

    async def whys(self) -> tuple[WhyFacts, ...]:
        """Return what all owners that answer tell, by model; of two that own one, the later's."""
        found = list(self._own_whys(""))
        others = [node for node in self._view().living() if node.boot != self._local]
        if self._network is not None and others:
            for answer in await self._network.ask_all(others, WHYS):
                found += _decoded_whys(answer)
        latest = {why.model: why for why in sorted(found, key=lambda why: why.now.at_s)}
        return tuple(why for _, why in sorted(latest.items()))

    async def operations(self) -> tuple[OperationFacts, ...]:
        """Return the operations of all nodes that answer, the newest first, without their parts."""
        found = [brief(facts) for facts in self._own()]
        others = [node for node in self._view().living() if node.boot != self._local]
        if self._network is not None and others:
            for answer in await self._network.ask_all(others, OPERATIONS):
                found += _decoded(answer)
        found.sort(key=lambda facts: (-facts.started_s, facts.id))
        return tuple(found[:TOLD])

    async def operation(self, operation: str) -> OperationFacts | None:
        """Return one operation with all its parts; None where no living node knows it."""
        own = next((facts for facts in self._own() if facts.id == operation), None)
        if own is not None or self._network is None or not _ID.fullmatch(operation):
            return own
        others = [node for node in self._view().living() if node.boot != self._local]
        owner = self._owners.get(operation)
        asked = [node for node in others if node.boot == owner] or others
        answers = await self._network.ask_all(asked, f"{OPERATION}{operation}")
        for node, answer in zip(asked, answers, strict=True):
            for facts in _decoded(answer):
                self._remember(operation, node.boot)
                return facts
        self._owners.pop(operation, None)
        return None

    async def cancel(self, operation: str) -> OperationFacts:
        """Give an operation up; raises RequestError where there is none of that id."""
        facts = await self.operation(operation)
        owners = [n.boot for n in self._view().living() if facts and n.name == facts.owner]
        if not owners:
            text = f"no living node has an operation {operation:.40}"
            raise InvalidRequest(text, param="operation")
        return _facts(await self._ask(owners[0], CancelOrder(next(self._ids), operation)))

    def content(self, what: str) -> bytes | None:
        """Return what a peer asks for: this node's operations or one, its reasons or one's."""
        if what == WHYS:
            return encode_whys(self._own_whys(""))
        if what.startswith(WHY) and len(what) > len(WHY):
            return encode_whys(self._own_whys(what.removeprefix(WHY)))
        if what == OPERATIONS:
            return encode_operations([brief(facts) for facts in self._own()])
        if not what.startswith(OPERATION):
            return None
        name = what.removeprefix(OPERATION)
        return encode_operations([facts for facts in self._own() if facts.id == name])

    def _remember(self, operation: str, owner: str) -> None:
        self._owners[operation] = owner
        while len(self._owners) > TOLD:
            del self._owners[next(iter(self._owners))]

    def answered(self, boot: str, answer: ScaleAnswer) -> None:
        """Take an owner's answer."""
        waiting = self._waiting.get(answer.id)
        if waiting is not None and waiting[0] == boot and not waiting[1].done():
            waiting[1].set_result(answer)

    def link_lost(self, boot: str) -> None:
        """Give up on the answers of a node."""
        for owner, future in self._waiting.values():
            if owner == boot and not future.done():
                future.set_exception(Unavailable("the model's owner was lost", retry_after_s=1.0))

    def count(self, boot: str) -> int:
        """Return how many answers are awaited from a node."""
        return sum(owner == boot for owner, _ in self._waiting.values())

    async def _ask(self, boot: str, order: ScaleOrder | CancelOrder) -> ScaleAnswer:
        future: asyncio.Future[ScaleAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[order.id] = boot, future
        timer = asyncio.get_running_loop().create_task(self._clock.sleep(ANSWER_S))
        try:
            self._tell(boot, order)
            ends: set[asyncio.Future[Any]] = {future, timer}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise Unavailable("the model's owner does not answer", retry_after_s=2.0)
            return future.result()
        finally:
            timer.cancel()
            del self._waiting[order.id]


def brief(facts: OperationFacts) -> OperationFacts:
    """Return an operation without what grows with its blobs: one target stands for all."""
    targets = tuple(replace(t, predicted_s=(), arrived_s=()) for t in facts.targets[:1])
    return replace(facts, targets=targets, edges=(), reads=(), pairs=(), events=())


def _decoded(answer: bytes | None) -> list[OperationFacts]:
    try:
        return decode_operations(answer) if answer else []
    except ProtocolError as error:
        log.warning("operations_ignored error=%s", error)
        return []


def _decoded_whys(answer: bytes | None) -> list[WhyFacts]:
    try:
        return decode_whys(answer) if answer else []
    except ProtocolError as error:
        log.warning("reasons_ignored error=%s", error)
        return []


def _facts(answer: ScaleAnswer) -> OperationFacts:
    """Return what an owner has answered; raises its refusal."""
    if answer.operation is not None and not answer.code:
        return answer.operation
    kinds: dict[str, type[RequestError]] = {
        UnknownModel.code: UnknownModel,
        Unavailable.code: Unavailable,
    }
    error = kinds.get(answer.code, InvalidRequest)(answer.message)
    error.code = answer.code or error.code
    raise error
