"""What the deciders of scaling are told, and what they answer with. Past tense in, imperative out.

`Operations` (operations.py) is told what concerns the operations that this node owns, `Steward`
(steward.py) what concerns its own devices, ports and workers, `CopyKeeper` (copies.py) when time
has passed. Workers are `node/device` between nodes; events and effects of a steward name its own
devices by their ids.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.operation import OperationEvent, OperationMessage, ScaleOrder
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CloseEdge,
    CopyFailed,
    CopyHeld,
    EdgeClosed,
    EdgeProgress,
    OpenReceive,
    OpenSend,
)
from blitzgw.scaling.duties import (
    PairInstance,
    StageInstance,
    UnpairInstance,
    UnstageInstance,
)

# Events.


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The moment that `deadline()` named has come, or a later one."""


@dataclass(frozen=True, slots=True)
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
    """An operation is not wanted any more. Unknown ones and ended ones are ignored."""

    operation: str
    reason: str


WorkerMessage = BlobChecked | BlobDamaged | EdgeProgress | EdgeClosed | CopyHeld | CopyFailed
"""What a steward is told of what its workers say. A blob that a worker has mapped or copied from a
host copy, or read, counts as checked too: the shell says so in the words of `BlobChecked`."""


@dataclass(frozen=True, slots=True)
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
class InstanceEnded:
    """An instance could not be brought up (its device is free), or has been retired and is gone."""

    device: str
    instance: str
    reason: str = ""


StewardEvent = (
    TimePassed
    | MessageCame
    | LinkLost
    | NodeDied
    | WorkerSaid
    | WorkerLost
    | InstanceServes
    | InstanceEnded
)

OperationsEvent = (
    TimePassed | MessageCame | LinkLost | NodeDied | OrderGiven | CopyWanted | CancelAsked
)


# Effects.


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a node, perhaps this one; never from within `handle`.

    One that cannot be sent is followed by `LinkLost` or `NodeDied`.
    """

    boot: str
    message: OperationMessage


@dataclass(frozen=True, slots=True)
class Record:
    """Something worth a line in the log has happened to an operation."""

    operation: str
    model: str
    event: OperationEvent


@dataclass(frozen=True, slots=True)
class OperationEnded:
    """An operation that this node owns has come to its end; state is done, failed or cancelled.

    `copy`: it was for a host copy, of which `CopyKeeper` is to be told with `CopyTried`.
    """

    operation: str
    model: str
    weights: str
    state: str
    reason: str
    copy: bool = False


@dataclass(frozen=True, slots=True)
class BringUp:
    """Begin an instance on a device, which is at `claim` from now on: LoadModel with `reads=()`.

    All that is to arrive arrives over edges or is asked for with `ReadWeights`; a complete host
    copy on the machine is used without being asked for.
    """

    device: str
    instance: str
    claim: int
    model: str
    digest: str
    operation: str


@dataclass(frozen=True, slots=True)
class DropInstance:
    """End an instance that is being brought up, at once, and raise the device's claim."""

    device: str
    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class RetireInstance:
    """Let an instance that serves drain, then end it and raise the claim; `InstanceEnded` tells."""

    device: str
    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class HoldWeights:
    """Make a store without an engine on a worker (HoldCopy); `reads` are read from disk."""

    device: str
    model: str
    digest: str
    weights: str
    reads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DropWeights:
    """Remove a store that `HoldWeights` has made (DropCopy), complete or not."""

    device: str
    weights: str


@dataclass(frozen=True, slots=True)
class ReadWeights:
    """Read blobs from disk into the store that a worker has of those weights (ReadBlobs)."""

    device: str
    model: str
    digest: str
    weights: str
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToWorker:
    """Pass a message on to a worker of this node."""

    device: str
    message: OpenSend | OpenReceive | CloseEdge


@dataclass(frozen=True, slots=True)
class PublishNetworks:
    """What is promised of the node's ports has changed: see `Steward.reserved()`."""


StewardEffect = (
    Send
    | BringUp
    | DropInstance
    | PairInstance
    | UnpairInstance
    | StageInstance
    | UnstageInstance
    | RetireInstance
    | HoldWeights
    | DropWeights
    | ReadWeights
    | ToWorker
    | PublishNetworks
)

OperationEffect = Send | Record | OperationEnded


# Host copies.


@dataclass(frozen=True, slots=True)
class CopyTried:
    """What `ObtainCopy` began has ended; `reason` is empty where the copy is held."""

    weights: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ObtainCopy:
    """Get a host copy onto a worker of this node; `CopyTried` tells how it ended.

    `disk`: the node has the checkpoint (HoldWeights with all blobs read); else over the network
    (`CopyWanted` to this node's own `Operations`).
    """

    device: str
    model: str
    digest: str
    weights: str
    disk: bool


KeeperEvent = TimePassed | CopyTried
KeeperEffect = ObtainCopy | DropWeights


TAKEN = "taken"
"""Why a node cannot engage: `taken: NETWORK`, its port is promised to others."""

GONE = "gone"
"""Why a node cannot engage: `gone: WORKER`, the weights are not there to be sent."""

UNKNOWN_EPOCH = -1
"""In `Engaged`, with a reason: the node knows nothing of the operation (its lease has run out)."""
