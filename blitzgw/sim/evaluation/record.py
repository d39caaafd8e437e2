"""What a run has left behind, whoever has carried it out: real nodes, or the simulator.

Seconds are undilated and count from the window's start, latencies from the *intended* send. What is
-1 has never happened. A record is written as JSON and read back (`store.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_LAG_S = 0.010
"""Of the generator, at the 99th percentile: with more a run is void."""

MAX_BUSY = 0.9
"""Share of a testbed's processors in use, on average while it is measured: with more they, not the
links, may be what is slow, and a run is void."""

HOLDING = frozenset({"loading", "serving", "draining", "kept"})
"""States of instances whose device holds or receives weights: the time in them is paid for."""


@dataclass(slots=True)
class Answer:
    """What became of an offered request.

    `outcome`: `ok`, `refused` (429, 503), `failed` (any other error, a cut stream) or `timeout`.
    `lag_s`: by how much the generator itself was late. `gaps_s`: between tokens, where kept.
    `split` says who has run which layers, where more than one instance has.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    outcome: str = "failed"
    error: str = ""
    lag_s: float = 0.0
    first_s: float = -1.0
    last_s: float = -1.0
    tokens: int = 0
    gaps_s: tuple[float, ...] = ()
    split: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was answered whole."""
        return self.outcome == "ok"

    @property
    def tpot_s(self) -> float:
        """The time of each token after the first, in seconds; 0 where there is none."""
        further = self.tokens - 1
        return (self.last_s - self.first_s) / further if further > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Look:
    """How many instances there are from `at_s` on, by state."""

    at_s: float
    states: dict[str, int]

    def held(self, paid: frozenset[str] = HOLDING) -> int:
        """Return how many devices hold or receive weights."""
        return sum(count for state, count in self.states.items() if state in paid)


@dataclass(slots=True)
class Record:
    """One system under one trace: a cell of an evaluation.

    `about` has what is needed to repeat it (trace, window, factor, nodes, dilation, rates, targets,
    commit). `operations` and `decisions` are as the nodes tell them (/cluster/operations/ID,
    /cluster/decisions). `bytes_by_link` counts what each link has carried, by class: `{"n0 tx":
    {"weights": …, "requests": …}}`. `wrong` counts answers that are not the reference's.
    """

    system: str
    seed: int
    virtual: bool
    about: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    seconds: float = 0.0
    """Until the last answer, or the window's end if that is later."""
    operations: list[dict[str, Any]] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    bytes_by_link: dict[str, dict[str, float]] = field(default_factory=dict)
    checked: int = 0
    """Answers that were compared with a reference, and of these `wrong`."""
    wrong: int = 0
    failure: str = ""
    """Why the run itself has failed; empty: it has not."""
