"""Orders at the owner of their model: what `Operations` makes of them, and what is told of that.

    operators ── ScaleOrder, CancelOrder ──► OrderDesk ──► Operations
    Autoscaling ── automatic ScaleOrder ──►     │
                       ◄── wishes, ends ────────┘

An operator's order holds until the next one: the autoscaler keeps to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from blitzgw.autoscaling import Autoscaling
from blitzgw.core.clock import Clock
from blitzgw.core.operation import CancelOrder, OperationFacts, ScaleAnswer, ScaleOrder
from blitzgw.core.scale import AUTOMATIC
from blitzgw.operationlog import record_end
from blitzgw.scalemetrics import ScaleMetrics
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.operations import Operations

BY_OPERATOR = "order"
"""The reason of operations that an operator has ordered, among metrics."""

Perform = Callable[[Sequence[Any]], None]
"""Carries effects out."""


class OrderDesk:
    """`models` are those that orders may be about; `say` answers a node, perhaps this one."""

    def __init__(
        self,
        local: str,
        operations: Operations,
        models: Callable[[], Collection[str]],
        perform: Perform,
        say: Callable[[str, ScaleAnswer], None],
        clock: Clock,
        metrics: ScaleMetrics,
    ) -> None:
        self._local, self._operations, self._models = local, operations, models
        self._perform, self._say = perform, say
        self._clock, self._metrics = clock, metrics
        self._asked: set[str] = set()
        """Operations that run yet and that an operator has cancelled."""

    def join(self, autoscaling: Autoscaling) -> None:
        """Tell the autoscaler of wishes, and of operations that have ended."""
        self._autoscaling = autoscaling

    def order(self, boot: str, order: ScaleOrder) -> None:
        """Take an operator's order, and answer it."""
        if order.instances == AUTOMATIC:
            self._leave(boot, order)
            return
        effects, answer = self._handle(boot, order)
        taken = answer is not None and answer.operation is not None and not answer.code
        if taken and not order.dry_run:
            self._autoscaling.wished(order.model, order.instances, ordered=True)
        self._perform(effects)

    def give(self, order: ScaleOrder, answered: Callable[[ScaleAnswer], None]) -> None:
        """Take an order of this node's autoscaler; `answered` comes before all effects."""
        effects, answer = self._handle(self._local, order)
        if answer is not None:
            answered(answer)
        self._perform([effect for effect in effects if _answer(effect, order) is None])

    def cancel(self, boot: str, order: CancelOrder) -> None:
        """Give an operation up for an operator, and answer."""
        name, now = order.operation, self._clock.now()
        if self._operations.facts_of(name, now) is not None:
            self._asked.add(name)
        self._perform(
            self._operations.handle(ev.CancelAsked(name, "cancelled by an operator"), now)
        )
        found = self._operations.facts_of(name, self._clock.now())
        if found is None or found.state in ("done", "failed", "cancelled"):
            self._asked.discard(name)
        answer = ScaleAnswer(order.id, found)
        if found is None:
            answer = ScaleAnswer(order.id, None, "unknown_operation", "nothing is known of it")
        self._say(boot, answer)

    def ended(self, effect: eff.OperationEnded) -> OperationFacts | None:
        """Take the end of an operation of instances or of a copy; return what is known of it."""
        record_end(effect)
        facts = self._operations.facts_of(effect.operation, self._clock.now())
        if effect.copy:
            return facts
        name, asked = effect.operation, effect.operation in self._asked
        self._asked.discard(name)
        action = self._autoscaling.ended(
            effect.model, name, effect.state, effect.reason, asked=asked
        )
        if facts is not None:
            self._metrics.ended(facts, action or BY_OPERATOR)
        return facts

    def _leave(self, boot: str, order: ScaleOrder) -> None:
        """Leave a model to the policy."""
        if order.model not in self._models():
            text = f"there is no model {order.model!r}"
            self._say(boot, ScaleAnswer(order.id, None, "model_not_found", text))
            return
        self._autoscaling.wished(order.model, AUTOMATIC, ordered=False)
        self._say(boot, ScaleAnswer(order.id))

    def _handle(
        self, boot: str, order: ScaleOrder
    ) -> tuple[list[eff.OperationEffect], ScaleAnswer | None]:
        effects = self._operations.handle(ev.OrderGiven(boot, order), self._clock.now())
        answers = (_answer(effect, order) for effect in effects)
        return effects, next((answer for answer in answers if answer is not None), None)


def _answer(effect: eff.OperationEffect, order: ScaleOrder) -> ScaleAnswer | None:
    """Return the answer to an order that an effect sends; None where it does not."""
    if not isinstance(effect, eff.Send) or not isinstance(effect.message, ScaleAnswer):
        return None
    return effect.message if effect.message.id == order.id else None
