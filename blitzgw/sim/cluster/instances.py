"""Simulated devices and the instances on them, as a node's books have them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blitzgw.core.instance import InstanceState
from blitzgw.core.span import Span
from blitzgw.core.view import CopyFacts, InstanceFacts, mask_of
from blitzgw.scheduler.events import ServedInstance
from blitzgw.sim.cluster.setup import ModelSetup
from blitzgw.sim.cluster.streams import Store

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode


@dataclass(slots=True, eq=False)
class SimInstance:
    """A model on a device, at a claim. `blobs` are checked: their layers may run.

    What it does while it loads (`helps`, `stage`, `open`) is set by those that do it.
    """

    id: str
    model: ModelSetup
    node: SimNode
    device: str
    claim: int
    store: Store
    served: ServedInstance
    state: InstanceState = InstanceState.LOADING
    blobs: set[int] = field(default_factory=set)
    helps: str = ""
    stage: Span | None = None
    open: bool = False

    @property
    def n_layers(self) -> int:
        """How many decoder layers its model has."""
        return self.served.n_layers

    @property
    def complete(self) -> bool:
        """Whether all of it is there, and checked."""
        return len(self.blobs) == len(self.store.sizes)

    @property
    def layers_resident(self) -> int:
        """How many of its decoder layers are there."""
        ends = (0 in self.blobs) + (self.n_layers + 1 in self.blobs)
        return len(self.blobs) - ends

    @property
    def layers_usable(self) -> int:
        """How many layers from the first on are there, and the embedding."""
        found = 0
        while found <= self.n_layers and found in self.blobs:
            found += 1
        return max(0, found - 1)

    @property
    def leads(self) -> bool:
        """Whether it is the first stage of a pipeline, and loads."""
        loads = self.state is InstanceState.LOADING
        return loads and self.stage is not None and self.stage.start == 0

    @property
    def stage_resident(self) -> bool:
        """Whether it has what its stage needs: its layers, and at either end what is there."""
        if self.stage is None:
            return False
        needed = {1 + layer for layer in self.stage.layers()}
        if self.stage.start == 0:
            needed.add(0)
        if self.stage.stop == self.n_layers:
            needed.add(1 + self.n_layers)
        return needed <= self.blobs

    def facts(self) -> InstanceFacts:
        """Return what its node publishes of it."""
        known = self.model.definition
        return InstanceFacts(
            id=self.id,
            model=known.name,
            digest=known.digest,
            device=self.device,
            claim=self.claim,
            state=self.state,
            layers_resident=self.layers_resident,
            layers_total=self.n_layers,
            weights=known.weights,
            blobs=mask_of(self.blobs),
            helps=self.helps,
            stage=self.stage,
            open=self.open and self.leads,
        )


@dataclass(slots=True, eq=False)
class SimCopy:
    """Weights in a node's memory, which a device's worker holds. `cached`: for a while only."""

    model: ModelSetup
    device: str
    store: Store
    cached: bool = False

    def facts(self) -> CopyFacts:
        """Return what its node publishes of it."""
        known = self.model.definition
        return CopyFacts(
            weights=known.weights,
            model=known.name,
            device=self.device,
            size_bytes=known.size_bytes,
            blobs=mask_of(self.store.whole),
            complete=self.store.complete,
            cached=self.cached,
        )


@dataclass(slots=True, eq=False)
class SimDevice:
    """A device of a node. `claim` is raised by whatever begins or ends there.

    `warm` are the profiles of which its worker has run something.
    """

    id: str
    claim: int = 1
    instance: SimInstance | None = None
    warm: set[str] = field(default_factory=set)
