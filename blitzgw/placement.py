"""What a model takes on a device: the checkpoint as resolved, and how KV memory is cut for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from blitzgw.config import Config, ModelConfig
from blitzgw.core.instance import DeviceKind, DeviceSpec, InstanceState, ModelSpec
from blitzgw.core.manifest import BlobDigest, Manifest
from blitzgw.core.messages import LoadModel
from blitzgw.core.model import TextSpec
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, RUN_TOKENS, KvGeometry
from blitzgw.core.transfer import DataNetwork
from blitzgw.errors import BlitzError, CheckpointError
from blitzgw.hugepages import HUGE_BYTES
from blitzgw.scaling.lifecycle import BORN, illegal
from blitzgw.scheduler.events import ServedInstance
from blitzgw.weights.cache import resolve
from blitzgw.weights.hostcache import HostCopies, default_folder
from blitzgw.weights.info import resolve_model
from blitzgw.worker.discovery import available_memory_bytes, device_memory_bytes

log = logging.getLogger(__name__)

CPU_KV_SHARE = 0.25
"""KV's share of the memory available: the rest is for weights, the page cache and others."""

GPU_KV_SHARE = 0.85
"""KV's share of what weights leave of a GPU: activations and the allocator need the rest."""

HOST_WORKER = "host"
"""The id of the worker of a node without devices."""

SLOTS_PER_SEQUENCE = 2
"""Slots beyond those that can run keep the prefixes of finished sequences."""

IDLE_SHARE = 0.25
"""Of a budget for KV, that slots may leave idle in huge pages beyond it, all of them together: a
run of positions and a page each at most (engine/kv.py)."""


@dataclass(slots=True)
class LoadedModel:
    """A configured model, resolved."""

    config: ModelConfig
    spec: ModelSpec
    text: TextSpec
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class WorkerTerms:
    """What all workers of a node are started with; see `core.messages.Start`."""

    dilation: float = 1.0
    networks: tuple[DataNetwork, ...] = ()
    copies: str = ""
    weight_bytes_per_s: float = 0.0
    disk_bytes_per_s: float = 0.0
    host_bytes_per_s: float = 0.0


@dataclass(slots=True)
class Instance:
    """A model on a device, as the node sees it. `blobs` are those that are in place."""

    load: LoadModel
    served: ServedInstance
    state: InstanceState = BORN
    """Set by `move` only."""
    blobs: set[int] = field(default_factory=set)
    failure: str = ""
    load_s: float | None = None
    digest: str = ""
    """Of the definition that it was brought up for; empty: the node's own."""
    opened: bool = False
    """Its scheduler knows it, while it loads."""
    helps: str = ""
    """The instance that it works for while it loads; empty: none."""
    stage: Span | None = None
    """The layers that it runs for a pipeline while that loads."""
    staged: bool = False
    """Its scheduler knows that it has what its stage needs."""
    open: bool = False
    """It leads a pipeline all of which is there: it takes requests while it loads."""
    slips: list[str] = field(default_factory=list)
    """Illegal transitions that it has made: each is a mistake of the program."""

    def move(self, state: InstanceState) -> None:
        """Go to a state. One that scaling/lifecycle.py does not allow is logged, and counted."""
        wrong = illegal(self.state, state)
        if wrong:
            log.error("illegal_transition instance=%s error=%s", self.served.id, wrong)
            self.slips.append(wrong)
        self.state = state

    def assign(self, stage: Span | None) -> bool:
        """Make it a stage, or none; return whether it was not so before."""
        if self.stage == stage:
            return False
        self.stage, self.staged, self.open = stage, False, False
        return True

    def forget_duties(self) -> None:
        """Do nothing while it loads: its worker has begun anew."""
        self.opened, self.helps, self.stage, self.staged = False, "", None, False
        self.open = False

    @property
    def leads(self) -> bool:
        """Whether it is the first stage of a pipeline, and loads."""
        loads = self.state is InstanceState.LOADING
        return loads and self.stage is not None and self.stage.start == 0

    @property
    def layers_resident(self) -> int:
        """How many of its decoder layers are in place."""
        return sum(1 <= index <= self.served.n_layers for index in self.blobs)

    @property
    def layers_usable(self) -> int:
        """How many layers from the first on are in place, and the embedding."""
        found = next(i for i in count() if i not in self.blobs or i > self.served.n_layers)
        return max(0, found - 1)

    @property
    def stage_resident(self) -> bool:
        """Whether it has what its stage needs: its layers, and at either end what is there."""
        if self.stage is None:
            return False
        last = self.stage.stop == self.served.n_layers
        needed = {1 + layer for layer in self.stage.layers()}
        if self.stage.start == 0 or (last and self.load.model.shape.tied_head):
            needed.add(0)
        if last:
            needed.add(1 + self.served.n_layers)
        return needed <= self.blobs


