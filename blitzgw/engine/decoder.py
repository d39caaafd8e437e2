"""The decoder of the Llama family, cut at any layer.

Legend: T tokens of the step, E hidden size, D head dimension, V vocabulary, R rows that sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F

from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.request import Logprobs
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, SequenceKv
from blitzgw.engine.attention import Extent
from blitzgw.engine.base import RowInput, Sampled
from blitzgw.engine.hostcopy import HostCopies, bytes_of, tensor_of
from blitzgw.engine.kernels import Kernels, Layer
from blitzgw.engine.kv import KvArena
from blitzgw.engine.memory import TORCH_DTYPES, WeightSlab
from blitzgw.engine.native import build, layer
from blitzgw.engine.rope import rope_table
from blitzgw.engine.sampling import sample, score
from blitzgw.engine.torch_layer import TorchKernels
from blitzgw.engine.upload import on_device


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
        self._kernels = choose_kernels(spec, self._device)
        self._kv = KvArena(self._shape, spec.dtype, kv, self._device, self._kernels.kv_run)
        self._copies = HostCopies(self._device)
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
        plan = self._plan(rows, order, len(span) == self._shape.n_layers > 1)
        layers = [self._layers[i] for i in span.layers()]
        caches = [self._kv.layer(i) for i in span.layers()]
        return order.undo(self._kernels.run(layers, x_TE, plan, caches))

    def _embed(self, rows: Sequence[RowInput]) -> torch.Tensor:
        if self._embedding is None:
            raise ValueError(f"the embedding of {self._spec.name} is not resident")
        return F.embedding(self._ids(rows), self._embedding)

    def _ids(self, rows: Sequence[RowInput]) -> torch.Tensor:
        tokens: list[int] = []
        for row in rows:
            tokens += row.sequence.tokens[row.start : row.start + row.count]
        return on_device(tokens, self._device)

    def _plan(self, rows: Sequence[RowInput], order: _Order, whole: bool) -> Any:
        few = whole and order.n_decode < len(rows) and not _scores(rows)
        extents: list[Extent] = []
        positions: list[int] = []
        wanted: list[Extent] = []
        for i in order.rows:
            row = rows[i]
            slot, stop = self._slot_of(row), row.start + row.count
            extents.append(Extent(slot, row.start, stop, len(positions)))
            positions += range(row.start, stop)
            if few and row.sample:
                wanted.append(Extent(slot, stop - 1, stop, len(positions) - 1))
        at = on_device(positions, self._device)
        cos, sin = self._cos[at], self._sin[at]
        return self._kernels.plan(extents, order.n_decode, cos, sin, wanted if few else None)

    def _slot_of(self, row: RowInput) -> int:
        """Return the slot of a row. Raises ValueError for positions its table does not have."""
        table, stop = row.sequence.table, row.start + row.count
        if stop > len(table) * BLOCK_TOKENS:
            raise ValueError(f"position {stop - 1} lies beyond its block table")
        return self._kv.slot_of(table)

    @torch.inference_mode()
    def logits(self, rows: Sequence[RowInput], hidden: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[rows that sample, V]`."""
        if not self._head_resident():
            raise ValueError(f"the head of {self._spec.name} is not resident")
        last: list[int] = []
        offset = 0
        for row in rows:
            offset += row.count
            if row.sample:
                last.append(offset - 1)
        return self._logits_of(hidden[on_device(last, self._device, torch.long)])

    def _head_resident(self) -> bool:
        tied = self._shape.tied_head
        return "norm" in self._head and (self._embedding is not None if tied else True)

    def _logits_of(self, x_RE: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[R, V]` of hidden states that have left the last layer."""
        matrix = self._embedding if self._shape.tied_head else self._head["head"]
        assert matrix is not None
        return self._kernels.head(x_RE, self._head["norm"], matrix)

    def sample(self, rows: Sequence[RowInput], logits: torch.Tensor) -> list[Sampled]:
        """Choose one token for each row that samples."""
        return sample([row for row in rows if row.sample], logits, self._spec.eos_ids)

    @torch.inference_mode()
    def score(self, rows: Sequence[RowInput], logits: torch.Tensor) -> list[Logprobs]:
        """Return what logits give the known token that follows each row."""
        return score(rows, logits)

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


def _scores(rows: Sequence[RowInput]) -> bool:
    """Tell whether logits may be asked for of other positions than those that sample."""
    return any(row.sequence.sampling.scores for row in rows)


class _Order:
    """The rows as attention wants them: decode rows first, by slot; then prefill chunks.

    `rows` lists row indices in internal order. Rows that already stand so cost nothing.
    """

    def __init__(self, rows: Sequence[RowInput]) -> None:
        decode = [i for i, row in enumerate(rows) if row.count == 1]
        decode.sort(key=lambda i: rows[i].sequence.table[:1])
        self.rows = decode + [i for i, row in enumerate(rows) if row.count != 1]
        self.n_decode = len(decode)
        self._index: list[int] | None = None
        if self.rows != list(range(len(rows))):
            offsets = list(accumulate((row.count for row in rows), initial=0))
            self._index = [t for i in self.rows for t in range(offsets[i], offsets[i + 1])]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Return lines of `x` in internal order."""
        return x if self._index is None else x[on_device(self._index, x.device)]

    def undo(self, x: torch.Tensor) -> torch.Tensor:
        """Return lines of `x` in the rows' order."""
        if self._index is None:
            return x
        back = sorted(range(len(self._index)), key=self._index.__getitem__)
        return x[on_device(back, x.device)]
