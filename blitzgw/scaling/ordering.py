"""From a judgement to what is done: orders, cancellations, a device asked for or let go.

wanted > present   order, after giving up what shrinks        ┐ unless something stands in the
wanted < present   order, once nothing grows any more         ┘ way, which `obstacle` puts into
devices lacking    ask another model's owner for one (ceding.py)                          words
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from blitzgw.core.scale import Cede, DecisionFacts, ScaleMode
from blitzgw.scaling.autoevents import (
    AutoEffect,
    CancelOperation,
    Decided,
    OperationOver,
    OrderInstances,
    SendCede,
)
from blitzgw.scaling.ceding import (
    CEDE_HOLD_S,
    CEDE_PAUSE_S,
    MIN_PRESSURE,
    giver_for,
    has_the_device,
)
from blitzgw.scaling.census import Census
from blitzgw.scaling.charge import Charge
from blitzgw.scaling.journal import CANCELLED, DONE, FAILED, PARTIAL, REFUSED, Journal
from blitzgw.scaling.judging import Judgement
from blitzgw.scaling.policy import PolicyState
from blitzgw.scaling.survey import ModelDefinition


class Ordering:
    """Acts for the owner `boot`, whose node is called `node`. `models` are all that are defined."""

    def __init__(
        self,
        boot: str,
        node: str,
        census: Census,
        journal: Journal,
        models: Callable[[], Iterable[ModelDefinition]],
        unix_time: Callable[[], float],
    ) -> None:
        self._boot, self._node, self._census, self._journal = boot, node, census, journal
        self._models, self._unix_time = models, unix_time

    def act(self, charge: Charge, judged: Judgement, now: float) -> list[AutoEffect]:
        """Do what a judgement asks for, or nothing."""
        wanted, present = judged.verdict.wanted, judged.present
        if judged.devices:
            charge.asking.answered()
        if judged.outlook.shrinking and now < charge.held_until:
            charge.held_until = now + CEDE_HOLD_S  # what drains for another is not free yet
        if wanted < present and judged.outlook.growing:
            charge.standstill.look(judged.outlook.coming, now)
        else:
            charge.standstill.over()
        if wanted == present:
            charge.state = _own(judged.verdict.state)
            charge.commanded &= judged.fixed not in (None, wanted)
            self._journal.content(charge.model, now)
            return self._ask(charge, judged, now)
        if obstacle(charge, judged, now):
            return []
        if judged.mode is ScaleMode.ADVISE:
            return self._advise(charge, judged, now)
        charge.state = _own(judged.verdict.state)
        return self._order(charge, judged, now)

    def decision(self, charge: Charge, judged: Judgement, *, acted: bool) -> DecisionFacts:
        """Return a judgement as the decision that it is."""
        verdict = judged.verdict
        formula, inputs = verdict.basis()
        return DecisionFacts(
            model=charge.model,
            owner=self._node,
            at_s=self._unix_time(),
            action=verdict.action,
            present=judged.present,
            wanted=verdict.wanted,
            acted=acted,
            reason=verdict.reason,
            formula=formula,
            inputs=inputs,
        )

    # More or fewer.

    def _advise(self, charge: Charge, judged: Judgement, now: float) -> list[AutoEffect]:
        decision = self.decision(charge, judged, acted=False)
        number = self._journal.advise(decision, now)
        if number is None:
            return []
        charge.reason = decision.reason
        return [Decided(number, decision)]

    def _order(self, charge: Charge, judged: Judgement, now: float) -> list[AutoEffect]:
        decision, outlook = self.decision(charge, judged, acted=True), judged.outlook
        grows = decision.wanted > decision.present
        if not grows and outlook.growths and judged.fixed is None:
            return self._give_up_rest(charge, judged, decision)
        against = outlook.retreats if grows else outlook.growths
        effects = [self._cancel(charge, operation, decision) for operation in against]
        if grows:
            charge.growing.attempt(judged.room)
            charge.ready_by = now + charge.load_s
        return effects + self._tell(charge, decision, now)

    def _give_up_rest(
        self, charge: Charge, judged: Judgement, decision: DecisionFacts
    ) -> list[AutoEffect]:
        """Wait no longer for what is coming. What is ready stays; the next look goes on from it."""
        number = self._journal.add(decision)
        charge.standstill.over()
        charge.aim, charge.reason, charge.commanded = decision.wanted, decision.reason, False
        growths = judged.outlook.growths
        return [
            Decided(number, decision),
            *(self._cancel(charge, operation, decision) for operation in growths),
        ]

    def _tell(self, charge: Charge, decision: DecisionFacts, now: float) -> list[AutoEffect]:
        """Decide, and order it."""
        number = self._journal.add(decision)
        grows = decision.wanted > decision.present
        charge.reckoning.ordered(number, decision.wanted, grows, now)
        charge.aim, charge.reason, charge.commanded = decision.wanted, decision.reason, False
        order = OrderInstances(charge.model, decision.wanted, decision.reason, number)
        return [Decided(number, decision), order]

    def _cancel(self, charge: Charge, operation: str, decision: DecisionFacts) -> AutoEffect:
        charge.reckoning.cancelled(operation)
        return CancelOperation(operation, f"{decision.wanted} instances are wanted now")

    # Whose device.

    def _ask(self, charge: Charge, judged: Judgement, now: float) -> list[AutoEffect]:
        """Ask another model's owner for a device where none is left and a target is missed."""
        pressed = judged.short and judged.figures.pressure > MIN_PRESSURE
        acting = judged.decides and judged.mode is not ScaleMode.ADVISE
        waits = now < max(charge.asking.until, charge.held_until, charge.settled_at)
        if not pressed or not acting or waits or charge.level_at is not None:
            return []
        charge.asking.asked(now)
        cede = Cede("", charge.model, judged.terms.priority, judged.figures.pressure)
        giver = giver_for(charge.definition, cede, self._census, self._models())
        if giver is None:
            return []
        charge.reason = f"no device is left; {giver.model} is to let one go"
        return [SendCede(giver.boot, replace(cede, model=giver.model))]

    def cede(self, charge: Charge, judged: Judgement, cede: Cede, now: float) -> list[AutoEffect]:
        """Let a device go if who asks goes before: what is coming first, else one that serves."""
        if refusal(charge, judged, cede, now):
            return []
        charge.ceded_s, charge.held_until = now, now + CEDE_HOLD_S
        wanted = judged.present - 1
        what = f"{cede.taker} needs it more: priority {cede.priority}, pressure {cede.pressure:.3g}"
        decision = replace(
            self.decision(charge, judged, acted=True),
            action="cede",
            wanted=wanted,
            reason=what,
            formula="priority, then pressure · n/(n−1) < the other's",
            inputs={
                "priority": float(judged.terms.priority),
                "pressure": judged.figures.pressure,
                "taker_priority": float(cede.priority),
                "taker_pressure": cede.pressure,
            },
        )
        if judged.outlook.growths:
            number = self._journal.add(decision)
            charge.reason = what
            last = judged.outlook.growths[-1]
            return [Decided(number, decision), self._cancel(charge, last, decision)]
        return self._tell(charge, decision, now)

    # How it ends.

    def over(self, charge: Charge, event: OperationOver, now: float) -> None:
        """Take an operation's end: learn from it, or pause."""
        if not event.operation:
            self._refused(charge, event, now)
            return
        done, given_up = event.state == DONE, charge.reckoning.given_up(event.operation)
        grows, orders = charge.reckoning.over(
            event.operation, done, short=bool(event.reason), now=now
        )
        partial = done and grows and bool(event.reason)
        outcome = PARTIAL if partial else event.state if event.state in _KNOWN else FAILED
        if given_up:
            outcome = CANCELLED
        self._journal.ended(charge.model, [order.decision for order in orders], outcome)
        trying = charge.growing if grows else charge.shrinking
        if outcome == DONE:
            trying.succeeded()
            if grows and orders:
                charge.loaded(now - orders[-1].given_s)
        elif outcome in (FAILED, PARTIAL):
            trying.failed(event.reason, self._census.room(charge.definition), now)
        elif event.asked:
            trying.cancelled("an operator has cancelled it", now)

    def _refused(self, charge: Charge, event: OperationOver, now: float) -> None:
        order = charge.reckoning.refused()
        if order is not None:
            self._journal.ended(charge.model, [order.decision], REFUSED)
        trying = charge.growing if order is None or order.grows else charge.shrinking
        trying.failed(event.reason, self._census.room(charge.definition), now)


