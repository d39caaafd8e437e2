"""What a model has: its instances by state, as the nodes that have them say."""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import ClusterView, InstanceFacts, LoadFacts, NodeView
from blitzgw.scaling.freedevices import free_on
from blitzgw.scaling.ownership import draining
from blitzgw.scaling.survey import COUNTED, ModelDefinition

REVIVABLE = (InstanceState.DRAINING, InstanceState.KEPT)
"""States of instances that can be had again at no cost."""


@dataclass(frozen=True, slots=True)
class Here:
    """An instance of a model, and where it is. `device` says of which kind its device is."""

    worker: str
    boot: str
    facts: InstanceFacts
    device: str


@dataclass(frozen=True, slots=True)
class Place:
    """A node's instances, and its free devices by worker: memory in bytes, and kind.

    `stays`: it is not about to go. One that is has no free devices.
    """

    instances: tuple[Here, ...]
    free: dict[str, tuple[int, str]]
    stays: bool


def place_of(node: NodeView) -> Place:
    """Return what a node says of its devices."""
    stays = not draining(node)
    instances = tuple(
        Here(f"{node.name}/{facts.device}", node.boot, facts, _kind(node, facts.device))
        for _, facts in sorted(node.instances.items())
    )
    free = {
        f"{node.name}/{device.id}": (device.memory_bytes, _kind(node, device.id))
        for device in (free_on(node, 0) if stays else ())
    }
    return Place(instances, free, stays)


def _kind(node: NodeView, device: str) -> str:
    facts = node.devices.get(device)
    return f"{facts.kind} {facts.name}" if facts is not None else ""


@dataclass(slots=True)
class Standing:
    """What a model has, by state: `counted` are those it is said to have."""

    counted: list[Here] = field(default_factory=list)
    serving: int = 0
    leaving: list[Here] = field(default_factory=list)
    """Those that drain or are kept on nodes that stay."""
    working: list[Here] = field(default_factory=list)
    """Those that serve or drain, and so have loads."""

    def add(self, here: Here, *, stays: bool) -> None:
        """Count an instance; `stays`: its node does."""
        state = here.facts.state
        if state in COUNTED:
            self.counted.append(here)
        if state is InstanceState.SERVING:
            self.serving += 1
        if state in (InstanceState.SERVING, InstanceState.DRAINING):
            self.working.append(here)
        if stays and state in REVIVABLE:
            self.leaving.append(here)

    def revivable(
        self, definition: ModelDefinition, states: tuple[InstanceState, ...] = REVIVABLE
    ) -> set[str]:
        """Return the workers where an instance of just this definition is in one of the states."""
        same = definition.digest, definition.weights
        return {
            here.worker
            for here in self.leaving
            if here.facts.state in states and (here.facts.digest, here.facts.weights) == same
        }

    def devices(self) -> dict[str, str]:
        """Return the kind of device of each instance that works, by id."""
        return {here.facts.id: here.device for here in self.working}

    def loading(self, view: ClusterView) -> list[InstanceFacts]:
        """Return those that load, as a view has them."""
        found = []
        for here in self.counted:
            if here.facts.state is InstanceState.LOADING:
                node = view.nodes.get(here.boot)
                found.append((node and node.instances.get(here.facts.id)) or here.facts)
        return found

    def loads(self, view: ClusterView) -> list[LoadFacts]:
        """Return the loads of those that work, as a view has them."""
        found = []
        for here in self.working:
            node = view.nodes.get(here.boot)
            load = node.loads.get(here.facts.id) if node is not None else None
            if load is not None:
                found.append(load)
        return found
