"""What the API asks the rest of the node about its state. `node.py` implements the ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from blitzgw.core.operation import OperationFacts
from blitzgw.core.probe import ProbeFacts, ProbeWish
from blitzgw.core.scale import WhyFacts
from blitzgw.core.view import ClusterView, RequestList


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One configured model, as this node sees it.

    `state` is what operators read: serving, loading, scaled_to_zero, …; `eta_s` the seconds until
    a loading model serves, or the next instance of one that grows; None where nothing is on its
    way. `wanted` instances are what its owner means it to have, None where nobody has told. `mode`
    is a `core.scale.ScaleMode`. `kv_usage` is within [0, 1] and means full at 1; `kv_blocks` and
    `preemptions` are sums over this node's instances.
    """

    name: str
    state: str
    instances: int = 0
    layers_resident: int = 0
    layers_total: int = 0
    eta_s: float | None = None
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    kv_blocks: int = 0
    preemptions: int = 0
    wanted: int | None = None
    mode: str = "manual"
    starting: bool = False
    """An instance of this node loads because its worker starts, not for a scale operation."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """The node itself. `reason` says why it does not accept requests, empty where it does."""

    accepting: bool
    reason: str
    models: tuple[ModelStatus, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """Who serves a request.

    `split` tells how layers are split between instances, and is empty where they are not.
    """

    instance: str
    split: str = ""


class StatusPort(Protocol):
    """The node as the API sees it. Both calls are cheap and do not block."""

    def status(self) -> NodeStatus:
        """Return the state of the node and of every configured model."""

    def served_by(self, request_id: str) -> Served | None:
        """Tell who serves a running request, once that is known."""


class ClusterPort(Protocol):
    """The cluster as this node sees it."""

    def view(self) -> ClusterView:
        """Return the present picture; cheap, does not block."""

    async def requests(self) -> RequestList:
        """Ask every living node for its requests, for a bounded time.

        Returns the same object to all who ask within a moment.
        """


class ProbePort(Protocol):
    """Measures what links carry."""

    async def probe(self, wish: ProbeWish) -> ProbeFacts:
        """Measure, for a bounded time; whoever cancels this ends it. Raises RequestError."""


class ScalePort(Protocol):
    """Scale operations of the whole cluster. Whoever implements it bounds the time of each call.

    What has begun goes on when the caller is cancelled: its client may have left.
    """

    async def scale(
        self, model: str, instances: int, *, dry_run: bool, strategy: str, policy: str
    ) -> OperationFacts | None:
        """Have so many instances of a model (its own name) until another order.

        `core.scale.AUTOMATIC` instances: as many as its owner decides, from now on. An empty
        strategy: the quickest; an empty live policy: the model's own.

        Returns the operation as it began, as it would be (planned), or done where nothing is to
        do; None for AUTOMATIC, after which operations begin by themselves. Raises RequestError.
        """

    async def why(self, model: str) -> WhyFacts | None:
        """Ask a model's owner why it has as many instances as it has; None: it does not answer."""

    async def whys(self) -> tuple[WhyFacts, ...]:
        """Return what all owners that answer tell of their models, by model, sorted."""

    async def operations(self) -> tuple[OperationFacts, ...]:
        """Return what the owners among the living nodes know of, in any order, without parts."""

    async def operation(self, operation: str) -> OperationFacts | None:
        """Return one with all its parts; None where nobody knows it."""

    async def cancel(self, operation: str) -> OperationFacts:
        """Give up an operation, and return it; one that has ended is returned as it is.

        Raises RequestError, for one that nobody knows too.
        """
