"""The shell of the autoscaler: what it is told, and what becomes of its decisions.

    links, Demands ── demand, cede ──┐
    view, operations, operators ─────┴──► Autoscaler ──► orders, wishes, facts, log

What it asks for is done before it is told anything else: news that come meanwhile wait.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from blitzgw.core.clock import Clock
from blitzgw.core.operation import ScaleAnswer, ScaleOrder
from blitzgw.core.scale import Cede, DecisionFacts, Demand, WhyFacts
from blitzgw.core.view import Fact, ScaleFacts, ScaleWish
from blitzgw.scalemetrics import ScaleMetrics
from blitzgw.scaling import autoevents as auto
from blitzgw.scaling.autoscaler import Autoscaler

log = logging.getLogger(__name__)

MAX_REMEMBERED = 256
"""Decisions whose operations may be under way yet: more than operations run at once."""

STALE_S = 1.0
"""What is older has not brought a decision about: owners look at their models more often."""

MAX_TEXT = 300
"""Characters of a reason in the log."""

Give = Callable[[ScaleOrder, Callable[[ScaleAnswer], None]], None]
"""Gives an order of this node to `Operations`; the answer is told before its other effects."""

Say = Callable[[str, Demand | Cede], None]
"""(boot, message): sends it to a node, perhaps this one."""


class Autoscaling:
    """One node's autoscaler at work. Call it from the event loop.

    `cancel` gives an operation of this node up, for a reason; `on_change` is told that `facts` has
    changed, `arm` that `deadline` may have.
    """

    def __init__(
        self,
        decider: Autoscaler,
        clock: Clock,
        metrics: ScaleMetrics,
        give: Give,
        cancel: Callable[[str, str], None],
        say: Say,
        on_change: Callable[[], None],
        arm: Callable[[], None],
    ) -> None:
        self.decider = decider
        self._clock, self._metrics = clock, metrics
        self._give, self._cancel, self._say = give, cancel, say
        self._on_change, self._arm = on_change, arm
        self._ids = itertools.count(1)
        self._news: deque[auto.AutoEvent] = deque()
        self._busy = False
        self._wishes: dict[str, ScaleWish] = {}
        self._facts: dict[str, ScaleFacts] = {}
        self._actions: dict[int, str] = {}
        self._reasons: dict[str, str] = {}
        self._news_s: dict[str, float] = {}
        """When what a model's last demand told of had happened."""
        self._performers: dict[type, Callable[[Any], None]] = {
            auto.OrderInstances: self._order,
            auto.CancelOperation: lambda effect: self._cancel(effect.operation, effect.reason),
            auto.PublishWish: self._publish_wish,
            auto.PublishScale: self._publish_scale,
            auto.Decided: self._decided,
            auto.SendCede: lambda effect: self._say(effect.boot, effect.cede),
        }

    def facts(self) -> list[Fact]:
        """Return what this node publishes of wishes, and of the models that it owns."""
        return [*self._wishes.values(), *self._facts.values()]

    def said(self, boot: str, message: Demand | Cede) -> None:
        """Take what a node says of a model, perhaps this one."""
        if isinstance(message, Demand):
            self.tell(auto.DemandCame(boot, message))
        else:
            self.tell(auto.CedeAsked(boot, message))

    def wished(self, model: str, wanted: int, *, ordered: bool) -> None:
        """Take an operator's wish; `ordered`: an operation has begun for it."""
        log.info("scale_wish model=%s wanted=%d", model, wanted)
        self.tell(auto.WishGiven(model, wanted, ordered))

    def ended(self, model: str, operation: str, state: str, reason: str, *, asked: bool) -> str:
        """Take the end of an operation of this node; return the decision's action behind it.

        Empty where it was an operator's.
        """
        self.tell(auto.OperationOver(model, operation, state, reason, asked))
        return self._reasons.pop(operation, "")

    def tell(self, event: auto.AutoEvent) -> None:
        """Tell the decider, now or as soon as it has been done what it asked for last."""
        self._news.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._news:  # bounded: effects bring only what concerns themselves
                self._handle(self._news.popleft())
        finally:
            self._busy = False
            self._arm()

    def deadline(self) -> float | None:
        """Return when the decider wants to be told that time has passed."""
        return self.decider.deadline()

    def whys(self, model: str = "") -> list[WhyFacts]:
        """Return why models of this node have what they have; of one, or of all."""
        now = self._clock.now()
        found = (self.decider.why(name, now) for name in ([model] if model else self._facts))
        return [why for why in found if why is not None]

    def _handle(self, event: auto.AutoEvent) -> None:
        now = self._clock.now()
        if isinstance(event, auto.DemandCame) and event.demand.news_s > 0:
            self._note_news(event.demand.model, now - event.demand.news_s)
        try:
            effects: Sequence[auto.AutoEffect] = self.decider.handle(event, now)
        except Exception:  # other events must not suffer; a later look at the figures may do better
            log.exception("autoscaler_failed event=%s", type(event).__name__)
            return
        for effect in effects:
            try:
                self._performers[type(effect)](effect)
            except Exception:  # the others must not suffer; what is lacking is ordered again
                log.exception("effect_failed kind=%s", type(effect).__name__)

    def _note_news(self, model: str, at_s: float) -> None:
        self._news_s[model] = at_s
        while len(self._news_s) > MAX_REMEMBERED:
            del self._news_s[next(iter(self._news_s))]

    def _order(self, effect: auto.OrderInstances) -> None:
        order = ScaleOrder(next(self._ids), effect.model, effect.instances, automatic=True)
        answers: list[ScaleAnswer] = []

        def answered(answer: ScaleAnswer) -> None:
            answers.append(answer)
            self.tell(self._outcome(effect, answer))

        try:
            self._give(order, answered)
        finally:
            if not answers:
                text = "it was not answered"
                self.tell(auto.OperationOver(effect.model, "", "failed", text))

    def _outcome(self, effect: auto.OrderInstances, answer: ScaleAnswer) -> auto.AutoEvent:
        if answer.operation is None:
            log.info(
                "scale_refused model=%s wanted=%d code=%s message=%s",
                effect.model, effect.instances, answer.code, answer.message[:MAX_TEXT],
            )  # fmt: skip
            return auto.OperationOver(effect.model, "", "failed", answer.message)
        name = answer.operation.id
        self._reasons[name] = self._actions.get(effect.decision, "")
        while len(self._reasons) > MAX_REMEMBERED:
            del self._reasons[next(iter(self._reasons))]
        return auto.OrderTaken(effect.model, effect.decision, name)

    def _publish_wish(self, effect: auto.PublishWish) -> None:
        self._wishes[effect.wish.model] = effect.wish
        self._on_change()

    def _publish_scale(self, effect: auto.PublishScale) -> None:
        if effect.facts is None:
            self._facts.pop(effect.model, None)
        else:
            self._facts[effect.model] = effect.facts
        self._on_change()

    def _decided(self, effect: auto.Decided) -> None:
        decision = effect.decision
        self._actions[effect.number] = decision.action
        while len(self._actions) > MAX_REMEMBERED:
            del self._actions[next(iter(self._actions))]
        after_s = self._after_s(decision)
        self._metrics.decided(decision, after_s)
        log.info(
            "scale_decided model=%s action=%s present=%d wanted=%d acted=%d after_s=%s reason=%s",
            decision.model, decision.action, decision.present, decision.wanted, decision.acted,
            "-" if after_s is None else f"{after_s:.4f}", decision.reason[:MAX_TEXT],
        )  # fmt: skip

    def _after_s(self, decision: DecisionFacts) -> float | None:
        """Return how long ago that had happened which is answered; None for what time has brought.

        More instances answer what was told last.
        """
        at_s = self._news_s.get(decision.model)
        if at_s is None or decision.wanted <= decision.present:
            return None
        after_s = self._clock.now() - at_s
        return after_s if after_s <= STALE_S else None
