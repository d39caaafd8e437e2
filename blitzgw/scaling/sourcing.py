"""Whom an operation takes blobs from, with what it has learned about them on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from blitzgw.core.plan import Holder, Plan, Task, Tier, node_of
from blitzgw.core.view import ClusterView
from blitzgw.scaling.holders import holders_of
from blitzgw.scaling.survey import ModelDefinition

MAX_LOSSES = 2
"""Lost edges after which a source is avoided while others have the blobs: the first loss may be the
network's, or the other end's."""


class Sourcing:
    """Who has what, less those that have turned out not to."""

    def __init__(self, definition: ModelDefinition) -> None:
        self._definition = definition
        self._gone: set[str] = set()
        self._spoilt: set[str] = set()
        self._dead: set[str] = set()
        self._losses: dict[str, int] = {}
        self.suspects: set[str] = set()
        """Nodes that others have lost an edge to, and that have said nothing since."""
        self.unpromised: set[str] = set()
        """Nodes that have refused to reserve."""
        self._maps: dict[str, bool] = {}
        """Whether a target had a host copy to take when it was first planned for."""

    def planned(self, plan: Plan) -> None:
        """Note which targets take a host copy. One takes what is there as it begins, or none."""
        mapping = {read.worker for read in plan.reads if read.tier is Tier.HOST}
        for target in plan.targets:
            self._maps.setdefault(target, target in mapping)

    def gone(self, worker: str) -> None:
        """Note that a worker has not got what the view says."""
        self._gone.add(worker)

    def spoilt(self, worker: str) -> bool:
        """Note that what a worker reads from disk is not what it should be; return if it is new."""
        new = worker not in self._spoilt
        self._spoilt.add(worker)
        return new

    def died(self, node: str) -> None:
        """Note that a node is gone, which a view may show later. One of that name may come back."""
        self._dead.add(node)

    def dried_up(self, worker: str) -> bool:
        """Note that nothing comes from a worker: it is avoided; return if it was not before."""
        new = self._losses.get(worker, 0) < MAX_LOSSES
        self._losses[worker] = MAX_LOSSES
        return new

    def lost(self, worker: str) -> None:
        """Note that an edge from a worker was lost."""
        self._losses[worker] = self._losses.get(worker, 0) + 1

    def task(
        self,
        view: ClusterView,
        lacking: Collection[str],
        held: Mapping[str, Collection[int]],
        given_up: Collection[str] = (),
        also: Iterable[str] = (),
        due_s: Mapping[str, tuple[float, ...]] | None = None,
    ) -> Task:
        """Return what is to be planned.

        `held` is what each living target of the operation has, by its own words, which prevail over
        the view; `lacking` are those that lack something; `given_up` are targets no more. What is
        known of the nodes `also` named the view does not tell. Other operations bring workers blobs
        in so many seconds (`due_s`, holders.py).
        """
        idle, most = {*held, *given_up}.difference(lacking), max(1, len(lacking))
        also, targets = self._nodes().union(also), [*held, *given_up]
        there, others = holders_of(
            self._definition, view, targets, most=most, also=also, due_s=due_s
        )
        found = [each for each in there if each.worker not in idle and self._good(each)]
        kept = found
        if self._losses or self.suspects:
            kept = [
                holder
                for holder in found
                if self._losses.get(holder.worker, 0) < MAX_LOSSES
                and node_of(holder.worker) not in self.suspects
            ]
        own = [Holder(worker, frozenset(blobs)) for worker, blobs in held.items() if blobs]
        everything = frozenset(range(len(self._definition.blob_bytes)))
        if kept is not found and known_blobs(kept + own) != everything:
            kept = found
        return Task(self._definition.blob_bytes, tuple(lacking), tuple(kept + own), others)

    def _nodes(self) -> set[str]:
        """Return the nodes of which anything has been learned."""
        workers = (*self._gone, *self._spoilt, *self._losses)
        return {*self._dead, *self.suspects, *map(node_of, workers)}

    def _good(self, holder: Holder) -> bool:
        if holder.worker in self._gone:
            return False
        if self._dead and node_of(holder.worker) in self._dead:
            return False
        if holder.tier is Tier.HOST:
            return self._maps.get(holder.worker, True)
        return holder.tier is not Tier.DISK or holder.worker not in self._spoilt


def known_blobs(holders: Iterable[Holder]) -> frozenset[int]:
    """Return the blobs that somebody has: thousands mostly have the same ones."""
    return frozenset[int]().union(*{holder.blobs for holder in holders})
