"""How things go wrong in a simulated cluster: crashes, partitions, slow nodes, lost links, wishes.

What is drawn in scalingfaults.py is done to a world here.
"""

from __future__ import annotations

from blitzgw.scaling import autoevents as au
from blitzgw.sim import scalingfaults as sf
from blitzgw.sim.scalingnode import SimNode
from blitzgw.sim.scalingsight import DETECT_S, REVIVE_S
from blitzgw.sim.scalingworld import ScalingWorld


class Trouble:
    """Does faults to a world."""

    def __init__(self, world: ScalingWorld) -> None:
        self._world = world

    def act(self, fault: sf.Fault) -> None:
        """Let something go wrong."""
        match fault:
            case sf.CrashNode(index, down_s):
                self._world.crash(index, down_s)
            case sf.CrashOwner(pick, down_s):
                self._crash_owner(pick, down_s)
            case sf.SplitNodes(side, duration_s):
                self._split(side)
                self._world.heap.after(duration_s, self._heal, side)
            case sf.SlowNode(index, delay_s, duration_s):
                self._world.links.slow(index, delay_s)
                self._world.heap.after(duration_s, self._world.links.slow, index, 0.0)
            case sf.LoseLink(one, other):
                ends = self._world.at[one], self._world.at[other]
                if ends[0] is not None and ends[1] is not None:
                    self._world.links.lose(ends[0].boot, ends[1].boot)
            case sf.GiveWish(index, number, wanted):
                self.wish(index, self._world.models[number % len(self._world.models)].name, wanted)

    def wish(self, index: int, model: str, wanted: int) -> None:
        """Let an operator ask a node for so many instances, which tells the model's owner."""
        node = self._world.at[index]
        if node is not None and not node.alone:
            self._world.links.send(node, node.sight.owner(model), au.WishGiven(model, wanted))

    def _crash_owner(self, pick: float, down_s: float) -> None:
        growing = [
            node.index
            for node in self._world.running()
            if any(
                facts.state in ("claiming", "transferring")
                for model in node.scaling
                for facts in node.operations.facts(node.now)
                if facts.model == model
            )
        ]
        self._world.tally.owner_crashes += bool(growing)
        among = growing or [node.index for node in self._world.running()]
        if among:
            self._world.crash(among[int(pick * len(among))], down_s)

    def _split(self, side: frozenset[int]) -> None:
        self._world.tally.splits += 1
        self._world.disturbed_s = self._world.heap.now
        self._world.links.split(side)
        self._world.flows.cut()
        for one, other in self._across(side):
            one.sight.cut([other.boot])
            self._world.heap.after(
                self._world.rng.uniform(*DETECT_S), self._believe_cut, one, other
            )

    def _believe_cut(self, one: SimNode, other: SimNode) -> None:
        if not (other.running and self._world.links.connected(one.index, other.index)):
            one.node_died(other.boot)

    def _heal(self, side: frozenset[int]) -> None:
        self._world.disturbed_s = self._world.heap.now
        self._world.links.heal(side)
        for one, other in self._across(side):
            if self._world.links.connected(one.index, other.index):
                one.sight.uncut([other.boot])
                self._world.heap.after(self._world.rng.uniform(*REVIVE_S), self._revive, one, other)

    def _revive(self, one: SimNode, other: SimNode) -> None:
        if other.running and self._world.links.connected(one.index, other.index):
            one.node_back(other.boot)

    def _across(self, side: frozenset[int]) -> list[tuple[SimNode, SimNode]]:
        here = [node for node in self._world.running() if node.index in side]
        there = [node for node in self._world.running() if node.index not in side]
        pairs = [(one, other) for one in here for other in there]
        return pairs + [(other, one) for one, other in pairs]
