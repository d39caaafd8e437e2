"""A device that keeps time and computes hashes: exact, cheap, and unforgiving. No torch.

It stands in for a GPU where only timing, bytes and correctness of the plumbing matter. Weights are
real bytes, KV really lies in blocks, and a token depends on every one of them:

    d_i      digest (xxh3, 64 bits) of the bytes of blob i
    h_0(p)   mix(mix(token_p ^ d_embedding) + p · PHI)         the embedding of position p
    x_l(p)   h_l(p) ^ d_l
    e_l(p)   mix(x_l(p))                                       the KV entry of (layer l, p)
    f_l(p)   Σ for j = 0 … p of e_l(j) · (2j + 1)              read through the block table
    h_l+1(p) mix(f_l(p) + x_l(p))
    token    vocabulary[mix(h_L(p) ^ d_head) …]                the embedding's digest too if tied

All in 64 bits, modulo 2⁶⁴; `mix` is the finaliser of `engine/noise.py`. The odd weights tell
positions apart. So a missing, repeated or wrong layer, and lost, stale or misplaced KV, give
another token; batch, chunks and the place of blocks do not, for integers add up in any order.

Penalties, logit biases and filters have no meaning here: there is no distribution, the device is
certain of its one token. Under a grammar that is one of those allowed, all alike, in the order of
their ids; it never emits an end-of-sequence token otherwise.

Arrays end in their shape: T, the tokens of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import accumulate, chain

import numpy as np
import xxhash

from blitzgw.core.instance import ModelSpec, PacedCost
from blitzgw.core.layout import blob_layouts
from blitzgw.core.request import Logprobs
from blitzgw.core.span import Span
from blitzgw.core.step import KvGeometry, SequenceKv
from blitzgw.engine.base import RowInput, Sampled
from blitzgw.engine.grammar import Constraint
from blitzgw.engine.noise import U64, mix, mix_array, noise_key
from blitzgw.engine.paced_kv import PacedKv, Reading
from blitzgw.engine.payload import pack, unpack
from blitzgw.engine.slab import HostSlab

_PHI = np.uint64(0x9E3779B97F4A7C15)


class PacedEngine:
    """One instance on a paced device: a `SpanEngine` whose hidden states are one uint64 a token.

    `sleep` takes seconds and `now` gives them, both on the same axis: under a dilation the caller
    hands in a sleep and a clock that know it. `memory` is where the weights lie (core/layout.py:
    `slab_offsets`), such as a mapped host copy; None: the engine takes its own. Raises ValueError
    for memory that does not fit, and for a vocabulary of nothing but end-of-sequence tokens.
    """

    def __init__(
        self,
        spec: ModelSpec,
        kv: KvGeometry,
        cost: PacedCost,
        sleep: Callable[[float], None],
        now: Callable[[], float] = time.perf_counter,
        memory: memoryview | None = None,
    ) -> None:
        self.spec = spec
        self._cost, self._sleep, self._now = cost, sleep, now
        layouts = blob_layouts(spec.shape, spec.dtype)
        self._slab = HostSlab(layouts, memory)
        self._digests: list[np.uint64 | None] = [None] * len(layouts)
        self._kv = PacedKv(spec.shape.n_layers, kv, cost.kv_bytes)
        self._eos = sorted({eos for eos in spec.eos_ids if 0 <= eos < spec.shape.vocab})
        if len(self._eos) >= spec.shape.vocab:
            raise ValueError("every token of the vocabulary ends a sequence")

    def blob_buffer(self, index: int) -> memoryview:
        """Return the writable bytes where blob `index` belongs."""
        return self._slab.buffer(index)

    def blob_arrived(self, index: int) -> None:
        """Digest the blob's bytes, which makes its layer usable."""
        self._digests[index] = np.uint64(xxhash.xxh3_64_intdigest(self.blob_buffer(index)))

    def forward(self, rows: Sequence[RowInput], span: Span, hidden: U64 | None) -> U64:
        """Run the layers of `span`, then sleep until the cost model's time for it is over.

        duration_s = 10⁻⁶ · len(span) · (fixed_us + token_us · Σ count
                                         + context_us · Σ over rows of (start + count))

        The time that computing really took counts towards it; with a cost of zero nothing sleeps.
        Raises ValueError for blobs that are not resident, positions that have no token or no
        block, and hidden states that do not fit the rows.
        """
        started = self._now()
        digests = [self._digest(1 + layer) for layer in span.layers()]
        reading = Reading(self._kv, rows)
        hidden_T = self._embed(rows, reading, span) if hidden is None else hidden
        if hidden_T.shape != reading.position_T.shape:
            raise ValueError(f"hidden states {hidden_T.shape} for {len(reading.position_T)} tokens")
        if rows:
            for layer, digest in zip(span.layers(), digests, strict=True):
                keyed_T = hidden_T ^ digest
                reading.write(self._kv.arena[layer], mix_array(keyed_T))
                hidden_T = mix_array(reading.fold(self._kv.arena[layer]) + keyed_T)
        self._rest(started, self.step_s(rows, span))
        return hidden_T

    def logits(self, rows: Sequence[RowInput], hidden: U64) -> U64:
        """Return what stands for logits: one uint64 for each row that samples, in row order."""
        digest = self._digest(len(self._digests) - 1)
        if self.spec.shape.tied_head:
            digest = digest ^ mix_array(np.array([self._digest(0)]))[0]
        ends = accumulate(row.count for row in rows)
        last = [end - 1 for row, end in zip(rows, ends, strict=True) if row.sample]
        return mix_array(hidden[np.array(last, np.intp)] ^ digest)

    def sample(self, rows: Sequence[RowInput], logits: U64) -> list[Sampled]:
        """Return each sampling row's token. With a temperature, its seed has a say in it.

        With `cost.seed_ends` it is the first end token from position `seed` on.

        Where log-probabilities are asked for, the token has 0.0 and is the only alternative.
        """
        sampling = [row for row in rows if row.sample]
        return [self._sampled(row, int(fold)) for row, fold in zip(sampling, logits, strict=True)]

    def score(self, rows: Sequence[RowInput], logits: U64) -> list[Logprobs]:
        """Return 0.0 for the token after each row, which is the only alternative."""
        del logits
        tokens = [row.sequence.tokens[row.start + row.count] for row in rows]
        wanted = [row.sequence.sampling.prompt_logprobs for row in rows]
        return [Logprobs(0.0, ((token, 0.0),)[:n]) for token, n in zip(tokens, wanted, strict=True)]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the KV of all layers from block to block, `(source, target)`, in order."""
        self._kv.copy_blocks(pairs)

    def release(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Zero the KV of `(first block, number of blocks)`, so that a later reader errs visibly."""
        self._kv.release(ranges)

    def export_kv(self, table: Sequence[int], start: int, stop: int, span: Span) -> SequenceKv:
        """Return the KV of positions `[start, stop)`: `cost.kv_bytes` for each of every layer."""
        return self._kv.export(table, start, stop, span)

    def import_kv(self, table: Sequence[int], kv: SequenceKv) -> None:
        """Write KV that another engine exported. Raises ValueError if it does not fit."""
        self._kv.import_(table, kv)

    def export_hidden(self, hidden: U64) -> memoryview:
        """Return hidden states as a payload, `cost.hidden_bytes` a token."""
        return pack(hidden, self._cost.hidden_bytes)

    def import_hidden(self, data: bytes | memoryview) -> U64:
        """Return the hidden states that another engine exported. Raises ValueError for others."""
        return unpack(data, self._cost.hidden_bytes)

    def join_hidden(self, parts: Sequence[U64]) -> U64:
        """Return hidden states one after another."""
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def step_s(self, rows: Sequence[RowInput], span: Span) -> float:
        """Return the seconds that the cost model gives `rows` for `span`; see `forward`."""
        tokens = sum(row.count for row in rows)
        context = sum(row.start + row.count for row in rows)
        cost = self._cost
        layer_us = cost.fixed_us + cost.token_us * tokens + cost.context_us * context
        return len(span) * layer_us * 1e-6 if rows else 0.0

    def _embed(self, rows: Sequence[RowInput], reading: Reading, span: Span) -> U64:
        if span.start != 0:
            raise ValueError(f"layers {span} need hidden states")
        tokens = chain.from_iterable(
            row.sequence.tokens[row.start : row.start + row.count] for row in rows
        )
        token_T = np.fromiter(tokens, np.uint64)
        if token_T.shape != reading.position_T.shape:
            raise ValueError("a row reaches beyond the tokens of its sequence")
        keyed_T = mix_array(token_T ^ self._digest(0))
        return mix_array(keyed_T + reading.position_T.astype(np.uint64) * _PHI)

    def _digest(self, index: int) -> np.uint64:
        digest = self._digests[index] if index < len(self._digests) else None
        if digest is None:
            raise ValueError(f"blob {index} is not resident")
        return digest

    def _sampled(self, row: RowInput, fold: int) -> Sampled:
        params = row.sequence.sampling
        if params.temperature > 0:
            fold ^= noise_key(params.seed, row.sequence.choice, row.start + row.count)
        constraint = row.sequence.constraint
        if constraint is None:
            token = self._unconstrained(row, fold)
        else:
            token = self._allowed(row, constraint, fold)
        logprobs = None
        if params.logprobs is not None:
            logprobs = Logprobs(0.0, ((token, 0.0),)[: params.logprobs])
        return Sampled(token, logprobs, constraint is not None and constraint.broken)

    def _allowed(self, row: RowInput, constraint: Constraint, fold: int) -> int:
        sequence, stop = row.sequence, row.start + row.count
        allowed = constraint.allowed(sequence.tokens, sequence.prompt_length, stop)
        ids = np.flatnonzero(allowed)
        return int(ids[mix(fold) % len(ids)])

    def _unconstrained(self, row: RowInput, fold: int) -> int:
        token = mix(fold) % (self.spec.shape.vocab - len(self._eos))
        for eos in self._eos:
            token += token >= eos
        ends = self._cost.seed_ends and row.start + row.count >= row.sequence.sampling.seed
        return self._eos[0] if ends and self._eos else token

    def _rest(self, started: float, duration_s: float) -> None:
        if duration_s > 0 and (left_s := started + duration_s - self._now()) > 0:
            self._sleep(left_s)
