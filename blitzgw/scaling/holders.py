"""Who can give the weights of a model, by a view: from its memory, from disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from blitzgw.core.instance import DeviceKind
from blitzgw.core.picture import MEMBERS, PLACES, Derived, Picture
from blitzgw.core.plan import Holder, Tier, node_of
from blitzgw.core.view import ClusterView, NodeView, blobs_in
from blitzgw.scaling.possession import checkpoints, in_memory_of
from blitzgw.scaling.survey import GIVING, ModelDefinition, has_copy, members, speaks

MAX_READERS = 1 << 14
"""Whose reading of a checkpoint is remembered: of 4,000 nodes, models of four depths."""


def holders_of(
    definition: ModelDefinition, view: ClusterView, targets: Iterable[str] = ()
) -> list[Holder]:
    """Return who can give blobs of a model. What `targets` have got by themselves is left out.

    A target whose machine has a complete host copy or the checkpoint reads from there. A checkpoint
    is also read by one worker of its node that is no target, so that it can be sent.
    """
    wanted, weights = frozenset(targets), definition.weights
    places, having = {node_of(worker) for worker in wanted}, in_memory_of(weights, view)
    on_disk, readers = checkpoints(view), view.picture.recall(_READERS)
    n_blobs = len(definition.blob_bytes)
    found: list[Holder] = []
    for name, node in members(view).items():
        if node.boot in having or name in places:
            reads = weights in on_disk.get(node.boot, ())
            found += _on(node, definition, wanted, reads=reads)
        elif weights in on_disk.get(node.boot, ()) and (reader := readers.get(node.boot)):
            found.append(_checkpoint(reader, n_blobs))
    return found


def _on(
    node: NodeView, definition: ModelDefinition, wanted: frozenset[str], *, reads: bool
) -> Iterable[Holder]:
    """Yield the holders of a node that has some of a model in memory, or a target."""
    everything = _everything(len(definition.blob_bytes))
    resident = _resident(node, definition.weights, everything)
    for worker, blobs in sorted(resident.items()):
        if worker not in wanted and blobs:
            yield Holder(worker, blobs)
    here = sorted(worker for worker in wanted if worker.startswith(f"{node.name}/"))
    if has_copy(node, definition.weights):
        yield from (Holder(worker, everything, Tier.HOST) for worker in here)
    if reads:
        reader = "" if any(resident.values()) else _reader(node)
        here += [reader] if reader and reader not in wanted else []
        yield from (_checkpoint(worker, len(everything)) for worker in here)


@lru_cache(maxsize=MAX_READERS)
def _checkpoint(worker: str, n_blobs: int) -> Holder:
    return Holder(worker, _everything(n_blobs), Tier.DISK)


@lru_cache(maxsize=64)
def _everything(n_blobs: int) -> frozenset[int]:
    return frozenset(range(n_blobs))


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


def _reader(node: NodeView) -> str:
    """Return the worker that reads a checkpoint in order to send it: one without a model first.

    Where a worker of the node has all or some of it already, that one sends.
    """
    used = {facts.device for facts in node.instances.values()}
    able = [device for device in node.devices.values() if speaks(device)]
    able.sort(key=lambda device: (device.kind is not DeviceKind.HOST, device.id in used, device.id))
    return f"{node.name}/{able[0].id}" if able else ""


def _readers(
    picture: Picture, former: Mapping[str, str] | None, stale: frozenset[str]
) -> Mapping[str, str]:
    made = {**former} if former is not None else {}
    for boot in stale if former is not None else picture.nodes:
        node = picture.nodes.get(boot)
        made[boot] = _reader(node) if node is not None else ""
    return made


_READERS: Derived[Mapping[str, str]] = Derived(MEMBERS | PLACES, _readers)
"""Who reads for others, by boot id."""
