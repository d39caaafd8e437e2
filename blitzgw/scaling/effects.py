"""What the deciders of scaling answer with, for their shell to do, in order.

Effects of a steward name its own devices by their ids; what they are told is in events.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.operation import OperationEvent, OperationMessage
from blitzgw.core.transfer import CloseEdge, OpenReceive, OpenSend
from blitzgw.scaling.duties import PairInstance, StageInstance, UnpairInstance, UnstageInstance


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
    """End an instance, in whatever state, at once, and raise the device's claim.

    `planned`: it has drained; what may be left of requests there has not failed.
    """

    device: str
    instance: str
    reason: str
    planned: bool = False


@dataclass(frozen=True, slots=True)
class RetireInstance:
    """Let an instance that serves drain; `InstanceDrained` tells."""

    device: str
    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class KeepInstance:
    """Let an instance that has drained do nothing, and stay loaded; raise the device's claim."""

    device: str
    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReviveInstance:
    """Let an instance that drains or is kept serve again; `InstanceServes` tells.

    Its device is at `claim` from now on: that of an instance that drains stays as it is.
    """

    device: str
    instance: str
    claim: int
    operation: str


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
    | KeepInstance
    | ReviveInstance
    | HoldWeights
    | DropWeights
    | ReadWeights
    | ToWorker
    | PublishNetworks
)

OperationEffect = Send | Record | OperationEnded


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


KeeperEffect = ObtainCopy | DropWeights

CacheEffect = HoldWeights | DropWeights
