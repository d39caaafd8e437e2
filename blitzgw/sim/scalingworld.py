"""A whole cluster that scales itself, in virtual time: processes, links, views, loads, faults.

Every process runs the production deciders (scalingnode.py). The world starts and ends them, lets
clients come, lets things go wrong, and keeps the figures and whatever was wrong at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from blitzgw.core.instance import InstanceState
from blitzgw.core.scale import DecisionFacts
from blitzgw.core.view import ModelFacts
from blitzgw.scaling import autoevents as au
from blitzgw.scaling import effects as eff
from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.sim.heap import EventHeap
from blitzgw.sim.scalingdemand import demand_interval_s
from blitzgw.sim.scalingdevice import SimInstance
from blitzgw.sim.scalingflows import Flows
from blitzgw.sim.scalinglinks import PeerLinks
from blitzgw.sim.scalingload import DECODE_STEP_S, LAYERS, SimModel
from blitzgw.sim.scalingnode import SimNode
from blitzgw.sim.scalingrequests import Ledger
from blitzgw.sim.scalingsight import DETECT_S, JOIN_S, Sights

EPOCH_S = 1_800_000_000.0
"""When the simulation begins, in seconds of the Unix epoch."""

LOADS_S = 1.0
"""Between two times that loads are gossiped, which are the backup of demands."""

START_S = 0.5
"""All processes start within so long."""

DISKS, HOST_COPIES = 3, 1
"""Nodes that have each model's checkpoint, and of these with a copy in host memory."""

MOST_WRONG = 50
"""What is wrong at once is noted up to this number of lines."""

MakeAutoscaler = Callable[..., Autoscaler]
"""How a process gets its decider; tests put a broken one here."""


@dataclass(slots=True)
class Tally:
    """What has happened, in numbers."""

    decisions: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    brought_up: int = 0
    revived: int = 0
    instance_s: float = 0.0
    crashes: int = 0
    owner_crashes: int = 0
    splits: int = 0


