"""What nodes say to each other to scale a model, and what they tell of it.

The owner of an operation claims devices, plans, and tells every node that takes part what to do;
each node answers for its own devices, ports and workers. Everything carries the operation's id and,
where a plan is meant, its epoch: a new plan of the same operation replaces the former one, and what
is said of the former one is dropped. A claim has a lease: an owner that falls silent loses what it
has claimed.

    owner ── Claim ──► node      Claimed
          ── Engage ──►          Engaged, then BlobNews …, EdgeNews …, TargetReady | TargetFailed
          ── Renew ──►
          ── Conclude ──►        (leases end, instances stay)
          ── Abandon ──►         (what was begun is undone)
          ── Retire ──►          Retired
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.live import LivePolicy, Pair, StagePlan
from blitzgw.core.plan import Tier
from blitzgw.core.record import record

LEASE_S = 5.0
"""How long a claim outlives its owner's last word: longer than the detection of a death, so that an
operation is not undone for a hiccup; short enough that a device is soon free again."""

RENEW_S = 1.0
"""Between two renewals: several may be lost."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Take a device for an operation, if it is still at `claim`.

    `model` and `digest` name the definition (core/card.py) that it is to be used for. The node
    raises the device's claim and begins to set the memory aside.
    """

    operation: str
    device: str
    claim: int
    model: str
    digest: str
    lease_s: float = LEASE_S


@dataclass(frozen=True, slots=True)
class Claimed:
    """A device is claimed, from now on at `claim`, for `instance`; or it is not, for a `reason`.

    `revived`: the instance was draining or kept there with all its weights; `TargetReady` follows.
    """

    operation: str
    device: str
    claim: int
    instance: str = ""
    reason: str = ""
    revived: bool = False


@dataclass(frozen=True, slots=True)
class EdgeOrder:
    """One edge of a plan, as both of its nodes are told. Workers are `node/device`.

    `host` and `port` are where the source's worker listens on that network. `rate_bytes_per_s` is
    what the plan has promised itself of the ports at both ends, and what they reserve.
    """

    id: str
    source: str
    target: str
    network: str
    host: str
    port: int
    blobs: tuple[int, ...]
    key: bytes = field(repr=False)
    rate_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadOrder:
    """Blobs that a worker of the node reads by itself."""

    worker: str
    tier: Tier
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Engage:
    """All that one node has to do for an operation, in place of what it was told before.

    `weights` is the root of the manifest; `copy`: the targets are host copies, not instances.
    `edges` are those of which this node has one end or both. An empty order lets go.
    """

    operation: str
    epoch: int
    model: str
    digest: str
    weights: str
    edges: tuple[EdgeOrder, ...]
    reads: tuple[ReadOrder, ...] = ()
    seed: int = field(default=0, repr=False)
    copy: bool = False
    lease_s: float = LEASE_S
    policy: LivePolicy = LivePolicy.STOP
    pairs: tuple[Pair, ...] = ()
    """Those whose worker is this node's."""
    pipelines: tuple[tuple[StagePlan, ...], ...] = ()
    """Those of which a stage is this node's."""


@dataclass(frozen=True, slots=True)
class Engaged:
    """The node does what it was told, or cannot for a `reason` (a port is taken, a store gone)."""

    operation: str
    epoch: int
    reason: str = ""


@record(frozen=True, slots=True)
class BlobNews:
    """Blobs that are complete and checked at a target since the last time."""

    operation: str
    worker: str
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EdgeNews:
    """How an edge gets on; `ended` with a `reason` it is lost, with none it is done.

    The costs are those of `core.transfer.EdgeClosed`.
    """

    operation: str
    epoch: int
    edge: str
    received_bytes: int
    ended: bool = False
    reason: str = ""
    seconds: float = 0.0
    resumed: int = 0
    damaged: int = 0
    yielded_s: float = 0.0
    delayed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TargetReady:
    """The instance serves, or the host copy is complete."""

    operation: str
    worker: str


@dataclass(frozen=True, slots=True)
class TargetFailed:
    """A target cannot be brought up; its device is free again."""

    operation: str
    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Renew:
    """The owner lives and goes on: leases count anew."""

    operation: str


