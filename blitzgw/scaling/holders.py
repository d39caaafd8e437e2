"""Who can give the weights of a model, by a view: from its memory, from disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from blitzgw.core.plan import Holder, Tier, node_of
from blitzgw.core.view import ClusterView, NodeView, blobs_in
from blitzgw.scaling.possession import checkpoints, in_memory_of
from blitzgw.scaling.readers import reader_on, readers_of
from blitzgw.scaling.survey import GIVING, ModelDefinition, has_copy, is_member, members, speaks

MAX_READERS = 1 << 14
"""Whose reading of a checkpoint is remembered: of 4,000 nodes, models of four depths."""


def holders_of(
    definition: ModelDefinition,
    view: ClusterView,
    targets: Iterable[str] = (),
    *,
    most: int | None = None,
    also: Collection[str] = (),
    due_s: Mapping[str, tuple[float, ...]] | None = None,
) -> tuple[list[Holder], int]:
    """Return who can give blobs of a model. What `targets` have got by themselves is left out.

    A target whose machine has a complete host copy or the checkpoint reads from there. A checkpoint
    is also read by one worker of its node that is no target, so that it can be sent: of those that
    differ in their names alone the first `most` are returned (None: all), and how many more there
    are. What the nodes `also` named have is returned in any case. To the workers in `due_s` others
    bring all that they lack yet: in how many seconds, by blob.
    """
    wanted, weights = frozenset(targets), definition.weights
    nodes, on_disk = members(view), checkpoints(view)
    special = {node_of(worker) for worker in wanted}.union(also).intersection(nodes)
    having = (view.nodes[boot] for boot in in_memory_of(weights, view))
    special.update(node.name for node in having if is_member(node, nodes))
    found: list[Holder] = []
    for name in sorted(special):
        reads = weights in on_disk.get(nodes[name].boot, ())
        found += _on(nodes[name], definition, wanted, due_s or {}, reads=reads)
    n_blobs = len(definition.blob_bytes)
    readers, left_out = readers_of(weights, view, special, most)
    return found + [_checkpoint(worker, n_blobs) for worker in readers], left_out


def _on(
    node: NodeView,
    definition: ModelDefinition,
    wanted: frozenset[str],
    due_s: Mapping[str, tuple[float, ...]],
    *,
    reads: bool,
) -> Iterable[Holder]:
    """Yield the holders of a node that has some of a model in memory, or a target."""
    everything = _everything(len(definition.blob_bytes))
    resident = _resident(node, definition.weights, everything)
    for worker, blobs in sorted(resident.items()):
        if worker not in wanted and worker in due_s:
            due = (0.0 if blob in blobs else at_s for blob, at_s in enumerate(due_s[worker]))
            yield Holder(worker, everything, due_s=tuple(due))
        elif worker not in wanted and blobs:
            yield Holder(worker, blobs)
    here = sorted(worker for worker in wanted if worker.startswith(f"{node.name}/"))
    if has_copy(node, definition.weights):
        yield from (Holder(worker, everything, Tier.HOST) for worker in here)
    if reads:
        reader = "" if any(resident.values()) else reader_on(node)
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
