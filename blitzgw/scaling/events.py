"""What the deciders of scaling are told. What they answer with is in effects.py.

`Operations` (operations.py) is told what concerns the operations that this node owns, `Steward`
(steward.py) what concerns its own devices, ports and workers, `CopyKeeper` (copies.py) when time
has passed, `HostCache` (caching.py) which instances come and go. Workers are `node/device` between
nodes; events of a steward name its own devices by their ids.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.operation import OperationMessage, ScaleOrder
from blitzgw.core.record import record
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CopyFailed,
    CopyHeld,
    EdgeClosed,
    EdgeProgress,
)


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The moment that `deadline()` named has come, or a later one."""


@record(frozen=True, slots=True)
class MessageCame:
    """A node, perhaps this one, has sent a message of an operation. `boot` is the sender's."""

    boot: str
    message: OperationMessage


@dataclass(frozen=True, slots=True)
class LinkLost:
    """Messages to and from a node since the last such event may not have arrived."""

    boot: str


@dataclass(frozen=True, slots=True)
class NodeDied:
    """A node is believed dead, or has left."""

    boot: str


@dataclass(frozen=True, slots=True)
class OrderGiven:
    """Somebody wants so many instances of a model; answered with one `Answer`.

    `boot` is the node that asks, this one's own for its own API.
    """

    boot: str
    order: ScaleOrder


@dataclass(frozen=True, slots=True)
class CopyWanted:
    """A worker of this node is to hold a host copy that comes over the network."""

    model: str
    worker: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """An operation is not wanted any more. Unknown ones and ended ones are ignored.

    `rest`: what a growth has brought up already stays.
    """

    operation: str
    reason: str
    rest: bool = False


WorkerMessage = BlobChecked | BlobDamaged | EdgeProgress | EdgeClosed | CopyHeld | CopyFailed
"""What a steward is told of what its workers say. A blob that a worker has mapped or copied from a
host copy, or read, counts as checked too: the shell says so in the words of `BlobChecked`."""


@record(frozen=True, slots=True)
class WorkerSaid:
    """A worker of this node has told something of weights."""

    device: str
    message: WorkerMessage


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker of this node is gone, with all that it had; another may be starting."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class InstanceServes:
    """An instance that was being brought up takes requests."""

    device: str
    instance: str


@dataclass(frozen=True, slots=True)
class InstanceDrained:
    """An instance that was retired has finished, moved or given away all that it had."""

    device: str
    instance: str


@dataclass(frozen=True, slots=True)
class InstanceEnded:
    """An instance could not be brought up (its device is free), or has been retired and is gone."""

    device: str
    instance: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CopyTried:
    """What `effects.ObtainCopy` began has ended; `reason` is empty where the copy is held.

    `no_room`: it was memory that a worker has found lacking.
    """

    weights: str
    reason: str = ""
    no_room: bool = False


@dataclass(frozen=True, slots=True)
class InstanceComes:
    """An instance is about to be brought up on a device of this node, and its weights with it.

    When it goes they are to stay in memory for `cache_s`; 0: they are not.
    """

    device: str
    model: str
    digest: str
    weights: str
    size_bytes: int
    cache_s: float = 0.0


@dataclass(frozen=True, slots=True)
class InstanceLeft:
    """An instance of this node is no more."""


StewardEvent = (
    TimePassed
    | MessageCame
    | LinkLost
    | NodeDied
    | WorkerSaid
    | WorkerLost
    | InstanceServes
    | InstanceDrained
    | InstanceEnded
)

OperationsEvent = (
    TimePassed | MessageCame | LinkLost | NodeDied | OrderGiven | CopyWanted | CancelAsked
)

KeeperEvent = TimePassed | CopyTried

CacheEvent = TimePassed | InstanceComes | InstanceLeft | CopyTried | WorkerLost

TAKEN = "taken"
"""Why a node cannot engage: `taken: NETWORK`, its port is promised to others."""

GONE = "gone"
"""Why a node cannot engage: `gone: WORKER`, the weights are not there to be sent."""

NOT_YET = "not yet"
"""Why a device cannot be claimed: `not yet: NODE …`, what it lacks is on its way."""

UNKNOWN_EPOCH = -1
"""In `Engaged`, with a reason: the node knows nothing of the operation (its lease has run out)."""
