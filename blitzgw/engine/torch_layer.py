"""The decoder layer in plain torch: any dtype, any device; the reference for other kernels.

Legend: T tokens of the step, E hidden size, H query heads, K kv heads, D head dimension,
V vocabulary, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from blitzgw.core.instance import ModelSpec
from blitzgw.engine.attention import AttentionPlan, Extent, SlotAttention
from blitzgw.engine.kernels import Layer
from blitzgw.engine.paged import PagedDecode
from blitzgw.engine.rope import rotate


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """What all layers of a step share. cos and sin are `[T, 1, D / 2]`."""

    attend: AttentionPlan
    cos: torch.Tensor
    sin: torch.Tensor


class TorchKernels:
    """`Kernels` for one model in torch; `paged` ones, if any, attend for decode rows."""

    kv_run = 0

    def __init__(self, spec: ModelSpec, paged: PagedDecode | None = None) -> None:
        self._spec, self._paged = spec, paged

    def layer(self, tensors: dict[str, torch.Tensor]) -> Layer:
        """Return a layer over views into its blob."""
        return TorchLayer(self._spec, tensors)

    def plan(
        self,
        extents: Sequence[Extent],
        n_decode: int,
        cos: torch.Tensor,
        sin: torch.Tensor,
        wanted: Sequence[Extent] | None = None,
    ) -> Any:
        """Prepare a step; cos and sin are `[T, D / 2]`. All layers are run for all tokens."""
        del wanted
        window = self._spec.shape.window
        attend = SlotAttention(extents, n_decode, window, cos.device, self._paged)
        return self.plan_of(attend, cos, sin)

    def plan_of(self, attend: AttentionPlan, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        """Return what layers need of a step; cos and sin are `[T, D / 2]`."""
        return TorchPlan(attend, cos[:, None], sin[:, None])

    def run(
        self,
        layers: Sequence[Any],
        x_TE: torch.Tensor,
        plan: Any,
        caches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Run layers one after the other."""
        for layer, cache in zip(layers, caches, strict=True):
            x_TE = layer.forward(x_TE, plan, cache)
        return x_TE

    def head(self, x_RE: torch.Tensor, norm: torch.Tensor, matrix_VE: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[R, V]` of hidden states before the final norm."""
        x_RE = F.rms_norm(x_RE, x_RE.shape[-1:], norm, self._spec.shape.norm_eps)
        return F.linear(x_RE, matrix_VE).float()


class TorchLayer:
    """One decoder layer over views into its blob."""

    def __init__(self, spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> None:
        self._shape, self._eps = spec.shape, spec.shape.norm_eps
        self.tensors = tensors

    def forward(
        self, x_TE: torch.Tensor, plan: TorchPlan, cache: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the layer's output `[T, E]`, writing this layer's KV on the way."""
        w, n_q = self.tensors, self._shape.n_heads
        normed = F.rms_norm(x_TE, x_TE.shape[-1:], w["attn_norm"], self._eps)
        qkv = F.linear(normed, w["qkv"], w.get("qkv.bias"))
        qkv_THD = qkv.view(x_TE.shape[0], -1, self._shape.head_dim)
        n_qk = n_q + self._shape.n_kv_heads
        qk_THD, v_TKD = qkv_THD[:, :n_qk], qkv_THD[:, n_qk:]
        qk_THD = rotate(self._normed(qk_THD), plan.cos, plan.sin).to(qkv.dtype)
        attended = plan.attend(qk_THD[:, :n_q], qk_THD[:, n_q:], v_TKD, cache)
        x_TE = x_TE + F.linear(attended, w["out"], w.get("out.bias"))
        normed = F.rms_norm(x_TE, x_TE.shape[-1:], w["mlp_norm"], self._eps)
        gate, up = F.linear(normed, w["gate_up"], w.get("gate_up.bias")).chunk(2, dim=-1)
        return x_TE + F.linear(F.silu(gate) * up, w["down"], w.get("down.bias"))

    def _normed(self, qk_THD: torch.Tensor) -> torch.Tensor:
        """Apply Qwen3's norms of single heads to q and k, where the model has them."""
        if not self._shape.qk_norm:
            return qk_THD
        n_q, size = self._shape.n_heads, qk_THD.shape[-1:]
        q_THD = F.rms_norm(qk_THD[:, :n_q], size, self.tensors["q_norm"], self._eps)
        k_TKD = F.rms_norm(qk_THD[:, n_q:], size, self.tensors["k_norm"], self._eps)
        return torch.cat((q_THD, k_TKD), dim=1)
