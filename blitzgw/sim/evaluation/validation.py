"""Predicted against measured: whether what a simulation says of a run may be believed.

    pair          a measured record, and predictions of it: the same arrivals, other dice of routers
    difference    median over pairs of  predicted / measured − 1,  for shares  predicted − measured
    load          prompt tokens / prefill rate / instance time, of what was measured
    order         where the intervals of two systems' medians are disjoint, the prediction's medians
                  stand in the same order

A run that is void, or has failed, is compared with nothing. Without MIN_RUNS of each cell, several
systems and an order between some of them, or with anything open, nothing is accepted: it is not
judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from blitzgw.sim.evaluation.differences import LIMITS, Difference, Limit
from blitzgw.sim.evaluation.growth import growths, medians
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.statistics import bootstrap, median, quantile
from blitzgw.sim.evaluation.summary import instance_seconds, objective_of, row, ttft_s

MIN_RUNS = 3
"""Of a system in a setting, to be judged at all."""

MIN_SYSTEMS = 2
"""For there to be an order."""

SETTING = (
    "trace", "window", "factor", "rounds", "models", "nodes", "profile", "model_bytes",
    "link_bytes_per_s", "disk_bytes_per_s", "host_bytes_per_s", "dilation", "ttft_target_s",
    "scale_down_after_s", "keep_s", "min_instances", "max_tokens",
)  # fmt: skip
"""What runs that are compared with each other have in common, by its names in `Record.about`."""

SYSTEM_OVERHEAD, SYSTEM_WAITING = "request: at least", "request: waiting"

ORDERED = tuple(limit.figure for limit in LIMITS)
"""Figures by which systems stand in an order."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A run, and what was predicted of it: one record or more."""

    measured: Record
    predicted: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """What takes time, in seconds; nan where there is none of it."""

    name: str
    measured: float
    predicted: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One system in one setting. `growths`: how many there were in a run, measured, predicted."""

    setting: str
    system: str
    runs: int
    load: float
    differences: tuple[Difference, ...]
    phases: tuple[Phase, ...]
    growths: tuple[float, float]

    @property
    def accepted(self) -> bool:
        """Whether all of its figures are within their limits."""
        return all(one.accepted for one in self.differences)

    @property
    def off(self) -> bool:
        """Whether one of them is beyond its limit, and not by chance."""
        return any(not (one.accepted or one.open) for one in self.differences)

    @property
    def worst(self) -> Phase | None:
        """The phase that differs most, in seconds."""
        known = [one for one in self.phases if math.isfinite(one.predicted - one.measured)]
        return max(known, key=lambda one: abs(one.predicted - one.measured), default=None)


@dataclass(frozen=True, slots=True)
class Order:
    """Two systems of which the first was measured to have less of a figure."""

    setting: str
    figure: str
    less: str
    more: str
    agrees: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that was compared."""

    cells: tuple[Cell, ...]
    orders: tuple[Order, ...]

    @property
    def off(self) -> bool:
        """Whether something is not as it should be."""
        return any(cell.off for cell in self.cells) or not all(o.agrees for o in self.orders)

    @property
    def too_little(self) -> str:
        """Why there is not enough for a judgement; empty: there is."""
        few = [f"{cell.system} ({cell.runs})" for cell in self.cells if cell.runs < MIN_RUNS]
        if len({cell.system for cell in self.cells}) < MIN_SYSTEMS:
            return f"fewer than {MIN_SYSTEMS} systems"
        if few:
            return f"fewer than {MIN_RUNS} runs of {', '.join(few)}"
        if not self.orders:
            return "no two systems differ by more than their intervals"
        beyond = [f"{c.system}'s {d.figure}" for c in self.cells for d in c.differences if d.open]
        return (
            f"beyond the limit by no more than runs differ: {', '.join(beyond)}" if beyond else ""
        )

    @property
    def accepted(self) -> bool:
        """Whether there is enough, and all of it is as it should be."""
        return not self.off and not self.too_little


def judge(pairs: Iterable[Pair]) -> Verdict:
    """Compare. Pairs with a void run, or without a prediction, are left out."""
    cells: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        if pair.predicted and not row(pair.measured)["void"]:
            key = setting_of(pair.measured), pair.measured.system
            cells.setdefault(key, []).append(pair)
    made = tuple(_cell(setting, system, found) for (setting, system), found in cells.items())
    return Verdict(made, tuple(_orders(cells)))


