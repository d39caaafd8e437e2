"""What a simulated node publishes of itself: its devices, instances, copies, wishes and loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blitzgw.core.instance import DeviceKind
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.rumours import Status
from blitzgw.core.view import (
    CopyFacts,
    DeviceFacts,
    HostFacts,
    InstanceFacts,
    NetworkFacts,
    NodeFacts,
    NodeView,
    mask_of,
)
from blitzgw.sim.scalingdevice import SimInstance
from blitzgw.sim.scalingflows import PORT_BYTES_PER_S
from blitzgw.sim.scalingload import LAYERS
from blitzgw.sim.scalingpremises import NETWORK

if TYPE_CHECKING:
    from blitzgw.sim.scalingnode import SimNode

SOFTWARE = {"layout": str(LAYOUT_VERSION)}
"""What workers tell of their versions."""

MEMORY_BYTES = 80 << 30
"""Of every device: each takes every model."""


class Picture:
    """Takes a node's picture; parts that have not changed are the same objects as before."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._facts = NodeFacts(node.name, "")
        self._models = node.world.facts_of_models(node.index)
        self._instances: dict[str, InstanceFacts] = {}
        self._devices: dict[str, DeviceFacts] = {}

    def take(self) -> NodeView:
        """Return what others are to see of the node."""
        node = self._node
        reserved = node.steward.reserved().get(NETWORK, (0.0, 0.0))
        host = f"10.0.0.{node.index}"
        network = NetworkFacts(NETWORK, host, PORT_BYTES_PER_S, *reserved)
        instances = {there.id: _facts(there) for there in node.instances()}
        devices = {d.id: self._device(d.id, d.claim) for d in node.premises.devices.values()}
        if instances != self._instances:
            self._instances = instances
        if devices != self._devices:
            self._devices = devices
        return NodeView(
            boot=node.boot,
            name=node.name,
            host=host,
            port=7077,
            status=Status.ALIVE,
            started_s=int(node.world.started_s.get(node.boot, 0)),
            facts=self._facts,
            devices=self._devices,
            models=self._models,
            instances=self._instances,
            loads=node.loads,
            copies=self._copies(),
            wishes=node.wishes,
            scaling=node.scaling,
            host_facts=HostFacts(MEMORY_BYTES, networks=(network,)),
            heard_s=node.world.heap.now,
        )

    def _device(self, name: str, claim: int) -> DeviceFacts:
        known = self._devices.get(name)
        if known is not None and known.claim == claim:
            return known
        return DeviceFacts(
            name, DeviceKind.PACED, "sim", MEMORY_BYTES, claim, SOFTWARE, {NETWORK: 1000}
        )

    def _copies(self) -> dict[str, CopyFacts]:
        found = {}
        for device in self._node.premises.devices.values():
            for weights, blobs in device.stores.items():
                model = self._node.world.model_with(weights)
                sizes = model.definition.blob_bytes
                found[weights] = CopyFacts(
                    weights, model.name, device.id, sum(sizes), mask_of(blobs),
                    len(blobs) == len(sizes),
                )  # fmt: skip
        return found


def _facts(there: SimInstance) -> InstanceFacts:
    known = there.model.definition
    return InstanceFacts(
        id=there.id,
        model=known.name,
        digest=known.digest,
        device=there.device,
        claim=there.claim,
        state=there.state,
        layers_resident=min(LAYERS, len(there.blobs)),
        layers_total=LAYERS,
        weights=known.weights,
        blobs=mask_of(there.blobs),
    )
