"""A plan in the making: whatever a strategy orders, what comes out is complete and causal.

Every blob that a target lacks is assigned to one giver, once: an edge's source that has the blob or
has been assigned it before, or a read. So no blob ever waits for itself. What a strategy leaves
open (holders that have only some blobs, nodes that share no network with the source) is assigned at
the end from whoever has it then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blitzgw.core.plan import Edge, Plan, Read, Tier
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.check import undelivered
from blitzgw.scaling.planner.ground import Ground

NAMED = 8
"""So many blobs or targets a message names before it counts."""


class Draft:
    """Edges and reads so far. Targets begin with what is resident and what their host has."""

    def __init__(self, ground: Ground, strategy: str) -> None:
        """Start a plan; targets read at once what a host copy on their own machine has."""
        self.ground = ground
        self._strategy = strategy
        self._depth: dict[str, dict[int, int]] = {}
        for worker, blobs in ground.resident.items():
            self._depth[worker] = dict.fromkeys(sorted(blobs), 0)
        for target in ground.targets:
            self._depth.setdefault(target, {})
        self._edges: dict[tuple[str, str], list[int]] = {}
        self._reads: dict[tuple[str, Tier], list[int]] = {}
        for target in ground.targets:
            self.read(target, Tier.HOST, ground.blobs)

    def lacks(self, target: str) -> list[int]:
        """Return the blobs that a target neither has nor is assigned, in order."""
        has = self._depth[target]
        return [blob for blob in self.ground.blobs if blob not in has]

    def has(self, worker: str, blob: int) -> bool:
        """Return whether a worker has a blob, is assigned it, or can read it for others."""
        if blob in self._depth.get(worker, {}):
            return True
        return worker not in self._targets and self.ground.tier_with(worker, blob) is not None

    @property
    def _targets(self) -> tuple[str, ...]:
        return self.ground.targets

    def read(self, worker: str, tier: Tier, blobs: Iterable[int]) -> None:
        """Let a worker read what it lacks of these blobs and its machine's tier has."""
        has = self._depth.setdefault(worker, {})
        there = self.ground.own(worker, tier)
        for blob in blobs:
            if blob in there and blob not in has:
                self._reads.setdefault((worker, tier), []).append(blob)
                has[blob] = 0

    def send(self, source: str, target: str, blobs: Iterable[int]) -> None:
        """Let a target get from a source what it lacks of these blobs and the source will have."""
        has = self._depth[target]
        lacking = [blob for blob in blobs if blob not in has]
        if not lacking or source == target or self.ground.path(source, target) is None:
            return
        for blob in lacking:
            if self.has(source, blob):
                depth = self._ready(source, blob)
                self._edges.setdefault((source, target), []).append(blob)
                has[blob] = depth + 1

    def _ready(self, source: str, blob: int) -> int:
        have = self._depth.setdefault(source, {})
        if blob not in have:  # behind a tier of a source that is no target: read it first
            tier = self.ground.tier_with(source, blob)
            if tier is not None:
                self._reads.setdefault((source, tier), []).append(blob)
            have[blob] = 0
        return have[blob]

    def feed(self, target: str, blobs: Iterable[int], sources: Sequence[str]) -> None:
        """Let a target get what it lacks of these blobs, each from the first source that has it."""
        has = self._depth[target]
        wanted = [blob for blob in blobs if blob not in has]
        for source in sources:
            if not wanted:
                return
            self.send(source, target, wanted)
            wanted = [blob for blob in wanted if blob not in has]

    # The end.

    def finish(self) -> Plan:
        """Return the plan, with all that is still open assigned to whoever has it.

        Raises PlanError where somebody cannot get what it lacks.
        """
        self._assign_rest()
        plan = self._plan()
        if undelivered(plan, self.ground.task):  # orders of different edges wait for each other
            for (source, _), blobs in self._edges.items():
                depths = self._depth[source]
                blobs.sort(key=lambda blob: (depths[blob], blob))
            plan = self._plan()
        return plan

    def _plan(self) -> Plan:
        edges = tuple(
            Edge(source, target, tuple(blobs), self._network(source, target))
            for (source, target), blobs in self._edges.items()
        )
        reads = tuple(
            Read(worker, tier, tuple(blobs)) for (worker, tier), blobs in self._reads.items()
        )
        return Plan(self._strategy, self._targets, edges, reads)

    def _network(self, source: str, target: str) -> str:
        path = self.ground.path(source, target)
        return path.network if path else ""

    def _assign_rest(self) -> None:
        open_targets = [target for target in self._targets if self.lacks(target)]
        while open_targets:
            before = sum(len(self.lacks(target)) for target in open_targets)
            for target in open_targets:
                self._assign(target)
            open_targets = [target for target in open_targets if self.lacks(target)]
            if open_targets and before == sum(len(self.lacks(t)) for t in open_targets):
                raise PlanError(self._why(open_targets))

    def _assign(self, target: str) -> None:
        ground = self.ground
        self.feed(target, self.lacks(target), ground.ranked(ground.givers(), target, ground.blobs))
        if lacks := self.lacks(target):
            self.feed(target, lacks, self._peers(target))
        self.read(target, Tier.DISK, self.lacks(target))

    def _peers(self, target: str) -> list[str]:
        """Return the other targets that reach this one, those that send least first."""
        load = dict.fromkeys(self._targets, 0)
        for (source, _), blobs in self._edges.items():
            if source in load:
                load[source] += len(blobs)
        ground = self.ground
        peers = [peer for peer in self._targets if peer != target and ground.rate(peer, target)]
        return sorted(peers, key=lambda p: (load[p], -ground.near(p, target), p))

    def _why(self, open_targets: Sequence[str]) -> str:
        ground = self.ground
        held: set[int] = set()
        for worker in {*ground.resident, *ground.behind}:
            held |= ground.holdings(worker)
        nobody = [blob for blob in ground.blobs if blob not in held]
        if nobody:
            return f"nobody has {_names('blob', ground.called(nobody))}"
        first = open_targets[0]
        return (
            f"{_names('target', open_targets)} cannot be reached: no network with a free rate joins"
            f" it to a holder of {_names('blob', ground.called(self.lacks(first)))}"
        )


def _names(what: str, items: Sequence[object]) -> str:
    if len(items) == 1:
        return f"{what} {items[0]}"
    shown = ", ".join(str(item) for item in items[:NAMED])
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{what}s {shown}{more}"
