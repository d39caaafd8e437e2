"""Parts: targets that read for themselves begin with different parts, to have the model together.

n targets have it between them after 1/n of what each of them reads. In `disk-parts` each reads its
part only, and passes it round as in disk_shards.py; in `own-parts` each reads on until it has all,
which is the better where the network is slower than disks or where host copies are everywhere. Only
stretches of layers make stages of a pipeline, which is what these plans are for: they are made on
request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blitzgw.core.plan import Plan, Read, Tier, node_of
from blitzgw.scaling.planner.base import Unfit
from blitzgw.scaling.planner.disk_shards import pass_round, readers_of
from blitzgw.scaling.planner.draft import Draft
from blitzgw.scaling.planner.ground import Ground
from blitzgw.scaling.planner.rates import disk_rate

NAME = "disk-parts"
OWN_NAME = "own-parts"


def plan(ground: Ground) -> Plan | Unfit:
    """Return a plan in which targets read a part each from their own disks and pass it round.

    Raises PlanError where a target cannot get what it lacks.
    """
    readers = readers_of(ground)
    if len(readers) < 2:
        return Unfit("it takes two targets on different nodes with the checkpoint on disk")
    draft = Draft(ground, NAME)
    for reader, part in zip(readers, _parts(ground, readers), strict=True):
        draft.read(reader, Tier.DISK, part)
    pass_round(draft, ground.by_speed(ground.needy(), readers[0]))
    return draft.finish()


def plan_own(ground: Ground) -> Plan | Unfit:
    """Return a plan in which targets read all from their own machines, each from its part on.

    Raises PlanError where a target cannot get what it lacks.
    """
    draft = Draft(ground, OWN_NAME)
    for target in ground.needy():
        draft.read(target, Tier.DISK, ground.blobs)
    made = draft.finish()
    alone = _alone(made)
    if len(alone) < 2:
        return Unfit("it takes two targets whose own machines have the weights")
    places = {worker: place for place, worker in enumerate(alone)}
    reads = tuple(_turned(read, places.get(read.worker, 0), len(alone)) for read in made.reads)
    return replace(made, reads=reads)


def _parts(ground: Ground, readers: Sequence[str]) -> list[list[int]]:
    """Cut the model into a stretch for each reader, even in time of reading."""
    rates = [disk_rate(ground.links, node_of(reader)) for reader in readers]
    shares = ground.size(ground.blobs) / sum(rates)
    parts: list[list[int]] = [[] for _ in readers]
    place, end, done = 0, rates[0] * shares, 0
    for blob in ground.blobs:
        size = ground.task.blob_bytes[blob]
        while place + 1 < len(readers) and done + size / 2 > end:
            place += 1
            end += rates[place] * shares
        parts[place].append(blob)
        done += size
    return parts


def _alone(made: Plan) -> list[str]:
    """Return the targets that read all, and send nothing on: their order concerns nobody else."""
    joined = {worker for edge in made.edges for worker in (edge.source, edge.target)}
    return sorted({read.worker for read in made.reads} & set(made.targets) - joined)


def _turned(read: Read, place: int, count: int) -> Read:
    """Return a read that begins with part `place` of `count` equal ones."""
    start = len(read.blobs) * place // count
    return replace(read, blobs=read.blobs[start:] + read.blobs[:start])
