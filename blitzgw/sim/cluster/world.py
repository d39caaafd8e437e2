"""A whole serving cluster in virtual time: processes, machines, network, views, clients.

Every process runs the production deciders (node.py, owner.py, serving.py, ingress.py). The world
starts them, lets clients come and lets messages arrive; it does nothing by the clock.

    0 ── everything is there ── START_S: the window begins ── requests ── all answered
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import inf
from typing import Any

from blitzgw.core.view import ClusterView, ModelFacts
from blitzgw.scaling import autoevents as au
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.keepers import CopyNeed, keepers
from blitzgw.scaling.ownership import owner_of
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.sim.cluster.clients import Clients
from blitzgw.sim.cluster.edges import Edges
from blitzgw.sim.cluster.ingress import Ingress
from blitzgw.sim.cluster.network import FlowNetwork
from blitzgw.sim.cluster.node import SimNode
from blitzgw.sim.cluster.recording import Recorder
from blitzgw.sim.cluster.roads import Roads
from blitzgw.sim.cluster.setup import ClusterSetup, ModelSetup
from blitzgw.sim.cluster.steps import Company
from blitzgw.sim.cluster.view import Sights
from blitzgw.sim.evaluation.record import Answer
from blitzgw.sim.heap import EventHeap

EPOCH_S = 1_800_000_000.0
"""When the simulation begins, in seconds of the Unix epoch."""

START_S = 5.0
"""From the beginning until the window's: owners have taken charge, and what is to be kept is."""


