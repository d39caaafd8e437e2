"""From logits to a token: penalties, filters, noise.

The order is bias and penalties → grammar → temperature → top-k → top-p → min-p → noise → maximum,
candidates sorted by (logit, lower id). Noise is a hash of (seed, choice, position, token): see
noise.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from blitzgw.core.request import Logprobs, SamplingParams
from blitzgw.engine.base import RowInput, Sampled
from blitzgw.engine.noise import (
    MAX_NOISE,
    MIN_NOISE,
    gumbel,
    least_bits,
    noise_bits,
    noise_key,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_NEVER = np.float32(-np.inf)

NEAR = 8.0
"""How far below the best scaled logit a token counts as near it: some hundred tokens of a language
model. Of the others e⁻⁸ have enough noise to be looked at."""


def sample(rows: Sequence[RowInput], logits: torch.Tensor, eos_ids: Sequence[int]) -> list[Sampled]:
    """Choose a token for each row. `logits` is fp32 `[rows, vocabulary]`."""
    if not rows:
        return []
    if logits.device.type != "cpu" and all(_is_plain(row) for row in rows):
        return [Sampled(token) for token in torch.argmax(logits, dim=-1).tolist()]
    lines: F32 = logits.cpu().numpy()  # whose argmax takes a fifth of torch's time on a CPU
    return [
        Sampled(int(line.argmax())) if _is_plain(row) else _sample_row(row, line, eos_ids)
        for row, line in zip(rows, lines, strict=True)
    ]


def _is_plain(row: RowInput) -> bool:
    """Tell whether the row wants the largest raw logit and nothing else."""
    return row.sequence.sampling.temperature == 0 and is_unadjusted(row)


def is_unadjusted(row: RowInput) -> bool:
    """Tell whether the row's token is chosen from the raw logits, and is all that it wants."""
    p = row.sequence.sampling
    return (
        p.logprobs is None
        and not p.logit_bias
        and p.presence_penalty == 0
        and p.frequency_penalty == 0
        and p.repetition_penalty == 1
        and row.sequence.constraint is None
        and _generated(row) >= p.min_tokens
    )


def _generated(row: RowInput) -> int:
    """Return the number of tokens generated before the one to be sampled."""
    return row.start + row.count - row.sequence.prompt_length


def _sample_row(row: RowInput, raw: F32, eos_ids: Sequence[int]) -> Sampled:
    p = row.sequence.sampling
    position = row.start + row.count
    adjusted = adjust(raw, row, eos_ids)
    if p.temperature == 0:
        token = int(np.argmax(adjusted))
    else:
        token = draw(adjusted, p, noise_key(p.seed, row.sequence.choice, position))
    logprobs = None if p.logprobs is None else logprobs_of(raw, token, p.logprobs)
    constraint = row.sequence.constraint
    return Sampled(token, logprobs, constraint is not None and constraint.broken)


def adjust(raw: F32, row: RowInput, eos_ids: Sequence[int]) -> F32:
    """Return logits with bias, penalties, the ban on early ends and the grammar applied.

    Repetition counts prompt and output (Keskar et al. 2019), presence and frequency the output
    only, as OpenAI defines them. Where the grammar leaves only what is banned, the ban is void.
    """
    p, sequence = row.sequence.sampling, row.sequence
    logits = raw.copy()
    if p.repetition_penalty != 1:
        seen = np.unique(np.asarray(sequence.tokens[: row.start + row.count], dtype=np.int64))
        values = logits[seen]
        factor = np.float32(p.repetition_penalty)
        logits[seen] = np.where(values > 0, values / factor, values * factor)
    if p.presence_penalty or p.frequency_penalty:
        output = sequence.tokens[sequence.prompt_length : row.start + row.count]
        ids, counts = np.unique(np.asarray(output, dtype=np.int64), return_counts=True)
        penalty = p.frequency_penalty * counts + p.presence_penalty
        logits[ids] -= penalty.astype(np.float32)
    for token, bias in p.logit_bias:
        logits[token] += np.float32(bias)
    if _generated(row) < p.min_tokens:
        logits[list({*eos_ids, *p.stop_token_ids})] = -np.inf
    if sequence.constraint is not None:
        stop = row.start + row.count
        allowed = sequence.constraint.allowed(sequence.tokens, sequence.prompt_length, stop)
        np.copyto(logits, _NEVER, where=~allowed)
        if logits.max() == _NEVER:
            logits = np.where(allowed, raw, _NEVER)
    return logits


