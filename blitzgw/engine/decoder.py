"""The decoder of the Llama family, cut at any layer.

Legend: T tokens of the step, E hidden size, D head dimension, V vocabulary, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, SequenceKv
from blitzgw.engine.attention import Extent
from blitzgw.engine.base import RowInput, Sampled
from blitzgw.engine.hostcopy import HostCopies, bytes_of, tensor_of
from blitzgw.engine.kv import KvArena
from blitzgw.engine.memory import TORCH_DTYPES, WeightSlab
from blitzgw.engine.native import build, layer
from blitzgw.engine.rope import rope_table
from blitzgw.engine.sampling import sample
from blitzgw.engine.torch_layer import TorchKernels


class Layer(Protocol):
    """One decoder layer; `plan` is what its kernels prepared for the step."""

    def forward(
        self, x_TE: torch.Tensor, plan: Any, cache: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Return the layer's output, writing its KV; `x` may be overwritten."""


class Kernels(Protocol):
    """How one model's layers are computed on one device."""

    def layer(self, tensors: dict[str, torch.Tensor]) -> Layer:
        """Return a layer over views into its blob."""

    def plan(
        self, extents: Sequence[Extent], n_decode: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> Any:
        """Prepare a step: its extents (decode rows first), and their angles `[T, D / 2]`."""

    def head(self, x_RE: torch.Tensor, norm: torch.Tensor, matrix_VE: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[R, V]` of hidden states before the final norm."""


def choose_kernels(spec: ModelSpec, device: torch.device) -> Kernels:
    """Return the fastest kernels that cover a model here."""
    library = build.library() if device.type == "cpu" else None
    if library is not None and layer.supports(spec.shape, spec.dtype):
        return layer.NativeKernels(library, spec)
    return TorchKernels(spec)


class TorchEngine:
    """`SpanEngine` in torch: hidden states and logits are tensors on the instance's device.

    `memory` is host memory for the weights (core/layout.py: `slab_offsets`), such as a mapped host
    copy: on the CPU the tensors are views of it, a GPU copies from it. None: the engine takes its
    own. Raises ValueError where it does not fit, MemoryError.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kv: KvGeometry,
        device: DeviceSpec,
        memory: memoryview | None = None,
    ) -> None:
        self._spec, self._shape = spec, spec.shape
        self._device = (
            torch.device("cuda", device.index)
            if device.kind is DeviceKind.CUDA
            else torch.device("cpu")
        )
        self._dtype = TORCH_DTYPES[spec.dtype]
        layouts = blob_layouts(self._shape, spec.dtype)
        self._slab = WeightSlab(layouts, spec.dtype, self._device, memory)
        self._kv = KvArena(self._shape, spec.dtype, kv, self._device)
        self._copies = HostCopies(self._device)
        self._kernels = choose_kernels(spec, self._device)
        positions = min(spec.max_model_len, kv.slot_tokens)
        cos, sin = rope_table(self._shape.rope, self._shape.head_dim, positions)
        self._cos, self._sin = cos.to(self._device), sin.to(self._device)
        self._layers: dict[int, Layer] = {}
        self._embedding: torch.Tensor | None = None
        self._head: dict[str, torch.Tensor] = {}

    def blob_buffer(self, index: int) -> memoryview:
        """Return the writable host bytes where blob `index` belongs, or its bytes once there."""
        return self._slab.buffer(index)

    def blob_memory(self, index: int) -> torch.Tensor:
        """Return the bytes of a blob on the device, where they may be written instead."""
        return self._slab.on_device(index)

    def blob_arrived(self, index: int) -> None:
        """Bind the tensors of a complete blob."""
        tensors = self._slab.tensors(index)
        if index == 0:
            self._embedding = tensors["embedding"]
        elif index <= self._shape.n_layers:
            self._layers[index - 1] = self._kernels.layer(tensors)
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
        if x_TE is hidden:
            x_TE = x_TE.clone()  # layers may overwrite it
        plan = self._plan(rows, order)
        for i in span.layers():
            x_TE = self._layers[i].forward(x_TE, plan, self._kv.layer(i))
        return order.undo(x_TE)

    def _embed(self, rows: Sequence[RowInput]) -> torch.Tensor:
        if self._embedding is None:
            raise ValueError(f"the embedding of {self._spec.name} is not resident")
        tokens: list[int] = []
        for row in rows:
            tokens += row.sequence.tokens[row.start : row.start + row.count]
        return F.embedding(torch.tensor(tokens, device=self._device), self._embedding)

    def _plan(self, rows: Sequence[RowInput], order: _Order) -> Any:
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
        return self._kernels.plan(extents, order.n_decode, self._cos[at], self._sin[at])

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
        return self._kernels.head(x, self._head["norm"], matrix)

    def sample(self, rows: Sequence[RowInput], logits: torch.Tensor) -> list[Sampled]:
        """Choose one token for each row that samples."""
        return sample([row for row in rows if row.sample], logits, self._spec.eos_ids)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the KV of all layers from block to block."""
        self._kv.copy_blocks(pairs)

    def release(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Return the memory of whole slots."""
        self._kv.release(ranges)

    def export_kv(self, table: Sequence[int], start: int, stop: int, span: Span) -> SequenceKv:
        """Return a copy of the KV of positions `[start, stop)`; see `SpanEngine.export_kv`."""
        return self._kv.export(table, start, stop, span)

    def import_kv(self, table: Sequence[int], kv: SequenceKv) -> None:
        """Write KV that another engine exported."""
        self._kv.import_(table, kv)

    def export_hidden(self, hidden: torch.Tensor) -> memoryview:
        """Return hidden states as raw bytes; on a CPU of contiguous ones their own memory."""
        if hidden.is_cuda:
            return self._copies.take(hidden)
        return bytes_of(hidden.contiguous())

    def import_hidden(self, data: bytes | memoryview) -> torch.Tensor:
        """Return hidden states `[T, E]`. Raises ValueError on a partial line."""
        if len(data) % (self._shape.hidden * self._dtype.itemsize):
            raise ValueError(f"{len(data)} bytes are no whole hidden states")
        return tensor_of(data, self._dtype).view(-1, self._shape.hidden).to(self._device)

    def join_hidden(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return hidden states one after another."""
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))


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