class ClusterWorld:
    """A cluster as set up. `record` keeps what happens."""

    def __init__(self, setup: ClusterSetup) -> None:
        self.setup, self.latencies = setup, setup.latencies
        self.heap = EventHeap()
        self.rng = random.Random(f"cluster {setup.seed}")  # noqa: S311  a run is to repeat
        self.models: Mapping[str, ModelSetup] = {model.name: model for model in setup.models}
        offered = {model.name: len(model.arrivals) for model in setup.models}
        self.record = Recorder(self.now_s, self.unix_s, offered)
        took, link = setup.latencies, setup.link_bytes_per_s
        self.network = FlowNetwork(
            self.heap,
            setup.nodes,
            link=link * took.link_share,
            disk=(setup.disk_bytes_per_s or inf) * took.disk_share,
            host=(setup.host_bytes_per_s or inf) * took.host_share,
            local=setup.local_bytes_per_s,
            lag_s=took.hop_s,
            cores=took.cores,
        )
        self.edges = Edges(self)
        self.sights = Sights(self)
        self.roads, self.company = Roads(self), Company()
        self.at: list[SimNode | None] = [None] * setup.nodes
        self._processes: dict[str, SimNode] = {}
        self._heard_s: dict[tuple[str, str], float] = {}
        """Until when a link is held up by what takes longer than a message."""
        self._seen = ClusterView("", {})
        self._everywhere = {m.name: m.facts(int(EPOCH_S)) for m in setup.models}
        self.offered = sum(offered.values())

    # What all know.

    def now_s(self) -> float:
        """Return the present in seconds since the window's start."""
        return self.heap.now - START_S

    def unix_s(self) -> float:
        """Return Unix time in seconds."""
        return EPOCH_S + self.heap.now

    def define(self, name: str) -> ModelDefinition | None:
        """Return what is known of a model."""
        found = self.models.get(name)
        return found.definition if found is not None else None

    def facts_of_models(self, index: int) -> Mapping[str, ModelFacts]:
        """Return what a node publishes of the models: those of which it has the checkpoint.

        It is the same object for all nodes where these have all. The others learn from them.
        """
        few = {m.name for n, m in enumerate(self.setup.models) if not self._on_disk(n, index)}
        if not few:
            return self._everywhere
        return {name: facts for name, facts in self._everywhere.items() if name not in few}

    def _on_disk(self, number: int, index: int) -> bool:
        """Whether a node has the checkpoint of a model: those have that are next to its first."""
        nodes, model = self.setup.nodes, self.setup.models[number]
        first = self._first(number) // self.setup.devices_per_node
        return not 0 < model.disk < nodes or (index - first) % nodes < model.disk

    def _first(self, number: int) -> int:
        """Return the device of a model's first instance: models are spread evenly."""
        return number * self.setup.devices // len(self.setup.models)

    def view(self) -> ClusterView:
        """Return the present picture, as seen from nowhere."""
        picture = self.sights.shown
        if self._seen.picture is not picture:
            self._seen = ClusterView("", picture.nodes, picture)
        return self._seen

    def owner_of(self, model: str) -> str:
        """Return the boot id of a model's owner."""
        return owner_of(model, self.view())

    def keepers(self, model: ModelSetup) -> list[str]:
        """Return the boot ids of the nodes that should have a host copy of a model."""
        known = model.definition
        need = CopyNeed(known.weights, known.name, known.digest, model.config.host_copies)
        return keepers(need, self.view(), known.size_bytes) if need.count else []

    # Processes.

    @property
    def nodes(self) -> list[SimNode]:
        """The processes that run, by host."""
        return [node for node in self.at if node is not None]

    def process(self, boot: str) -> SimNode | None:
        """Return a process that runs; None: it is gone."""
        return self._processes.get(boot)

    def open(self) -> None:
        """Have everything there that is there from the start, and let clients come."""
        for index in range(self.setup.nodes):
            self.start(index)
        for number, model in enumerate(self.setup.models):
            self._place(number, model)
        self.sights.begin([node.portrait.take() for node in self.nodes])
        for model in self.setup.models:
            self.copy(model)
        self.sights.begin([node.portrait.take() for node in self.nodes])
        for node in self.nodes[: self.setup.ingresses]:
            self.let_in(node)
        self.follow_owners()
        self._shrink()
        Clients(self, START_S).come()

    def start(self, index: int) -> SimNode:
        """Start a process on a host, where none runs; nobody knows of it yet."""
        boot = f"{self.rng.getrandbits(64):016x}"
        node = SimNode(self, index, boot)
        self._processes[boot] = self.at[index] = node
        return node

    def let_in(self, node: SimNode) -> None:
        """Have clients come to a node."""
        node.ingress = Ingress(node)
        view = node.view()
        node.ingress.view_changed(view, frozenset(view.nodes))

    def remove(self, node: SimNode) -> None:
        """Have a process gone from its host."""
        self.at[node.index] = None
        del self._processes[node.boot]

    def _place(self, number: int, model: ModelSetup) -> None:
        """Have the instances of a model that are there from the start, on hosts next to another."""
        setup = self.setup
        first = self._first(number)
        for i in range(setup.initial(model)):
            host, device = divmod((first + i) % setup.devices, setup.devices_per_node)
            node = self.nodes[host]
            node.premises.place(model, node.premises.devices[f"g{device}"])

    def copy(self, model: ModelSetup) -> None:
        """Have the host copies of a model where they are to be."""
        for boot in self.keepers(model):
            node = self._processes[boot]
            node.premises.shelf.put(model, next(iter(node.premises.devices)))

    def recopy(self, model: ModelSetup) -> None:
        """Have the host copies of a model made where they are to be and are not.

        A node reads one from its own disk, or has it sent.
        """
        known = model.definition
        for boot in self.keepers(model):
            node = self._processes.get(boot)
            if node is None or known.weights in node.premises.shelf.copies:
                continue
            device, blobs = next(iter(node.premises.devices)), range(len(known.blob_bytes))
            if known.name in node.portrait.models:
                hold = eff.HoldWeights(
                    device, known.name, known.digest, known.weights, tuple(blobs)
                )
                node.premises.shelf.hold(hold)
            else:
                wanted = ev.CopyWanted(known.name, f"{node.name}/{device}")
                node.own().tell_operations(wanted)

    def _shrink(self) -> None:
        """Have what is more than the least kept, where all is there only to come back at once."""
        if not (self.setup.system.scales and self.setup.system.initial == "full"):
            return
        for model in self.setup.models:
            self.heap.after(0.0, self._wish, model.name, model.config.min_instances)
            self.heap.at(START_S - 1.0, self._wish, model.name, -1)

    def _wish(self, model: str, wanted: int) -> None:
        owner = self.process(self.owner_of(model))
        if owner is not None:
            owner.own().tell_autoscaler(au.WishGiven(model, wanted))

    # Messages and views.

    def deliver(self, sender: SimNode, boot: str, message: Any, delay_s: float) -> None:
        """Have a process hear a message after a while, after all that was said to it before.

        What a process tells itself it hears at once, but not within.
        """
        if boot == sender.boot and delay_s <= self.latencies.message_s:
            delay_s = 0.0
        link, at_s = (sender.boot, boot), self.heap.now + delay_s
        if at_s < self._heard_s.get(link, 0.0):
            at_s = self._heard_s[link]
        elif delay_s > self.latencies.message_s:
            self._heard_s[link] = at_s  # what is said next could overtake it
        self.heap.at(at_s, self._arrive, sender.boot, boot, message)

    def _arrive(self, sender: str, boot: str, message: Any) -> None:
        node = self._processes.get(boot)
        if node is not None:
            node.hear(sender, message)

    def view_changed(self, boots: frozenset[str], models: Mapping[str, None]) -> None:
        """Tell those whom it concerns that instances have come, gone or changed their state."""
        for node in self.at[: self.setup.ingresses]:
            if node is not None and node.ingress is not None:
                node.ingress.view_changed(node.view(), boots)
        owners = {self.owner_of(model): None for model in models}
        for boot in owners:
            owner = self._processes.get(boot)
            if owner is not None and owner.owner is not None:
                owner.owner.tell_autoscaler(au.ViewChanged())

    def follow_owners(self) -> None:
        """Have those who own models by now take charge of them."""
        owners: dict[str, None] = {}
        for model in self.setup.models:
            if not model.manual:
                owners[self.owner_of(model.name)] = None
        for boot in owners:
            owner = self._processes.get(boot)
            if owner is not None:
                owner.own().tell_autoscaler(au.ViewChanged())

    # Answers.

    def request_done(self, model: ModelSetup, number: int, answer: Answer) -> None:
        """Note what has become of a request."""
        self.record.answered(model.name, number, answer)

    @property
    def done(self) -> int:
        """How many requests have an answer."""
        return self.record.n_answers
