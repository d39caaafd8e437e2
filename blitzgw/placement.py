"""What a model takes on a device: the checkpoint as resolved, and how KV memory is cut for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blitzgw.config import Config, ModelConfig
from blitzgw.core.instance import DeviceKind, DeviceSpec, InstanceState, ModelSpec
from blitzgw.core.messages import LoadModel
from blitzgw.core.model import TextSpec
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry
from blitzgw.errors import BlitzError
from blitzgw.scheduler.events import ServedInstance
from blitzgw.weights.cache import resolve
from blitzgw.weights.info import model_spec
from blitzgw.worker.discovery import available_memory_bytes, device_memory_bytes

CPU_KV_SHARE = 0.25
"""KV's share of the memory available: the rest is for weights, the page cache and others."""

GPU_KV_SHARE = 0.85
"""KV's share of what weights leave of a GPU: activations and the allocator need the rest."""

SLOTS_PER_SEQUENCE = 2
"""Slots beyond those that can run keep the prefixes of finished sequences."""


@dataclass(slots=True)
class LoadedModel:
    """A configured model, resolved."""

    config: ModelConfig
    spec: ModelSpec
    text: TextSpec
    load_s: float | None = None
    """Seconds that the last load took, for the ETA of the next."""


@dataclass(slots=True)
class Instance:
    """A model on a device, as the node sees it."""

    load: LoadModel
    served: ServedInstance
    state: InstanceState = InstanceState.LOADING
    layers_resident: int = 0
    failure: str = ""


def load_models(config: Config) -> list[LoadedModel]:
    """Open every configured checkpoint. Raises CheckpointError."""
    loaded = []
    for model in config.models:
        path = resolve(model.path)
        spec, text = model_spec(model.name, path, model.forced_dtype, model.max_model_len or None)
        loaded.append(LoadedModel(model, spec, text))
    return loaded


def kv_bytes(device: DeviceSpec, models: Sequence[LoadedModel]) -> int:
    """Return the bytes of KV that a device may hold: as configured, else a share of its memory."""
    if device.kv_bytes:
        return device.kv_bytes
    if device.kind is not DeviceKind.CUDA:
        return int(CPU_KV_SHARE * available_memory_bytes())
    weights = sum(m.spec.shape.parameters() * m.spec.dtype.size_bytes for m in models)
    return max(0, int(GPU_KV_SHARE * (device_memory_bytes(device.index) - weights)))


def kv_geometry(model: LoadedModel, device: DeviceSpec, budget_bytes: int) -> KvGeometry:
    """Cut a model's KV into slots. On a GPU slots are real memory and must fit the budget.

    Raises BlitzError where not even one sequence of full length fits.
    """
    spec = model.spec
    block_bytes = spec.shape.kv_bytes_per_token(spec.dtype) * BLOCK_TOKENS
    per_slot = -(-spec.max_model_len // BLOCK_TOKENS)
    affordable = budget_bytes // (block_bytes * per_slot)
    if affordable < 1:
        raise BlitzError(
            f"model {spec.name} on {device.id}: one sequence of {spec.max_model_len} tokens needs"
            f" {block_bytes * per_slot >> 20} MiB of KV and {budget_bytes >> 20} MiB are allowed;"
            " lower max_model_len or raise kv_bytes"
        )
    slots = SLOTS_PER_SEQUENCE * model.config.max_num_seqs
    if device.kind is DeviceKind.CUDA:
        slots = min(slots, affordable)
    return KvGeometry(slots, per_slot, block_bytes)


def place(name: str, model: LoadedModel, device: DeviceSpec, budget_bytes: int) -> Instance:
    """Return the instance `name` of a model on a device. Raises BlitzError where it cannot fit."""
    spec, config = model.spec, model.config
    geometry = kv_geometry(model, device, budget_bytes)
    served = ServedInstance(
        id=name,
        model=spec.name,
        n_layers=spec.shape.n_layers,
        eos_ids=spec.eos_ids,
        max_model_len=spec.max_model_len,
        kv=geometry,
        max_num_seqs=min(config.max_num_seqs, geometry.slots),
        max_batched_tokens=config.max_batched_tokens,
        prefix_caching=config.prefix_caching,
    )
    return Instance(LoadModel(name, spec, geometry), served)
