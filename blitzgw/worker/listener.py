"""Who is told what becomes of a device's worker, its instances, and the weights it moves."""

from __future__ import annotations

from typing import Protocol

from blitzgw.core.messages import Hello, StepFailed
from blitzgw.core.parcels import DropParcels, ParcelArrived, ParcelsSent
from blitzgw.core.step import StepResult
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CapWeights,
    CloseEdge,
    CopyFailed,
    CopyHeld,
    DropCopy,
    EdgeClosed,
    EdgeProgress,
    HoldCopy,
    OpenReceive,
    OpenSend,
    ReadBlobs,
    TrafficReport,
)

TransferCommand = (
    OpenSend | OpenReceive | CloseEdge | ReadBlobs | HoldCopy | DropCopy | CapWeights | DropParcels
)
"""What a node tells a worker about weights and parcels, beside loading, unloading and steps."""

TransferNews = (
    EdgeProgress
    | EdgeClosed
    | BlobChecked
    | BlobDamaged
    | CopyHeld
    | CopyFailed
    | TrafficReport
    | ParcelArrived
    | ParcelsSent
)
"""What a worker tells its node about weights and parcels, beside the progress of its instances."""


class WorkerListener(Protocol):
    """Who is told about a device. Called from the event loop; must not block or raise."""

    def worker_up(self, hello: Hello) -> None:
        """The worker is warm; its instances are being loaded."""

    def worker_lost(self, reason: str) -> None:
        """The worker died, and with it every sequence, loaded instance, store and edge."""

    def blob_resident(self, instance: str, index: int) -> None:
        """A blob of an instance is in place and has been checked: what it holds may be used."""

    def instance_loading(self, instance: str, resident: int, total: int) -> None:
        """So many of the instance's decoder layers are in place."""

    def instance_ready(self, instance: str, duration_s: float) -> None:
        """The instance has all its weights and is warm."""

    def instance_failed(self, instance: str, message: str) -> None:
        """The instance cannot be loaded; it is not tried again until asked for."""

    def step_done(self, result: StepResult) -> None:
        """A step has ended."""

    def step_failed(self, failure: StepFailed) -> None:
        """A step has raised; its sequences are lost."""

    def told(self, message: TransferNews) -> None:
        """The worker has news of an edge, a store's blob, a host copy, its traffic or a parcel."""
