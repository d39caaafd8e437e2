"""Which loading instance helps which complete one, and how, over all plans of an operation.

By `pipeline`, targets of different groups of the plan serve together: the first of each pipeline
takes requests from its home meanwhile, the others help theirs only when they are complete
(assignments.py). Who is in no pipeline helps as ever. With no home anywhere (from zero) the first
one is sent requests by those who hold them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from blitzgw.core.live import LivePolicy, Pair
from blitzgw.core.plan import Links, Plan, Prediction
from blitzgw.core.view import ClusterView
from blitzgw.scaling.homes import Home, assign, homes_of
from blitzgw.scaling.livechoice import AUTO, Decision, configured_policy, decide, from_zero
from blitzgw.scaling.planner.pipelines import Pipeline, alone_s, pipelines, together_s
from blitzgw.scaling.survey import ModelDefinition

if TYPE_CHECKING:
    from blitzgw.scaling.planner.choose import Choice

LEAST_GAIN_S = 0.1
"""Before a target is complete a pipeline from zero is to be ready: joining its stages, and telling
those who hold requests, takes about as long."""


class Pairing:
    """The pairs of one operation.

    `wanted` is what was ordered, empty: what the model's definition says. Once instances help by a
    policy it stays: nodes would have to end what is under way. With `stop`, too, a target has a
    home: what waits there is dealt out when it is complete.
    """

    def __init__(self, definition: ModelDefinition, wanted: str) -> None:
        self._definition, self._wanted = definition, wanted
        self._homes: dict[str, Home] = {}
        self._known: dict[str, Home] = {}
        """The last home of each target: one that was left out of a plan comes back to it."""
        self._dead: set[str] = set()
        """Processes that have died, which the view may show later."""
        self.decision = Decision(LivePolicy.STOP, "nothing is planned yet", {})
        self.pipelines: tuple[Pipeline, ...] = ()
        self._settled = False

    def from_zero(self, view: ClusterView, targets: Collection[str]) -> bool:
        """Whether nobody serves the model, so that the targets have only each other."""
        return not self._living(view, targets)

    def wants_pipelines(self, view: ClusterView, targets: Collection[str]) -> bool:
        """Whether targets are to serve together, if a plan lets them.

        Where a home gives them work, if that is wanted; from zero, unless something else is.
        """
        if self.from_zero(view, targets):
            return len(targets) > 1 and self._policy(view) in (AUTO, LivePolicy.PIPELINE)
        return self._policy(view) == LivePolicy.PIPELINE

    def _policy(self, view: ClusterView) -> str:
        return self._wanted or configured_policy(self._definition, view)

    def pipelined(
        self, plan: Plan, prediction: Prediction, targets: Collection[str]
    ) -> tuple[Pipeline, ...]:
        """Return the pipelines that go with a plan.

        Once nodes know of them none is made anew: those remain that have all of their members and
        whose first one, which leads, is not complete.
        """
        if not self._settled:
            tied = self._definition.tied_head
            return pipelines(plan, prediction, self._definition.n_layers, tied_head=tied)
        return tuple(
            pipeline
            for pipeline in self.pipelines
            if all(stage.worker in targets for stage in pipeline.stages)
            and pipeline.stages[0].worker in plan.targets
        )

    def ready_s(self, choice: Choice, targets: Collection[str]) -> float | None:
        """Return when the first pipeline that goes with a plan is ready; None: there is none."""
        tied, arrivals = self._definition.tied_head, choice.prediction.arrivals
        found = self.pipelined(choice.plan, choice.prediction, targets)
        times = [together_s(each.stages, arrivals, tied_head=tied) for each in found]
        return min(times, default=None)

    def settle(self) -> None:
        """Take note that nodes are told of the last plan."""
        self._settled |= self.decision.policy is LivePolicy.PIPELINE

    def pair(
        self,
        plan: Plan,
        prediction: Prediction,
        links: Links,
        view: ClusterView,
        targets: Collection[str],
    ) -> Plan:
        """Return a plan with policy and pairs. `targets` are all that live, complete ones too."""
        homes = self._living(view, targets)
        self._homes = assign(targets, self._known, homes, view)
        self._known.update(self._homes)
        if not self._homes:
            self.decision = self._alone(plan, prediction, view, targets)
        elif self.decision.policy is LivePolicy.STOP:
            self.decision = decide(
                self._wanted, self._definition, view, links, prediction, self._homes
            )
        policy = self.decision.policy
        self.pipelines = self._pipelined(plan, prediction, targets)
        pairs = tuple(Pair(worker, home.id) for worker, home in sorted(self._homes.items()))
        stages = tuple(pipeline.stages for pipeline in self.pipelines)
        return replace(plan, policy=policy, pairs=pairs, pipelines=stages)

    def _pipelined(
        self, plan: Plan, prediction: Prediction, targets: Collection[str]
    ) -> tuple[Pipeline, ...]:
        if self._settled:  # what they have goes on without a home
            return self.pipelined(plan, prediction, targets)
        if self.decision.policy is not LivePolicy.PIPELINE:
            return ()
        found = self.pipelined(plan, prediction, targets)
        if not self._homes:
            return self._worthwhile(found, prediction)
        return tuple(each for each in found if each.stages[0].worker in self._homes)

    def _alone(
        self, plan: Plan, prediction: Prediction, view: ClusterView, targets: Collection[str]
    ) -> Decision:
        """Decide for targets without a home: they serve together, or wait till they are complete.

        Those that have had one serve on as they do.
        """
        if self._settled or not self.wants_pipelines(view, targets):
            found = self.pipelined(plan, prediction, targets) if self._settled else ()
        else:
            found = self._worthwhile(self.pipelined(plan, prediction, targets), prediction)
        return from_zero(found, prediction, n_targets=len(targets))

    def _worthwhile(
        self, found: tuple[Pipeline, ...], prediction: Prediction
    ) -> tuple[Pipeline, ...]:
        """Return the pipelines that are joined in less time than they gain."""
        before_s = alone_s(prediction.arrivals) - LEAST_GAIN_S
        return tuple(pipeline for pipeline in found if pipeline.ready_s <= before_s)

    def outlived(self, view: ClusterView) -> bool:
        """Whether a home that instances help has gone."""
        there = self._living(view, self._homes)
        return not all(home.id in there for home in self._homes.values())

    def died(self, boot: str) -> bool:
        """Note the death of a process; return whether a home was its."""
        self._dead.add(boot)
        return any(home.placed.boot == boot for home in self._homes.values())

    def _living(self, view: ClusterView, targets: Collection[str]) -> dict[str, Home]:
        homes = homes_of(self._definition, view, targets)
        return {name: home for name, home in homes.items() if home.placed.boot not in self._dead}
