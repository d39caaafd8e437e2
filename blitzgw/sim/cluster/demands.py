"""What a simulated node tells the owners of models: of its clients, and of its instances' loads.

As nodes do (blitzgw/demands.py): at once when something begins after a quiet while, at most every
TELL_S while anything changes, every REPEAT_S as long as there is anything at all. In a large
cluster what has become less is told a little later: most of what changes is progress, which brings
no more instances. Nothing is told of models on which no policy decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from blitzgw.core.scale import Demand

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode

TELL_S = 0.02
"""Between two demands for a model: as on nodes."""

REPEAT_S = 2.0
"""Between two messages when nothing changes: an owner takes what is older than five for gone."""

LATER_S = 0.1
"""Within which progress is told where there are more than EXACT_NODES: patience is ten times that
and more."""

EXACT_NODES = 64
"""Up to so many nodes everything is told as on nodes."""

NEVER_S = -1e9


@dataclass(slots=True)
class _Told:
    """The last message about a model: when, to whom, and when the next one is due."""

    at_s: float = NEVER_S
    to: str = ""
    due_s: float = inf
    quiet: bool = True
    news_s: float = inf
    """When the oldest change came about that has not been told yet."""
    looked_after: bool = False
    """Whether it is looked at again when it is to be repeated."""


class Demands:
    """Tells owners. `touched` is called with every change that they should know of."""

    def __init__(self, node: SimNode) -> None:
        self._node, self._heap = node, node.world.heap
        self._told: dict[str, _Told] = {}
        self._number = 0
        self._later_s = LATER_S if node.world.setup.nodes > EXACT_NODES else 0.0

    def touched(self, model: str, *, urgent: bool = True) -> None:
        """Tell the owner of a model as soon as may be; what is not `urgent` is progress."""
        told = self._told.get(model)
        if told is None:
            if self._node.world.models[model].manual:
                return
            told = self._told[model] = _Told()
        now = self._heap.now
        due_s = max(now if urgent else now + self._later_s, told.at_s + TELL_S)
        if due_s < told.due_s:
            told.news_s = min(told.news_s, now)
            told.due_s = due_s
            self._heap.at(due_s, self._tell, model, told, due_s)

    def owners_changed(self) -> None:
        """Tell new owners at once what is not all zero."""
        for model, told in self._told.items():
            if not told.quiet and self._node.world.owner_of(model) != told.to:
                told.at_s = NEVER_S
                self.touched(model)

    def _tell(self, model: str, told: _Told, due_s: float) -> None:
        node = self._node
        if not node.running or due_s != told.due_s:
            return
        told.due_s = inf
        demand = self._demand(model, told)
        told.quiet, told.news_s = _is_quiet(demand), inf
        told.at_s, told.to = self._heap.now, node.world.owner_of(model)
        node.world.deliver(node, told.to, demand, node.world.latencies.demand_s)
        if not told.quiet and not told.looked_after:
            told.looked_after = True
            self._heap.after(REPEAT_S, self._again, model, told)

    def _again(self, model: str, told: _Told) -> None:
        """Repeat what nobody has told anew meanwhile, or look again when that would be due.

        One event for each model of a node: else there is one for each message of two seconds.
        """
        if told.quiet or not self._node.running:
            told.looked_after = False
        elif self._heap.now < told.at_s + REPEAT_S:
            self._heap.at(told.at_s + REPEAT_S, self._again, model, told)
        else:
            told.looked_after = False
            self.touched(model)

    def _demand(self, model: str, told: _Told) -> Demand:
        self._number += 1
        node = self._node
        return Demand(
            model=model,
            digest=node.world.models[model].definition.digest,
            number=self._number,
            loads=node.loads(model),
            news_s=max(0.0, self._heap.now - told.news_s),
            **(node.ingress.demand(model) if node.ingress is not None else {}),
        )


def _is_quiet(demand: Demand) -> bool:
    if demand.held or demand.ttft:
        return False
    return not any(load.running or load.waiting for load in demand.loads)