_KNOWN = (DONE, FAILED, CANCELLED)


def _own(state: PolicyState) -> PolicyState:
    """Return a policy's state without its own memory of orders: reckoning.py knows better."""
    return replace(state, ordered=0) if state.ordered else state


def obstacle(charge: Charge, judged: Judgement, now: float) -> str:
    """Return why what a judgement asks for is not done now, or nothing."""
    grows = judged.verdict.wanted > judged.present
    trying = charge.growing if grows else charge.shrinking
    wakes = grows and not judged.present and judged.figures.held > 0
    if charge.level_at is not None:
        return "an operator has cancelled an operation a moment ago"
    if now < charge.settled_at and not wakes and not charge.commanded:
        return "this node has become the owner a moment ago, and waits for others to tell it"
    if trying.pauses(now) and not charge.commanded and judged.mode is not ScaleMode.ADVISE:
        left_s = trying.until - now
        return f"again in {left_s:.2g} s, {trying.failures} attempts failed: {trying.reason}"
    waits = judged.outlook.growing and not charge.standstill.lasts(now)
    if not grows and waits and judged.fixed is None:
        return "instances are coming yet"
    return ""


def refusal(charge: Charge, judged: Judgement, cede: Cede, now: float) -> str:
    """Return why a model does not give way, or nothing."""
    if judged.mode is not ScaleMode.AUTO or charge.level_at is not None:
        return "its number is not for its owner to decide"
    if now < charge.settled_at:
        return "its owner is new"
    if charge.ceded_s is not None and now < charge.ceded_s + CEDE_PAUSE_S:
        return "it has let a device go a moment ago"
    if judged.outlook.shrinking:
        return "it is letting one go"
    if judged.present <= judged.least:
        return "it has no more than its least"
    pressure, present = judged.figures.pressure, judged.present
    if not has_the_device(cede, judged.terms.priority, pressure, present):
        return "it goes before"
    return ""
