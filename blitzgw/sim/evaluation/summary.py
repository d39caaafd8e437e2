"""A record in figures: the row of a table.

    attainment       requests within both objectives / requests offered
    instance time    ∫ devices that hold or receive weights dt, from 0 to the record's end
    late             a request without a first token counts in quantiles of TTFT as if it had come
                     when the client's patience was over, and so does each further token of one that
                     was not answered whole (TPOT): losing requests makes no tail better

What this reads of `Record.about` (seconds undilated): `prefill_tokens_per_s`, `step_s` and `times`,
the objective; `patience_s`, the clients'; `free_when_kept` and `knobs`, of the system; `busy` and
`busy_max`, of a testbed's processors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from blitzgw.sim.evaluation.arrivals import SWEEP, TIMES, Objective
from blitzgw.sim.evaluation.growth import growths, medians
from blitzgw.sim.evaluation.record import HOLDING, MAX_BUSY, MAX_LAG_S, Answer, Look, Record
from blitzgw.sim.evaluation.statistics import quantile

PATIENCE_S = 120.0
"""Of clients, where a record does not tell."""


def objective_of(record: Record, times: float | None = None) -> Objective:
    """Return what was due in a run, or with another factor. Raises ValueError if it is not told."""
    about = record.about
    try:
        rate, step_s = float(about["prefill_tokens_per_s"]), float(about["step_s"])
        return Objective(rate, step_s, float(about.get("times", TIMES)) if times is None else times)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{record.system}, seed {record.seed}: no objective is told") from None


def met(answer: Answer, objective: Objective) -> bool:
    """Tell whether a request was answered whole and in time."""
    due_s = objective.ttft_s(answer.prompt_tokens)
    return answer.ok and 0 <= answer.first_s <= due_s and answer.tpot_s <= objective.tpot_s


def attainment(record: Record, times: float | None = None) -> float:
    """Return the share of offered requests within the objectives; nan where nothing was offered."""
    objective = objective_of(record, times)
    if not record.answers:
        return math.nan
    return sum(met(answer, objective) for answer in record.answers) / len(record.answers)


def ttft_s(record: Record) -> list[float]:
    """Return the time to the first token of each request; the patience where none came."""
    patience_s = _patience_s(record)
    return [one.first_s if one.first_s >= 0 else patience_s for one in record.answers]


def tpot_s(record: Record) -> list[float]:
    """Return the time of a further token of each request; the patience of one that was cut."""
    patience_s = _patience_s(record)
    return [
        one.tpot_s if one.ok else patience_s
        for one in record.answers
        if (one.tokens if one.ok else one.output_tokens) > 1
    ]


def lag_s(record: Record) -> float:
    """Return how late the generator was (p99); nan where nothing was sent, as in a simulation."""
    return quantile((one.lag_s for one in record.answers if one.lag_s > 0), 0.99)


def _patience_s(record: Record) -> float:
    return float(record.about.get("patience_s", PATIENCE_S))


def integral(looks: Iterable[Look], stop_s: float, paid: frozenset[str]) -> float:
    """Return ∫ instances in paid states dt over [0, stop): each look holds until the next."""
    ordered = [*sorted(looks, key=lambda one: one.at_s), Look(stop_s, {})]
    return sum(
        one.held(paid) * max(0.0, min(after.at_s, stop_s) - max(0.0, one.at_s))
        for one, after in pairwise(ordered)
    )


def paid_states(record: Record) -> frozenset[str]:
    """Return the states of instances that are paid for."""
    return HOLDING - {"kept"} if record.about.get("free_when_kept") else HOLDING


def instance_seconds(record: Record) -> float:
    """Return the instance time of a run."""
    return integral(record.looks, record.seconds, paid_states(record))


def why_void(record: Record) -> str:
    """Return why a run must not be counted; empty: it may."""
    return why_failed(record) or why_disturbed(record)


def why_failed(record: Record) -> str:
    """Return what went wrong with the product, or with what it was run on: a finding."""
    if record.failure:
        return f"it failed: {record.failure.splitlines()[0]}"
    if record.wrong:
        return f"{record.wrong} of {record.checked} answers have other tokens than the reference"
    if not record.answers:
        return "nothing was offered"
    return ""


def why_disturbed(record: Record) -> str:
    """Return what else the machine was busy with; it passes, so such a run may be made again."""
    if (late_s := lag_s(record)) > MAX_LAG_S:
        return f"the generator was {1e3 * late_s:.1f} ms late (p99)"
    if (busy := float(record.about.get("busy") or 0.0)) > MAX_BUSY:
        return f"{busy:.0%} of the processors' time was used, more than {MAX_BUSY:.0%}"
    return ""


def row(record: Record) -> dict[str, Any]:
    """Return a record's row. Figures that there are not are None."""
    answers, about = record.answers, record.about
    first, tpot = ttft_s(record), tpot_s(record)
    void, grown = why_void(record), growths(record)
    outcomes = [one.outcome for one in answers]
    figures = {
        "ttft_mean": sum(first) / len(first) if first else math.nan,
        **{f"ttft_p{p}": quantile(first, p / 100) for p in (50, 90, 99)},
        **{f"tpot_p{p}": quantile(tpot, p / 100) for p in (50, 99)},
        "attainment": attainment(record) if answers else math.nan,
        "instance_seconds": instance_seconds(record),
        "seconds": record.seconds,
        "lag_p99": lag_s(record),
    }
    return {
        "system": record.system,
        "seed": record.seed,
        "virtual": record.virtual,
        **{name: value if math.isfinite(value) else None for name, value in figures.items()},
        "requests": len(answers),
        "failed": sum(outcome != "ok" for outcome in outcomes),
        "refused": outcomes.count("refused"),
        "split": sum(bool(one.split) for one in answers),
        "checked": record.checked,
        "wrong": record.wrong,
        "attainment_by_times": {
            f"{times:g}": attainment(record, times) for times in SWEEP if answers
        },
        "growths": len(grown),
        "phases": medians(grown),
        "source": about.get("source", ""),
        "bound_s": about.get("knobs", {}).get("ttft_target_s"),
        "busy": about.get("busy"),
        "busy_max": about.get("busy_max"),
        "weights_sent": sum(
            by.get("weights", 0.0) for link, by in record.bytes_by_link.items() if "tx" in link
        ),
        "model_bytes": about.get("model_bytes"),
        "void": bool(void),
        "disturbed": bool(void) and not why_failed(record),
        "why_void": void,
    }