@dataclass(frozen=True, slots=True)
class Conclude:
    """The operation is done: what it has brought up stays, its leases and edges end."""

    operation: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """The operation is given up: everything is as it was before."""

    operation: str
    reason: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Let an instance finish or move what it has, then free its device."""

    operation: str
    instance: str
    claim: int


@dataclass(frozen=True, slots=True)
class Retired:
    """An instance is gone, or is not there at that claim, for a `reason`."""

    operation: str
    instance: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ScaleOrder:
    """Have so many instances of a model; asked of its owner. Answered with `ScaleAnswer`."""

    id: int
    model: str
    instances: int
    dry_run: bool = False
    strategy: str = ""
    """Empty: the one that is predicted to be the quickest."""
    policy: str = ""
    """A `core.live.LivePolicy`; empty: the model's, which may leave it to the planner."""
    automatic: bool = False
    """The model's owner has decided so: it is not refused because operations run, begins besides
    them what is lacking, and those that work against it end."""


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Give an operation up; asked of its owner. Answered with `ScaleAnswer`."""

    id: int
    operation: str


@dataclass(frozen=True, slots=True)
class ScaleAnswer:
    """The operation that was begun or only planned, or why there is none. `code` as in Declined."""

    id: int
    operation: OperationFacts | None = None
    code: str = ""
    message: str = ""


# What is told of operations.


@dataclass(frozen=True, slots=True)
class EdgeFacts:
    """An edge of the present plan. `rate_bytes_per_s` is measured, 0 before the first byte."""

    source: str
    target: str
    network: str
    blobs: int
    size_bytes: int
    received_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    state: str = "opening"
    """opening, flowing, done or lost."""
    yielded_s: float = 0.0
    delayed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """A target. `predicted_s` and `arrived_s` by blob index, from the operation's start; -1: not.

    State: claiming, claimed, connected, loading, ready, failed, released.
    """

    worker: str
    instance: str
    state: str
    predicted_s: tuple[float, ...] = ()
    arrived_s: tuple[float, ...] = ()
    ready_s: float = -1.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OperationEvent:
    """Something that happened, `at_s` after the operation was decided. `what` is one word."""

    at_s: float
    what: str
    about: str = ""
    detail: str = ""


POLICY = "policy "
"""Before the name of a live policy among an operation's alternatives."""


@dataclass(frozen=True, slots=True)
class OperationFacts:
    """A scale operation as its owner knows it.

    State: planned (a dry run), claiming, transferring, draining, done, failed, cancelled.
    `started_s` is Unix time. `instances_before` → `instances_wanted`. `predicted_s` is the time
    until all targets are complete, -1 where nothing is transferred.
    """

    id: str
    model: str
    digest: str
    weights: str
    owner: str
    state: str
    started_s: float
    instances_before: int
    instances_wanted: int
    strategy: str = ""
    predicted_s: float = -1.0
    first_blob_s: float = -1.0
    coverage_s: float = -1.0
    elapsed_s: float = 0.0
    size_bytes: int = 0
    epoch: int = 0
    reason: str = ""
    targets: tuple[TargetFacts, ...] = ()
    edges: tuple[EdgeFacts, ...] = ()
    reads: tuple[ReadOrder, ...] = ()
    policy: str = ""
    pairs: tuple[Pair, ...] = ()
    pipelines: tuple[tuple[StagePlan, ...], ...] = ()
    alternatives: dict[str, float] = field(default_factory=dict)
    """What strategies were predicted to take, in seconds; and after POLICY a live policy's name, to
    what that was predicted to bring the mean completion of what waits."""
    events: tuple[OperationEvent, ...] = ()


OperationMessage = (
    Claim
    | Claimed
    | Engage
    | Engaged
    | BlobNews
    | EdgeNews
    | TargetReady
    | TargetFailed
    | Renew
    | Conclude
    | Abandon
    | Retire
    | Retired
    | ScaleOrder
    | CancelOrder
    | ScaleAnswer
)
