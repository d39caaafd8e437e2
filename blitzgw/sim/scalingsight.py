"""What each simulated node knows of the others: their facts, late; their deaths, later.

In place of membership and dissemination stands a model of what they give. A fact is seen by a node
`lag` after it was published (drawn once for each process), in the order of publication; from the
other side of a partition nothing is seen until it is over. A process that is dead or cut off is
believed to live until a moment drawn for each observer, at most `DETECT_S` later; one that is back
is believed to be back within `REVIVE_S`. What is frozen for one observer is frozen for all: a
node's own words are shared, and a picture costs no more than what has changed in it.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace

from blitzgw.core.instance import InstanceState
from blitzgw.core.picture import Picture
from blitzgw.core.rumours import Status
from blitzgw.core.view import ClusterView, NodeView
from blitzgw.scaling.ownership import owner_of
from blitzgw.scaling.residents import residents
from blitzgw.sim.heap import EventHeap

LAG_S = (0.01, 0.2)
"""From publication to a node's view: gossip among dozens of nodes."""

DETECT_S = (0.6, 2.0)
"""From a death, or a cut, to an observer's belief in it."""

REVIVE_S = (0.1, 1.5)
"""From the end of a cut to the belief that the other side lives."""

JOIN_S = (0.02, 0.2)
"""From a process's start until it knows the others."""

Served = dict[str, dict[str, str]]
"""The process of each serving instance, by id, by model."""


class Published:
    """All that nodes have published, in order, and when."""

    __slots__ = ("nodes", "times")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.nodes: list[tuple[str, NodeView]] = []

    def add(self, node: NodeView, now: float) -> None:
        """Note what a node publishes."""
        self.times.append(now)
        self.nodes.append((node.boot, node))

    def __len__(self) -> int:
        return len(self.times)


class Sight:
    """One process's view of what is published."""

    def __init__(self, heap: EventHeap, published: Published, me: NodeView, lag_s: float) -> None:
        self.boot, self.lag_s = me.boot, lag_s
        self.joined = False
        self._heap, self._published, self._cursor = heap, published, 0
        self._known = {me.boot: me}
        self._cut: set[str] = set()
        self._gone: set[str] = set()
        self._deferred: dict[str, NodeView] = {}
        self._news: dict[str, NodeView | None] = {me.boot: me}
        self._picture = Picture()
        self._view: ClusterView | None = None
        self._serving: Served = {}

    # Looking.

    def view(self) -> ClusterView:
        """Return the present picture: the same object as long as nothing has changed."""
        self.catch_up()
        if self._view is None:
            before, self._picture = self._picture, self._picture.after(self._news)
            if not self._picture.resembles(before):
                self._serving.clear()
            self._news = {}
            self._view = ClusterView(self.boot, self._picture.nodes, self._picture)
        return self._view

    def owner(self, model: str) -> str:
        """Return the boot id of a model's owner, as it seems from here."""
        return owner_of(model, self.view())

    def serving(self, model: str) -> dict[str, str]:
        """Return the instances that seem to serve a model: where each is, by id."""
        view = self.view()
        found = self._serving.get(model)
        if found is None:
            nodes = [view.nodes[boot] for boot in residents(model, view)]
            found = self._serving[model] = {
                facts.id: node.boot
                for node in nodes
                if node.living
                for facts in node.instances.values()
                if facts.model == model and facts.state is InstanceState.SERVING
            }
        return found

    def believes(self, boot: str) -> bool:
        """Whether a process is believed to live."""
        return boot in self._known and boot not in self._gone

    @property
    def behind_s(self) -> float | None:
        """When the next fact that is published already gets here; None: all are here."""
        if self._cursor >= len(self._published):
            return None
        return self._published.times[self._cursor] + self.lag_s

    def catch_up(self) -> None:
        """Take what has got here by now."""
        if not self.joined:
            return
        begin, published = self._cursor, self._published
        self._cursor = bisect_right(published.times, self._heap.now - self.lag_s, begin)
        if self._cursor == begin:
            return
        news = dict(published.nodes[begin : self._cursor])
        news.pop(self.boot, None)
        for boot in self._cut.union(self._gone).intersection(news):
            self._deferred[boot] = news.pop(boot)
        if news:
            self._known.update(news)
            self._news.update(news)
            self._view = None

    # Changes.

    def put(self, node: NodeView) -> None:
        """Know a node as it is now."""
        self._known[node.boot] = self._news[node.boot] = node
        self._view = None

    def join(self, others: list[NodeView]) -> None:
        """Know all others at once, and follow from now on."""
        self.joined, self._cursor = True, len(self._published)
        for node in others:
            self.put(node)

    def cut(self, boots: list[str]) -> None:
        """Hear nothing more of some, who are believed to live for a while."""
        self.catch_up()
        self._cut.update(boots)

    def uncut(self, boots: list[str]) -> None:
        """Hear again of some; those that are believed dead have to be revived first."""
        self._cut.difference_update(boots)
        for boot in boots:
            if boot not in self._gone and boot in self._deferred:
                self.put(self._deferred.pop(boot))

    def bury(self, boot: str) -> bool:
        """Believe in a death; return whether that is new."""
        self.catch_up()
        if boot in self._gone or boot not in self._known:
            return False
        self._gone.add(boot)
        self.put(replace(self._known[boot], status=Status.DEAD))
        return True

    def revive(self, boot: str, latest: NodeView) -> bool:
        """Believe that a process lives after all; return whether that is new."""
        self.catch_up()
        if boot in self._known and boot not in self._gone:
            return False
        self._gone.discard(boot)
        self.put(self._deferred.pop(boot, latest))
        return True


class Sights:
    """All processes' views, and what they are told by."""

    def __init__(
        self,
        heap: EventHeap,
        rng: random.Random,
        delay_s: Callable[[int], float],
    ) -> None:
        self._heap, self._rng, self._delay_s = heap, rng, delay_s
        self.published = Published()
        self.latest: dict[str, NodeView] = {}
        self._shown_s: dict[str, float] = {}

    def make(self, me: NodeView) -> Sight:
        """Return the view of a new process, which knows only itself."""
        self.latest[me.boot] = me
        return Sight(self._heap, self.published, me, self._rng.uniform(*LAG_S))

    def publish(self, node: NodeView, index: int, told: Callable[[], None] | None) -> None:
        """Let a node's new picture of itself spread; `told` is called when it begins to be seen."""
        at_s = max(self._shown_s.get(node.boot, 0.0), self._heap.now + self._delay_s(index))
        self._shown_s[node.boot] = at_s
        if at_s <= self._heap.now:
            self._show(node, told)
        else:
            self._heap.at(at_s, self._show, node, told)

    def end(self, boot: str) -> None:
        """A process has ended: what it has published and nobody has seen yet is lost."""
        self.latest.pop(boot, None)

    def _show(self, node: NodeView, told: Callable[[], None] | None) -> None:
        if node.boot not in self.latest:
            return
        self.published.add(node, self._heap.now)
        self.latest[node.boot] = node
        if told is not None:
            told()
