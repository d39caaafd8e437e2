"""Pictures of an evaluation, of real and of simulated runs alike. Needs blitzgw[figures].

    ttft        how many requests had their first token within what time, and the tail of that
    timeline    time to the first token by when requests came, over the burst
    instances   devices that hold or receive weights, over time
    waterfall   phases of scale-ups, medians
    links       bytes by link and class
    objectives  attainment over the factor of the objective

Seeds of a system are drawn as one: requests are pooled, counts averaged. Void runs are left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from blitzgw.sim.evaluation.arrivals import SWEEP
from blitzgw.sim.evaluation.growth import PHASES, growths, medians
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.statistics import median, quantile
from blitzgw.sim.evaluation.summary import (
    attainment,
    objective_of,
    paid_states,
    ttft_s,
    why_void,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
DPI = 130
BINS = 60
"""Of a window, in which requests that come together are one point of a timeline."""

TIMES = 400
"""Moments at which instances are counted for a picture."""

MAX_LINKS = 16
"""That are drawn one by one: of more, one sees their sums only."""

COLOURS = {
    "static-full": "#555555",
    "static-mean": "#aaaaaa",
    "stop+disk": "#d55e00",
    "stop+disk-300": "#e69f00",
    "stop+host": "#f0c808",
    "stop+star": "#cc79a7",
    "stop+chain": "#9b4dca",
    "pipeline": "#56b4e9",
    "live-best-effort": "#0072b2",
    "live-zigzag": "#009e73",
    "live": "#44bb44",
    "oracle": "#000000",
}
"""Okabe and Ito's, as far as they go: they are told apart by everybody."""

Group = Mapping[str, Sequence[Record]]


class NoMatplotlib(Exception):
    """There is nothing to draw with."""


def draw(records: Iterable[Record], folder: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Draw all figures into a folder; return the files. Raises NoMatplotlib, OSError.

    A figure for which the records have nothing is left out.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  who draws nothing needs none
    except ImportError:
        raise NoMatplotlib(
            "no figures without matplotlib: pip install 'blitzgw[figures]'"
        ) from None
    group: dict[str, list[Record]] = {}
    for record in sorted(records, key=_order):
        if not why_void(record):
            group.setdefault(record.system, []).append(record)
    written: list[Path] = []
    for name, (draws, size) in _FIGURES.items():
        figure = Figure(figsize=size, layout="constrained")
        if group and draws(figure, group):
            figure.suptitle(_title(group), fontsize=8, color="#444444")
            written += _save(figure, [folder / f"{name}.{form}" for form in formats])
    return written


def _save(figure: Figure, files: list[Path]) -> list[Path]:
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=DPI, metadata=metadata)
    return files


def _order(record: Record) -> tuple[int, str, int]:
    names = [*COLOURS]
    place = names.index(record.system) if record.system in names else len(names)
    return place, record.system, record.seed


def _title(group: Group) -> str:
    """Say what is played, for every figure stands alone."""
    records = [*chain.from_iterable(group.values())]
    about, seeds = records[0].about, {record.seed for record in records}
    kind = "simulated" if records[0].virtual else "paced"
    window = about.get("window") or (0, 0)
    return (
        f"{kind}: {Path(str(about.get('trace', ''))).stem} {window[0]:g}–{window[1]:g} s"
        f" × {about.get('factor', 1):g}, {about.get('nodes', '?')} nodes, load/compute"
        f" {about.get('load_over_compute', '?')}, {len(seeds)} seeds; undilated seconds"
    )


def _colour(system: str) -> str:
    return COLOURS.get(system, "#7f7f7f")


def _lines(axes: Axes) -> None:
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=7)


def _ttft(figure: Figure, group: Group) -> bool:
    whole, tail = figure.subplots(1, 2)
    for system, records in group.items():
        values = sorted(chain.from_iterable(map(ttft_s, records)))
        count = len(values)
        shares = [(place + 1) / count for place in range(count)]
        whole.step(values, shares, where="post", label=system, color=_colour(system))
        later = [1 - share + 1 / count for share in shares]
        tail.step(values, later, where="pre", label=system, color=_colour(system))
    for axes in (whole, tail):
        axes.set_xscale("log")
        axes.set_xlabel("time to first token, s")
        _lines(axes)
    whole.set_ylabel("share of requests within")
    tail.set_ylabel("share of requests later")
    tail.set_yscale("log")
    return True


def _timeline(figure: Figure, group: Group) -> bool:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    first = next(iter(group.values()))
    window_s = _window_s(first)
    width = window_s / BINS
    for system, records in group.items():
        bins: list[list[float]] = [[] for _ in range(BINS)]
        for record in records:
            for answer, value in zip(record.answers, ttft_s(record), strict=True):
                bins[min(BINS - 1, int(answer.at_s / width))].append(value)
        points = [((n + 0.5) * width, quantile(one, 0.9)) for n, one in enumerate(bins) if one]
        upper.plot(*zip(*points, strict=True), ".-", label=system, color=_colour(system), lw=1)
    arrivals = [answer.at_s for record in first for answer in record.answers]
    lower.hist(
        arrivals,
        bins=BINS,
        range=(0, window_s),
        weights=[1 / width / len(first)] * len(arrivals),
        color="#999",
    )
    upper.set_yscale("log")
    upper.set_ylabel("p90 time to first token, s")
    lower.set_ylabel("requests/s")
    lower.set_xlabel("arrival, s since the window's start")
    _lines(upper)
    return True