class ScalingWorld:
    """A cluster of `nodes` hosts with a device each, or two on every fourth where `paired`."""

    def __init__(
        self,
        seed: int,
        nodes: int,
        models: tuple[SimModel, ...],
        *,
        paired: bool = False,
        make: MakeAutoscaler = Autoscaler,
    ) -> None:
        self.rng = random.Random(f"scaling world {seed}")  # noqa: S311  a simulation is to repeat
        self.heap = EventHeap()
        self.nodes, self.models, self.make, self._paired = nodes, models, make, paired
        self.ledger, self.tally = Ledger(), Tally()
        self.violations: list[str] = []
        self.processes: dict[str, SimNode] = {}
        self.at: list[SimNode | None] = [None] * nodes
        self.started_s: dict[str, float] = {}
        self.disturbed_s = 0.0
        """When a process has last started or ended, or a partition begun or ended."""
        self.demand_interval_s = demand_interval_s(nodes)
        self.decode_step_s = DECODE_STEP_S
        self.sizes = {m.definition.weights: m.definition.blob_bytes for m in models}
        self._by_name = {model.name: model for model in models}
        self._by_weights = {model.definition.weights: model for model in models}
        disks = min(DISKS, nodes)
        self.disk_nodes = {model.name: self.rng.sample(range(nodes), disks) for model in models}
        self.host_nodes = {name: found[:HOST_COPIES] for name, found in self.disk_nodes.items()}
        self.links = PeerLinks(self.heap, self.rng, self.processes)
        self.sights = Sights(self.heap, self.rng, self.links.delay_s)
        self.flows = Flows(self.heap, self.links.connected, self.sizes)
        self.owners: dict[str, SimNode] = {}
        """Processes that take themselves for the owner of something."""
        self.wanted: dict[str, list[tuple[float, int]]] = {model.name: [] for model in models}
        """Of each model, what owners have wanted, and since when."""
        self.ingresses = self.rng.sample(range(nodes), max(1, min(6, nodes // 2)))
        self._closed = False

    # What deciders ask.

    def define(self, name: str) -> ModelDefinition | None:
        """Return what is known of a model."""
        found = self._by_name.get(name)
        return found.definition if found is not None else None

    def model_of(self, name: str) -> SimModel:
        """Return a model by its name."""
        return self._by_name[name]

    def model_with(self, weights: str) -> SimModel:
        """Return a model by the root of its weights."""
        return self._by_weights[weights]

    def unix_s(self) -> float:
        """Return Unix time in seconds."""
        return EPOCH_S + self.heap.now

    def devices_of(self, index: int) -> int:
        """Return how many devices a host has."""
        return 2 if self._paired and index % 4 == 0 else 1

    def facts_of_models(self, index: int) -> Mapping[str, ModelFacts]:
        """Return what a node publishes of the models."""
        return {
            model.name: ModelFacts(
                model.name,
                model.definition.digest,
                LAYERS,
                int(EPOCH_S),
                weights=model.definition.weights,
                disk=index in self.disk_nodes[model.name],
                live="stop",
                scaling=model.terms,
            )
            for model in self.models
        }

    def queue_of(self, boot: str, instance: str) -> int:
        """Return how many requests wait at an instance; 0 where it is not there any more."""
        node = self.processes[boot]
        name = node.premises.device_of(instance) if node.running else None
        there = node.premises.devices[name].instance if name is not None else None
        return there.waiting if there is not None else 0

    # Processes.

    def running(self) -> Iterator[SimNode]:
        """Yield the processes that run, by host."""
        return (node for node in self.at if node is not None)

    def instances(self) -> Iterator[SimInstance]:
        """Yield all instances, in whatever state."""
        return (there for node in self.running() for there in node.instances())

    def open(self) -> None:
        """Start everything, and let clients come."""
        for index in range(self.nodes):
            self.heap.after(self.rng.random() * START_S, self.start, index)
        self.heap.after(LOADS_S, self._report_loads)

    def let_clients_come(self, until_s: float) -> None:
        """Let the clients of all models come, until a moment."""
        for model in self.models:
            rng = random.Random(f"{model.name} {self.rng.random()}")  # noqa: S311  is to repeat
            self._next_client(model, model.arrivals(rng, until_s))

    def close(self) -> None:
        """Let no more clients come."""
        self._closed = True

    def _next_client(self, model: SimModel, moments: Iterator[float]) -> None:
        at_s = next(moments, None)
        if at_s is not None and not self._closed:
            self.heap.at(at_s, self._client, model, moments)

    def _client(self, model: SimModel, moments: Iterator[float]) -> None:
        if self._closed:
            return
        open_at = [node for i in self.ingresses if (node := self.at[i]) and not node.alone]
        if open_at:
            self.rng.choice(open_at).ingress.arrive(model)
        self._next_client(model, moments)

    def _report_loads(self) -> None:
        for node in self.running():
            node.report_loads()
        self.heap.after(LOADS_S, self._report_loads)

    def start(self, index: int) -> None:
        """Start a process on a host, where none runs."""
        if self.at[index] is not None:
            return
        boot = f"{self.rng.getrandbits(64):016x}"
        self.started_s[boot] = self.unix_s()
        node = self.processes[boot] = self.at[index] = SimNode(self, index, boot)
        self.disturbed_s = self.heap.now
        self.heap.after(self.rng.uniform(*JOIN_S), self._join, node)

    def _join(self, node: SimNode) -> None:
        if not node.running:
            return
        peers = [p for p in self._others(node) if self.links.connected(p.index, node.index)]
        cut = [p.boot for p in self._others(node) if p not in peers]
        node.sight.join([self.sights.latest[peer.boot] for peer in peers])
        node.sight.cut(cut)
        node.members_changed()
        for peer in self._others(node):
            if peer not in peers:
                peer.sight.cut([node.boot])
            else:
                self.heap.after(self.rng.uniform(*JOIN_S), peer.node_back, node.boot)

    def _others(self, node: SimNode) -> list[SimNode]:
        return [peer for peer in self.running() if peer is not node]

    def crash(self, index: int, down_s: float) -> None:
        """End a process without a word, and start another one there after a while."""
        node = self.at[index]
        if node is None:
            return
        self.tally.crashes += 1
        self.at[index] = None
        self.owners.pop(node.boot, None)
        self.disturbed_s = self.heap.now
        self.sights.end(node.boot)
        node.end()
        self.links.ended(node.boot)
        for peer in self.running():
            self.heap.after(self.rng.uniform(*DETECT_S), peer.node_died, node.boot)
        self.heap.after(down_s, self.start, index)

    # What is noted.

    def follow_owners(self) -> None:
        """Let those who speak for a model know that somebody has published something."""
        for node in self.owners.values():
            node.follow()

    def follow_all(self) -> None:
        """Let everybody know that somebody has published something."""
        for node in self.running():
            node.follow()

    def wrong(self, line: str) -> None:
        """Note what must never be."""
        if len(self.violations) < MOST_WRONG:
            self.violations.append(f"{self.heap.now:.3f} s: {line}")

    def decided(self, node: SimNode, decision: DecisionFacts) -> None:
        """Note a decision."""
        del node
        self.tally.decisions[decision.action] += 1

    def published_scale(self, node: SimNode, effect: au.PublishScale) -> None:
        """Note what an owner wants, and who takes himself for one."""
        if node.scaling:
            self.owners[node.boot] = node
        else:
            self.owners.pop(node.boot, None)
        if effect.facts is not None:
            history = self.wanted[effect.model]
            if not history or history[-1][1] != effect.facts.wanted:
                history.append((self.heap.now, effect.facts.wanted))

    def operation_ended(self, node: SimNode, effect: eff.OperationEnded) -> None:
        """Note the end of an operation."""
        del node
        self.tally.operations[effect.state] += 1

    def came_up(self, there: SimInstance) -> None:
        """Note that an instance has been brought up."""
        del there
        self.tally.brought_up += 1

    def revive(self, there: SimInstance) -> None:
        """Note that an instance serves again without having been loaded."""
        self.tally.revived += 1
        if there.stopped_s is not None:
            there.began_s, there.stopped_s = self.heap.now, None

    def ended(self, there: SimInstance) -> None:
        """Note that an instance uses its device no more."""
        if there.stopped_s is None:
            there.stopped_s = self.heap.now
            self.tally.instance_s += self.heap.now - there.began_s

    def count(self, model: str) -> int:
        """Return how many instances a model has in fact, serving or loading."""
        alive = (InstanceState.SERVING, InstanceState.LOADING)
        return sum(i.model.name == model and i.state in alive for i in self.instances())