def setting_of(record: Record) -> str:
    """Return what stands for the circumstances of a run, without its system and its seed."""
    told = {name: record.about[name] for name in SETTING if name in record.about}
    return ", ".join(f"{name} {_plain(value)}" for name, value in told.items())


def load(record: Record) -> float:
    """Return how much of its instance time a run needs for its prompts."""
    held_s = instance_seconds(record)
    tokens = sum(one.prompt_tokens for one in record.answers)
    return tokens / objective_of(record).prefill_tokens_per_s / held_s if held_s else math.inf


def phases(records: Sequence[Record]) -> dict[str, float]:
    """Return what took how long, in seconds.

    A request's time to first token is what it takes alone, and what all need more (their 10th
    percentile), and what is left: waiting. Those of growths are medians, from the decision on.
    """
    more: list[float] = []
    for record in records:
        alone = objective_of(record, times=1.0)
        due = [alone.ttft_s(one.prompt_tokens) for one in record.answers]
        more += [first - due_s for first, due_s in zip(ttft_s(record), due, strict=True)]
    least = quantile(more, 0.1)
    found = {SYSTEM_OVERHEAD: least, SYSTEM_WAITING: _mean(more) - least}
    several = medians(one for record in records for one in growths(record))
    return found | {f"growth: until {name}": seconds for name, seconds in several.items()}


def _cell(setting: str, system: str, pairs: Sequence[Pair]) -> Cell:
    loads = median(load(pair.measured) for pair in pairs)
    measured = phases([pair.measured for pair in pairs])
    predicted = phases([one for pair in pairs for one in pair.predicted])
    names = list(dict.fromkeys([*measured, *predicted]))
    return Cell(
        setting,
        system,
        len(pairs),
        loads,
        tuple(_difference(limit, pairs, loads) for limit in LIMITS),
        tuple(
            Phase(name, measured.get(name, math.nan), predicted.get(name, math.nan))
            for name in names
        ),
        (
            _mean([len(growths(pair.measured)) for pair in pairs]),
            _mean([len(growths(one)) for pair in pairs for one in pair.predicted]),
        ),
    )


def _difference(limit: Limit, pairs: Sequence[Pair], loads: float) -> Difference:
    values = [_values(limit.figure, pair) for pair in pairs]

    def middle(drawn: Sequence[tuple[float, float]]) -> float:
        return median(limit.difference(*one) for one in drawn)

    return Difference(
        limit.figure,
        median(one for one, _ in values),
        median(other for _, other in values),
        bootstrap(values, middle),
        limit.most,
        loads <= limit.only_below,
    )


def _values(figure: str, pair: Pair) -> tuple[float, float]:
    """Return a figure as measured, and the median of what was predicted."""
    predicted = median(_figure(row(one), figure) for one in pair.predicted)
    return _figure(row(pair.measured), figure), predicted


def _figure(told: Mapping[str, Any], figure: str) -> float:
    value = told[figure]
    return math.nan if value is None else float(value)


def _orders(cells: Mapping[tuple[str, str], Sequence[Pair]]) -> Iterable[Order]:
    by_setting: dict[str, dict[str, Sequence[Pair]]] = {}
    for (setting, system), pairs in cells.items():
        if len(pairs) >= MIN_RUNS:
            by_setting.setdefault(setting, {})[system] = pairs
    for setting, systems in by_setting.items():
        for figure in ORDERED:
            yield from _orders_of(setting, figure, systems)


def _orders_of(setting: str, figure: str, systems: Mapping[str, Sequence[Pair]]) -> Iterable[Order]:
    middle: Callable[[Sequence[tuple[float, float]]], float] = lambda drawn: median(  # noqa: E731
        one for one, _ in drawn
    )
    values = {name: [_values(figure, pair) for pair in pairs] for name, pairs in systems.items()}
    measured = {name: bootstrap(found, middle) for name, found in values.items()}
    predicted = {name: median(other for _, other in found) for name, found in values.items()}
    for one, other in combinations(sorted(systems, key=lambda name: measured[name].middle), 2):
        if measured[one].high < measured[other].low:
            yield Order(setting, figure, one, other, predicted[one] < predicted[other])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ":".join(_plain(one) for one in value)
    return str(value).rpartition("/")[2]
