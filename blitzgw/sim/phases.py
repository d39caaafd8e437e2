"""What gossip achieves at a size: a cluster is led through its life, and every phase is measured.

join       all start at once and know nobody but the seeds, until all know all
idle       nothing happens
publish    one node publishes some state, until all have it
kill       several nodes crash, one after another, each until all know
partition  the cluster falls into two, until nobody believes in the other part
merge      the two are joined again, until all know all
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blitzgw.gossip.events import Address
from blitzgw.gossip.knobs import Knobs
from blitzgw.sim.network import Network
from blitzgw.sim.process import Process, Traffic
from blitzgw.sim.report import PhaseCost, Report, quantiles, rounded
from blitzgw.sim.watch import Death, Rift, Spread
from blitzgw.sim.world import World

START_SPREAD_S = 0.1
"""All processes start within this time: a machine room whose power has come back."""

JOIN_LIMIT_S = 120.0
SPREAD_LIMIT_S = 60.0
KILL_LIMIT_S = 120.0
MERGE_LIMIT_S = 300.0
"""What takes longer than these has failed: its figure is None, and the next phase begins."""

REST_S = 2.0
"""After joining, publishing and each death: its echo is not measured with what comes next."""

STATE_KEYS, STATE_VALUE_BYTES = 24, 256
"""The state that is published: 6 KiB in entries of a fact's size."""


PARTITION_LIMIT_S, PARTITION_NODE_S = 120.0, 30_000.0
"""A partition heals after the former, or earlier, when all nodes together have lived through the
latter: a small part doubts itself first and needs minutes to bury a large one, which is much to
compute and shows nothing more."""

NEARLY_ALL = 0.999
"""Of the pairs: rumours alone reach so many, the rest waits for a sync or a packet of its own."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What to measure. The partition cuts `minority` (a share) of the nodes off."""

    nodes: int
    seed: int
    seeds: int = 3
    loss: float = 0.0
    idle_s: float = 10.0
    kills: int = 5
    minority: float = 0.1


