"""What a node and its worker say to each other. `wire.py` gives each of these its tag.

A worker's life: `Hello` once the device is warm; then `LoadModel` → `BlobResident` per blob →
`ModelLoaded` or `LoadFailed`; `Step` → `StepResult` or `StepFailed`, in the order posted.
The connection's end is the worker's end, in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.instance import DeviceSpec, ModelSpec
from blitzgw.core.step import KvGeometry


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a worker: which device it drives, and the clock's dilation."""

    device: DeviceSpec
    dilation: float = 1.0


@dataclass(frozen=True, slots=True)
class Hello:
    """The worker is warm. `software` names the versions that peers must agree on."""

    pid: int
    device_name: str
    memory_bytes: int
    software: dict[str, str]


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Bring a model into memory and reserve its KV; serving begins with `ModelLoaded`."""

    instance: str
    model: ModelSpec
    kv: KvGeometry


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Forget an instance and return its memory."""

    instance: str


@dataclass(frozen=True, slots=True)
class BlobResident:
    """Blob `index` of an instance is in place: its layer may run."""

    instance: str
    index: int


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """All blobs are resident and the instance has run a warm-up step."""

    instance: str
    duration_s: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The instance could not be loaded; `message` is for the operator."""

    instance: str
    message: str


@dataclass(frozen=True, slots=True)
class StepFailed:
    """A step raised. The worker lives on, the instance's sequences of that step are lost."""

    step: int
    instance: str
    message: str
