"""A cluster of the nodes that a test makes."""

from __future__ import annotations

from typing import Any

from blitzgw.core.instance import InstanceState
from blitzgw.core.rumours import Status
from blitzgw.core.view import ClusterView, InstanceFacts, NodeView, RequestList

KEYS = {"devices": "id", "models": "name", "instances": "id", "loads": "instance",
        "copies": "weights", "scaling": "model", "wishes": "model"}  # fmt: skip


def node(boot: str, name: str, status: Status = Status.ALIVE, **facts: Any) -> NodeView:
    """Return a node; its facts are given as lists."""
    for kind, key in KEYS.items():
        facts[kind] = {getattr(fact, key): fact for fact in facts.get(kind, ())}
    return NodeView(boot, name, "10.0.0.1", 7946, status, 1_700_000_000, **facts)


def instance(
    id_: str = "i1",
    state: InstanceState = InstanceState.SERVING,
    resident: int = 30,
    model: str = "m",
    digest: str = "d1",
    **more: Any,
) -> InstanceFacts:
    """Return an instance of a model of 30 layers."""
    return InstanceFacts(id_, model, digest, "cpu0", 1, state, resident, 30, **more)


class FakeCluster:
    """A cluster of the nodes that a test shows; `looks` counts how often they were looked at."""

    def __init__(self, *nodes: NodeView) -> None:
        self.found = RequestList(())
        self.looks = 0
        self.show(*nodes)

    def show(self, *nodes: NodeView) -> None:
        local = nodes[0].boot if nodes else ""
        self._view = ClusterView(local, {each.boot: each for each in nodes})

    def view(self) -> ClusterView:
        self.looks += 1
        return self._view

    async def requests(self) -> RequestList:
        return self.found
