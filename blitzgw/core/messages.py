"""What a node and its worker say to each other. `wire.py` gives each of these its tag.

A worker's life: `Hello` once the device is warm; then `LoadModel` → `BlobResident` per blob →
`ModelLoaded` or `LoadFailed`; `Step` → `StepResult` or `StepFailed`, in the order posted. What
moves weights between workers is in core/transfer.py.
The connection's end is the worker's end, in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.instance import DeviceSpec, ModelSpec
from blitzgw.core.manifest import BlobDigest
from blitzgw.core.step import KvGeometry
from blitzgw.core.transfer import DataNetwork


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a worker: which device it drives, and the clock's dilation."""

    device: DeviceSpec
    dilation: float = 1.0
    networks: tuple[DataNetwork, ...] = ()
    """Where to listen for other workers; port 0 of each address."""
    copies: str = ""
    """The folder of host copies, in shared memory; empty: none are kept."""
    weight_bytes_per_s: float = 0.0
    """Send weights at most at this rate; 0: as fast as it goes."""
    disk_bytes_per_s: float = 0.0
    """Read checkpoints at most at this rate; 0: as fast as it goes."""
    host_bytes_per_s: float = 0.0
    """Take weights from host copies at most at this rate; 0: as fast as it goes."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker is warm. `software` names the versions that peers must agree on."""

    pid: int
    device_name: str
    memory_bytes: int
    software: dict[str, str]
    data_ports: dict[str, int] = field(default_factory=dict)
    """Where it listens for other workers, by the name of the network."""


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Bring a model into memory and reserve its KV; serving begins with `ModelLoaded`.

    With a complete host copy of these weights on the machine, that is mapped (CPU) or copied from
    (GPU), whatever `reads` says. Else `reads` are read from `model.path`; None: all of them. The
    rest arrives over edges. `blobs` are the manifest's, empty where it is not known: nothing is
    checked then, and nothing can be sent to others.
    `load` numbers the loads of a worker; what it says of one says the number too, for an instance
    may be unloaded and loaded again while news of the first time are on their way.
    """

    instance: str
    model: ModelSpec
    kv: KvGeometry
    blobs: tuple[BlobDigest, ...] = ()
    reads: tuple[int, ...] | None = None
    load: int = 0


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Forget an instance and return its memory."""

    instance: str


@dataclass(frozen=True, slots=True)
class BlobResident:
    """Blob `index` of an instance is in place: its layer may run."""

    instance: str
    index: int
    load: int = 0


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """All blobs are resident and the instance has run a warm-up step."""

    instance: str
    duration_s: float
    load: int = 0


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The instance could not be loaded; `message` is for the operator."""

    instance: str
    message: str
    load: int = 0


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step raised. The worker lives on, the instance's sequences of that step are lost."""

    step: int
    instance: str
    message: str
