"""Broken autoscalers, and worlds to try them in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from blitzgw.core.view import ScaleFacts
from blitzgw.scaling import autoevents as au
from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.sim.scalingfaults import Fault, FaultSchedule
from blitzgw.sim.scalingtrial import ScalingOutcome, ScalingTrial


class Broken(Autoscaler):
    """A decider whose effects pass through `keeps`, which drops or changes some."""

    def handle(self, event: au.AutoEvent, now: float) -> list[au.AutoEffect]:
        told = [self.keeps(effect) for effect in super().handle(event, now)]
        return [effect for effect in told if effect is not None]

    def keeps(self, effect: Any) -> Any:
        return effect


class NeverSpeaks(Broken):
    """Never says that it owns anything."""

    def keeps(self, effect: Any) -> Any:
        return None if isinstance(effect, au.PublishScale) else effect


class NeverActs(Broken):
    """Decides, and orders nothing."""

    def keeps(self, effect: Any) -> Any:
        return None if isinstance(effect, au.OrderInstances) else effect


class KnowsNoBounds(Broken):
    """Orders two instances more than are wanted."""

    def keeps(self, effect: Any) -> Any:
        if isinstance(effect, au.OrderInstances) and effect.instances:
            return replace(effect, instances=effect.instances + 2)
        return effect


class Wavers(Broken):
    """Says that it wants one more and one less in turn."""

    turn = 0

    def keeps(self, effect: Any) -> Any:
        if isinstance(effect, au.PublishScale) and isinstance(effect.facts, ScaleFacts):
            self.turn += 1
            facts = replace(effect.facts, wanted=effect.facts.wanted + self.turn % 2)
            return replace(effect, facts=facts)
        return effect


class Unsound(Broken):
    """Contradicts itself."""

    def check_integrity(self) -> None:
        raise AssertionError("my books are wrong")


def outcome_of(
    make: type[Autoscaler], *faults: tuple[float, Fault], seed: int = 1, nodes: int = 4
) -> ScalingOutcome:
    """Carry out these faults, and no others, on a small cluster."""
    trial = ScalingTrial(seed, nodes, 2, make=make)
    trial.schedule = FaultSchedule(trial.schedule.end_s, faults)
    return trial.run()
