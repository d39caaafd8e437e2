"""The decoder of the Llama family, cut at any layer.

Legend: T tokens of the step, E hidden size, H query heads, K kv heads, D head dimension,
M intermediate size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, SequenceKv
from blitzgw.engine.attention import AttentionPlan, Extent, SlotAttention
from blitzgw.engine.base import RowInput, Sampled
from blitzgw.engine.kv import KvArena
from blitzgw.engine.memory import TORCH_DTYPES, WeightSlab
from blitzgw.engine.rope import rope_table, rotate
from blitzgw.engine.sampling import sample


class TorchEngine:
    """`SpanEngine` in torch: hidden states and logits are tensors on the instance's device."""

    def __init__(self, spec: ModelSpec, kv: KvGeometry, device: DeviceSpec) -> None:
        self._spec, self._shape = spec, spec.shape
        self._device = (
            torch.device("cuda", device.index)
            if device.kind is DeviceKind.CUDA
            else torch.device("cpu")
        )
        self._dtype = TORCH_DTYPES[spec.dtype]
        self._slab = WeightSlab(blob_layouts(self._shape, spec.dtype), spec.dtype, self._device)
        self._kv = KvArena(self._shape, spec.dtype, kv, self._device)
        positions = min(spec.max_model_len, kv.slot_tokens)
        cos, sin = rope_table(self._shape.rope, self._shape.head_dim, positions)
        self._cos, self._sin = cos.to(self._device), sin.to(self._device)
        self._layers: dict[int, Layer] = {}
        self._embedding: torch.Tensor | None = None
        self._head: dict[str, torch.Tensor] = {}

    def blob_buffer(self, index: int) -> memoryview:
        """Return the writable host bytes where blob `index` belongs."""
        return self._slab.buffer(index)

    def blob_arrived(self, index: int) -> None:
        """Bind the tensors of a complete blob."""
        tensors = self._slab.tensors(index)
        if index == 0:
            self._embedding = tensors["embedding"]
        elif index <= self._shape.n_layers:
            self._layers[index - 1] = Layer(self._spec, tensors)
        else:
            self._head = tensors

    @torch.inference_mode()
    def forward(
        self, rows: Sequence[RowInput], span: Span, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """Run the layers of `span`; see `SpanEngine.forward`. Hidden states are `[T, E]`."""
        absent = [i for i in span.layers() if i not in self._layers]
        if absent:
            raise ValueError(f"layers {absent} of {self._spec.name} are not resident")
        order = _Order(rows)
        x_TE = self._embed(rows) if hidden is None else hidden
        if len(span) == 0 or not rows:
            return x_TE
        x_TE = order.apply(x_TE)
        plan, cos, sin = self._plan(rows, order)
        for i in span.layers():
            x_TE = self._layers[i].forward(x_TE, cos, sin, plan, self._kv.layer(i))
        return order.undo(x_TE)

    def _embed(self, rows: Sequence[RowInput]) -> torch.Tensor:
        if self._embedding is None:
            raise ValueError(f"the embedding of {self._spec.name} is not resident")
        tokens: list[int] = []
        for row in rows:
            tokens += row.sequence.tokens[row.start : row.start + row.count]
        return F.embedding(torch.tensor(tokens, device=self._device), self._embedding)

    def _plan(
        self, rows: Sequence[RowInput], order: _Order
    ) -> tuple[AttentionPlan, torch.Tensor, torch.Tensor]:
        """Return the attention plan, and cos and sin `[T, 1, D / 2]`, all in internal order."""
        extents: list[Extent] = []
        positions: list[int] = []
        for i in order.rows:
            row = rows[i]
            stop = row.start + row.count
            if stop > len(row.sequence.table) * BLOCK_TOKENS:
                raise ValueError(f"position {stop - 1} lies beyond its block table")
            extents.append(
                Extent(self._kv.slot_of(row.sequence.table), row.start, stop, len(positions))
            )
            positions += range(row.start, stop)
        at = torch.tensor(positions, device=self._device)
        plan = SlotAttention(extents, order.n_decode, self._shape.window, self._device)
        return plan, self._cos[at][:, None], self._sin[at][:, None]

    @torch.inference_mode()
    def logits(self, rows: Sequence[RowInput], hidden: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[rows that sample, V]`."""
        matrix = self._embedding if self._shape.tied_head else self._head.get("head")
        if matrix is None or "norm" not in self._head:
            raise ValueError(f"the head of {self._spec.name} is not resident")
        last: list[int] = []
        offset = 0
        for row in rows:
            offset += row.count
            if row.sample:
                last.append(offset - 1)
        x = hidden[torch.tensor(last, dtype=torch.long, device=self._device)]
        x = F.rms_norm(x, x.shape[-1:], self._head["norm"], self._shape.norm_eps)
        return F.linear(x, matrix).float()

    def sample(self, rows: Sequence[RowInput], logits: torch.Tensor) -> list[Sampled]:
        """Choose one token for each row that samples."""
        return sample([row for row in rows if row.sample], logits, self._spec.eos_ids)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the KV of all layers from block to block."""
        self._kv.copy_blocks(pairs)

    def release(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Return the memory of whole slots."""
        self._kv.release(ranges)

    def export_kv(self, table: Sequence[int], n_tokens: int, span: Span) -> SequenceKv:
        """Return the KV of positions `[0, n_tokens)` for the layers of `span`."""
        return self._kv.export(table, n_tokens, span)

    def import_kv(self, table: Sequence[int], kv: SequenceKv) -> None:
        """Write KV that another engine exported."""
        self._kv.import_(table, kv)

    def export_hidden(self, hidden: torch.Tensor) -> bytes:
        """Return hidden states as raw bytes."""
        return hidden.contiguous().view(torch.uint8).cpu().numpy().tobytes()

    def import_hidden(self, data: bytes) -> torch.Tensor:
        """Return hidden states `[T, E]`. Raises ValueError on a partial line."""
        flat = torch.frombuffer(bytearray(data), dtype=self._dtype)
        if flat.numel() % self._shape.hidden:
            raise ValueError(f"{len(data)} bytes are no whole hidden states")
        return flat.view(-1, self._shape.hidden).to(self._device)


class Layer:
    """One decoder layer over views into its blob."""

    def __init__(self, spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> None:
        self._shape, self._eps = spec.shape, spec.shape.norm_eps
        self._w = tensors

    def forward(
        self,
        x_TE: torch.Tensor,
        cos_T1d: torch.Tensor,
        sin_T1d: torch.Tensor,
        attend: AttentionPlan,
        cache: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Return the layer's output `[T, E]`, writing this layer's KV on the way."""
        w, shape = self._w, self._shape
        normed = F.rms_norm(x_TE, x_TE.shape[-1:], w["attn_norm"], self._eps)
        qkv = F.linear(normed, w["qkv"], w.get("qkv.bias"))
        qkv = qkv.view(x_TE.shape[0], -1, shape.head_dim)
        q, k, v = self._rotated(qkv, cos_T1d, sin_T1d)
        attended = attend(q, k, v, cache)
        x_TE = x_TE + F.linear(attended, w["out"], w.get("out.bias"))
        normed = F.rms_norm(x_TE, x_TE.shape[-1:], w["mlp_norm"], self._eps)
        gate_up = F.linear(normed, w["gate_up"], w.get("gate_up.bias"))
        gate, up = gate_up.chunk(2, dim=-1)
        return x_TE + F.linear(F.silu(gate) * up, w["down"], w.get("down.bias"))

    def _rotated(
        self, qkv: torch.Tensor, cos_T1d: torch.Tensor, sin_T1d: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split `[T, H + 2K, D]` into q, k and v, with q and k normed (Qwen3) and rotated."""
        n_q, n_kv = self._shape.n_heads, self._shape.n_kv_heads
        qk, v = qkv[:, : n_q + n_kv], qkv[:, n_q + n_kv :]
        if self._shape.qk_norm:
            q, k = qk[:, :n_q], qk[:, n_q:]
            q = F.rms_norm(q, q.shape[-1:], self._w["q_norm"], self._eps)
            k = F.rms_norm(k, k.shape[-1:], self._w["k_norm"], self._eps)
            qk = torch.cat((q, k), dim=1)
        qk = rotate(qk, cos_T1d, sin_T1d).to(qkv.dtype)
        return qk[:, :n_q], qk[:, n_q:], v


class _Order:
    """The rows as attention wants them: decode rows first, by slot; then prefill chunks.

    `rows` lists row indices in internal order. Rows that already stand so cost nothing.
    """

    def __init__(self, rows: Sequence[RowInput]) -> None:
        decode = [i for i, row in enumerate(rows) if row.count == 1]
        decode.sort(key=lambda i: rows[i].sequence.table[:1])
        self.rows = decode + [i for i, row in enumerate(rows) if row.count != 1]
        self.n_decode = len(decode)
        self._index: torch.Tensor | None = None
        if self.rows != list(range(len(rows))):
            offsets = list(accumulate((row.count for row in rows), initial=0))
            tokens = [t for i in self.rows for t in range(offsets[i], offsets[i + 1])]
            self._index = torch.tensor(tokens)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return lines of `x` in internal order."""
        return x if self._index is None else x[self._index.to(x.device)]

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """Return lines of `x` in the rows' order."""
        return x if self._index is None else x[torch.argsort(self._index).to(x.device)]
