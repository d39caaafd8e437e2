"""What goes wrong in a simulated cluster, drawn from its seed: crashes, and ports that get slow.

a process crashes ── noticed_s ──► links to it are lost ── detect_s ──► all take it for dead
                  └── down_s ──► another one starts on its host, with nothing
"""

from __future__ import annotations

import random
from functools import partial
from math import log
from typing import TYPE_CHECKING

from blitzgw.sim.cluster.world import START_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from blitzgw.sim.cluster.node import SimNode
    from blitzgw.sim.cluster.world import ClusterWorld

HOUR_S = 3600.0

JOIN_S = 0.2
"""From a process's start until all know it."""

COPY_S = 3.0
"""From a holder's death until another node has its host copies: as nodes wait (copies.py)."""


class Faults:
    """Lets things go wrong in a world, within its window."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world, self._terms = world, world.setup.failures
        self._rng = random.Random(f"faults {world.setup.seed}")  # noqa: S311  a run is to repeat
        self.crashes = 0
        self._slowed: set[int] = set()

    def draw(self) -> None:
        """Put all faults on the agenda: for each kind a Poisson process over all nodes."""
        self._draw(self._terms.crashes_per_node_hour, self.crash)
        self._draw(self._terms.slow_links_per_node_hour, self._slow)

    def _draw(self, per_node_hour: float, fault: Callable[[int], None]) -> None:
        setup, now = self._world.setup, 0.0
        if per_node_hour <= 0:
            return
        gap_s = HOUR_S / (per_node_hour * setup.nodes)
        while (now := now - gap_s * log(1 - self._rng.random())) < setup.duration_s:
            self._world.heap.at(START_S + now, fault, self._rng.randrange(setup.nodes))

    # Ports.

    def _slow(self, index: int) -> None:
        if index in self._slowed:
            return
        self._slowed.add(index)
        self._world.network.slow(index, self._terms.slow_factor)
        self._world.heap.after(self._rng.uniform(*self._terms.slow_s), self._mend, index)

    def _mend(self, index: int) -> None:
        self._slowed.discard(index)
        self._world.network.slow(index, 1.0)

    # Processes.

    def crash(self, index: int) -> None:
        """End a process without a word."""
        world, heap = self._world, self._world.heap
        node = world.at[index]
        if node is None:
            return
        self.crashes += 1
        world.remove(node)
        node.end()
        world.edges.node_gone(node)
        heap.after(self._terms.noticed_s, self._notice, node)
        heap.after(self._rng.uniform(*self._terms.detect_s), self._bury, node)
        heap.after(self._rng.uniform(*self._terms.down_s), self._start, index)

    def _notice(self, gone: SimNode) -> None:
        """Have those that were joined to it see that they are no more."""
        for node in self._world.nodes:
            node.link_lost(gone.boot)

    def _bury(self, gone: SimNode) -> None:
        """Have all believe it dead."""
        world = self._world
        world.sights.gone(gone.boot)
        for node in world.nodes:
            node.node_died(gone.boot)
        self._members_changed(frozenset({gone.boot}))
        copies = [copy.model for copy in gone.premises.shelf.copies.values() if not copy.cached]
        for model in copies:
            world.heap.after(COPY_S, partial(world.recopy, model))

    def _start(self, index: int) -> None:
        """Start another process on a host; it has nothing, but what is on its disk."""
        world = self._world
        if world.at[index] is None:
            node = world.start(index)
            world.heap.after(JOIN_S, self._join, node)

    def _join(self, node: SimNode) -> None:
        world = self._world
        if not node.running:
            return
        world.sights.join(node)
        if node.index < world.setup.ingresses:
            world.let_in(node)
        self._members_changed(frozenset({node.boot}))

    def _members_changed(self, boots: frozenset[str]) -> None:
        world = self._world
        world.view_changed(boots, {})
        world.follow_owners()
        for node in world.nodes:
            node.demands.owners_changed()
