"""What a run on a testbed and a simulated one have in common before they begin.

disk, host      link / 10, link · 1.28          the papers' network : SSD : host memory
max_tokens      the longest answer that may be in the window, rounded up; MAX_TOKENS at least
bound           follows from what has come before the window (levels.py)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from blitzgw.sim.evaluation import levels
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.ladder import System
from blitzgw.sim.evaluation.traces import in_window

LINK_OVER_DISK, HOST_OVER_LINK = 10.0, 1.28
"""The papers' ratios: network : SSD : host memory = 10 : 1 : 12.8."""

MAX_SEQUENCES = 64
"""Of a step."""

MAX_TOKENS = 1024
"""That every request asks for, more where there are longer answers: from it nobody may learn how
long an answer will be."""

ROUND_TOKENS = 1024
"""Longest answers and sequences are rounded up to it, so that windows share a model."""

SPREAD_S = 3.0
"""Between two ticks of Mooncake's clock: rows come at any moment of them."""

BEFORE = 20
"""Fewest requests before a window that its bound may follow from; else it is all of the trace."""


def spread_of(trace: Path) -> float:
    """Return within how many seconds from its time on a row of a trace comes."""
    return SPREAD_S if trace.suffix == ".jsonl" else 0.0


def max_tokens(rows: Sequence[Arrival], window: tuple[float, float], spread_s: float) -> int:
    """Return what every request of a window asks for. Raises ConfigError for an empty window."""
    return max(
        MAX_TOKENS,
        rounded(max(one.output_tokens for one in reaching(rows, window, spread_s)) + 1),
    )


def reaching(
    rows: Sequence[Arrival], window: tuple[float, float], spread_s: float
) -> Sequence[Arrival]:
    """Return the rows in a window, and those that `spread_s` may move into it."""
    return in_window(rows, max(0.0, window[0] - spread_s), window[1])


def rounded(tokens: int) -> int:
    """Return a number of tokens rounded up."""
    return -(-tokens // ROUND_TOKENS) * ROUND_TOKENS


def before(rows: Sequence[Arrival], start_s: float, spread_s: float) -> Sequence[Arrival]:
    """Return what comes before a window whatever `spread_s` moves; `rows` if that is too little."""
    found = [one for one in rows if one.at_s + spread_s < start_s]
    return found if len(found) >= BEFORE else rows


def initial(system: System, most: int, least: int, load: Callable[[], float]) -> int:
    """Return how many instances a system begins with; `load` is what is busy on average."""
    if system.initial == "full":
        return most
    if system.initial == "mean":
        return max(least, levels.mean_instances(load(), most))
    return least
