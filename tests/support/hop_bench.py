"""Streams through hops in turns: what each costs, and what each adds to the time."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.support.gateway import PATIENCE_S, Node, cpu_s
from tests.support.hops import Hop
from tests.support.openloop import Load, Outcome

PROMPT = "Why is the sky blue?"
DIRECT = "direct"
"""The name of the first hop, which is none."""

WARM_STREAMS, WARM_TOKENS, TTFT_TOKENS = 4, 4, 3
PAUSE_S = 0.03
"""Between requests of which only the first token counts: the device has come to rest."""

IDLE_S = 2.0


class StreamsFailed(Exception):
    """Not all streams came whole through a hop."""


@dataclass(frozen=True)
class Run:
    """Some streams through one hop: µs of processor time a token, times in ms."""

    hop_us: float
    node_us: float
    ttft_ms: float
    gap_p99_ms: float


@dataclass(frozen=True)
class Row:
    """What comes of all rounds, for one hop and number of streams."""

    hop: str
    streams: int
    hop_us: float
    node_us: float
    both_us: float
    gap_p99_ms: float
    added_gap_p99_ms: float


@dataclass(frozen=True)
class First:
    """First tokens at one stream, in ms; `added` is the median of the turns' own differences."""

    hop: str
    ttft_p50_ms: float
    ttft_p99_ms: float
    added_ms: float
    idle_ms_per_s: float


@dataclass
class Bench:
    """A serving node, what stands in front of it (first nothing), and how it is asked."""

    node: Node
    hops: list[Hop]
    tokens: int
    tell: Callable[[str], None]
    """Takes a line about each run."""

    runs: dict[tuple[str, int], list[Run]] = field(default_factory=dict)

    async def go(self, hop: Hop, streams: int, tokens: int) -> Run:
        """Let so many streams come through a hop at once; raises StreamsFailed."""
        load, outcomes = Load(hop.port, PROMPT, tokens), [Outcome() for _ in range(streams)]
        await load.warm(streams)
        before = hop.cpu_s(), cpu_s(self.node.pid)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*map(load.one, outcomes))
        after = hop.cpu_s(), cpu_s(self.node.pid)
        await load.close()
        check(hop, outcomes)
        each_us = [1e6 * (b - a) / (streams * tokens) for a, b in zip(before, after, strict=True)]
        gaps_s = list(itertools.chain.from_iterable(one.gaps_s for one in outcomes))
        return Run(
            *each_us,
            1e3 * statistics.median(one.first_s for one in outcomes),
            1e3 * p99(gaps_s),
        )

    async def measure(
        self, levels: Sequence[int], rounds: int, turns: int
    ) -> tuple[list[Row], list[First]]:
        """Warm up, go through all rounds at all levels, then ask for first tokens."""
        for hop in self.hops:
            await self.go(hop, WARM_STREAMS, WARM_TOKENS)
        for turn in range(rounds):
            await self.round(turn, levels)
        self.tell(f"first tokens, {turns} turns …")
        firsts = await self.firsts(turns)
        return [self.row(hop, streams) for streams in levels for hop in self.hops], firsts

    async def round(self, turn: int, levels: Sequence[int]) -> None:
        """Go through all hops at all levels; each time another hop is the first."""
        for streams in levels:
            for hop in rotated(self.hops, turn):
                run = await self.go(hop, streams, self.tokens)
                self.runs.setdefault((hop.name, streams), []).append(run)
                self.tell(f"round {turn}, {hop.name} at {streams}: {run}")

    async def firsts(self, turns: int) -> list[First]:
        """Ask once through each hop, turn by turn, with nothing else going on."""
        loads = {hop.name: Load(hop.port, PROMPT, TTFT_TOKENS) for hop in self.hops}
        asked: dict[str, list[Outcome]] = {name: [] for name in loads}
        for turn in range(turns):
            for hop in rotated(self.hops, turn):
                asked[hop.name].append(Outcome())
                async with asyncio.timeout(PATIENCE_S):
                    await loads[hop.name].one(asked[hop.name][-1])
                await asyncio.sleep(PAUSE_S)
        for hop in self.hops:
            await loads[hop.name].close()
            check(hop, asked[hop.name])
        idle_ms = await self.idle()
        return [first(hop, asked[hop.name], asked[DIRECT], idle_ms[hop.name]) for hop in self.hops]

    async def idle(self) -> dict[str, float]:
        """Return what each hop takes when nobody asks, in ms of processor time a second."""
        before = [hop.cpu_s() for hop in self.hops]
        await asyncio.sleep(IDLE_S)
        took = {h.name: h.cpu_s() - b for h, b in zip(self.hops, before, strict=True)}
        return {name: 1e3 * seconds / IDLE_S for name, seconds in took.items()}

    def row(self, hop: Hop, streams: int) -> Row:
        runs, direct = self.runs[hop.name, streams], self.runs[DIRECT, streams]
        added = [a.gap_p99_ms - b.gap_p99_ms for a, b in zip(runs, direct, strict=True)]
        return Row(
            hop.name,
            streams,
            statistics.median(run.hop_us for run in runs),
            statistics.median(run.node_us for run in runs),
            statistics.median(run.hop_us + run.node_us for run in runs),
            statistics.median(run.gap_p99_ms for run in runs),
            statistics.median(added),
        )


def check(hop: Hop, outcomes: list[Outcome]) -> None:
    """Raise StreamsFailed unless all streams were whole."""
    bad = [one for one in outcomes if one.status != 200 or one.cut or not one.first_s]
    if bad:
        said = f"{len(bad)} of {len(outcomes)} streams failed or were cut, the first: {bad[0]}"
        raise StreamsFailed(f"{hop.name}: {said[:400]}")


def first(hop: Hop, asked: list[Outcome], direct: list[Outcome], idle_ms: float) -> First:
    firsts_s = [one.first_s for one in asked]
    added_s = [a.first_s - b.first_s for a, b in zip(asked, direct, strict=True)]
    middle_ms, added_ms = (1e3 * statistics.median(each) for each in (firsts_s, added_s))
    return First(hop.name, middle_ms, 1e3 * p99(firsts_s), added_ms, idle_ms)


def p99(values: list[float]) -> float:
    """Return what 99 of 100 values do not exceed."""
    return sorted(values)[int(0.99 * len(values))]


def rotated(hops: list[Hop], turn: int) -> list[Hop]:
    start = turn % len(hops)
    return hops[start:] + hops[:start]
