"""Named devices that run named models: what a step costs there, and what weights and KV weigh.

A device's figures are those of its data sheet; a model's follow from its shape. The cost of a layer
is a roofline without overlap, which errs on the slow side by at most a factor of two where both
terms are equal:

    fixed_us    a layer's weights, read once a step, at READ_SHARE of the memory's rate
    token_us    2 operations for each weight of a layer, at COMPUTE_SHARE of the peak
    context_us  the KV of one position in one layer, read at READ_SHARE of the memory's rate

A group of devices that share each layer (tensor parallelism) is one device with all their memory,
rates and links; every layer then costs two all-reduces more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from blitzgw.config import ModelConfig
from blitzgw.core.instance import PacedCost
from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry
from blitzgw.errors import ConfigError
from blitzgw.scheduler.events import ServedInstance

READ_SHARE = 0.8
"""Of the memory's rate, what large reads attain: stream benchmarks on HBM come to 80 to 90 %."""

COMPUTE_SHARE = 0.6
"""Of the peak of dense bfloat16, what the matrix products of a prompt attain, attention and norms
included. An assumption: published prefill rates of 8B to 70B models are at 50 to 70 %."""

KV_SHARE = 0.85
"""Of the memory that weights leave, what is KV: as on nodes (placement.py, GPU_KV_SHARE)."""

ALL_REDUCE_US = 10.0
"""Of small messages among the devices of a group over NVLink: an assumption, the usual order."""

SLOTS_PER_SEQUENCE = 2
"""Slots for each sequence that may run: as on nodes (placement.py)."""

EOS = 0
"""The token that ends a sequence; the vocabulary has no meaning here."""

WARM_UP_TOKENS = 4
"""Of the prompt by which a worker warms up; one token is decoded after it, in a step of its own."""

MEASURED_PROMPT = 2000
"""Tokens of the prompt at which a profile's prefill rate is told: the traces' usual one."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device by its data sheet: bfloat16 without sparsity, memory, its rate."""

    tflops: float
    memory_gb: float
    read_tb_per_s: float


GPUS = {
    "a100": Gpu(312.0, 80.0, 2.039),
    "h100": Gpu(989.0, 80.0, 3.35),
    "h200": Gpu(989.0, 141.0, 4.8),
}
"""NVIDIA's data sheets of the A100 80 GB, H100 and H200, each as SXM."""


def _shape(
    layers: int, hidden: int, heads: int, intermediate: int, vocab: int, head_dim: int = 128
) -> ModelShape:
    return ModelShape(
        "llama", layers, hidden, heads, 8, head_dim, intermediate, vocab, 1e-5, Rope(), 32768, False
    )


