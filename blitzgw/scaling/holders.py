"""Who can give the weights of a model, by a view: from its memory, from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blitzgw.core.instance import DeviceKind
from blitzgw.core.plan import Holder, Tier
from blitzgw.core.view import ClusterView, NodeView, blobs_in
from blitzgw.scaling.survey import GIVING, ModelDefinition, has_copy, members, on_disk, speaks


def holders_of(
    definition: ModelDefinition, view: ClusterView, targets: Iterable[str] = ()
) -> list[Holder]:
    """Return who can give blobs of a model. What `targets` have got by themselves is left out.

    A target whose machine has a complete host copy or the checkpoint reads from there. A checkpoint
    is also read by one worker of its node that is no target, so that it can be sent.
    """
    wanted = frozenset(targets)
    everything = frozenset(range(len(definition.blob_bytes)))
    found: list[Holder] = []
    for node in members(view).values():
        resident = _resident(node, definition.weights, everything)
        found += [
            Holder(worker, blobs)
            for worker, blobs in sorted(resident.items())
            if worker not in wanted and blobs
        ]
        here = sorted(worker for worker in wanted if worker.startswith(f"{node.name}/"))
        if has_copy(node, definition.weights):
            found += [Holder(worker, everything, Tier.HOST) for worker in here]
        if on_disk(node, definition.weights):
            readers = here + [w for w in _reader(node, resident) if w not in wanted]
            found += [Holder(worker, everything, Tier.DISK) for worker in readers]
    return found


def _resident(
    node: NodeView, weights: str, everything: frozenset[int]
) -> dict[str, frozenset[int]]:
    """Return what the workers of a node can send without reading it first."""
    found: dict[str, frozenset[int]] = {}
    having = [
        (facts.device, facts.blobs)
        for facts in node.instances.values()
        if facts.weights == weights and facts.state in GIVING
    ]
    having += [
        (copy.device, copy.blobs) for copy in node.copies.values() if copy.weights == weights
    ]
    for device, mask in having:
        if device in node.devices and speaks(node.devices[device]):
            worker = f"{node.name}/{device}"
            blobs = blobs_in(mask) & everything
            found[worker] = found.get(worker, frozenset()) | blobs
    return found


def _reader(node: NodeView, resident: Mapping[str, frozenset[int]]) -> list[str]:
    """Return the worker that reads a checkpoint in order to send it: one without a model first.

    None where a worker of the node has all or some of it already: that one sends.
    """
    if any(resident.values()):
        return []
    used = {facts.device for facts in node.instances.values()}
    able = [device for device in node.devices.values() if speaks(device)]
    able.sort(key=lambda device: (device.kind is not DeviceKind.HOST, device.id in used, device.id))
    return [f"{node.name}/{device.id}" for device in able[:1]]