def _instances(figure: Figure, group: Group) -> bool:
    axes = figure.subplots()
    for system, records in group.items():
        stop_s = max(record.seconds for record in records)
        moments = [stop_s * n / TIMES for n in range(TIMES)]
        counts = [_held(record, moments) for record in records]
        means = [sum(each) / len(records) for each in zip(*counts, strict=True)]
        axes.step(moments, means, where="post", label=system, color=_colour(system), lw=1.2)
    axes.set_xlabel("s since the window's start")
    axes.set_ylabel("instances paid for, mean over seeds")
    axes.set_ylim(bottom=0)
    _lines(axes)
    return True


def _held(record: Record, moments: Sequence[float]) -> list[float]:
    """Return how many instances are paid for at moments."""
    looks = sorted(record.looks, key=lambda one: one.at_s)
    starts, paid = [one.at_s for one in looks], paid_states(record)
    places = (bisect_right(starts, moment) - 1 for moment in moments)
    return [float(looks[max(0, place)].held(paid)) if looks else 0.0 for place in places]


def _waterfall(figure: Figure, group: Group) -> bool:
    axes = figure.subplots()
    found = {
        system: medians(chain.from_iterable(map(growths, records)))
        for system, records in group.items()
    }
    found = {system: phases for system, phases in found.items() if phases}
    shades = ["#bbbbbb", "#888888", "#56b4e9", "#0072b2", "#009e73", "#e69f00"]
    for place, phases in enumerate(found.values()):
        known = [(phase, phases[phase]) for phase in PHASES if phase in phases]
        for (_, start_s), (phase, stop_s) in pairwise(known):
            shade = shades[PHASES.index(phase) - 1]
            axes.barh(place, max(0.0, stop_s - start_s), left=start_s, color=shade, height=0.6)
        axes.text(known[-1][1], place, f" {known[-1][1]:.2f} s", va="center", fontsize=7)
    axes.set_yticks(range(len(found)), [*found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("s since the decision, medians over scale-ups; each bar ends with its phase")
    for phase, shade in zip(PHASES[1:], shades, strict=True):
        axes.barh(0, 0.0, color=shade, label=phase)  # for the legend
    axes.legend(fontsize=7)
    return bool(found)


def _links(figure: Figure, group: Group) -> bool:
    shown = {system: _bytes(records) for system, records in group.items()}
    shown = {system: links for system, links in shown.items() if links}
    if not shown:
        return False
    classes = sorted({one for links in shown.values() for by in links.values() for one in by})
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (system, links) in zip(grid.flat, shown.items(), strict=False):
        below = [0.0] * len(links)
        for number, one in enumerate(classes):
            sizes = [by.get(one, 0.0) / 1e6 for by in links.values()]
            axes.bar(range(len(links)), sizes, bottom=below, label=one, color=f"C{number}")
            below = [low + size for low, size in zip(below, sizes, strict=True)]
        axes.set_title(system, fontsize=8)
        axes.set_xticks(range(len(links)), [*links], rotation=90, fontsize=5)
    for axes in [*grid.flat][len(shown) :]:
        axes.set_visible(False)
    grid[0][0].legend(fontsize=6)
    for line in grid:
        line[0].set_ylabel("MB, mean over seeds", fontsize=7)
    return True


def _bytes(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Return mean bytes by link and class; the sums by class where there are many links."""
    found: dict[str, dict[str, float]] = {}
    for record in records:
        many = len(record.bytes_by_link) > 2 * MAX_LINKS
        for link, by in record.bytes_by_link.items():
            mine = found.setdefault("all" if many else link, {})
            for one, size in by.items():
                mine[one] = mine.get(one, 0.0) + size / len(records)
    return dict(sorted(found.items(), key=lambda item: item[0].split()[::-1]))


def _objectives(figure: Figure, group: Group) -> bool:
    axes = figure.subplots()
    for system, records in group.items():
        due = objective_of(records[0]).times
        factors = sorted({*SWEEP, due})
        shares = [median(attainment(record, one) for record in records) for one in factors]
        axes.plot(factors, shares, "o-", label=system, color=_colour(system), lw=1.2, ms=3)
    axes.set_xscale("log")
    axes.set_xticks([*SWEEP], [f"{one:g}" for one in SWEEP])
    axes.minorticks_off()
    axes.set_xlabel("objective, times what a request takes alone")
    axes.set_ylabel("attainment, median over seeds")
    _lines(axes)
    return True


def _window_s(records: Sequence[Record]) -> float:
    """Return how long requests came."""
    last_s = max(answer.at_s for record in records for answer in record.answers)
    return max(last_s, 1e-3)


_FIGURES: Mapping[str, tuple[Callable[[Figure, Group], bool], tuple[float, float]]] = {
    "ttft": (_ttft, (11, 4.5)),
    "timeline": (_timeline, (11, 5.5)),
    "instances": (_instances, (11, 4.5)),
    "waterfall": (_waterfall, (10, 4.5)),
    "links": (_links, (11, 8)),
    "objectives": (_objectives, (6.5, 4.5)),
}