SHAPES = {
    "8b": _shape(32, 4096, 32, 14336, 128256),
    "24b": _shape(40, 5120, 32, 32768, 131072),
    "70b": _shape(80, 8192, 64, 28672, 128256),
    "72b": _shape(80, 8192, 64, 29568, 152064),
}
"""As in the config.json of Llama 3.1 8B, Mistral Small 24B, Llama 3.1 70B and Qwen 2.5 72B, with
8 KV heads; the bias terms of the last are left out."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A device with one model. Bytes of `blobs` in order: embedding, layers, head.

    `kv_token_bytes` is the KV of a token in all layers, `hidden_bytes` its hidden state, as they
    travel; the device's KV has room for `kv_tokens`.
    """

    name: str
    layers: int
    blob_bytes: tuple[int, ...]
    kv_token_bytes: int
    hidden_bytes: int
    cost: PacedCost
    kv_tokens: int

    @property
    def weight_bytes(self) -> int:
        """The model's bytes."""
        return sum(self.blob_bytes)

    @property
    def step_s(self) -> float:
        """What a decode step of one sequence takes at least."""
        return self.layers * self.cost.fixed_us * 1e-6

    @property
    def warm_up_s(self) -> float:
        """What a worker computes before the first instance of a shape is ready (executor.py)."""
        cost, context = self.cost, sum(range(WARM_UP_TOKENS, WARM_UP_TOKENS + 2))
        tokens_us = cost.token_us * (WARM_UP_TOKENS + 1) + cost.context_us * context
        return self.layers * (2 * cost.fixed_us + tokens_us) * 1e-6

    @property
    def prefill_tokens_per_s(self) -> float:
        """How fast a prompt of MEASURED_PROMPT tokens is computed in one step."""
        cost = self.cost
        layer_us = cost.fixed_us + (cost.token_us + cost.context_us) * MEASURED_PROMPT
        return MEASURED_PROMPT / (self.layers * layer_us * 1e-6)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of KV on the device."""
        return max(1, self.kv_token_bytes) * BLOCK_TOKENS

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV on the device."""
        return self.kv_tokens // BLOCK_TOKENS * self.block_bytes

    def served(
        self, instance: str, model: str, config: ModelConfig, *, prefixes: bool = True
    ) -> ServedInstance:
        """Return an instance of the model as its scheduler sees it.

        Without `prefixes` that requests share it need not look for any: nothing else changes.
        Raises ConfigError where not even one sequence of full length fits.
        """
        length = config.max_model_len or MAX_MODEL_LEN
        per_slot = -(-length // BLOCK_TOKENS)
        affordable = self.kv_tokens // (per_slot * BLOCK_TOKENS)
        if affordable < 1:
            text = f"{self.name} has KV for {self.kv_tokens} tokens; {length} are asked for"
            raise ConfigError([text])
        slots = SLOTS_PER_SEQUENCE * config.max_num_seqs
        return ServedInstance(
            id=instance,
            model=model,
            n_layers=self.layers,
            eos_ids=(EOS,),
            max_model_len=length,
            kv=KvGeometry(slots, per_slot, self.block_bytes),
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
            prefix_caching=config.prefix_caching and prefixes,
        )


MAX_MODEL_LEN = 9216
"""Where the configuration does not say: the longest prompt and answer of the Azure traces."""

A800_TOKENS_PER_S, A800_FIXED_US = 15_000.0, 250.0
"""Prompt tokens of an 8B model on one A800 (docs: EVALUATION.md), and a layer's weights read at
2 TB/s: the device that the testbed paces (16 GB in 32 layers)."""

A800_KV_TOKENS = 1 << 20
"""The testbed's 8 GiB for a small model's KV: more than all sequences at once take."""


def _a800_8b() -> Profile:
    """Return what the testbed paces: an 8B model whose prompt of 2,000 tokens takes 2/15 s."""
    made = _roofline("a800-8b", GPUS["a100"], 1, SHAPES["8b"])
    token_us = 1e6 / A800_TOKENS_PER_S / made.layers - A800_FIXED_US / MEASURED_PROMPT
    cost = PacedCost(fixed_us=A800_FIXED_US, token_us=round(token_us, 6))
    even = A800_WEIGHT_BYTES // (made.layers + 2)
    return replace(
        made, cost=cost, kv_tokens=A800_KV_TOKENS, blob_bytes=(even,) * (made.layers + 2)
    )


A800_WEIGHT_BYTES = 16_000_000_000
"""Of the 8B model in the testbed, in blobs of equal size."""


def _roofline(name: str, gpu: Gpu, group: int, shape: ModelShape) -> Profile:
    dtype = Dtype.BFLOAT16
    blobs = tuple(layout.size_bytes for layout in blob_layouts(shape, dtype))
    read = READ_SHARE * group * gpu.read_tb_per_s * 1e12
    compute = COMPUTE_SHARE * group * gpu.tflops * 1e12
    kv_layer = shape.kv_bytes_per_token(dtype) // shape.n_layers
    reduces_us = 2 * ALL_REDUCE_US if group > 1 else 0.0
    cost = PacedCost(
        fixed_us=1e6 * shape.layer_parameters() * dtype.size_bytes / read + reduces_us,
        token_us=1e6 * 2 * shape.layer_parameters() / compute,
        context_us=1e6 * kv_layer / read,
    )
    left = group * gpu.memory_gb * 1e9 - sum(blobs)
    kv_token = shape.kv_bytes_per_token(dtype)
    return Profile(
        name=name,
        layers=shape.n_layers,
        blob_bytes=blobs,
        kv_token_bytes=kv_token,
        hidden_bytes=shape.hidden * dtype.size_bytes,
        cost=cost,
        kv_tokens=max(0, int(KV_SHARE * left / kv_token)),
    )


def _group(gpu: Gpu, shape: ModelShape) -> int:
    """Return how many devices hold a model with as much memory again as its weights, a power of 2.

    KV and activations need the rest.
    """
    weights = shape.parameters() * Dtype.BFLOAT16.size_bytes
    group = 1
    while group * gpu.memory_gb * 1e9 < 1.5 * weights:
        group *= 2
    return group


PROFILES: dict[str, Callable[[], Profile]] = {"a800-8b": _a800_8b}
"""Those that are not made by formula alone."""


@cache
def named(name: str) -> Profile:
    """Return a profile by its name, GPU-MODEL. Raises ConfigError for one that is not known."""
    if name in PROFILES:
        return PROFILES[name]()
    device, _, model = name.partition("-")
    if device not in GPUS or model not in SHAPES:
        raise ConfigError([f"no profile {name!r}; there are {', '.join(names())}"])
    gpu, shape = GPUS[device], SHAPES[model]
    return _roofline(name, gpu, _group(gpu, shape), shape)


def names() -> list[str]:
    """Return the names of all profiles."""
    return [*PROFILES, *(f"{gpu}-{model}" for gpu in GPUS for model in SHAPES)]


def scaled(profile: Profile, weight_bytes: int) -> Profile:
    """Return a profile whose weights, KV and hidden states weigh less, all by the same factor.

    So does the testbed: a small model's bytes stand for a large one's, on links as much slower.
    Steps take what they took.
    """
    factor = weight_bytes / profile.weight_bytes
    blobs = [round(size * factor) for size in profile.blob_bytes]
    blobs[-1] += weight_bytes - sum(blobs)
    return replace(
        profile,
        blob_bytes=tuple(blobs),
        kv_token_bytes=max(1, round(profile.kv_token_bytes * factor)),
        hidden_bytes=max(1, round(profile.hidden_bytes * factor)),
    )
