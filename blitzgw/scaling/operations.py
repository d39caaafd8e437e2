"""The operations that a node owns: who asked for them, which run, which have ended.

What an order does while others are carried out is in conflicts.py. Each operation sees the cluster
with what the others have claimed, so that nothing is claimed or counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from blitzgw.core.operation import EdgeOrder, OperationFacts, ScaleAnswer, ScaleOrder
from blitzgw.core.view import ClusterView
from blitzgw.scaling.autoevents import Underway
from blitzgw.scaling.conflicts import MAX_BESIDE, Verdict, judge
from blitzgw.scaling.departures import victims
from blitzgw.scaling.effects import OperationEffect, Send
from blitzgw.scaling.events import (
    CancelAsked,
    CopyWanted,
    LinkLost,
    MessageCame,
    NodeDied,
    OperationsEvent,
    OrderGiven,
    TimePassed,
)
from blitzgw.scaling.growth import Growth
from blitzgw.scaling.hindsight import Hindsight, foresee
from blitzgw.scaling.livechoice import objection
from blitzgw.scaling.operation import Operation, Surroundings
from blitzgw.scaling.orders import promised
from blitzgw.scaling.retreat import Retreat
from blitzgw.scaling.survey import ModelDefinition, instances_of

MAX_RUNNING = 16 * MAX_BESIDE
"""Operations of one owner at once, of all its models, some of which may grow by as many as are
allowed side by side: more would come from a client run wild."""

MAX_ENDED = 64
"""Ended operations that are remembered for whoever asks how they went."""

MAX_INSTANCES = 4096
"""Of a model: more than any cluster of one gossip has devices."""


@dataclass(frozen=True, slots=True)
class OperationsStatistics:
    """How many operations run, and how many have ended, by the state in which they did."""

    running: int
    ended: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """A dry run that looks for facts yet, and who has asked for it."""

    operation: Operation
    event: OrderGiven


class Operations:
    """The owner's decider. `define` returns what is known of a model, None where that is nothing.

    Models need a manifest (`weights` and the sizes of blobs) to be scaled.
    """

    def __init__(
        self, around: Surroundings, define: Callable[[str], ModelDefinition | None]
    ) -> None:
        self._told, self._define = around.view, define
        self._around = replace(around, view=self.view)
        self._hindsight, self._now = Hindsight(), 0.0
        self._running: dict[str, Operation] = {}
        self._past: dict[str, Operation] = {}
        self._owing: list[Operation] = []
        """Of these the ones that have something to say again: what time is told."""
        self._rehearsals: list[_Rehearsal] = []
        self._ended: dict[str, int] = {}
        self._handlers: dict[type, Callable[[Any, float], list[OperationEffect]]] = {
            TimePassed: self._on_time,
            MessageCame: self._on_message,
            LinkLost: self._on_link_lost,
            NodeDied: self._on_node_died,
            OrderGiven: self._on_order,
            CopyWanted: self._on_copy_wanted,
            CancelAsked: self._on_cancel,
        }

    def handle(self, event: OperationsEvent, now: float) -> list[OperationEffect]:
        """Take an event at time `now` in seconds; return what to do, in order."""
        self._now = now
        effects = self._handlers[type(event)](event, now)
        self._sort_out(now)
        return effects

    def _sort_out(self, now: float) -> None:
        """Put away what has ended; what has become of instances by it counts from now on."""
        ended = [name for name, operation in self._running.items() if operation.ended]
        for name in ended:
            operation = self._past[name] = self._running.pop(name)
            self._ended[operation.state] = self._ended.get(operation.state, 0) + 1
            self._hindsight.note(operation.outcomes(), now)
        while len(self._past) > MAX_ENDED:
            del self._past[next(iter(self._past))]
        if ended:
            self._find_owing()

    def _find_owing(self) -> None:
        self._owing = [each for each in self._past.values() if each.deadline() is not None]

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due; None: never."""
        times = [operation.deadline() for operation in (*self._owing, *self._running.values())]
        times += [rehearsal.operation.deadline() for rehearsal in self._rehearsals]
        return min((time for time in times if time is not None), default=None)

    def facts(self, now: float) -> list[OperationFacts]:
        """Return all operations that are known, the oldest first."""
        return [operation.facts(now) for operation in self._all()]

    def facts_of(self, operation: str, now: float) -> OperationFacts | None:
        """Return one operation, None where it is not known (any more)."""
        found = self._running.get(operation) or self._past.get(operation)
        return found.facts(now) if found is not None else None

    def running(self, model: str) -> str | None:
        """Return the latest operation that runs for a model's instances, if there is one."""
        found = self._of(model)
        return found[-1].id if found else None

    def underway(self, model: str, now: float) -> tuple[Underway, ...]:
        """Return what is being done about a model's instances, the oldest first."""
        self._now = now
        return tuple(
            Underway(
                operation=operation.id,
                grows=isinstance(operation, Growth),
                wanted=operation.wanted,
                coming=operation.coming(now) if isinstance(operation, Growth) else (),
            )
            for operation in self._of(model)
        )

    def view(self) -> ClusterView:
        """Return the cluster as this owner knows it: with what its operations do, and have done."""
        return self._seen_by("")

    def statistics(self) -> OperationsStatistics:
        """Return the present figures."""
        return OperationsStatistics(len(self._running), dict(self._ended))

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        claimed = [
            (outcome.boot, outcome.facts.device, outcome.facts.claim)
            for growth in self._growths()
            for outcome in growth.claimed()
        ]
        # One that was asked for at a former claim, and has not been answered, is refused.
        assert len(claimed) == len(set(claimed)), "a device is claimed by two operations"
        for model in {operation.definition.name for operation in self._running.values()}:
            retreats = [isinstance(each, Retreat) for each in self._of(model)]
            assert len(retreats) <= MAX_BESIDE, f"{len(retreats)} operations of {model}"
            assert len(retreats) <= 1 or not any(retreats), f"{model} grows and shrinks at once"
        for operation in self._all():
            operation.check_integrity()
            assert operation.ended == (operation.id in self._past)
        for operation in self._past.values():
            assert operation.deadline() is None or operation in self._owing

    def _all(self) -> list[Operation]:
        return [*self._past.values(), *self._running.values()]

    def _of(self, model: str) -> list[Operation]:
        return [o for o in self._running.values() if o.definition.name == model and not o.copy]

    def _growths(self) -> list[Growth]:
        return [each for each in self._running.values() if isinstance(each, Growth)]

    def _seen_by(self, name: str) -> ClusterView:
        """Return the cluster with what all operations but one of this name have claimed."""
        view = self._hindsight.correct(self._told(), self._now)
        others = [growth for growth in self._growths() if growth.id != name]
        return foresee(view, [outcome for each in others for outcome in each.claimed()])

    def _brought_before(self, name: str, weights: str) -> dict[str, tuple[float, ...]]:
        """Return when workers have what growths bring that have begun before one of this name.

        Those that have begun later may wait for what it brings itself, so that none waits for them.
        """
        due_s: dict[str, tuple[float, ...]] = {}
        for growth in self._growths():
            if growth.id == name:
                break
            if growth.definition.weights == weights:
                due_s |= growth.due_s(self._now)
        return due_s

    def _edges_but_of(self, name: str) -> Iterator[EdgeOrder]:
        """Yield the edges that all growths but one of this name have open."""
        return (edge for each in self._growths() if each.id != name for edge in each.edges())

    # Orders.

    def _on_order(self, event: OrderGiven, now: float) -> list[OperationEffect]:
        order = event.order
        definition = self._define(order.model)
        if definition is None:
            return [_refuse(event, "model_not_found", f"there is no model {order.model!r}")]
        if not 0 <= order.instances <= MAX_INSTANCES:
            text = f"{order.instances} instances: 0 to {MAX_INSTANCES} are possible"
            return [_refuse(event, "bad_request", text)]
        if not definition.weights or not definition.blob_bytes:
            text = f"the weights of {order.model!r} are not known yet: it is still being read"
            return [_refuse(event, "no_capacity", text)]
        code, text = objection(order.policy, definition, self._around.view())
        if code:
            return [_refuse(event, code, text)]
        if order.dry_run:
            return self._rehearse(event, self._make(definition, order, now), now)
        n_shown = len(instances_of(order.model, self.view()))
        verdict = judge(order, self._of(order.model), n_shown)
        if verdict.reason:
            return [_refuse(event, "scale_in_progress", verdict.reason)]
        if verdict.answer is not None:
            return [Send(event.boot, ScaleAnswer(order.id, verdict.answer.facts(now)))]
        if len(self._running) - len(verdict.undone) >= MAX_RUNNING:
            return [_refuse(event, "overloaded", f"{MAX_RUNNING} operations are under way")]
        return self._begin(event, definition, verdict, now)

    def _begin(
        self, event: OrderGiven, definition: ModelDefinition, verdict: Verdict, now: float
    ) -> list[OperationEffect]:
        order = event.order
        effects: list[OperationEffect] = []
        for other in verdict.undone:
            effects += other.cancel(f"{order.instances} instances are wanted now", now)
        self._sort_out(now)
        operation = self._make(definition, order, now)
        operation.automatic = order.automatic
        effects += operation.begin(now)
        self._running[operation.id] = operation
        return [*effects, Send(event.boot, ScaleAnswer(order.id, operation.facts(now)))]

    def _rehearse(
        self, event: OrderGiven, operation: Operation, now: float
    ) -> list[OperationEffect]:
        if len(self._rehearsals) >= MAX_RUNNING:
            return [_refuse(event, "overloaded", f"{MAX_RUNNING} plans are being made")]
        operation.begin(now)  # does nothing that concerns anybody
        self._rehearsals.append(_Rehearsal(operation, event))
        return self._answer_rehearsals(now)

    def _answer_rehearsals(self, now: float) -> list[OperationEffect]:
        over = [each for each in self._rehearsals if each.operation.ended]
        self._rehearsals = [each for each in self._rehearsals if not each.operation.ended]
        return [
            Send(each.event.boot, ScaleAnswer(each.event.order.id, each.operation.facts(now)))
            for each in over
        ]

    def _make(self, definition: ModelDefinition, order: ScaleOrder, now: float) -> Operation:
        name = self._name()
        around = replace(
            self._around,
            view=lambda: self._seen_by(name),
            due_s=lambda: self._brought_before(name, definition.weights),
            promised=lambda: promised(self._edges_but_of(name)),
        )
        present = instances_of(definition.name, around.view())
        n_present = len(present)
        if order.instances > n_present:
            return Growth(
                name,
                definition,
                order.instances,
                n_present,
                around,
                now,
                strategy=order.strategy,
                policy=order.policy,
                dry=order.dry_run,
            )
        leaving = victims(present, n_present - order.instances)
        return Retreat(
            name,
            definition,
            order.instances,
            n_present,
            leaving,
            around,
            now,
            dry=order.dry_run,
        )

    def _name(self) -> str:
        return self._around.secret()[:6].hex()

    def _on_copy_wanted(self, event: CopyWanted, now: float) -> list[OperationEffect]:
        definition = self._define(event.model)
        if definition is None or not definition.weights or not definition.blob_bytes:
            return []
        for operation in self._running.values():
            if operation.copy and operation.definition.weights == definition.weights:
                return []
        growth = Growth(self._name(), definition, 0, 0, self._around, now, copy_worker=event.worker)
        self._running[growth.id] = growth
        return growth.begin(now)

    def _on_cancel(self, event: CancelAsked, now: float) -> list[OperationEffect]:
        operation = self._running.get(event.operation)
        if operation is None:
            return []
        give_up = operation.cut_short if event.rest else operation.cancel
        return give_up(event.reason, now)

    # The rest goes to whom it concerns.

    def _on_message(self, event: MessageCame, now: float) -> list[OperationEffect]:
        if isinstance(event.message, ScaleOrder):
            return self._on_order(OrderGiven(event.boot, event.message), now)
        if isinstance(event.message, ScaleAnswer):
            return []  # for whoever has asked
        name = event.message.operation
        operation = self._running.get(name) or self._past.get(name)
        return operation.on_message(event.boot, event.message, now) if operation else []

    def _on_time(self, _event: TimePassed, now: float) -> list[OperationEffect]:
        for rehearsal in self._rehearsals:
            rehearsal.operation.on_time(now)
        awake = (*self._owing, *self._running.values())
        effects = [effect for operation in awake for effect in operation.on_time(now)]
        if self._owing:
            self._find_owing()
        return effects + self._answer_rehearsals(now)

    def _on_link_lost(self, event: LinkLost, now: float) -> list[OperationEffect]:
        found = [e for operation in self._all() for e in operation.on_link_lost(event.boot, now)]
        self._find_owing()
        return found

    def _on_node_died(self, event: NodeDied, now: float) -> list[OperationEffect]:
        return [e for operation in self._all() for e in operation.on_node_died(event.boot, now)]


def _refuse(event: OrderGiven, code: str, message: str) -> OperationEffect:
    return Send(event.boot, ScaleAnswer(event.order.id, code=code, message=message))
