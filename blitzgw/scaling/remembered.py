"""A plan that has just been made: an operation plans when it begins, and when devices are claimed.

In between, a few milliseconds, mostly nothing has changed that a plan rests on: the second would
be the same, and bytes would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from blitzgw.core.plan import Links, Task, node_of

if TYPE_CHECKING:
    from blitzgw.scaling.planner.choose import Choice

Choose = Callable[[Task, Links, str], "Choice"]


class Remembered:
    """Chooses as `choose` does, which is pure; what it is asked again it answers as before."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose
        self._known: dict[str, tuple[Task, Links, Choice]] = {}
        """By strategy: the last question, and the answer."""

    def forget(self) -> None:
        """Drop what is known: thousands of holders, and nobody is going to ask again soon."""
        self._known.clear()

    def __call__(self, task: Task, links: Links, strategy: str) -> Choice:
        """Return a plan. Raises PlanError and ValueError as `choose` does."""
        nearby = _nearby(task, links)
        known = self._known.get(strategy)
        if known is None or known[:2] != (task, nearby):
            self._known[strategy] = known = task, nearby, self._choose(task, links, strategy)
        return known[2]


def _nearby(task: Task, links: Links) -> Links:
    """Return what there is of the nodes that a task names: a plan looks up no others."""
    workers = (*task.targets, *(holder.worker for holder in task.holders))
    nodes = dict.fromkeys(map(node_of, workers))
    places = [(node, network) for node in nodes for network in links.networks]
    return replace(
        links,
        ports={place: links.ports[place] for place in places if place in links.ports},
        disks={node: links.disks[node] for node in nodes if node in links.disks},
        hosts={node: links.hosts[node] for node in nodes if node in links.hosts},
        zones={node: links.zones[node] for node in nodes if node in links.zones},
        named=links.networks,
    )
