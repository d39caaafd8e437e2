"""FlashInfer: paged decode attention, and a layer of which all but the products is fused.

A layer is four products, of which two add to the residual themselves, two norms, one rotation, the
KV's writes, attention, and one activation: eleven or twelve launches instead of some thirty.
No GPU has run this yet: unmeasured.

Legend: T tokens, B rows, H query heads, K kv heads, D head dimension, E hidden size, S slots,
P positions of a slot, N pages, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from blitzgw.core.instance import ModelSpec
from blitzgw.core.step import BLOCK_TOKENS
from blitzgw.engine.attention import AttentionPlan
from blitzgw.engine.gpu.shell import Shell
from blitzgw.engine.kernels import Layer
from blitzgw.engine.memory import TORCH_DTYPES
from blitzgw.engine.paged import PagedDecode
from blitzgw.engine.torch_layer import TorchKernels
from blitzgw.engine.upload import on_device

PAGE = BLOCK_TOKENS
HEAD_DIMS = (64, 128, 256)
"""What its kernels are made for."""

TENSOR_CORE_GROUP = 4
"""Query heads of a kv head from which tensor cores pay; its other kernels know few such numbers."""

WORKSPACE_BYTES = 128 << 20
"""What FlashInfer recommends; all steps of a model share it, since they run one after another."""


class FlashDecode:
    """`PagedDecode` by FlashInfer over the slots as they are. Raises ValueError for other heads.

    A page is PAGE positions of a head; those of a slot follow each other, and the next slot's begin
    where the next slot's layer does: so a page's number is its distance from the layer's first.
    """

    def __init__(self, library: Any, spec: ModelSpec, device: torch.device, shell: Shell) -> None:
        self.shape, self.dtype = spec.shape, TORCH_DTYPES[spec.dtype]
        if self.shape.head_dim not in HEAD_DIMS or self.dtype is torch.float32:
            raise ValueError(f"no kernels for {spec.dtype} heads of {self.shape.head_dim}")
        self.library, self.device, self.shell = library, device, shell
        self.workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._step: FlashRows | None = None

    def fixed(self, bucket: int) -> FlashRows:
        """Return rows at fixed addresses."""
        return FlashRows(self, bucket)

    def step(self, slots: Sequence[int], stops: Sequence[int]) -> FlashRows:
        """Return the rows of one step."""
        if self._step is None:
            self._step = FlashRows(self, None)
        self._step.load(slots, stops)
        return self._step


class FlashRows:
    """`PagedRows` of a `FlashDecode`; with a bucket, all it reads is at fixed addresses."""

    def __init__(self, kernels: FlashDecode, bucket: int | None) -> None:
        self._kernels = kernels
        self._planned = kernels.shell.fence()
        self._loaded: tuple[Sequence[int], Sequence[int]] = ((), ())
        self._pages_per_slot = 0
        self._bucket = bucket
        self._wrapper: Any = None

    def load(self, slots: Sequence[int], stops: Sequence[int]) -> None:
        """Tell the rows of the coming step."""
        self._loaded = slots, stops
        if self._pages_per_slot:
            self._plan()

    def attend(
        self, q_BHD: torch.Tensor, cache_SKPD: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the attended values `[B, H, D]`."""
        if not self._pages_per_slot:  # the first layer of the first step tells the KV's strides
            self._pages_per_slot = cache_SKPD[0].stride(0) // (PAGE * q_BHD.shape[2])
            self._wrapper = self._new_wrapper(cache_SKPD[0])
            self._plan()
        pages = tuple(pages_of(cache) for cache in cache_SKPD)
        out: torch.Tensor = self._wrapper.run(q_BHD, pages)
        return out

    def _new_wrapper(self, keys_SKPD: torch.Tensor) -> Any:
        kernels, bucket = self._kernels, self._bucket
        shape = kernels.shape
        buffers: dict[str, torch.Tensor] = {}
        if bucket is not None:
            pages = bucket * keys_SKPD.shape[2] // PAGE
            for name, size in (
                ("indptr", bucket + 1),
                ("indices", pages),
                ("last_page_len", bucket),
            ):
                buffers[f"paged_kv_{name}_buffer"] = torch.zeros(
                    size, dtype=torch.int32, device=kernels.device
                )
        return kernels.library.BatchDecodeWithPagedKVCacheWrapper(
            kernels.workspace,
            "HND",
            use_cuda_graph=bucket is not None,
            use_tensor_cores=shape.n_heads // shape.n_kv_heads >= TENSOR_CORE_GROUP,
            **buffers,
        )

    def _plan(self) -> None:
        """Lay out the rows' pages. FlashInfer copies what it plans from memory that it reuses."""
        kernels, shape = self._kernels, self._kernels.shape
        slots, stops = (np.asarray(each, dtype=np.int32) for each in self._loaded)
        counts = -(-stops // PAGE)
        ends = counts.cumsum(dtype=np.int32)
        firsts = slots * self._pages_per_slot - (ends - counts)
        indices = np.repeat(firsts, counts) + np.arange(ends[-1], dtype=np.int32)
        indptr, last = (
            torch.tensor(values, dtype=torch.int32, pin_memory=kernels.device.type != "cpu")
            for values in (np.append(np.int32(0), ends), (stops - 1) % PAGE + 1)
        )
        self._planned.wait()
        self._wrapper.plan(
            indptr,
            on_device(indices, kernels.device, torch.int32),
            last,
            shape.n_heads,
            shape.n_kv_heads,
            shape.head_dim,
            PAGE,
            window_left=shape.window - 1,
            q_data_type=kernels.dtype,
            kv_data_type=kernels.dtype,
            non_blocking=True,
        )
        self._planned.mark()


def pages_of(cache_SKPD: torch.Tensor) -> torch.Tensor:
    """Return a layer's K or V as pages `[N, K, PAGE, D]`, of which those between slots are others'.

    It is a view: page `slot × stride + i` begins at position `i × PAGE` of the slot.
    """
    slots, n_kv, positions, dim = cache_SKPD.shape
    page, per_slot = PAGE * dim, cache_SKPD.stride(0)
    count = ((slots - 1) * per_slot + positions * dim) // page
    return cache_SKPD.as_strided(
        (count, n_kv, PAGE, dim), (page, cache_SKPD.stride(1), dim, 1), cache_SKPD.storage_offset()
    )


@dataclass(frozen=True, slots=True)
class FlashPlan:
    """What all layers of a step share: angles `[T, D]`, cos then sin, and their lines `[T]`."""

    attend: AttentionPlan
    angles: torch.Tensor
    lines: torch.Tensor


class FlashKernels(TorchKernels):
    """`Kernels` for one model by FlashInfer, and `paged` for decode rows."""

    def __init__(self, library: Any, spec: ModelSpec, paged: PagedDecode) -> None:
        super().__init__(spec, paged)
        self._library = library

    def layer(self, tensors: dict[str, torch.Tensor]) -> Layer:
        """Return a layer over views into its blob."""
        return FlashLayer(self._library, self._spec, tensors)

    def plan_of(self, attend: AttentionPlan, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        """Return what layers need of a step; cos and sin are `[T, D / 2]`."""
        lines = torch.arange(len(cos), dtype=torch.int32, device=cos.device)
        return FlashPlan(attend, torch.cat((cos, sin), dim=-1), lines)

    def head(self, x_RE: torch.Tensor, norm: torch.Tensor, matrix_VE: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[R, V]` of hidden states before the final norm."""
        return F.linear(
            self._library.rmsnorm(x_RE, norm, self._spec.shape.norm_eps), matrix_VE
        ).float()


class FlashLayer:
    """One decoder layer over views into its blob."""

    def __init__(self, library: Any, spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> None:
        self._library, self._shape = library, spec.shape
        self.tensors = tensors

    def forward(
        self, x_TE: torch.Tensor, plan: FlashPlan, cache: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the layer's output, which takes x's place, writing this layer's KV on the way."""
        w, shape, library = self.tensors, self._shape, self._library
        normed = library.rmsnorm(x_TE, w["attn_norm"], shape.norm_eps)
        qkv = F.linear(normed, w["qkv"], w.get("qkv.bias"))
        qkv_THD = qkv.view(len(x_TE), -1, shape.head_dim)
        n_q, n_qk = shape.n_heads, shape.n_heads + shape.n_kv_heads
        q_THD, k_TKD, v_TKD = qkv_THD[:, :n_q], qkv_THD[:, n_q:n_qk], qkv_THD[:, n_qk:]
        if shape.qk_norm:
            size = (shape.head_dim,)
            q_THD = F.rms_norm(q_THD, size, w["q_norm"], shape.norm_eps)
            k_TKD = F.rms_norm(k_TKD, size, w["k_norm"], shape.norm_eps)
        library.apply_rope_with_cos_sin_cache_inplace(
            plan.lines, q_THD.flatten(1), k_TKD.flatten(1), shape.head_dim, plan.angles
        )
        attended = plan.attend(q_THD, k_TKD, v_TKD, cache)
        _add_product(x_TE, attended, w["out"], w.get("out.bias"))
        normed = library.rmsnorm(x_TE, w["mlp_norm"], shape.norm_eps)
        gated = library.silu_and_mul(F.linear(normed, w["gate_up"], w.get("gate_up.bias")))
        return _add_product(x_TE, gated, w["down"], w.get("down.bias"))


def _add_product(
    x_TE: torch.Tensor, factor: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Add a product to the residual, in its place."""
    x_TE.addmm_(factor, matrix.t())
    return x_TE if bias is None else x_TE.add_(bias)
