"""Devices, instances and the states that an instance goes through."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from blitzgw.core.model import Dtype, ModelShape


class InstanceState(StrEnum):
    """The life of an instance."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    KEPT = "kept"
    GONE = "gone"


class Role(StrEnum):
    """Which phases an instance serves. Changed in place, without moving weights."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class DeviceKind(StrEnum):
    """What stands behind a worker."""

    CPU = "cpu"
    CUDA = "cuda"
    PACED = "paced"
    HOST = "host"
    """No device at all: a worker that keeps and sends weights, and computes nothing."""


@dataclass(frozen=True, slots=True)
class PacedCost:
    """The cost model of a paced device: the time of one layer of one step, in microseconds.

    layer_us = fixed_us + token_us × tokens + context_us × Σ over rows of the context read.
    All zero: as fast as the machine can hash. `kv_bytes` and `hidden_bytes` are what a token's KV
    in one layer, and its hidden state, weigh when they travel: those of the model that the device
    is paced as, scaled as its weights are. Less than 8 counts as 8. With `seed_ends` a sequence
    ends by itself where it is as long as its request's seed: neither gateway nor scheduler know how
    long outputs will be, as with a real model.
    """

    fixed_us: float = 0.0
    token_us: float = 0.0
    context_us: float = 0.0
    kv_bytes: int = 0
    hidden_bytes: int = 0
    seed_ends: bool = False


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device as configured: what a worker is started for. `index` picks a GPU."""

    id: str
    kind: DeviceKind
    index: int = 0
    threads: int = 0
    kv_bytes: int = 0
    cost: PacedCost = PacedCost()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as resolved: enough for a worker to load it and for a scheduler to place it.

    `path` is a folder of safetensors or a GGUF file, empty where the checkpoint is elsewhere.
    `eos_ids` end a sequence. `weights` is the root of the manifest (core/manifest.py), `tokenizer`
    the path of the tokenizer.json on this machine; empty where nobody has said.
    """

    name: str
    path: str
    shape: ModelShape
    dtype: Dtype
    max_model_len: int
    eos_ids: tuple[int, ...]
    weights: str = ""
    tokenizer: str = ""
