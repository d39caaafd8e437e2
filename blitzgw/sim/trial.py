"""One schedule of faults, carried out on a cluster, and what does not hold afterwards."""

from __future__ import annotations

import random
from dataclasses import dataclass

from blitzgw.gossip.events import Address, LinkBroke
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.membership import Membership
from blitzgw.sim import faults
from blitzgw.sim.invariants import unsound, violations
from blitzgw.sim.network import Cut, Fault, Lossy, Network
from blitzgw.sim.world import MakeMembership, World

FAULTS_S = 25.0
"""How long things go wrong: some thirty faults, many at once."""

SETTLE_SYNCS = 3
"""Everything must be right after so many of anti-entropy's longest intervals."""

LOOK_S = 1.0
"""Between two looks at whether everything is right."""

STAY_S = 3.0
"""It must stay right for so long: nobody's suspicion of it is still under way."""

RETRY_S = 0.1
"""Between two attempts to start a process where the former one is still leaving."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a schedule. `settled_s` from the last mending until all was right."""

    seed: int
    nodes: int
    settled_s: float | None
    violations: tuple[str, ...]
    packets: int
    virtual_s: float

    @property
    def passed(self) -> bool:
        """Whether everything holds."""
        return not self.violations


class Trial:
    """A cluster to which a schedule happens."""

    def __init__(
        self,
        seed: int,
        schedule: faults.Schedule,
        knobs: Knobs,
        make: MakeMembership = Membership,
    ) -> None:
        self.seed = seed
        self.schedule = schedule
        self._limit_s = schedule.end_s + SETTLE_SYNCS * knobs.sync_interval_s
        rng = random.Random(f"network {seed}")  # noqa: S311  a simulation is to repeat
        network = Network(
            rng,
            loss=rng.choice((0.0, 0.0, 0.01, 0.05)),
            duplication=rng.choice((0.0, 0.02)),
            tail_s=rng.choice((0.0004, 0.0004, 0.01, 0.05)),
        )
        self.world = World(
            schedule.nodes,
            seed=seed,
            knobs=knobs,
            seeds=schedule.seeds,
            network=network,
            make=make,
        )

    def run(self) -> Outcome:
        """Carry out the schedule, mend everything, and look until all is right or time is up."""
        world = self.world
        for at_s, action in self.schedule.actions:
            world.heap.at(at_s, self._act, action)
        found: list[str] = []
        while world.now < self.schedule.end_s and not found:
            world.run(min(LOOK_S, self.schedule.end_s - world.now))
            found = unsound(world)
        world.network.calm()
        settled_s = None
        if not found:
            settled_s, found = self._settle()
        packets = world.traffic().packets
        return Outcome(
            self.seed, self.schedule.nodes, settled_s, tuple(found), packets, round(world.now, 3)
        )

    def _settle(self) -> tuple[float | None, list[str]]:
        world = self.world
        right_s: float | None = None
        while True:
            found = violations(world)
            if found:
                right_s = None
                if world.now > self._limit_s or unsound(world):
                    return None, found
            elif right_s is None:
                right_s = world.now
            elif world.now - right_s >= STAY_S:
                return round(right_s - self.schedule.end_s, 3), []
            world.run(LOOK_S)

    def _act(self, action: faults.Action) -> None:
        world = self.world
        match action:
            case faults.Start(node):
                self._start(node)
            case faults.Crash(node, off):
                world.crash(node, off=off)
            case faults.Leave(node):
                world.leave(node)
            case faults.Pause(node, duration_s):
                world.pause(node, duration_s)
            case faults.Publish(node, entries):
                world.publish(node, dict(entries))
            case faults.BreakLink(node, other):
                peer = world.hosts[other].process
                if peer is not None:
                    world.tell(node, LinkBroke(peer.boot))
            case faults.Split() | faults.Deafen():
                for fault in self._network_faults(action):
                    world.network.add(fault)
                    world.heap.after(action.duration_s, world.network.remove, fault)

    def _start(self, node: int) -> None:
        process = self.world.hosts[node].process
        if process is not None and process.leaving:
            self.world.heap.after(RETRY_S, self._start, node)
        else:
            self.world.start(node)

    def _network_faults(self, action: faults.Split | faults.Deafen) -> list[Fault]:
        if isinstance(action, faults.Deafen):
            return [Lossy(self._addresses(action.nodes), action.loss)]
        others = tuple(i for i in range(self.schedule.nodes) if i not in action.sources)
        sources, targets = self._addresses(action.sources), self._addresses(others)
        cuts: list[Fault] = [Cut(sources, targets)]
        return [*cuts, Cut(targets, sources)] if action.mutual else cuts

    def _addresses(self, nodes: tuple[int, ...]) -> frozenset[Address]:
        return frozenset(self.world.hosts[i].address for i in nodes)


def try_seed(
    seed: int, fewest: int, most: int, knobs: Knobs, make: MakeMembership = Membership
) -> Outcome:
    """Carry out the schedule of a seed on a cluster of `fewest` to `most` nodes."""
    return Trial(seed, faults.draw(seed, fewest, most, FAULTS_S), knobs, make).run()
