"""What one node does for one operation: devices leased, edges open, stores made, news told.

`Engagement` keeps the books and says which effects a change of them takes; `Steward` decides when.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from blitzgw.core.operation import (
    LEASE_S,
    BlobNews,
    Claim,
    EdgeNews,
    EdgeOrder,
    Engage,
    ReadOrder,
    TargetFailed,
    TargetReady,
)
from blitzgw.core.plan import Tier, node_of
from blitzgw.core.transfer import CloseEdge, EdgeTerms, OpenReceive, OpenSend
from blitzgw.scaling.effects import BringUp, HoldWeights, ReadWeights, Send, StewardEffect, ToWorker
from blitzgw.scaling.leases import Lease

MAX_OUTCOMES = 256
"""Failed targets, and ended edges, that are remembered until the operation ends, to be told again
after a lost link: more than a node has devices, and than one plan has edges at it."""


class Premises(Protocol):
    """What a steward asks of its own node. Answers include the effects of all former calls."""

    def claim(self, device: str) -> int | None:
        """Return a device's claim; None where there is no such device or its worker is not up."""

    def objection(self, device: str, model: str, digest: str) -> str:
        """Return why a device cannot take a model now (an instance, too little memory), or "".

        What is only kept there is no reason.
        """

    def revivable(self, device: str, model: str, digest: str) -> str:
        """Return the instance of that definition that drains or is kept on a device, or ""."""

    def keep_s(self, instance: str) -> float:
        """Return for how long an instance that has drained is to be kept, in seconds."""

    def device_of(self, instance: str) -> str | None:
        """Return the device of an instance that is here, in whatever state."""

    def has_weights(self, device: str, weights: str) -> bool:
        """Whether a worker has a store of these weights, whole or not."""

    def rates(self) -> dict[str, float]:
        """Return the rates of this node's ports by network, 0 where they are not known."""


def epoch_of(edge: str) -> int:
    """Return the epoch that an edge began in, which stands in its name (orders.py); -1: none."""
    _, _, tail = edge.partition(".")
    epoch = tail.partition(".")[0]
    return int(epoch) if epoch.isdecimal() and len(epoch) < 10 else -1


@dataclass(slots=True)
class OpenEdge:
    """An edge of which this node has one end or both. `ends` are devices where it is open yet."""

    order: EdgeOrder
    ends: set[str]
    told_s: float = float("-inf")
    told_bytes: int = 0


