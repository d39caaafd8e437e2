"""Call the kernels: the C structures, and a layer and head with the torch ones' interface."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from blitzgw.core.instance import ModelSpec
from blitzgw.core.model import Dtype, ModelShape
from blitzgw.core.step import RUN_TOKENS
from blitzgw.engine.attention import Extent

TILE, TILE_K, MAX_HEAD_DIM = 16, 32, 256


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("hidden", "heads", "kv_heads", "head_dim")),
        ("intermediate", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


class _Weights(ctypes.Structure):
    NAMES = (
        *("attn_norm", "qkv", "qkv.bias", "q_norm", "k_norm", "out", "out.bias"),
        *("mlp_norm", "gate_up", "gate_up.bias", "down", "down.bias"),
    )
    _fields_ = tuple((name, ctypes.c_void_p) for name in NAMES)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_int32),
        ("extents", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("slots", "starts", "stops", "offsets")),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("wanted", ctypes.c_void_p),
        ("wanted_at", ctypes.c_void_p),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("slot_stride", ctypes.c_int64),
        ("head_stride", ctypes.c_int64),
        ("block_gap", ctypes.c_int64),
    )


def supports(shape: ModelShape, dtype: Dtype) -> bool:
    """Tell whether the kernels cover a model: bf16, and sizes that fill whole tiles."""
    return (
        dtype is Dtype.BFLOAT16
        and shape.hidden % TILE_K == 0
        and shape.intermediate % TILE_K == 0
        and shape.vocab >= TILE
        and shape.head_dim % TILE_K == 0
        and shape.head_dim <= MAX_HEAD_DIM
        and shape.n_heads // shape.n_kv_heads <= TILE
    )


class NativeBatch:
    """One step's rows as the kernels read them; keeps what the pointers point to."""

    def __init__(
        self,
        extents: Sequence[Extent],
        cos: torch.Tensor,
        sin: torch.Tensor,
        wanted: Sequence[Extent] | None,
    ) -> None:
        self.tokens = len(cos)
        self._extents = _lines(extents)
        self._angles = (cos.contiguous(), sin.contiguous())
        pointers = [one.data_ptr() for one in (*self._extents, *self._angles)]
        self.c = _Batch(self.tokens, len(extents), *pointers)
        if wanted is not None:
            n = len(wanted)
            self._wanted = _lines(replace(one, offset=at) for at, one in enumerate(wanted))
            self._wanted_at = torch.tensor([one.offset for one in wanted], dtype=torch.int32)
            lines = [line.data_ptr() for line in self._wanted]
            self._wanted_c = _Batch(n, n, *lines)
            self.c.wanted = ctypes.addressof(self._wanted_c)
            self.c.wanted_at = self._wanted_at.data_ptr()


def _lines(extents: Iterable[Extent]) -> torch.Tensor:
    """Return slots, starts, stops and offsets `[4, extents]`."""
    columns = [(e.slot, e.start, e.stop, e.offset) for e in extents]
    return torch.tensor(columns, dtype=torch.int32).view(-1, 4).T.contiguous()


class NativeKernels:
    """The kernels for one model's shape, with the scratch memory that they need."""

    kv_run = RUN_TOKENS  # `BLOCK` of shapes.h

    def __init__(self, library: ctypes.CDLL, spec: ModelSpec) -> None:
        s = spec.shape
        self._library = library
        self._spec = spec
        sizes = (s.hidden, s.n_heads, s.n_kv_heads, s.head_dim, s.intermediate, s.window)
        self._shape = _Shape(*sizes, s.norm_eps)
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def scratch(self, tokens: int) -> int:
        """Return the address of memory enough for a step of `tokens`, aligned to 64 bytes."""
        needed = 64 + self._library.blitzgw_scratch_bytes(ctypes.byref(self._shape), tokens)
        if self._scratch.numel() < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        return -(-self._scratch.data_ptr() // 64) * 64

    def layer(self, tensors: dict[str, torch.Tensor]) -> NativeLayer:
        """Return a layer over views into its blob."""
        return NativeLayer(tensors)

    def plan(
        self,
        extents: Sequence[Extent],
        n_decode: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        wanted: Sequence[Extent] | None = None,
    ) -> NativeBatch:
        """Prepare a step; cos and sin are `[T, D / 2]`. Decode rows need no special place."""
        del n_decode
        return NativeBatch(extents, cos, sin, wanted)

    def run(
        self,
        layers: Sequence[Any],
        x_TE: torch.Tensor,
        plan: NativeBatch,
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Replace `x` by the last layer's output where it is wanted, and return it."""
        n = len(layers)
        bound = [layer.bind(cache) for layer, cache in zip(layers, caches, strict=True)]
        self._library.blitzgw_layers(
            ctypes.byref(self._shape),
            n,
            (ctypes.c_void_p * n)(*(ctypes.addressof(layer.weights) for layer in layers)),
            ctypes.byref(plan.c),
            (ctypes.c_void_p * n)(*map(ctypes.addressof, bound)),
            ctypes.c_void_p(x_TE.data_ptr()),
            ctypes.c_void_p(self.scratch(plan.tokens)),
            torch.get_num_threads(),
        )
        return x_TE

    def head(self, x_RE: torch.Tensor, norm: torch.Tensor, matrix_VE: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[R, V]` of hidden states before the final norm."""
        x_RE = x_RE.contiguous()
        logits = torch.empty((len(x_RE), len(matrix_VE)), dtype=torch.float32)
        if len(x_RE):
            self._library.blitzgw_head(
                *(ctypes.c_void_p(t.data_ptr()) for t in (x_RE, norm, matrix_VE)),
                len(x_RE),
                x_RE.shape[1],
                len(matrix_VE),
                ctypes.c_float(self._spec.shape.norm_eps),
                ctypes.c_void_p(logits.data_ptr()),
                ctypes.c_void_p(self.scratch(len(x_RE))),
                torch.get_num_threads(),
            )
        return logits


class NativeLayer:
    """One decoder layer over views into its blob; `weights` is where the kernels find them."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        pointers = (tensors.get(name) for name in _Weights.NAMES)
        self.weights = _Weights(*(None if t is None else t.data_ptr() for t in pointers))
        self._cache: tuple[torch.Tensor, torch.Tensor] | None = None
        self._bound = _Cache()

    def bind(self, cache: tuple[torch.Tensor, torch.Tensor]) -> _Cache:
        """Return K and V as the kernels read them; made once for the same tuple."""
        if cache is not self._cache:
            keys, values = self._cache = cache
            gap = keys.stride(1) - RUN_TOKENS * keys.stride(3) if len(keys.shape) == 5 else 0
            strides = (keys.stride(0), keys.stride(-3), gap)
            self._bound = _Cache(keys.data_ptr(), values.data_ptr(), *strides)
        return self._bound
