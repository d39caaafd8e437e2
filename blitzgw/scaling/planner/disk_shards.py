"""Disk shards: n targets each read 1/n of the model from their own disks and exchange it.

The targets together have the model after |M| / (n · disk). Every target forwards what it has to the
next one in a ring, so that nobody sends or receives anything twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from blitzgw.core.plan import Plan, Tier, node_of
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.rates import disk_rate

NAME = "disk-shards"


def plan(ground: Ground) -> Plan | Unfit:
    """Return a plan in which targets read shards and pass them round a ring.

    Raises PlanError where a target cannot get what it lacks.
    """
    readers = readers_of(ground)
    if len(readers) < 2:
        return Unfit("it takes two targets on different nodes with the checkpoint on disk")
    draft = Draft(ground, NAME)
    for reader, shard in zip(readers, shards(draft, readers), strict=True):
        draft.read(reader, Tier.DISK, shard)
    pass_round(draft, ground.by_speed(ground.needy(), readers[0]))
    return draft.finish()


def readers_of(ground: Ground) -> list[str]:
    """Return one target for each disk."""
    by_node: dict[str, str] = {}
    for target in ground.needy():
        if ground.own(target, Tier.DISK):
            by_node.setdefault(node_of(target), target)
    return list(by_node.values())


def shards(draft: Draft, readers: Sequence[str]) -> list[list[int]]:
    """Return what each reader reads: by turns in the order of layers, even in time of reading."""
    ground = draft.ground
    parts: list[list[int]] = [[] for _ in readers]
    busy_s = [0.0] * len(readers)
    for blob in ground.blobs:
        best: tuple[float, int] | None = None
        for place, reader in enumerate(readers):
            if draft.has(reader, blob) or blob not in ground.own(reader, Tier.DISK):
                continue
            rate = disk_rate(ground.links, node_of(reader))
            finish_s = busy_s[place] + ground.task.blob_bytes[blob] / rate
            if best is None or finish_s < best[0]:
                best = (finish_s, place)
        if best is not None:
            busy_s[best[1]] = best[0]
            parts[best[1]].append(blob)
    return parts


def pass_round(draft: Draft, ring: Sequence[str]) -> None:
    """Send each blob from where it is first all the way round, past those that have it.

    Every edge sends a blob of its source's own shard, then those that have come one hop, two hops
    and so on, then the next of each: all edges are at work from the first blob on, and none waits
    for one that waits for it.
    """
    shares: list[list[int]] = [[] for _ in ring]
    for blob in draft.ground.blobs:
        for place, target in enumerate(ring):
            if draft.has(target, blob):
                shares[place].append(blob)
                break
    for turn in range(max(len(share) for share in shares)):
        going = [(place, share[turn]) for place, share in enumerate(shares) if turn < len(share)]
        for hop in range(len(ring) - 1):
            for place, blob in going:
                here = ring[(place + hop) % len(ring)]
                draft.send(here, ring[(place + hop + 1) % len(ring)], (blob,))
