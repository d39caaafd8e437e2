"""One seed of a cluster that scales itself: its faults, its loads, and what does not hold.

0 ── loads that change, faults ── FAULTS_S ── steady loads ── settled ── STEADY_S ── no more
     clients ── all answered
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from blitzgw.core.scale import AUTOMATIC
from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.sim import scalingfaults as sf
from blitzgw.sim.scalinginvariants import (
    Watchman,
    alone_s,
    owed_s,
    unanswered,
    unsettled,
    unsteady,
)
from blitzgw.sim.scalingload import draw_models
from blitzgw.sim.scalingrequests import HOLD_S
from blitzgw.sim.scalingtrouble import Trouble
from blitzgw.sim.scalingworld import MakeAutoscaler, ScalingWorld

FAULTS_S = 40.0
"""How long things go wrong."""

SETTLE_S = 40.0
"""From the last mending until all must be right: a pause after failures, a lease, a transfer."""

STEP_S = 0.75
"""Added to it for every device: one step down takes a second or so, and one model may have had half
of them."""

MOST_OWED_S = 150.0
"""And what the faulty part has left to be computed, which nothing can hurry where a model may have
no more instances: its time at what the steady load leaves of them, up to so long."""

STAY_S = 3.0
"""It must stay right for so long."""

STEADY_S = 8.0
"""For so long nothing may go up and down once it has settled."""

LOOK_S = 0.5
"""Between two looks."""

CHECK_LOOKS = 4
"""Deciders' own books are checked with every so many looks: that is dear."""

UNWISH_S = 3.0
"""After the end of all faults operators take most of their wishes back."""

ANSWER_S = HOLD_S + 30.0
"""From the last client until all must have an answer: held for as long as may be. And as long as
what is open takes, up to MOST_OWED_S: an operator may have wished for fewer instances than there is
work for."""


