"""Many blobs as few groups, so that a plan costs the same however many blobs a model has.

Blobs that the same workers hold, and that the same targets therefore lack, are planned as one:

    blobs   0 1 2 3 4 5 │ 6 7 8 9 │ 10 11 12 …      who holds them changes at each bar
    groups  0 0 0 1 1 1 │ 2 2 3 3 │  4  4  4 …      and groups are cut about even in bytes

A group's blobs go along an edge one after another, so a plan of groups is a plan of blobs: complete
and causal, for each blob arrives no later than its group.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise

from blitzgw.core.plan import Edge, Holder, Links, Plan, Read, Task
from blitzgw.scaling.planner.check import resident_blobs

CELLS = 320
"""Targets times groups that a plan is made of: what that takes is what eight targets with 40 blobs
take, 10 to 20 ms for all strategies together, which an event loop can spare."""

LEAST_GROUPS = 16
"""Groups however many targets there are: k-way, lanes and shards need parts to deal out, and what
a group costs per target is little beside what the target itself costs."""

Signature = tuple[Hashable, ...]
"""What tells the holders of one blob from those of another."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """A task of groups instead of blobs, and the way back."""

    task: Task
    groups: tuple[tuple[int, ...], ...]
    """The blobs of each group, in order. Every blob is in one."""
    blobs: Task
    """The task as it was."""
    exact: bool
    """Whether every worker holds all or nothing of each group. Where not, it counts as holding only
    what it has all of, and a target may be planned to get what it has: `expand` leaves that out."""
    _wholes: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)

    def members(self, groups: tuple[int, ...]) -> tuple[int, ...]:
        """Return the blobs of some groups, in order; edges that agree share one answer."""
        found = self._wholes.get(groups)
        if found is None:
            found = tuple(chain.from_iterable(self.groups[group] for group in groups))
            self._wholes[groups] = found
        return found

    def expand(self, plan: Plan) -> Plan:
        """Return the plan with the blobs of each group in its place."""
        resident = {} if self.exact else resident_blobs(self.blobs)

        def missing(worker: str, groups: tuple[int, ...]) -> tuple[int, ...]:
            has = resident.get(worker)
            blobs = self.members(groups)
            return tuple(blob for blob in blobs if blob not in has) if has else blobs

        return replace(
            plan,
            edges=tuple(
                Edge(edge.source, edge.target, missing(edge.target, edge.blobs), edge.network)
                for edge in plan.edges
            ),
            reads=tuple(
                Read(read.worker, read.tier, missing(read.worker, read.blobs))
                for read in plan.reads
            ),
        )

    def links(self, links: Links) -> Links:
        """Return links that let a relay send on what it would of the blobs: a piece or a blob."""
        largest = max(1, *self.blobs.blob_bytes)
        return replace(links, piece_bytes=min(links.piece_bytes, largest))


def coarsen(task: Task, *, exactly: bool = False) -> Grouping | None:
    """Return the task in groups; None: it has so few blobs that it is planned as it is.

    `exactly`: with as many groups as it takes for everybody to hold all or nothing of each. Raises
    ValueError for a holder of blobs that do not exist.
    """
    most = max(LEAST_GROUPS, CELLS // max(1, len(task.targets)))
    if len(task.blob_bytes) <= most:
        return None
    return grouped(task, most, exactly=exactly)


def grouped(task: Task, most: int, *, exactly: bool = False) -> Grouping:
    """Return the task in so many groups at most, or in as many as it takes (see `coarsen`)."""
    signatures, exact = _signatures(task, most, exactly=exactly)
    groups = _cut(task.blob_bytes, signatures, most)
    return Grouping(_as_groups(task, groups), groups, task, exact)


def _signatures(task: Task, most: int, *, exactly: bool) -> tuple[Sequence[Signature], bool]:
    """Return what tells blobs apart, and whether that is all that there is to tell."""
    every = frozenset(range(len(task.blob_bytes)))
    whole, parts = False, []
    for blobs in dict.fromkeys(holder.blobs for holder in task.holders):
        if not blobs <= every:
            raise ValueError("somebody holds blobs that the model does not have")
        if len(blobs) == len(every):
            whole = True
        elif blobs:
            parts.append(blobs)
    signatures = _flags(parts, len(every))
    if exactly or len(set(signatures)) <= most:
        return signatures, True
    if whole:
        return [()] * len(every), False
    return _owners(parts, len(every)), False


def _flags(parts: Sequence[frozenset[int]], count: int) -> Sequence[Signature]:
    """Return for each blob which of these sets it is in."""
    if not parts:
        return [()] * count
    return list(zip(*(bytes(map(part.__contains__, range(count))) for part in parts), strict=True))


def _owners(parts: Sequence[frozenset[int]], count: int) -> Sequence[Signature]:
    """Return for each blob the largest of the sets that have it: as few as cover the model."""
    largest_first = sorted(parts, key=len, reverse=True)
    owners: list[Signature] = [()] * count
    left = set(range(count))
    for number, part in enumerate(largest_first):
        for blob in part & left:
            owners[blob] = (number,)
        left -= part
    return owners


def _cut(
    sizes: Sequence[int], signatures: Sequence[Signature], most: int
) -> tuple[tuple[int, ...], ...]:
    """Return groups of blobs with one signature each, in order: `most` at most where that can be.

    The model falls into stretches that are even in bytes, and each stretch into a group for each
    signature there. Where holdings change so often that a group for every change is too many, the
    stretches are fewer.
    """
    changes = sum(1 for one, other in pairwise(signatures) if one != other)
    stretches = most - changes if changes < most else max(1, most // len(set(signatures)))
    step = max(1, sum(sizes)) / stretches
    groups: dict[tuple[int, Signature], list[int]] = {}
    start = 0
    for blob, (size, signature) in enumerate(zip(sizes, signatures, strict=True)):
        stretch = min(int((start + size / 2) / step), stretches - 1)
        groups.setdefault((stretch, signature), []).append(blob)
        start += size
    return tuple(map(tuple, groups.values()))


def _as_groups(task: Task, groups: Sequence[tuple[int, ...]]) -> Task:
    """Return the task with groups for blobs; a holder has those that it has all blobs of."""
    every = frozenset(range(len(groups)))
    known: dict[frozenset[int], frozenset[int]] = {}
    for holder in task.holders:
        blobs = holder.blobs
        if blobs not in known:
            whole = len(blobs) == len(task.blob_bytes)
            known[blobs] = every if whole else frozenset(_held(groups, blobs))
    return Task(
        tuple(sum(max(1, task.blob_bytes[blob]) for blob in group) for group in groups),
        task.targets,
        tuple(Holder(h.worker, known[h.blobs], h.tier, _due_s(groups, h)) for h in task.holders),
    )


def _due_s(groups: Sequence[tuple[int, ...]], holder: Holder) -> tuple[float, ...]:
    """Return when a holder has all blobs of each group."""
    if not holder.due_s:
        return ()
    return tuple(max(holder.due_s[blob] for blob in group) for group in groups)


def _held(groups: Sequence[tuple[int, ...]], blobs: frozenset[int]) -> list[int]:
    return [index for index, group in enumerate(groups) if blobs.issuperset(group)]
