"""How many instances the models of a node have: told of demand, it decides, orders and explains.

    DemandCame ─► Monitor ┐
    ViewChanged ─► Census ┼─► Judge (policy.py) ─► Ordering ─► OrderInstances, CancelOperation …
    WishGiven ──► Wishes  ┘                             └────► Decided ─► Journal
    OperationOver ──────────────────────────────────────┘

Every node runs one. It speaks for the models whose owner the node is (ownership.py), by its own
view; of the others it keeps what it hears, for a moment, should it become their owner. What carries
orders out is `Operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from blitzgw.core.scale import DecisionFacts, WhyFacts
from blitzgw.core.view import ClusterView, ScaleFacts, ScaleWish
from blitzgw.scaling.autoevents import (
    AutoEffect,
    AutoEvent,
    CedeAsked,
    DemandCame,
    OperationOver,
    OrderTaken,
    PublishScale,
    PublishWish,
    SendCede,
    Underway,
    ViewChanged,
    WishGiven,
)
from blitzgw.scaling.census import Census
from blitzgw.scaling.charge import Charge
from blitzgw.scaling.charges import Charges
from blitzgw.scaling.events import NodeDied, TimePassed
from blitzgw.scaling.journal import Journal
from blitzgw.scaling.judging import Judge, Judgement
from blitzgw.scaling.ordering import Ordering
from blitzgw.scaling.reckoning import LAG_S
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.scaling.telling import AutoscalerStatistics, scale_facts, why_facts
from blitzgw.scaling.wishes import HEIRS, Wishes


class Autoscaler:
    """The owner's decider. `boot` and `node` are this process's; `unix_time` goes into facts only.

    `define` returns what is known of a model, None where that is nothing; `underway` the operations
    of a model's instances that this node owns and that run, at a time of the decider's clock.

    Its shell carries effects out before it calls `handle` again, and answers each `OrderInstances`
    with `OrderTaken`, or with `OperationOver` without an operation where it is refused.
    """

    def __init__(
        self,
        boot: str,
        node: str,
        view: Callable[[], ClusterView],
        define: Callable[[str], ModelDefinition | None],
        underway: Callable[[str, float], tuple[Underway, ...]],
        unix_time: Callable[[], float],
    ) -> None:
        self._boot, self._node, self._unix_time = boot, node, unix_time
        self._census = Census(view)
        self._wishes, self._journal = Wishes(boot), Journal()
        self._charges = Charges(boot, self._census, define, unix_time)
        self._judge = Judge(self._census, self._wishes, underway)
        self._ordering = Ordering(
            boot, node, self._census, self._journal, self._charges.definitions, unix_time
        )
        self._judged: dict[str, Judgement] = {}
        self._wished: Sequence[ScaleWish] = ()
        self._unfollowed = False
        self._handlers: dict[type, Callable[[Any, float], list[AutoEffect]]] = {
            TimePassed: self._on_time,
            DemandCame: self._on_demand,
            ViewChanged: self._on_view,
            WishGiven: self._on_wish,
            CedeAsked: self._on_cede,
            OrderTaken: self._on_taken,
            OperationOver: self._on_over,
            NodeDied: self._on_died,
        }

    @property
    def facts(self) -> dict[str, ScaleFacts]:
        """Return what is published of the models that this node owns, by name."""
        told = {charge.model: charge.bulletin.told for charge in self._charges}
        return {model: facts for model, facts in told.items() if facts is not None}

    def handle(self, event: AutoEvent, now: float) -> list[AutoEffect]:
        """Take an event at time `now` in seconds; return what to do, in order."""
        effects: list[AutoEffect] = []
        self._unfollowed |= self._census.refresh()
        if self._unfollowed or self._charges.due(now):
            effects += self._follow(now)
        effects += self._handlers[type(event)](event, now)
        for charge in self._concerned(event):
            if charge.look_at is not None and now >= charge.look_at:
                effects += self._look(charge, now)
        return effects + self._tell(now)

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due; None: never."""
        due = self._charges.deadline()
        for charge in self._charges:
            for at in (charge.look_at, charge.bulletin.deadline()):
                if at is not None and (due is None or at < due):
                    due = at
        return due

    def why(self, model: str, now: float) -> WhyFacts | None:
        """Return why a model has as many instances as it has; None: it is not ours."""
        self._unfollowed |= self._census.refresh()
        charge = self._charges.get(model)
        if charge is None:
            return None
        judged = self._judge.judge(charge, now)
        decision = self._ordering.decision(charge, judged, acted=False)
        return why_facts(charge, judged, decision, self._journal.of(model), now)

    def decisions(self) -> list[DecisionFacts]:
        """Return the decisions that are remembered of all models, the oldest first."""
        return self._journal.all()

    def statistics(self) -> AutoscalerStatistics:
        """Return the present figures."""
        judged = self._judged
        return AutoscalerStatistics(
            present={model: each.outlook.shown for model, each in judged.items()},
            wanted={model: each.verdict.wanted for model, each in judged.items()},
            pressure={model: each.figures.pressure for model, each in judged.items()},
            outcomes=dict(self._journal.outcomes),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        self._charges.check_integrity()
        self._wishes.check_integrity()
        self._journal.check_integrity()
        assert self._judged.keys() <= {charge.model for charge in self._charges}

    def _concerned(self, event: AutoEvent) -> list[Charge]:
        """Return the models to be looked at: one of which a node tells does not wait for others."""
        if not isinstance(event, DemandCame):
            return list(self._charges)
        charge = self._charges.get(event.demand.model)
        return [charge] if charge is not None else []

    # What the view says.

    def _follow(self, now: float) -> list[AutoEffect]:
        """Follow the view: wishes, ownership, deaths; look anew at whatever that may concern."""
        self._unfollowed = False
        effects: list[AutoEffect] = []
        wishes = self._census.wishes()
        if wishes is not self._wished:
            self._wished = wishes
            for model in self._wishes.learn(wishes):
                self._command(model, now)
        for charge in self._charges.follow(now):
            self._judged.pop(charge.model, None)
            if charge.bulletin.told is not None:
                effects.append(PublishScale(charge.model, None))
        effects += self._pass_on()
        for charge in self._charges:
            paused = charge.growing.pauses(now)
            if paused:
                charge.growing.seen(self._census.room(charge.definition))
            if self._judge.follow(charge, self._judged.get(charge.model)) or paused:
                charge.viewed_s = None
                charge.look_soon(now)
        return effects

    def _pass_on(self) -> list[AutoEffect]:
        heirs = self._census.heirs
        return [PublishWish(wish) for wish in self._wishes.to_pass_on(lambda m: heirs(m, HEIRS))]

    def _command(self, model: str, now: float) -> None:
        """Note that an operator has said something new of a model."""
        charge = self._charges.get(model)
        if charge is not None:
            charge.commanded, charge.level_at, charge.held_until = True, None, now
            charge.look_soon(now, at_once=True)

    def _on_view(self, _event: ViewChanged, _now: float) -> list[AutoEffect]:
        return []  # every event finds out

    def _on_time(self, _event: TimePassed, _now: float) -> list[AutoEffect]:
        return []

    def _on_died(self, event: NodeDied, now: float) -> list[AutoEffect]:
        self._charges.forget(event.boot, now)
        for charge in self._charges:
            charge.reckoning.shaken()
            charge.look_soon(now, at_once=True)
        return []

    # What nodes and operators say.

    def _on_demand(self, event: DemandCame, now: float) -> list[AutoEffect]:
        charge = self._charges.hear(event.boot, event.demand, now)
        if charge is not None:
            judged = self._judged.get(charge.model)
            asleep = event.demand.held > 0 and (judged is None or not judged.present)
            charge.look_soon(now, at_once=asleep, progress=not charge.monitor.rises)
        return []

    def _on_wish(self, event: WishGiven, now: float) -> list[AutoEffect]:
        wish = self._wishes.give(event.model, event.wanted)
        if wish is None:
            return []
        self._command(event.model, now)
        charge = self._charges.get(event.model)
        if event.ordered and charge is not None:
            charge.aim, charge.commanded = event.wanted, False
        return [PublishWish(wish)]

    def _on_cede(self, event: CedeAsked, now: float) -> list[AutoEffect]:
        charge = self._charges.get(event.cede.model)
        node = self._census.view.nodes.get(event.boot)
        if charge is None or node is None or not node.living:
            return []
        judged = self._judge.judge(charge, now)
        effects = self._ordering.cede(charge, judged, event.cede, now)
        if effects:
            charge.look_soon(now)
        return effects

    # What becomes of orders.

    def _on_taken(self, event: OrderTaken, _now: float) -> list[AutoEffect]:
        charge = self._charges.get(event.model)
        if charge is not None:
            charge.reckoning.taken(event.decision, event.operation)
        self._journal.carried_out(event.model, event.decision, event.operation)
        return []

    def _on_over(self, event: OperationOver, now: float) -> list[AutoEffect]:
        charge = self._charges.get(event.model)
        if charge is None:
            return []
        self._ordering.over(charge, event, now)
        charge.look_soon(now, at_once=True)
        if event.asked and self._wishes.wanted(event.model) >= 0:
            charge.level_at = None
            return self._level(charge, now)
        return []

    def _level(self, charge: Charge, now: float) -> list[AutoEffect]:
        """Wish for what there is, and what else comes: an operator has cancelled an operation.

        Looks again until views show its end, and all others have claimed what they bring: of its
        targets some may be deaf, and load until they are believed to be dead.
        """
        outlook = self._judge.judge(charge, now).outlook
        again = charge.level_at is None or outlook.astray
        charge.level_at = now + LAG_S if again else None
        if outlook.present == self._wishes.wanted(charge.model):
            return []
        wish = self._wishes.give(charge.model, outlook.present)
        return [PublishWish(wish)] if wish is not None else []

    # Looking.

    def _look(self, charge: Charge, now: float) -> list[AutoEffect]:
        """Judge a model and act; say when to look again."""
        effects: list[AutoEffect] = []
        if charge.level_at is not None and now >= charge.level_at:
            effects += self._level(charge, now)
        judged = self._judged[charge.model] = self._judge.judge(charge, now)
        charge.looked(judged.present, now)
        acts = self._ordering.act(charge, judged, now)
        for effect in acts:
            if isinstance(effect, SendCede) and effect.boot == self._boot:
                effects += self._on_cede(CedeAsked(self._boot, effect.cede), now)
            else:
                effects.append(effect)
        self._note(charge, judged, now)
        ordered = bool(effects)
        times = [
            judged.verdict.again_s,
            charge.settled_at,
            charge.growing.until,
            charge.shrinking.until,
            charge.asking.until if judged.short else None,
            charge.held_until,
            charge.level_at,
            charge.reckoning.deadline(),
        ]
        charge.look_later(times, ordered or bool(judged.outlook.coming), now)
        return effects

    def _note(self, charge: Charge, judged: Judgement, now: float) -> None:
        """Note what is to be told of a model."""
        unix_s = self._unix_time()
        charge.bulletin.note(scale_facts(charge, judged, now, unix_s), unix_s)

    def _tell(self, now: float) -> list[AutoEffect]:
        return [
            PublishScale(charge.model, facts)
            for charge in self._charges
            if (facts := charge.bulletin.tell(now)) is not None
        ]
