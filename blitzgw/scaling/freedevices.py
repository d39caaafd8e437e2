"""Which devices of a view could take a model, the best first.

What makes one better than another is in placement.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.view import ClusterView, DeviceFacts, NodeView
from blitzgw.scaling.links import RATE_BYTES_PER_S, told_rate
from blitzgw.scaling.ownership import draining
from blitzgw.scaling.placement import Candidate, Distance, Revival, ranked
from blitzgw.scaling.survey import (
    COUNTED,
    ModelDefinition,
    in_memory,
    members,
    on_disk,
    speaks,
)

FREE = (InstanceState.GONE, InstanceState.KEPT)
"""States of instances whose device is as good as free."""


@dataclass(frozen=True, slots=True)
class FreeDevice:
    """A device that could take a model. `worker` is `node/device`.

    `revives`: an instance of it drains or is kept there, with all its weights.
    """

    worker: str
    boot: str
    device: str
    claim: int
    revives: bool = False


def free_devices(definition: ModelDefinition, view: ClusterView) -> list[FreeDevice]:
    """Return the devices that could take a model, the best first (placement.py).

    Those on which it drains or is kept are among them.
    """
    nodes, size_bytes = members(view), definition.size_bytes
    having = {name for name, node in nodes.items() if in_memory(node, definition.weights)}
    zones = {zone for name in having if (zone := _zone(nodes[name]))}
    devices: dict[str, FreeDevice] = {}
    candidates: list[Candidate] = []
    for name, node in nodes.items():
        if draining(node):
            continue
        revivals = _revivals(node, definition) if node.instances else {}
        free = {device.id: device for device in free_on(node, size_bytes)}
        free |= {name: node.devices[name] for name in revivals}
        distance = _distance(node, definition.weights, here=name in having)
        near = bool(zones) and _zone(node) in zones
        for device in free.values():
            worker, revival = f"{name}/{device.id}", revivals.get(device.id, Revival.NOTHING)
            revives = revival is not Revival.NOTHING
            devices[worker] = FreeDevice(worker, node.boot, device.id, device.claim, revives)
            free_bytes = max(0, device.memory_bytes - size_bytes)
            where = _Where(node, device.id, distance, near, free_bytes)
            candidates.append(_candidate(definition.name, where, revival))
    return [devices[each.worker] for each in ranked(candidates)]


def free_on(node: NodeView, size_bytes: int) -> list[DeviceFacts]:
    """Return the devices of a node that have no instance and could take one of that size.

    One on which something is only kept is as good as free.
    """
    taken = {facts.device for facts in node.instances.values() if facts.state not in FREE}
    return [
        device
        for _, device in sorted(node.devices.items())
        if device.id not in taken
        and device.kind is not DeviceKind.HOST
        and device.memory_bytes >= size_bytes
        and speaks(device)
    ]


def _distance(node: NodeView, weights: str, *, here: bool) -> Distance:
    """Return where weights are, as seen from a node; `here`: in its machine's memory."""
    if here:
        return Distance.MEMORY
    return Distance.DISK if on_disk(node, weights) else Distance.ELSEWHERE


class _Where(NamedTuple):
    """A device, how far from the weights it is, and what it has beyond their size."""

    node: NodeView
    device: str
    distance: Distance
    near: bool
    free_bytes: int


def _candidate(model: str, where: _Where, revival: Revival) -> Candidate:
    node, device = where.node, where.device
    there = [facts for facts in node.instances.values() if facts.state is not InstanceState.GONE]
    host = node.host_facts
    rates = [network.rate_bytes_per_s for network in host.networks] if host is not None else []
    return Candidate(
        worker=f"{node.name}/{device}",
        node=node.name,
        revival=revival,
        distance=where.distance,
        near=where.near,
        displaces=revival is Revival.NOTHING and any(f.device == device for f in there),
        rate_bytes_per_s=max((told_rate(rate, RATE_BYTES_PER_S) for rate in rates), default=0.0),
        free_bytes=where.free_bytes,
        host_bytes=max(0, host.free_bytes) if host is not None else 0,
        instances_here=sum(facts.model == model and facts.state in COUNTED for facts in there),
    )


def _revivals(node: NodeView, definition: ModelDefinition) -> dict[str, Revival]:
    """Return the devices of a node on which an instance of this definition drains or is kept."""
    kinds = {InstanceState.DRAINING: Revival.DRAINING, InstanceState.KEPT: Revival.KEPT}
    return {
        facts.device: kinds[facts.state]
        for facts in node.instances.values()
        if facts.state in kinds
        and (facts.model, facts.digest) == (definition.name, definition.digest)
        and facts.weights == definition.weights
        and facts.device in node.devices
        and speaks(node.devices[facts.device])
    }


def _zone(node: NodeView) -> str:
    return node.host_facts.zone if node.host_facts is not None else ""
