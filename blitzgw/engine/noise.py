"""Counter-based noise: the same (seed, choice, position, token) gives the same number anywhere.

Sampling adds Gumbel noise to logits and takes the maximum, which draws from the softmax (Gumbel
1954; Maddison et al. 2014). Because the noise is a hash and not a stream, a token does not depend
on the batch, the machine, or what was sampled before: a sequence can move and go on.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
_MASK = (1 << 64) - 1

MAX_NOISE = 22.9
"""Largest Gumbel value that 32 bits of hash can give: −ln(−ln(1 − 2⁻³³)) = 22.87."""
MIN_NOISE = -3.2
"""Smallest: −ln(−ln(2⁻³³)) = −3.13."""


def mix(value: int) -> int:
    """Return the splitmix64 finaliser of a 64-bit integer (Steele, Lea, Flood 2014)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def mix_array(values: U64) -> U64:
    """Return `mix` of every element."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def noise_key(seed: int, choice: int, position: int) -> int:
    """Return the 64-bit key of one sampling decision; `position` is the sampled token's own."""
    key = mix(seed + 0x9E3779B97F4A7C15)
    key = mix(key ^ (choice * 0xD1B54A32D192ED03))
    return mix(key ^ (position * 0x8CB92BA72F3D8DD7))


def noise_bits(key: int, token_ids: NDArray[np.int64]) -> U64:
    """Return the 32 bits of hash that each token id's noise is made of: more bits, more noise."""
    counters = token_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    return mix_array(counters) >> np.uint64(32)


def gumbel(key: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return standard Gumbel noise for each token id, in [MIN_NOISE, MAX_NOISE]."""
    uniform = (noise_bits(key, token_ids).astype(np.float64) + 0.5) * 2.0**-32
    result: NDArray[np.float64] = -np.log(-np.log(uniform))
    return result


def least_bits(noise: float) -> int:
    """Return bits below which no token has so much noise: the inverse, rounded down with room."""
    return max(0, int(math.exp(-math.exp(-noise)) * 2.0**32) - 2)
