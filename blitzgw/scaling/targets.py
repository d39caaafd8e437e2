"""The targets and edges of an operation, as its owner keeps book of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.operation import EdgeFacts, EdgeNews, EdgeOrder, TargetFacts

CLAIMING, CLAIMED, CONNECTED, LOADING = "claiming", "claimed", "connected", "loading"
READY, FAILED, RELEASED = "ready", "failed", "released"

HELD = frozenset({CLAIMED, CONNECTED, LOADING})
"""States of targets that are being brought up."""


@dataclass(slots=True)
class Target:
    """A device that is to have the model, or a worker that is to have the host copy.

    Times are seconds from the operation's start. `claim` is what the claim was asked at, and once
    it is granted what the device is at; `asked` counts how often, and `ask_at` is when to ask
    again. `moved_s` is the decider's moment of its last byte or plan, `starved` whether its sources
    have been blamed for the lack of bytes. Where these wait for other operations, `due_s` are the
    moments at which its blobs are predicted.
    """

    worker: str
    boot: str
    device: str
    claim: int
    state: str = CLAIMING
    instance: str = ""
    reason: str = ""
    answered: bool = False
    complete: bool = False
    arrived: dict[int, float] = field(default_factory=dict)
    predicted: tuple[float, ...] = ()
    ready_s: float = -1.0
    asked: int = 1
    ask_at: float | None = None
    moved_s: float = 0.0
    due_s: tuple[float, ...] = ()
    starved: bool = False
    revived: bool = False
    """It was there with all its weights, by its own node's word."""

    def fill(self, n_blobs: int) -> None:
        """Note that it has everything without a byte: it drains or is kept there."""
        self.arrived = dict.fromkeys(range(n_blobs), 0.0)

    @property
    def quiet_s(self) -> float:
        """Since which moment bytes should have come that have not."""
        if not self.due_s:
            return self.moved_s
        due_s = (at_s for blob, at_s in enumerate(self.due_s) if blob not in self.arrived)
        return max(self.moved_s, min(due_s, default=0.0))

    @property
    def held(self) -> bool:
        """Whether it is ours and not ready yet."""
        return self.state in HELD

    @property
    def gone(self) -> bool:
        """Whether it is given up."""
        return self.state in (FAILED, RELEASED)

    def facts(self, n_blobs: int) -> TargetFacts:
        """Return what is told of it."""
        return TargetFacts(
            self.worker,
            self.instance,
            self.state,
            self.predicted,
            tuple(self.arrived.get(index, -1.0) for index in range(n_blobs)),
            self.ready_s,
            self.reason,
        )


@dataclass(slots=True)
class EdgeBook:
    """An edge of the present plan. Moments are the decider's."""

    order: EdgeOrder
    size_bytes: int
    state: str = "opening"
    received_bytes: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    first_bytes: int = 0
    seconds: float = 0.0
    yielded_s: float = 0.0
    delayed_s: float = 0.0

    def take(self, news: EdgeNews, now: float, *, received: bool) -> bool:
        """Note news; return whether they are the first bytes. `received`: told by the target."""
        self.yielded_s = max(self.yielded_s, news.yielded_s)
        self.delayed_s = max(self.delayed_s, news.delayed_s)
        first = False
        if received and news.received_bytes > self.received_bytes:
            first = not self.received_bytes
            if first:
                self.first_s, self.first_bytes = now, news.received_bytes
            self.received_bytes, self.last_s = news.received_bytes, now
            self.seconds = max(self.seconds, news.seconds)
        if news.ended and news.reason:
            self.state = "lost"
        elif news.ended and received:
            self.seconds = max(self.seconds, news.seconds)
            self.state = "done"
        elif self.state == "opening" and self.received_bytes:
            self.state = "flowing"
        return first

    def facts(self) -> EdgeFacts:
        """Return what is told of it."""
        order, rate = self.order, 0.0
        if self.seconds > 0:
            rate = self.received_bytes / self.seconds
        elif self.last_s > self.first_s:
            rate = (self.received_bytes - self.first_bytes) / (self.last_s - self.first_s)
        return EdgeFacts(
            order.source,
            order.target,
            order.network,
            len(order.blobs),
            self.size_bytes,
            self.received_bytes,
            rate,
            self.state,
            self.yielded_s,
            self.delayed_s,
        )
