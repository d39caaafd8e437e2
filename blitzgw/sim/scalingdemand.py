"""What a simulated node tells the owners of models: at once, then at intervals, while there is any.

The first change after a quiet time is told within FIRST_S, further ones every `interval_s` at the
soonest, and while not all is zero it is told again every KEEP_ALIVE_S. The interval grows with the
cluster (`demand_interval_s`): production tells up to fifty times a second, and a simulation of
dozens of nodes would do little else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blitzgw.core.scale import Demand
from blitzgw.core.view import LoadFacts

if TYPE_CHECKING:
    from blitzgw.sim.scalingnode import SimNode

FIRST_S = 0.005
"""From a change in a quiet time until it is told."""

KEEP_ALIVE_S = 1.0
"""Between two messages when nothing changes."""

LEAST_INTERVAL_S = 0.02
"""Between two messages about a model in the smallest clusters: what production does."""


def demand_interval_s(nodes: int) -> float:
    """Return the time between two messages of a node about a model, in seconds."""
    return max(LEAST_INTERVAL_S, nodes / 80)


@dataclass(slots=True)
class _Told:
    """The last message about a model: when, to whom, and whether another one is due already."""

    at_s: float = -1e9
    to: str = ""
    due: bool = False
    quiet: bool = True


class Demands:
    """Tells owners. `touched` is called with every change that they should know of."""

    def __init__(self, node: SimNode) -> None:
        self._node, self._heap = node, node.world.heap
        self._interval_s = node.world.demand_interval_s
        self._told: dict[str, _Told] = {}
        self._number = 0

    def touched(self, model: str) -> None:
        """Tell the owner of a model soon."""
        told = self._told.get(model)
        if told is None:
            told = self._told[model] = _Told()
        if not told.due:
            told.due = True
            at_s = max(self._heap.now + FIRST_S, told.at_s + self._interval_s)
            self._heap.at(at_s, self._tell, model)

    def owners_changed(self) -> None:
        """Tell new owners at once what is not all zero."""
        for model, told in self._told.items():
            if not told.quiet and self._node.sight.owner(model) != told.to:
                told.at_s = -1e9
                self.touched(model)

    def lost(self, boot: str) -> None:
        """Tell again what may not have arrived."""
        for model, told in self._told.items():
            if told.to == boot and not told.quiet:
                self.touched(model)

    def _tell(self, model: str) -> None:
        node, told = self._node, self._told[model]
        told.due = False
        if not node.running:
            return
        if node.alone:
            told.at_s = self._heap.now
            self.touched(model)
            return
        owner = node.sight.owner(model)
        demand = self._demand(model)
        told.at_s, told.to, told.quiet = self._heap.now, owner, _is_quiet(demand)
        node.world.links.send(node, owner, demand)
        if not told.quiet:
            self._heap.after(KEEP_ALIVE_S, self._again, model, told.at_s)

    def _again(self, model: str, told_s: float) -> None:
        if self._node.running and self._told[model].at_s == told_s:
            self.touched(model)

    def _demand(self, model: str) -> Demand:
        self._number += 1
        book = self._node.ingress.of(model)
        tokens = book.held[0].model.prompt_tokens if book.held else 0
        now = self._heap.now
        demand = Demand(
            model=model,
            digest=self._node.world.model_of(model).definition.digest,
            number=self._number,
            held=len(book.held),
            held_tokens=tokens * len(book.held),
            held_s=now - book.held[0].arrived_s if book.held else 0.0,
            arrived=book.arrived,
            refused=book.refused,
            loads=self._loads(model),
            ttft=dict(book.ttft),
            tpot=dict(book.tpot),
            queue=dict(book.queue),
            arrived_tokens=book.arrived_tokens,
        )
        book.ttft.clear()
        book.tpot.clear()
        book.queue.clear()
        return demand

    def _loads(self, model: str) -> tuple[LoadFacts, ...]:
        return tuple(i.load() for i in self._node.instances() if i.model.name == model)


def _is_quiet(demand: Demand) -> bool:
    busy = any(load.running or load.waiting for load in demand.loads)
    return not (demand.held or busy or demand.ttft)
