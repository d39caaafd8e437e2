"""What goes wrong in a simulated cluster that scales itself, drawn from a seed.

All is mended at `end_s`: the crashed have been started again, the cut off are back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import log

from blitzgw.core.scale import AUTOMATIC

FIRST_S = 3.0
"""Nothing goes wrong before: instances have come up somewhere."""

DOWN_S = (0.5, 10.0)
"""Until a crashed process is started again: from a supervisor's restart to longer than a lease."""

CUT_S = (5.0, 30.0)
"""How long a partition lasts."""

SLOW_S = (1.0, 8.0)
"""How long a node is slow."""

SLOWEST_S = 2.0
"""The delay of a slow node's messages, at most."""

MOST_DOWN = 0.25
"""Of all nodes are down at once."""


@dataclass(frozen=True, slots=True)
class CrashNode:
    """A process ends without a word; another one is started there after `down_s`."""

    node: int
    down_s: float


@dataclass(frozen=True, slots=True)
class CrashOwner:
    """The owner of an operation that brings up instances crashes; `pick` in [0, 1) says which."""

    pick: float
    down_s: float


@dataclass(frozen=True, slots=True)
class SplitNodes:
    """Nothing passes between `nodes` and the others."""

    nodes: frozenset[int]
    duration_s: float

    def __str__(self) -> str:
        return f"SplitNodes(nodes={sorted(self.nodes)}, duration_s={self.duration_s:.3f})"


@dataclass(frozen=True, slots=True)
class SlowNode:
    """All that a node says and hears, and what it publishes, is late."""

    node: int
    delay_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class LoseLink:
    """The link of two nodes breaks, with all that is on its way; a new one works at once."""

    node: int
    other: int


@dataclass(frozen=True, slots=True)
class GiveWish:
    """An operator wants so many instances of a model, asked at a node; `AUTOMATIC`: policy."""

    node: int
    model: int
    wanted: int


Fault = CrashNode | CrashOwner | SplitNodes | SlowNode | LoseLink | GiveWish


@dataclass(frozen=True, slots=True)
class FaultSchedule:
    """What happens, by virtual second; all is mended at `end_s`."""

    end_s: float
    faults: tuple[tuple[float, Fault], ...]

    def __str__(self) -> str:
        return "\n".join(f"{at_s:7.3f} s  {fault}" for at_s, fault in self.faults)


def draw_faults(rng: random.Random, nodes: int, models: int, until_s: float) -> FaultSchedule:
    """Return the faults of a cluster of so many nodes; the last of them begins before `until_s`."""
    gap_s = rng.choice((1.0, 2.0, 5.0))
    now, found = FIRST_S, []
    ends: list[tuple[float, int]] = []
    cut_until = 0.0
    wished: set[int] = set()
    while True:
        now -= gap_s * log(1 - rng.random())
        if now >= until_s:
            break
        kind = rng.choice((
            "crash", "crash", "owner", "owner", "split", "slow", "link", "link", "wish",
        ))  # fmt: skip
        down = sum(count for end_s, count in ends if end_s > now)
        fault: Fault | None = None
        if kind in ("crash", "owner") and down + 1 <= max(1, MOST_DOWN * nodes):
            down_s = min(rng.uniform(*DOWN_S), until_s - now)
            ends.append((now + down_s, 1))
            picked = CrashNode(rng.randrange(nodes), down_s)
            fault = picked if kind == "crash" else CrashOwner(rng.random(), down_s)
        elif kind == "split" and now >= cut_until:
            group = rng.sample(range(nodes), rng.randint(1, max(1, nodes // 2)))
            lasting = min(rng.uniform(*CUT_S), until_s - now)
            cut_until = now + lasting
            fault = SplitNodes(frozenset(group), lasting)
        elif kind == "slow":
            lasting = min(rng.uniform(*SLOW_S), until_s - now)
            fault = SlowNode(rng.randrange(nodes), rng.uniform(0.1, SLOWEST_S), lasting)
        elif kind == "link":
            fault = LoseLink(*rng.sample(range(nodes), 2))
        elif kind == "wish":
            model = rng.randrange(models)
            wanted = rng.choice((AUTOMATIC, 0, 1, 2, max(1, nodes // 8)))
            wished = wished - {model} if wanted == AUTOMATIC else wished | {model}
            fault = GiveWish(rng.randrange(nodes), model, wanted)
        if fault is not None:
            found.append((now, fault))
    return FaultSchedule(until_s, tuple(found))
