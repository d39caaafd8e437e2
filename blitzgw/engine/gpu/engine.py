"""The engine on a GPU: what `TorchEngine` computes, launched ahead and captured where it repeats.

    step ──► decode of all layers, captured? ──► replay        ┐
             anything else ──────────────────► layer by layer ┴─► sample ──► (fetched later)

The token that a slot has sampled last stays on the device, so that the next step can be launched
before the host knows it: in a sequence's tokens it is PENDING until then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from blitzgw.core.instance import DeviceSpec, ModelSpec
from blitzgw.core.span import Span
from blitzgw.core.step import KvGeometry
from blitzgw.engine.base import PENDING, RowInput, Sampled, Sampling
from blitzgw.engine.decoder import TorchEngine
from blitzgw.engine.gpu.captures import Captures, buckets_of
from blitzgw.engine.gpu.choice import Choice
from blitzgw.engine.gpu.decode import CapturedDecode, DecodeInputs, DecodeRow, FixedAttention
from blitzgw.engine.gpu.sampling import sample_on_device
from blitzgw.engine.gpu.shell import Fetch, Shell
from blitzgw.engine.sampling import is_unadjusted, sample
from blitzgw.engine.upload import on_device

log = logging.getLogger(__name__)


class GpuEngine(TorchEngine):
    """`LaunchingEngine` in torch. `now` gives seconds.

    `chosen` returns the kernels that were found to work here, and None until they are; until then,
    and until all weights are there, torch's plain ones serve.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kv: KvGeometry,
        device: DeviceSpec,
        memory: memoryview | None,
        now: Callable[[], float],
        shell: Shell,
        chosen: Callable[[], Choice | None],
    ) -> None:
        super().__init__(spec, kv, device, memory)
        self._now, self._shell, self._chosen = now, shell, chosen
        self._choice: Choice | None = None
        self._latest = torch.zeros(kv.slots, dtype=torch.long, device=self._device)
        self._captures = Captures(buckets_of(kv.slots))
        self._decodes: dict[int, CapturedDecode] = {}
        self._replayed: tuple[torch.Tensor, torch.Tensor] | None = None
        self._moved = False

    def blob_arrived(self, index: int) -> None:
        """Bind the tensors of a complete blob; captured steps that read others are void."""
        super().blob_arrived(index)
        self._moved = True

    @torch.inference_mode()
    def forward(
        self, rows: Sequence[RowInput], span: Span, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """Launch the layers of `span`; see `SpanEngine.forward`."""
        self._replayed = None
        self._drop_void()
        self._adopt()
        captured = hidden is None and self._can_be_captured(rows, span)
        decode = self._decodes.get(self._captures.serving(len(rows)) or 0) if captured else None
        if decode is not None:
            wanted = [
                DecodeRow(row.sequence.tokens[row.start], self._slot_of(row), row.start)
                for row in rows
            ]
            self._replayed = decode.run(wanted)
            out = self._replayed[0]
        else:
            out = super().forward(rows, span, hidden)
        if captured:
            self._captures.decoded(len(rows))
        return out

    def _can_be_captured(self, rows: Sequence[RowInput], span: Span) -> bool:
        if self._choice is None or self._choice.paged is None or not rows:
            return False
        whole = span == Span(0, self._shape.n_layers)
        return whole and all(row.count == 1 and row.sample for row in rows)

    def _ids(self, rows: Sequence[RowInput]) -> torch.Tensor:
        ids = super()._ids(rows)
        if all(row.sequence.tokens[row.start + row.count - 1] != PENDING for row in rows):
            return ids
        slots = [self._slot_of(row) for row in rows for _ in range(row.count)]
        return self._with_latest(ids, on_device(slots, self._device))

    def _with_latest(self, ids: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return torch.where(ids == PENDING, self._latest[slots], ids)

    @torch.inference_mode()
    def logits(self, rows: Sequence[RowInput], hidden: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits `[rows that sample, V]`; of a replay, until the next one."""
        if self._replayed is not None and hidden is self._replayed[0]:
            return self._replayed[1]
        return super().logits(rows, hidden)

    def can_follow(self, rows: Sequence[RowInput]) -> bool:
        """Tell whether all is sampled on the device: the host needs to know all tokens before."""
        return all(is_unadjusted(row) for row in rows if row.sample)

    @torch.inference_mode()
    def launch(self, rows: Sequence[RowInput], logits: torch.Tensor | None) -> Sampling:
        """Begin to sample; rows whose logits must be adjusted are sampled on the host, at once."""
        if logits is None:
            return _Sampling(self._shell.fetch(self._latest[:0]), {})
        sampling = [row for row in rows if row.sample]
        adjusted = [i for i, row in enumerate(sampling) if not is_unadjusted(row)]
        known: dict[int, Sampled] = {}
        if not adjusted:
            tokens = sample_on_device(sampling, logits)
        else:
            tokens, known = self._sample_both(sampling, logits, adjusted)
        slots = [self._slot_of(row) for row in sampling]
        self._latest[on_device(slots, self._device, torch.long)] = tokens
        return _Sampling(self._shell.fetch(tokens), known)

    def sample(self, rows: Sequence[RowInput], logits: torch.Tensor) -> list[Sampled]:
        """Choose one token for each row that samples, and wait for it."""
        return self.launch(rows, logits).wait()

    def _sample_both(
        self, rows: Sequence[RowInput], logits_RV: torch.Tensor, adjusted: Sequence[int]
    ) -> tuple[torch.Tensor, dict[int, Sampled]]:
        at = on_device(adjusted, self._device)
        sampled = sample([rows[i] for i in adjusted], logits_RV[at].cpu(), self._spec.eos_ids)
        known = dict(zip(adjusted, sampled, strict=True))
        tokens = torch.empty(len(rows), dtype=torch.long, device=self._device)
        tokens[at] = on_device([one.token for one in sampled], self._device)
        rest = [i for i in range(len(rows)) if i not in known]
        if rest:
            at = on_device(rest, self._device)
            tokens[at] = sample_on_device([rows[i] for i in rest], logits_RV[at])
        return tokens, known

    def moment_s(self) -> float | None:
        """Return in how many seconds a decode step is to be captured; None: none is."""
        return self._captures.wait_s(self._now())

    @torch.inference_mode()
    def use_moment(self) -> None:
        """Capture the next decode step; where that fails, serve without."""
        self._drop_void()
        bucket = self._captures.next_bucket()
        if bucket is None or self._choice is None or self._choice.paged is None:
            return
        started = self._now()
        try:
            self._decodes[bucket] = CapturedDecode(
                bucket, self._choice.paged.fixed(bucket), self._device, self._compute, self._shell
            )
        except Exception as error:  # CUDA's, a lack of memory, a library's own
            log.warning("capture_failed model=%s rows=%d error=%s", self._spec.name, bucket, error)
            self._captures.failed()
            return
        now = self._now()
        self._captures.captured(bucket, now)
        log.info(
            "captured model=%s rows=%d duration_s=%.3f", self._spec.name, bucket, now - started
        )

    def _compute(
        self, inputs: DecodeInputs, attend: FixedAttention
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute one token each of rows at fixed addresses."""
        assert self._embedding is not None
        assert self._choice is not None
        x_TE = F.embedding(self._with_latest(inputs.ids, inputs.slots), self._embedding)
        at = inputs.positions
        plan = self._choice.kernels.plan_of(attend, self._cos[at], self._sin[at])
        every = range(self._shape.n_layers)
        layers, caches = [self._layers[i] for i in every], [self._kv.layer(i) for i in every]
        x_TE = self._choice.kernels.run(layers, x_TE, plan, caches)
        return x_TE, self._logits_of(x_TE)

    def _adopt(self) -> None:
        """Go over to the kernels that were chosen, once all weights are there."""
        complete = len(self._layers) == self._shape.n_layers and self._head_resident()
        if self._choice is not None or not complete or self._embedding is None:
            return
        self._choice = self._chosen()
        if self._choice is not None:
            self._kernels = self._choice.kernels
            for i, layer in self._layers.items():
                self._layers[i] = self._kernels.layer(layer.tensors)

    def _drop_void(self) -> None:
        """Drop captured steps whose weights have moved. On the thread that runs them."""
        if self._moved:
            self._moved = False
            self._decodes.clear()
            self._captures.clear()


class _Sampling:
    """Tokens that are fetched, and what the host knows of some of them already."""

    def __init__(self, fetch: Fetch, known: dict[int, Sampled]) -> None:
        self._fetch, self._known = fetch, known

    def is_ready(self) -> bool:
        """Say whether the tokens are there."""
        return self._fetch.is_ready()

    def wait(self) -> list[Sampled]:
        """Return them once they are."""
        tokens = self._fetch.wait()
        return [self._known.get(i) or Sampled(token) for i, token in enumerate(tokens)]