@dataclass(slots=True)
class Engagement:
    """An operation at the node `node`, which belongs to the process `owner`."""

    node: str
    operation: str
    owner: str
    until_s: float
    lease_s: float = LEASE_S
    epoch: int = -1
    model: str = ""
    digest: str = ""
    weights: str = ""
    seed: int = 0
    copy: bool = False
    stale: bool = False
    """News may have been lost: all of it is told again at the owner's next word."""
    leases: dict[str, Lease] = field(default_factory=dict)
    copies: dict[str, Lease] = field(default_factory=dict)
    """Devices of this node on which a host copy is being made, in the shape of leases."""
    edges: dict[str, OpenEdge] = field(default_factory=dict)
    stores: set[str] = field(default_factory=set)
    """Devices on which weights are held only so that they can be sent."""
    reading: dict[str, set[int]] = field(default_factory=dict)
    failed: dict[str, TargetFailed] = field(default_factory=dict)
    ended: dict[str, EdgeNews] = field(default_factory=dict)
    """How edges have ended, the latest; none of them is opened again, because keys serve once."""

    @property
    def idle(self) -> bool:
        """Whether nothing is done here for the operation."""
        doing = self.leases or self.copies or self.edges or self.stores
        return not (doing or self.failed or self.ended)

    def worker(self, device: str) -> str:
        """Return a device's name between nodes."""
        return f"{self.node}/{device}"

    def target(self, device: str) -> Lease | None:
        """Return what is being brought up on a device, if anything."""
        return self.leases.get(device) or self.copies.get(device)

    def ends_here(self, order: EdgeOrder) -> list[str]:
        """Return the devices of this node that an edge begins or ends at."""
        return [
            worker.partition("/")[2]
            for worker in (order.source, order.target)
            if node_of(worker) == self.node
        ]

    def uses(self, device: str, weights: str) -> bool:
        """Whether it fills a device's store of some weights, or sends from it."""
        return self.weights == weights and (
            device in self.stores
            or self.target(device) is not None
            or any(device in self.ends_here(edge.order) for edge in self.edges.values())
        )

    # Changes.

    def grant(self, lease: Lease) -> None:
        """Give a device to the operation."""
        self.leases[lease.device] = lease
        self.failed.pop(lease.device, None)

    def lease(self, claim: Claim, raised: int = 0) -> tuple[StewardEffect, Lease]:
        """Grant a device; return what begins the instance that it is for, and the lease.

        `raised`: how often the device's claim has been raised since it was asked for.
        """
        instance = f"{claim.model}@{self.worker(claim.device)}"
        lease = Lease(claim.device, instance, claim.claim, claim.claim + raised + 1)
        self.grant(lease)
        begin = BringUp(
            device=claim.device,
            instance=instance,
            claim=lease.claim,
            model=claim.model,
            digest=claim.digest,
            operation=claim.operation,
        )
        return begin, lease

    def begin_copies(self, order: Engage, *, owned: bool) -> list[StewardEffect]:
        """Make the stores that are the targets of an operation for a host copy.

        They are those that something is sent to, and on the owner's node those that read.
        """
        workers = {edge.target for edge in order.edges}
        if owned:
            workers |= {read.worker for read in order.reads}
        effects: list[StewardEffect] = []
        for worker in sorted(workers):
            device = worker.partition("/")[2]
            if node_of(worker) == self.node and device not in self.copies:
                effects += self.hold(device, ())
                self.copies[device] = Lease(device, "", 0, 0)
        return effects

    def close(self, edge: str) -> list[StewardEffect]:
        """Forget an edge and close what is open of it."""
        gone = self.edges.pop(edge)
        return [ToWorker(device, CloseEdge(edge)) for device in sorted(gone.ends)]

    def replace(self, order: Engage) -> list[StewardEffect]:
        """Do what an order says in place of what was done before.

        Edges that it names again go on. Blobs that are being read already are not asked for again.
        """
        self.epoch, self.copy, self.weights = order.epoch, order.copy, order.weights
        self.model, self.digest, self.seed = order.model, order.digest, order.seed
        self.lease_s = order.lease_s
        named = {edge.id for edge in order.edges}
        effects: list[StewardEffect] = []
        for gone in [edge for edge in self.edges if edge not in named]:
            effects += self.close(gone)
        self.ended = {edge: news for edge, news in self.ended.items() if edge in named}
        return effects

    def read(self, order: ReadOrder, *, has_store: bool) -> list[StewardEffect]:
        """Return what makes a worker read from disk; host copies it takes of its own accord."""
        device = order.worker.partition("/")[2]
        known = self.reading.setdefault(device, set())
        new = tuple(index for index in order.blobs if index not in known)
        if order.tier is not Tier.DISK:
            new = ()
        known.update(new)
        if device in self.leases or has_store or device in self.stores or device in self.copies:
            if not new:
                return []
            return [ReadWeights(device, self.model, self.digest, self.weights, new)]
        self.stores.add(device)
        return self.hold(device, new)

    def hold(self, device: str, reads: tuple[int, ...]) -> list[StewardEffect]:
        """Make a store on a device, to be sent from or to be the copy."""
        return [HoldWeights(device, self.model, self.digest, self.weights, reads)]

    def open(self, order: EdgeOrder) -> list[StewardEffect]:
        """Open this node's end of an edge, or both; one that is open already stays."""
        if order.id in self.edges:
            return []
        if order.id in self.ended:
            return [Send(self.owner, self.ended[order.id])]
        if 0 <= epoch_of(order.id) < self.epoch:
            # it was open before a lease ran out here, or never came: its key may have served
            reason = f"it is not open at {self.node} any more"
            news = EdgeNews(self.operation, self.epoch, order.id, 0, ended=True, reason=reason)
            return [self.end(news)]
        self.edges[order.id] = OpenEdge(order, set(self.ends_here(order)))
        terms = EdgeTerms(
            id=order.id,
            operation=self.operation,
            weights=self.weights,
            blobs=order.blobs,
            key=order.key,
            seed=self.seed,
            network=order.network,
        )
        effects: list[StewardEffect] = []
        if node_of(order.source) == self.node:
            effects.append(ToWorker(order.source.partition("/")[2], OpenSend(terms)))
        if node_of(order.target) == self.node:
            device = order.target.partition("/")[2]
            effects.append(ToWorker(device, OpenReceive(terms, order.host, order.port)))
        return effects

    # News.

    def news(self, device: str) -> list[StewardEffect]:
        """Return all that there is to say of a target."""
        target = self.target(device)
        if target is None:
            return []
        worker = self.worker(device)
        blobs = tuple(sorted(index for weights, index in target.blobs if weights == self.weights))
        told: list[StewardEffect] = []
        if blobs and self.weights:
            told.append(Send(self.owner, BlobNews(self.operation, worker, blobs)))
        if target.ready:
            told.append(Send(self.owner, TargetReady(self.operation, worker)))
        return told

    def retell(self) -> list[StewardEffect]:
        """Tell the owner everything again, where a link has been lost since."""
        if not self.stale:
            return []
        self.stale = False
        effects: list[StewardEffect] = []
        effects += [Send(self.owner, failure) for failure in self.failed.values()]
        effects += [Send(self.owner, news) for news in self.ended.values()]
        for device in sorted(self.leases | self.copies):
            effects += self.news(device)
        return effects

    def end(self, news: EdgeNews) -> StewardEffect:
        """Remember how an edge has ended, and tell."""
        if len(self.ended) >= MAX_OUTCOMES:
            del self.ended[next(iter(self.ended))]
        self.ended[news.edge] = news
        return Send(self.owner, news)

    def fail(self, device: str, reason: str) -> list[StewardEffect]:
        """Forget a target and tell the owner why."""
        self.leases.pop(device, None)
        self.copies.pop(device, None)
        self.reading.pop(device, None)
        failure = TargetFailed(self.operation, self.worker(device), reason)
        if len(self.failed) < MAX_OUTCOMES:
            self.failed[device] = failure
        return [Send(self.owner, failure)]