@dataclass(frozen=True, slots=True)
class ScalingOutcome:
    """What became of a seed. `settled_s` is from the last mending until all was right.

    `refused` by reason; `orphaned` are requests whose client's own node has crashed. `instance_s`
    is for how long instances have had devices, `device_s` for how long there were any.
    """

    seed: int
    nodes: int
    devices: int
    models: int
    settled_s: float | None
    violations: tuple[str, ...]
    virtual_s: float
    requests: int
    served: int
    in_time: int
    orphaned: int
    refused: dict[str, int]
    grown: int
    revived: int
    decisions: dict[str, int]
    operations: dict[str, int]
    instance_s: float
    device_s: float
    crashes: int
    owner_crashes: int
    splits: int
    messages: int
    weights_bytes: int
    by_model: dict[str, list[int]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not self.violations


class ScalingTrial:
    """A cluster, drawn from a seed, to which faults and loads happen."""

    def __init__(
        self, seed: int, nodes: int, models: int, *, make: MakeAutoscaler = Autoscaler
    ) -> None:
        self.seed = seed
        rng = random.Random(f"scaling {seed}")  # noqa: S311  a simulation is to repeat
        paired = rng.random() < 0.3
        devices = nodes + (-(-nodes // 4) if paired else 0)
        drawn = draw_models(rng, models, devices, FAULTS_S)
        self.schedule = sf.draw_faults(rng, nodes, models, FAULTS_S)
        self.devices = devices
        self.world = ScalingWorld(seed, nodes, drawn, paired=paired, make=make)
        self._watchman, self._trouble = Watchman(self.world), Trouble(self.world)
        self._looks, self._settle_s = 0, SETTLE_S + STEP_S * devices
        self._stays = rng.random() < 0.5

    def run(self) -> ScalingOutcome:
        """Carry everything out, until something is wrong or all has been looked at."""
        world = self.world
        world.open()
        for at_s, fault in self.schedule.faults:
            world.heap.at(at_s, self._trouble.act, fault)
        self._take_wishes_back()
        longest_s = FAULTS_S + self._settle_s + MOST_OWED_S + STAY_S + STEADY_S
        world.let_clients_come(longest_s)
        settled_s = None
        if self._pass(FAULTS_S):
            self._settle_s += min(MOST_OWED_S, owed_s(world))
            settled_s = self._settle()
            if settled_s is not None:
                self._stay_steady()
                self._answer_all()
        return self._outcome(settled_s)

    def _take_wishes_back(self) -> None:
        """Leave most models to the policy again at the end; one may stay as it is wished."""
        wished = [f.model for _, f in self.schedule.faults if isinstance(f, sf.GiveWish)]
        for number, model in enumerate(dict.fromkeys(wished)):
            if number or not self._stays:
                fault = sf.GiveWish(number % self.world.nodes, model, AUTOMATIC)
                self.world.heap.at(FAULTS_S + UNWISH_S, self._trouble.act, fault)

    def _pass(self, duration_s: float) -> bool:
        """Let time pass, looking now and then; return whether nothing was wrong."""
        world = self.world
        until_s = world.heap.now + duration_s
        while world.heap.now < until_s:
            world.heap.run_until(min(until_s, world.heap.now + LOOK_S))
            self._look()
            if world.violations or world.ledger.wrong:
                return False
        return True

    def _look(self) -> None:
        self._watchman.look()
        self._looks += 1
        if self._looks % CHECK_LOOKS == 0:
            self._watchman.check()

    def _settle(self) -> float | None:
        """Wait until all is right and stays so; return since when, None where it never is."""
        world = self.world
        right_s: float | None = None
        while True:
            found = unsettled(world)
            now = world.heap.now
            if not found and now > FAULTS_S + UNWISH_S:
                right_s = now if right_s is None else right_s
                if now - right_s >= STAY_S:
                    return round(right_s - FAULTS_S, 3)
            else:
                right_s = None
                if now > FAULTS_S + self._settle_s:
                    world.violations += found
                    return None
            if not self._pass(LOOK_S):
                return None

    def _stay_steady(self) -> None:
        since_s = self.world.heap.now
        if self._pass(STEADY_S):
            self.world.violations += unsteady(self.world, since_s)

    def _answer_all(self) -> None:
        world = self.world
        world.close()
        until_s = world.heap.now + ANSWER_S + min(MOST_OWED_S, alone_s(world))
        while world.ledger.open and world.heap.now < until_s:
            if not self._pass(1.0):
                return
        world.violations += unanswered(world)

    def _outcome(self, settled_s: float | None) -> ScalingOutcome:
        world = self.world
        ledger, tally = world.ledger, world.tally
        for there in world.instances():
            world.ended(there)
        return ScalingOutcome(
            seed=self.seed,
            nodes=world.nodes,
            devices=self.devices,
            models=len(world.models),
            settled_s=settled_s,
            violations=tuple(world.violations + ledger.wrong),
            virtual_s=round(world.heap.now, 3),
            requests=ledger.arrived,
            served=ledger.served,
            in_time=ledger.in_time,
            orphaned=ledger.orphaned,
            refused=dict(sorted(ledger.refused.items())),
            grown=tally.brought_up,
            revived=tally.revived,
            decisions=dict(sorted(tally.decisions.items())),
            operations=dict(sorted(tally.operations.items())),
            instance_s=round(tally.instance_s, 3),
            device_s=round(world.heap.now * self.devices, 3),
            crashes=tally.crashes,
            owner_crashes=tally.owner_crashes,
            splits=tally.splits,
            messages=world.links.sent,
            weights_bytes=world.flows.bytes,
            by_model=ledger.by_model,
        )


def try_scaling(
    seed: int, fewest: int, most: int, models: int, *, make: MakeAutoscaler = Autoscaler
) -> ScalingOutcome:
    """Carry out a seed on a cluster of `fewest` to `most` nodes; raises ValueError below two."""
    if fewest < 2:
        raise ValueError("faults need two nodes at least")
    rng = random.Random(f"scaling size {seed}")  # noqa: S311  a simulation is to repeat
    return ScalingTrial(seed, rng.randint(fewest, most), models, make=make).run()
