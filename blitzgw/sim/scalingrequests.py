"""Requests of a simulated cluster: their clients' node, which holds and routes them, the ledger.

    arrived ──► held ──► submitted ──► first token: served
       ▲          │          │
       │          └── after HOLD_S, or with MAX_HELD held before it: refused
       └──── bounced, or its node or link was lost: another attempt

A client's node goes to the serving instance that it knows with the least queue. It is told of a
request's fate once: what comes of a former attempt is dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from blitzgw.core.scale import bucket_of
from blitzgw.sim.scalingload import SimModel

if TYPE_CHECKING:
    from blitzgw.sim.scalingnode import SimNode

HOLD_S = 15.0
"""How long a request is held at most: the configured time is longer, and virtual time is dear."""

MAX_HELD = 128
"""Requests of a model that a node holds; more are refused at once."""

MAX_QUEUE = 12
"""Requests that wait at an instance; beyond that they are held by the nodes of their clients."""

RETRY_S = 0.1
"""Between two looks for an instance while requests are held."""

EJECT_S = 0.5
"""For so long after a lost link no request goes to that node."""


@dataclass(slots=True, eq=False)
class SimRequest:
    """A request and what has become of it: `fate` is empty, `served` or `refused`."""

    number: int
    model: SimModel
    arrived_s: float
    attempt: int = 0
    at: str = ""
    """The process that it has been submitted to; empty: held."""
    fate: str = ""
    why: str = ""
    answers: int = 0
    answered_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Submit:
    """A request's attempt goes to an instance."""

    request: SimRequest
    attempt: int
    instance: str
    boot: str


@dataclass(frozen=True, slots=True)
class Bounced:
    """An instance is not there, not serving any more, or full."""

    request: SimRequest
    attempt: int


@dataclass(frozen=True, slots=True)
class FirstToken:
    """An attempt has got its first token; it was scheduled after `queue_s`."""

    request: SimRequest
    attempt: int
    queue_s: float


@dataclass(slots=True)
class Ledger:
    """All requests of a run, by what became of them."""

    arrived: int = 0
    served: int = 0
    in_time: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    orphaned: int = 0
    """Requests whose clients' own node has crashed."""
    open: dict[int, SimRequest] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    by_model: dict[str, list[int]] = field(default_factory=dict)
    """Of each model: arrived, served, served in time."""

    def begin(self, model: SimModel, now: float) -> SimRequest:
        """Note an arrival."""
        self.arrived += 1
        request = SimRequest(self.arrived, model, now)
        self.open[request.number] = request
        self.by_model.setdefault(model.name, [0, 0, 0])[0] += 1
        return request

    def answer(self, request: SimRequest, fate: str, why: str, now: float) -> None:
        """Note an answer to a client; a second one is wrong."""
        request.answers += 1
        if request.answers > 1:
            self.wrong.append(f"answered: request {request.number} is answered twice")
            return
        request.fate, request.why, request.answered_s = fate, why, now
        self.open.pop(request.number, None)
        if fate != "served":
            self.refused[why] += 1
            return
        self.served += 1
        counts = self.by_model[request.model.name]
        counts[1] += 1
        if now - request.arrived_s <= request.model.terms.ttft_s:
            self.in_time += 1
            counts[2] += 1

    def orphan(self, request: SimRequest) -> None:
        """Note that the node of a request's client is gone, and with it the client's connection."""
        self.open.pop(request.number, None)
        self.orphaned += 1


@dataclass(slots=True)
class Clients:
    """What a node knows of a model's requests by its own clients, for `Demand`."""

    held: deque[SimRequest] = field(default_factory=deque)
    arrived: int = 0
    arrived_tokens: int = 0
    refused: int = 0
    ttft: Counter[int] = field(default_factory=Counter)
    tpot: Counter[int] = field(default_factory=Counter)
    queue: Counter[int] = field(default_factory=Counter)