def load_models(config: Config) -> list[LoadedModel]:
    """Open every configured checkpoint; each is read once in its life, for its manifest.

    Raises CheckpointError.
    """
    loaded = []
    for model in config.models:
        path = resolve(model.path)
        found = resolve_model(model.name, path, model.forced_dtype, model.max_model_len or None)
        if model.digest not in ("", found.spec.weights):
            raise CheckpointError(
                f"model {model.name}: the weights at {path} have the digest {found.spec.weights}; "
                f"its `digest` asks for {model.digest}"
            )
        loaded.append(LoadedModel(model, found.spec, found.text, found.manifest))
    return loaded


def kv_bytes(device: DeviceSpec, models: Sequence[ModelSpec]) -> int:
    """Return the bytes of KV that a device may hold: as configured, else a share of its memory."""
    if device.kind is DeviceKind.HOST:
        return 0
    if device.kv_bytes:
        return device.kv_bytes
    if device.kind is not DeviceKind.CUDA:
        return int(CPU_KV_SHARE * available_memory_bytes())
    weights = sum(spec.shape.parameters() * spec.dtype.size_bytes for spec in models)
    return max(0, int(GPU_KV_SHARE * (device_memory_bytes(device.index) - weights)))


def kv_geometry(
    spec: ModelSpec,
    config: ModelConfig,
    device: DeviceSpec,
    budget_bytes: int,
    others: Iterable[KvGeometry] = (),
) -> KvGeometry:
    """Cut a model's KV into slots. On a GPU slots are real memory and must fit the budget.

    `others` share the budget. Raises BlitzError where not even one sequence of full length fits.
    """
    block_bytes = spec.shape.kv_bytes_per_token(spec.dtype) * BLOCK_TOKENS
    per_slot = -(-spec.max_model_len // BLOCK_TOKENS)
    affordable = budget_bytes // (block_bytes * per_slot)
    if affordable < 1:
        raise BlitzError(
            f"model {spec.name} on {device.id}: one sequence of {spec.max_model_len} tokens needs"
            f" {block_bytes * per_slot >> 20} MiB of KV and {budget_bytes >> 20} MiB are allowed;"
            " lower max_model_len or raise kv_bytes"
        )
    slots = SLOTS_PER_SEQUENCE * config.max_num_seqs
    if device.kind is DeviceKind.CUDA:
        slots = min(slots, affordable)
    cut = KvGeometry(slots, per_slot, block_bytes)
    idle = sum(idle_bytes(other) for other in others if other.huge_pages) + idle_bytes(cut)
    huge = device.kind is DeviceKind.CPU and idle <= IDLE_SHARE * budget_bytes
    return replace(cut, huge_pages=huge)


def idle_bytes(kv: KvGeometry) -> int:
    """Return what slots leave idle at most in huge pages: a run of positions and a page each."""
    return kv.slots * (RUN_TOKENS // BLOCK_TOKENS * kv.block_bytes + HUGE_BYTES)


def place(
    name: str,
    spec: ModelSpec,
    config: ModelConfig,
    device: DeviceSpec,
    budget_bytes: int,
    blobs: tuple[BlobDigest, ...] = (),
    others: Iterable[Instance] = (),
) -> Instance:
    """Return the instance `name` of a model on a device, to be read from the model's path.

    `others` are on it as well. Raises BlitzError where it cannot fit.
    """
    shared = (other.served.kv for other in others)
    geometry = kv_geometry(spec, config, device, budget_bytes, shared)
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
    return Instance(LoadModel(name, spec, geometry, blobs), served)


def drivers(config: Config) -> tuple[DeviceSpec, ...]:
    """Return what workers are started for: the devices, or the host itself where there are none.

    A node of a cluster without devices can still keep and send weights.
    """
    if config.devices or not config.cluster_keys:
        return config.devices
    return (DeviceSpec(HOST_WORKER, DeviceKind.HOST),)


def claim_copies(config: Config) -> HostCopies | None:
    """Return the folder of this node's host copies; None where it keeps none.

    Copies are for others: in a cluster of one there are none. Nor where another process has the
    folder, or it cannot be had, of which the log tells.
    """
    if not config.cluster_keys:
        return None
    copies = HostCopies(config.transfer.copies_dir or f"{default_folder()}-{config.node.name}")
    try:
        if copies.own():
            return copies
        log.warning("no_host_copies folder=%s reason=another process uses it", copies.folder)
    except BlitzError as error:
        log.warning("no_host_copies error=%s", error)
    return None


def worker_terms(
    config: Config, networks: tuple[DataNetwork, ...], copies: HostCopies | None
) -> WorkerTerms:
    """Return what the workers are started with. In a cluster of one nothing moves."""
    dilation = config.node.dilation
    disk, host = (
        rate / dilation for rate in (config.transfer.max_disk_rate, config.transfer.max_host_rate)
    )
    if not config.cluster_keys:
        return WorkerTerms(dilation, disk_bytes_per_s=disk, host_bytes_per_s=host)
    folder = "" if copies is None else str(copies.folder)
    return WorkerTerms(dilation, networks, folder, config.transfer.max_weight_rate, disk, host)
