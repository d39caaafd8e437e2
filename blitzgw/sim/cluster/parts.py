"""A simulation in parts of its time, to be carried out side by side: for hours of large clusters.

    part      [start, stop) of the window: whose requests, looks and decisions count
    lead      before it, to forget that the cluster begins as one that has just been started: queues
              empty and instances come within seconds, but a policy remembers its doubts longer
    tail      after it, so that its last requests have as many beside them as any

This is time-parallel simulation with states that are met approximately (R. M. Fujimoto, Parallel
and Distributed Simulation Systems, 2000, chapter 6.3); by how much, tests/sim measures. Parts are
thrown their own dice for failures and routers. What links carry is counted for lead and tail too,
and is taken in proportion; what `about` counts (events, operations, decisions) is all of what was
done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blitzgw.scaling.policy import CALM_S, FLAP_S
from blitzgw.sim.cluster.setup import ClusterSetup, ModelSetup
from blitzgw.sim.evaluation.record import Look, Record

LEAD_S = FLAP_S + CALM_S + 60.0
"""Where instances come and go without end, doubts are never forgotten: then there is no such time,
and parts find a little more change than one run."""

TAIL_S = 10.0

SEEDS_APART = 1_000_003
"""Between the dice of two parts: those of models and runs are nearer."""


@dataclass(frozen=True, slots=True)
class Part:
    """What counts of a part, and from when to when it is simulated, in seconds of the window."""

    number: int
    start_s: float
    stop_s: float
    begins_s: float
    ends_s: float


def parts_of(duration_s: float, count: int) -> list[Part]:
    """Return as many parts, all of one length. The first has no lead, the last no tail."""
    ends = [duration_s * number / count for number in range(count + 1)]
    return [
        Part(
            number,
            ends[number],
            ends[number + 1],
            max(0.0, ends[number] - LEAD_S),
            min(duration_s, ends[number + 1] + TAIL_S),
        )
        for number in range(count)
    ]


def setup_of_part(setup: ClusterSetup, part: Part) -> ClusterSetup:
    """Return the setup of a part; its requests come as many seconds earlier as it begins late."""
    return replace(
        setup,
        models=tuple(_model_of(model, part) for model in setup.models),
        duration_s=part.ends_s - part.begins_s,
        seed=setup.seed + part.number * SEEDS_APART,
    )


def _model_of(model: ModelSetup, part: Part) -> ModelSetup:
    arrivals = tuple(
        replace(one, at_s=one.at_s - part.begins_s)
        for one in model.arrivals
        if part.begins_s <= one.at_s < part.ends_s
    )
    return replace(model, arrivals=arrivals)


def counted(record: Record, part: Part) -> Record:
    """Keep what counts of a part's record, and move it to where it is in the window."""
    start_s, stop_s = part.start_s - part.begins_s, part.stop_s - part.begins_s
    share = (part.stop_s - part.start_s) / (part.ends_s - part.begins_s)
    is_last = part.stop_s >= part.ends_s

    def counts(at_s: float) -> bool:
        return start_s <= at_s < stop_s or (is_last and at_s >= stop_s)

    answers = [one for one in record.answers if start_s <= one.at_s < stop_s]
    for answer in answers:
        answer.at_s += part.begins_s
    looks = [Look(one.at_s + part.begins_s, one.states) for one in record.looks]
    first = bisect_right(looks, part.start_s, key=lambda one: one.at_s)
    found = [Look(part.start_s, looks[first - 1].states)] if first else []
    found += [one for one in looks[first:] if is_last or one.at_s < part.stop_s]
    return replace(
        record,
        answers=answers,
        looks=found,
        seconds=record.seconds + part.begins_s if is_last else part.stop_s,
        operations=_moved(record.operations, counts, part.begins_s),
        decisions=_moved(record.decisions, counts, part.begins_s),
        bytes_by_link={
            link: {name: carried * share for name, carried in by.items()}
            for link, by in record.bytes_by_link.items()
        },
    )


def joined(parts: Sequence[Record], system: str, seed: int, about: Mapping[str, Any]) -> Record:
    """Return the record of the whole out of those of its parts, in order, as `counted` gives them.

    `wall_s` is the time that all of them took together.
    """
    whole = Record(system, seed, virtual=True, about={**parts[-1].about, **about})
    links: dict[str, Counter[str]] = {}
    for part in parts:
        whole.answers += part.answers
        whole.looks += part.looks
        whole.operations += part.operations
        whole.decisions += part.decisions
        whole.failure = whole.failure or part.failure
        for link, carried in part.bytes_by_link.items():
            links.setdefault(link, Counter()).update(carried)
    whole.bytes_by_link = {link: dict(carried) for link, carried in links.items()}
    whole.seconds = max(part.seconds for part in parts)
    wall_s = sum(float(part.about["wall_s"]) for part in parts)
    events = sum(int(part.about["events"]) for part in parts)
    whole.about |= {
        "events": events,
        "wall_s": round(wall_s, 3),
        "events_per_s": round(events / max(wall_s, 1e-9)),
        "pictures": sum(int(part.about["pictures"]) for part in parts),
    }
    for name in ("operations", "decisions"):
        found: Counter[str] = Counter()
        for part in parts:
            found.update(part.about[name])
        whole.about[name] = dict(found)
    return whole


def _moved(
    told: Sequence[dict[str, Any]], counts: Callable[[float], bool], by_s: float
) -> list[dict[str, Any]]:
    """Keep what counts of what is told with its moment (`at_s`), and move it."""
    return [{**one, "at_s": one["at_s"] + by_s} for one in told if counts(one["at_s"])]