def draw(logits: F32, p: SamplingParams, key: int) -> int:
    """Draw from softmax(logits / temperature) under the filters, by the Gumbel-max trick.

    Exactly the answer over the whole vocabulary, though few candidates are sorted or given noise.
    """
    scaled: F64 = logits.astype(np.float64) / p.temperature
    best = float(scaled.max())
    if not math.isfinite(best):  # a broken row gets what a greedy one would, and harms no other
        return int(np.argmax(logits))
    reach = MAX_NOISE - MIN_NOISE  # who is further below the best cannot win
    if p.min_p > 0:
        reach = min(reach, -math.log(p.min_p))
    if p.top_k > 0:
        ids = _top_k(scaled, best - reach, p)
    elif p.top_p < 1:
        ids = _top_p(scaled, best, reach, p)
    else:
        ids = _contenders(scaled, best, reach, key)
    scores = scaled[ids] + gumbel(key, ids)
    equals = ids[scores == scores.max()]
    return int(equals[np.lexsort((equals, -scaled[equals]))[0]])


def _contenders(scaled: F64, best: float, reach: float, key: int) -> I64:
    """Return who can win without filters: those near the best, and of the others the lucky ones.

    The best score of those near must be exceeded from NEAR below `best`; that takes noise, and
    noise takes bits: one comparison of integers instead of two logarithms.
    """
    candidates = scaled >= best - reach
    if reach > NEAR:
        near = scaled >= best - NEAR
        ids = np.nonzero(near)[0]
        score = float((scaled[ids] + gumbel(key, ids)).max())
        bits = noise_bits(key, np.arange(len(scaled)))
        candidates &= near | (bits >= np.uint64(least_bits(score - best + NEAR)))
    return np.nonzero(candidates)[0]


def _top_k(scaled: F64, least: float, p: SamplingParams) -> I64:
    """Return the `top_k` best candidates, and of them those of the nucleus, the best first."""
    ids = np.nonzero(scaled >= least)[0]
    if p.top_k < len(ids):
        edge = np.partition(scaled[ids], -p.top_k)[-p.top_k]
        ids = ids[scaled[ids] >= edge]
    ids = _sorted(scaled, ids)[: p.top_k]
    if p.top_p < 1:
        weights = np.exp(scaled[ids] - scaled[ids[0]])
        ids = ids[: _nucleus(weights, p.top_p * weights.sum())]
    return ids


def _top_p(scaled: F64, best: float, reach: float, p: SamplingParams) -> I64:
    """Return the nucleus, the best first; nearly always all of it is near the best."""
    mass = p.top_p * np.exp(scaled - best).sum()
    for distance in (min(NEAR, reach), reach):
        ids = _sorted(scaled, np.nonzero(scaled >= best - distance)[0])
        size = _nucleus(np.exp(scaled[ids] - best), mass)
        if size < len(ids):
            break
    return ids[:size]


def _sorted(scaled: F64, ids: I64) -> I64:
    """Sort ascending ids by (logit, lower id)."""
    order: I64 = np.argsort(-scaled[ids], kind="stable")
    return ids[order]


def _nucleus(weights: F64, mass: float) -> int:
    """Return how many of the sorted candidates reach a probability mass (Holtzman 2020)."""
    before = np.cumsum(weights) - weights
    return max(1, int(np.count_nonzero(before < mass)))


def score(rows: Sequence[RowInput], logits_RV: torch.Tensor) -> list[Logprobs]:
    """Return log-softmax at the known token after each row, and the best that the row wants.

    `logits_RV` is fp32, with a line for each row.
    """
    tokens = [row.sequence.tokens[row.start + row.count] for row in rows]
    wanted = [row.sequence.sampling.prompt_logprobs or 0 for row in rows]
    at = torch.tensor(tokens, device=logits_RV.device)[:, None]
    normaliser = torch.logsumexp(logits_RV, dim=-1, keepdim=True)
    chosen = (logits_RV.gather(1, at) - normaliser)[:, 0].tolist()
    best = torch.topk(logits_RV, min(max(wanted), logits_RV.shape[1]))
    ids, values = best.indices.tolist(), (best.values - normaliser).tolist()
    return [
        Logprobs(own, tuple(zip(ids[i][:n], values[i][:n], strict=True)))
        for i, (own, n) in enumerate(zip(chosen, wanted, strict=True))
    ]


def logprobs_of(raw: F32, token: int, n_top: int) -> Logprobs:
    """Return log-softmax of the raw logits at the chosen token and the `n_top` best, best first."""
    logits = raw.astype(np.float64)
    best = logits.max()
    normaliser = best + math.log(np.exp(logits - best).sum())
    top: tuple[tuple[int, float], ...] = ()
    if n_top > 0:
        n_top = min(n_top, len(logits))
        ids = np.argpartition(-logits, n_top - 1)[:n_top]
        edge = logits[ids].min()
        ids = np.nonzero(logits >= edge)[0]
        ids = ids[np.argsort(-logits[ids], kind="stable")][:n_top]
        top = tuple((int(i), float(logits[i] - normaliser)) for i in ids)
    return Logprobs(float(logits[token] - normaliser), top)