class Ingress:
    """The part of a node that its clients see. `touched(model)` is told of every change."""

    def __init__(self, node: SimNode, ledger: Ledger, touched: Callable[[str], None]) -> None:
        self._node, self._ledger, self._touched = node, ledger, touched
        self.clients: dict[str, Clients] = {}
        self.open: dict[int, SimRequest] = {}
        self._ejected: dict[str, float] = {}
        self._looking = False

    @property
    def _now(self) -> float:
        return self._node.world.heap.now

    def of(self, model: str) -> Clients:
        """Return the book of a model."""
        found = self.clients.get(model)
        if found is None:
            found = self.clients[model] = Clients()
        return found

    def arrive(self, model: SimModel) -> None:
        """Take a client's request."""
        request = self._ledger.begin(model, self._now)
        book = self.of(model.name)
        book.arrived += 1
        book.arrived_tokens += model.prompt_tokens
        self.open[request.number] = request
        self._touched(model.name)
        self._place(request)

    def close(self) -> None:
        """Lose everything with the process."""
        for request in self.open.values():
            self._ledger.orphan(request)
        self.open.clear()

    # Routing.

    def _place(self, request: SimRequest) -> None:
        found = self._least(request.model.name)
        if found is not None:
            self._submit(request, *found)
            return
        book = self.of(request.model.name)
        if len(book.held) >= MAX_HELD:
            book.refused += 1
            self._answer(request, "refused", "too many are held")
            return
        request.at = ""
        book.held.append(request)
        self._touched(request.model.name)
        self._look_soon()

    def _least(self, model: str) -> tuple[str, str] | None:
        """Return (boot, instance) of the serving instance with the least queue, if one has room."""
        best: tuple[int, str, str] | None = None
        queue_of = self._node.world.queue_of
        for name, boot in self._node.sight.serving(model).items():
            if self._ejected.get(boot, 0.0) > self._now:
                continue
            queue = queue_of(boot, name)
            if queue < MAX_QUEUE and (best is None or (queue, name) < best[:2]):
                best = queue, name, boot
        return (best[2], best[1]) if best is not None else None

    def _submit(self, request: SimRequest, boot: str, instance: str) -> None:
        request.attempt += 1
        request.at = boot
        message = Submit(request, request.attempt, instance, self._node.boot)
        self._node.world.links.send(self._node, boot, message)

    def _look_soon(self) -> None:
        if not self._looking:
            self._looking = True
            self._node.world.heap.after(RETRY_S, self._look)

    def _look(self) -> None:
        self._looking = False
        if not self._node.running:
            return
        left = False
        for model, book in self.clients.items():
            if book.held:
                self._release(model, book)
            left |= bool(book.held)
        if left:
            self._look_soon()

    def _release(self, model: str, book: Clients) -> None:
        before = len(book.held)
        while book.held and self._now - book.held[0].arrived_s >= HOLD_S:
            book.refused += 1
            self._answer(book.held.popleft(), "refused", "no instance in time")
        while book.held:
            found = self._least(model)
            if found is None:
                break
            self._submit(book.held.popleft(), *found)
        if len(book.held) != before:
            self._touched(model)

    def _again(self, request: SimRequest) -> None:
        """Place a request anew, before those that came later; or refuse it where it is late."""
        book = self.of(request.model.name)
        if self._now - request.arrived_s >= HOLD_S:
            book.refused += 1
            self._answer(request, "refused", "no instance in time")
            return
        request.at = ""
        request.attempt += 1  # what comes of the former one is too late
        book.held.appendleft(request)
        self._touched(request.model.name)
        self._look_soon()

    # What it hears.

    def bounced(self, message: Bounced) -> None:
        """Place a request anew that was not taken."""
        request = message.request
        if not request.fate and request.attempt == message.attempt and request.at:
            self._again(request)

    def first_token(self, message: FirstToken) -> None:
        """Answer a client."""
        request = message.request
        if request.fate or request.attempt != message.attempt:
            return
        book, model = self.of(request.model.name), request.model
        book.ttft[bucket_of(self._now - request.arrived_s)] += 1
        book.queue[bucket_of(message.queue_s)] += 1
        book.tpot[bucket_of(self._node.world.decode_step_s)] += 1
        self._answer(request, "served", "")
        self._touched(model.name)

    def lost(self, boot: str) -> None:
        """Place all requests anew that are at a node to which the link was lost."""
        self._ejected[boot] = self._now + EJECT_S
        for request in [request for request in self.open.values() if request.at == boot]:
            self._again(request)

    def _answer(self, request: SimRequest, fate: str, why: str) -> None:
        self.open.pop(request.number, None)
        self._ledger.answer(request, fate, why, self._now)


def heard(ingress: Ingress, message: Any) -> bool:
    """Give an ingress what is for it; return whether it was."""
    match message:
        case FirstToken():
            ingress.first_token(message)
        case Bounced():
            ingress.bounced(message)
        case _:
            return False
    return True