class Measurement:
    """Leads one cluster through its phases; `progress(phase)` is called as each begins."""

    def __init__(self, world: World, setup: Setup, progress: Callable[[str], None]) -> None:
        self._world = world
        self._setup = setup
        self._progress = progress
        self._report = Report(
            setup.nodes,
            setup.seed,
            setup.seeds,
            setup.loss,
            world.knobs.probe_interval_s,
            publish_bytes=STATE_KEYS * STATE_VALUE_BYTES,
        )

    def run(self) -> Report:
        """Carry out all phases and return the figures."""
        self._phase("join", self._join)
        self._world.run(REST_S)
        self._phase("idle", self._idle)
        if self._setup.nodes > 1:
            self._phase("publish", self._publish)
            self._phase("kill", self._kill)
            self._phase("partition", self._partition)
            self._phase("merge", self._merge)
        return self._totals()

    def _join(self) -> None:
        world = self._world
        for index in range(self._setup.nodes):
            world.heap.at(world.rng.random() * START_SPREAD_S, world.start, index)
        world.run(START_SPREAD_S)
        pairs = self._setup.nodes * (self._setup.nodes - 1)
        nearly = world.run(JOIN_LIMIT_S, lambda: world.watch.links >= NEARLY_ALL * pairs)
        self._report.join_999_s = rounded(world.now) if nearly else None
        world.run(JOIN_LIMIT_S, lambda: world.watch.all_alive)
        self._report.join_s = rounded(world.now) if world.watch.all_alive else None

    def _idle(self) -> None:
        self._world.run(self._setup.idle_s)

    def _publish(self) -> None:
        world = self._world
        index = world.rng.randrange(self._setup.nodes)
        owner = _process(world, index)
        value = world.rng.randbytes
        entries = {f"load/{i:02}": value(STATE_VALUE_BYTES) for i in range(STATE_KEYS)}
        others = [process.boot for process in world.running() if process is not owner]
        spread = world.watch.spread = Spread(owner.boot, entries, others)
        began_s = world.now
        world.publish(index, entries)
        world.run(SPREAD_LIMIT_S, lambda: spread.done)
        world.watch.spread = None
        world.run(REST_S)
        if spread.done:
            took = [moment_s - began_s for moment_s in spread.complete_s.values()]
            self._report.publish = quantiles(took)

    def _kill(self) -> None:
        world, report = self._world, self._report
        count = min(self._setup.kills, self._setup.nodes - self._setup.seeds)
        deaths: list[tuple[float, Death]] = []
        for index in world.rng.sample(range(self._setup.seeds, self._setup.nodes), max(count, 0)):
            boot = _process(world, index).boot
            began_s = world.now
            world.crash(index, off=True)
            death = world.watch.deaths[boot]
            deaths.append((began_s, death))
            world.run(KILL_LIMIT_S, lambda death=death: death.known_s is not None)  # type: ignore[misc]
            world.run(REST_S)
        report.kills = len(deaths)
        known = [death.known_s - at for at, death in deaths if death.known_s is not None]
        report.kills_known = len(known)
        report.first_suspicion = quantiles(
            [death.suspected_s - at for at, death in deaths if death.suspected_s is not None]
        )
        report.first_detection = quantiles(
            [death.detected_s - at for at, death in deaths if death.detected_s is not None]
        )
        report.known_to_all = quantiles(known)

    def _partition(self) -> None:
        world, watch = self._world, self._world.watch
        processes = world.running()
        count = max(1, round(len(processes) * self._setup.minority))
        minority = world.rng.sample(processes, count)
        boots = frozenset(process.boot for process in minority)
        rift = watch.rift = Rift(boots, processes)
        self._cuts = world.network.partition(
            _addresses(minority), _addresses([p for p in processes if p.boot not in boots])
        )
        began_s, believers = world.now, rift.believers
        limit_s = min(PARTITION_LIMIT_S, PARTITION_NODE_S / len(processes))
        apart = world.run(limit_s, lambda: not rift.believers)
        watch.rift = None
        self._report.partition_minority = count
        self._report.partition_noticed = round(1 - rift.believers / max(believers, 1), 4)
        self._report.partition_s = rounded(world.now - began_s) if apart else None

    def _merge(self) -> None:
        world = self._world
        for cut in self._cuts:
            world.network.remove(cut)
        began_s = world.now
        merged = world.run(MERGE_LIMIT_S, lambda: world.watch.all_alive)
        self._report.merge_s = rounded(world.now - began_s) if merged else None

    def _phase(self, name: str, carry_out: Callable[[], None]) -> None:
        """Carry out a phase, and take note of its cost."""
        self._progress(name)
        world, watch = self._world, self._world.watch
        began_s, before, lived_s = world.now, world.traffic(), world.lived_s()
        each = {process.boot: process.traffic.copy() for process in world.running()}
        suspicions, failures = len(watch.false_suspicions), len(watch.false_failures)
        carry_out()
        duration_s = world.now - began_s
        cost = world.traffic() - before
        busiest = max((p.traffic - each.get(p.boot, Traffic())).bytes for p in world.running())
        per_node_s = 1 / max(world.lived_s() - lived_s, 1e-9)
        self._report.phases.append(
            PhaseCost(
                name,
                rounded(duration_s),
                round(cost.bytes * per_node_s, 1),
                round(busiest / max(duration_s, 1e-9), 1),
                round(cost.packets * per_node_s, 2),
                round(cost.syncs * per_node_s, 3),
                len(watch.false_suspicions) - suspicions,
                len(watch.false_failures) - failures,
            )
        )

    def _totals(self) -> Report:
        world, report = self._world, self._report
        total = world.traffic()
        report.false_suspicions = len(world.watch.false_suspicions)
        report.false_failures = len(world.watch.false_failures)
        report.virtual_s = rounded(world.now)
        report.packets, report.bytes = total.packets, total.bytes
        report.events = world.heap.handled
        return report


def measure(setup: Setup, knobs: Knobs, progress: Callable[[str], None]) -> Report:
    """Lead a cluster of that setup through all phases."""
    rng = random.Random(f"network {setup.seed}")  # noqa: S311  a simulation is to repeat
    network = Network(rng, loss=setup.loss)
    world = World(setup.nodes, seed=setup.seed, knobs=knobs, seeds=setup.seeds, network=network)
    return Measurement(world, setup, progress).run()


def _process(world: World, index: int) -> Process:
    process = world.hosts[index].process
    assert process is not None
    return process


def _addresses(processes: Sequence[Process]) -> list[Address]:
    return [process.address for process in processes]
