"""The shape of a model: what the layout, the engine and the cost model need to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Dtype(StrEnum):
    """Storage and compute type of weights, hidden states and KV."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def size_bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is Dtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding. `kind` is one of default, linear, llama3, yarn.

    `factor` stretches the context; `original_positions` is the length the model was trained on;
    the remaining fields belong to llama3 (`low_freq_factor`, `high_freq_factor`) and to yarn
    (`beta_fast`, `beta_slow`, `attention_factor`; 0 lets it follow from `factor`).
    """

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder of the Llama family: grouped-query attention, RoPE, RMSNorm, SwiGLU."""

    family: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm_eps: float
    rope: Rope
    max_positions: int
    tied_head: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int = 0
    """Sliding attention window in tokens; 0: attends to everything before."""

    def kv_bytes_per_token(self, dtype: Dtype) -> int:
        """Return the bytes of K and V that one token leaves in all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim * dtype.size_bytes

    def parameters(self) -> int:
        """Return the number of matrix weights of the whole model."""
        ends = self.vocab * self.hidden * (1 if self.tied_head else 2)
        return self.n_layers * self.layer_parameters() + ends

    def layer_parameters(self) -> int:
        """Return the number of matrix weights of one decoder layer."""
        heads = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        return self.hidden * (heads + self.n_heads * self.head_dim + 3 * self.intermediate)


@dataclass(frozen=True, slots=True)
class TextSpec:
    """What the API needs to turn text into tokens and back.

    `tokenizer_path` is a Hugging Face tokenizer.json; `chat_template` its jinja source, None where
    the model has none; `bos_token` and `eos_token` are handed to the template.
    """

    tokenizer_path: str
    chat_template: str | None
    bos_token: str
    eos_token: str
