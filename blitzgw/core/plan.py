"""Plans: which bytes go from where to where so that targets have a model.

One representation serves every strategy: *edges* between workers and *reads* from a host's memory
or disk, each with the blobs that go along it, in order. A worker streams a blob's bytes along an
edge as soon as they are resident at the source and every earlier blob of that edge has gone. There
are no rounds and no barriers.

A worker is named `node/device`. Bytes and seconds throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from enum import StrEnum

from blitzgw.core.live import LivePolicy, Pair, StagePlan


class Tier(StrEnum):
    """Where a worker reads blobs from that it has not got from a peer."""

    HOST = "host"
    """The host copy in shared memory of the worker's own machine."""
    DISK = "disk"
    """A checkpoint on the worker's own machine."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Blobs that go from one worker to another, in this order, over a network of that name."""

    source: str
    target: str
    blobs: tuple[int, ...]
    network: str = ""


@dataclass(frozen=True, slots=True)
class Read:
    """Blobs that a worker reads by itself, in this order."""

    worker: str
    tier: Tier
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How targets get what they lack. `strategy` names who made it (scaling/planner)."""

    strategy: str
    targets: tuple[str, ...]
    edges: tuple[Edge, ...] = ()
    reads: tuple[Read, ...] = ()
    policy: LivePolicy = LivePolicy.STOP
    """What targets do while they load, for the homes of `pairs`."""
    pairs: tuple[Pair, ...] = ()
    pipelines: tuple[tuple[StagePlan, ...], ...] = ()
    """Receivers that serve together until they are complete; spans cover the model, in order."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """When blobs arrive: seconds from the start of the plan, by target and then by blob index.

    A blob that the target had before arrives at 0.
    """

    arrivals: Mapping[str, tuple[float, ...]]
    complete_s: float
    """All targets have all blobs."""
    first_blob_s: float
    """Some target has a first blob that it lacked."""
    coverage_s: float
    """Every blob is at some target: the targets together could serve."""


@dataclass(frozen=True, slots=True)
class Port:
    """A node's interface to a network: what a plan may use of it, in bytes of payload per second.

    Reservations of other operations are taken off already. `serving_tx` is what its workers send
    for requests (KV, activations): a plan avoids a port that has much of it. `worker_tx` is what
    each of them sends of weights at most.
    """

    tx_bytes_per_s: float
    rx_bytes_per_s: float
    serving_tx_bytes_per_s: float = 0.0
    worker_tx_bytes_per_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Links:
    """What the planner knows of the machines: ports by (node, network), local rates by node.

    Two nodes can exchange bytes over any network that both have a port to. Workers of one node
    exchange them at `local_bytes_per_s`, through the host's memory. `zones` names what nodes are
    near to each other (a rack, say); "" is near to nobody in particular.
    """

    ports: Mapping[tuple[str, str], Port]
    disks: Mapping[str, float] = field(default_factory=dict)
    hosts: Mapping[str, float] = field(default_factory=dict)
    zones: Mapping[str, str] = field(default_factory=dict)
    local_bytes_per_s: float = 4e9
    setup_s: float = 0.0
    """From the plan to an edge's first byte."""
    hop_s: float = 0.0
    """From a piece's last byte at a relay to its first byte on the next edge, besides the piece's
    own time on the wire."""
    piece_bytes: int = 1 << 20
    named: InitVar[tuple[str, ...]] = ()
    """What `networks` will be, where that is known: else all ports are looked at."""
    networks: tuple[str, ...] = field(init=False, compare=False)
    """The names of all networks, sorted."""

    def __post_init__(self, named: tuple[str, ...]) -> None:
        networks = named or tuple(sorted({name for _, name in self.ports}))
        object.__setattr__(self, "networks", networks)


@dataclass(frozen=True, slots=True)
class Holder:
    """A worker that can give blobs: a whole or partly loaded instance, a host copy, a checkpoint.

    What is behind `tier` has to be read before it can be sent; None: the blobs are resident, but
    for those that another operation is bringing: `due_s` says by blob in how many seconds each is
    expected, 0 where it is there. Empty: all are.
    """

    worker: str
    blobs: frozenset[int]
    tier: Tier | None = None
    due_s: tuple[float, ...] = ()

    @property
    def awaits(self) -> bool:
        """Whether another operation is bringing it some of its blobs."""
        return any(self.due_s)


@dataclass(frozen=True, slots=True)
class Task:
    """What a plan is for: `targets` get all blobs of `blob_bytes` that they lack.

    `holders` may include targets, with what they have already. There are `others` besides, each of
    which is like one of them but for its name.
    """

    blob_bytes: tuple[int, ...]
    targets: tuple[str, ...]
    holders: tuple[Holder, ...]
    others: int = 0


def node_of(worker: str) -> str:
    """Return the node's name of a worker `node/device`; names of nodes contain no slash."""
    return worker.partition("/")[0]
