"""How many instances a model should have, and why. Pure: the same arguments, the same verdict.

The bands are in bands.py. Below one: jump to its aim at once. Above all of them for `patience_s`:
one fewer, of 16 and more up to an eighth, and again after as long. In between: nothing. What has
been answered is not answered again: instances that load count, the more the sooner they are there,
and while the queue is being worked off that had been the reason, only work counts that they will
not be able to do in time.

      fewer ◄─ some, after patience_s│  as it is  │ jump to aim, at once ─► more
    ─────────────────────────────── high ─────── low ───────────────────────────
                                     (bounds on the number of instances fall as load rises)

Where one has gone too many on an unchanged load, as chance may have it, the patience doubles.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.case import Case, assess, whole
from blitzgw.scaling.figures import Figures
from blitzgw.scaling.fleet import Fleet, PolicyState, Verdict
from blitzgw.scaling.reasons import basis, why_floor, why_more

__all__ = ["Fleet", "PolicyState", "Verdict", "decide"]

ORDER_S = 1.0
"""For how long an order counts that has not shown yet: devices are claimed within that, or the
order has failed and what is lacking is ordered again."""

LEAVING = 8
"""Of so many instances one may go at once: a fleet halves in six patiences, whatever its size, and
what has been a mistake is small."""

FLAP_S = 60.0
"""Within which an instance that is needed again should not have gone."""

FLAP_GROWTH = 1.3
"""A steady rate that has grown by more than that since is a new load, and no doubt follows."""

MOST_DOUBT = 4
"""Patience doubles that often at most: from 2 s to 32 s."""

CALM_S = 120.0
"""After which a doubt is forgotten."""

LOOK_S = 0.5
"""When to look again while rates change by themselves, by time alone."""


def decide(
    figures: Figures, terms: ScaleTerms, fleet: Fleet, state: PolicyState, now: float
) -> Verdict:
    """Return how many instances a model should have. Keep the verdict's state for the next time."""
    case = Case(figures, terms, fleet, _aged(state, now), now)
    assess(case)
    if fleet.fixed is not None:
        return _fixed(case, fleet.fixed)
    if _to_zero(case):
        return _verdict(case, 0, 0, f"no request for {figures.idle_s:.3g} s")
    if case.lacking or case.floor > case.level:
        return _grow(case)
    if case.level > case.cap:
        return _verdict(case, case.cap, case.level, f"no more than {case.cap} are allowed")
    return _shrink(case)


def _to_zero(case: Case) -> bool:
    idle_s = case.terms.idle_to_zero_s
    return (
        case.fleet.least == 0
        and not case.demand
        and case.level > 0
        and 0 < idle_s <= case.figures.idle_s
    )


def _grow(case: Case) -> Verdict:
    """Return the verdict where there are too few."""
    causes = case.lacking
    needed = max((whole(band.aim) for band in causes), default=0)
    target = max(case.floor, case.level + max(0, math.ceil(needed - case.worth - 1e-9)))
    needed = max(needed, target)
    wanted = min(target, case.cap)
    case.state = _since(case.state, None, 0)
    if wanted <= case.level:
        return _verdict(
            case, wanted, needed, f"{needed} are needed, {case.cap} is all there can be"
        )
    if not causes or not case.fleet.present:
        return _verdict(case, wanted, needed, why_floor(case))
    cause = max(causes, key=lambda band: band.aim)
    return _verdict(case, wanted, needed, why_more(case, cause))


def _shrink(case: Case) -> Verdict:
    """Return the verdict where there are enough, perhaps too many."""
    high = max(case.floor, *(whole(band.high) for band in case.found))
    if case.figures.prefill_tokens_per_s is None and case.demand:
        high = max(high, case.level)
    needed = min(case.level, high)
    if high >= case.level:
        case.state = _since(case.state, None, 0)
        return _verdict(case, case.level, needed, "the load is within what they are for")
    since = case.state.fewer_since
    since = case.now if since is None else min(since, case.now)
    fewest = min(max(high, case.state.fewest), case.level - 1)  # some may have died meanwhile
    case.state = _since(case.state, since, fewest)
    going = min(case.level - fewest, max(1, case.level // LEAVING))
    if case.now - since < case.patience_s:
        left_s = since + case.patience_s - case.now
        go = "one goes" if going == 1 else f"{going} go"
        return _verdict(case, case.level, needed, f"{fewest} would do; {go} in {left_s:.2g} s")
    reason = f"{fewest} would do, for {case.now - since:.3g} s now"
    return _verdict(case, case.level - going, needed, reason)


def _since(state: PolicyState, fewer_since: float | None, fewest: int) -> PolicyState:
    """Return a state with the moment since when fewer would do: mostly the one that it has."""
    if state.fewer_since == fewer_since and state.fewest == fewest:
        return state
    return replace(state, fewer_since=fewer_since, fewest=fewest)


def _fixed(case: Case, fixed: int) -> Verdict:
    most = max(case.level, case.fleet.present + max(0, case.fleet.devices))
    return _verdict(case, min(max(0, fixed), most), max(0, fixed), f"an operator wants {fixed}")


def _verdict(case: Case, wanted: int, needed: int, reason: str) -> Verdict:
    """Return a verdict, with what follows for the state."""
    action = _action(case, wanted)
    state = _after(case, wanted)
    return Verdict(
        wanted, needed, action, reason, state, _again_s(case, state), partial(basis, case)
    )


def _action(case: Case, wanted: int) -> str:
    if wanted == case.level:
        return "hold"
    if wanted < case.level:
        return "shrink" if wanted else "zero"
    if not case.fleet.present and case.demand:
        return "wake"
    mends = case.fleet.fixed is not None or wanted == case.fleet.least
    return "mend" if mends else "grow"


def _after(case: Case, wanted: int) -> PolicyState:
    """Return the state after a verdict."""
    state, now, rate = case.state, case.now, case.figures.steady_tokens_per_s
    if wanted > case.level:
        flaps = (
            now - state.shrunk_s < FLAP_S
            and wanted <= state.shrunk_from + 1
            and rate <= FLAP_GROWTH * state.shrunk_rate
        )
        if flaps:
            state = replace(state, doubt=min(MOST_DOUBT, state.doubt + 1), doubted_s=now)
        return replace(
            state,
            fewer_since=None,
            fewest=0,
            ordered=wanted,
            ordered_until_s=now + ORDER_S,
            grown_s=now,
            answering=True,
            shrunk_s=-math.inf,
        )
    if wanted < case.level:
        return replace(
            state,
            fewer_since=None,
            fewest=0,
            ordered=0,
            ordered_until_s=-math.inf,
            shrunk_from=case.level,
            shrunk_s=now,
            shrunk_rate=rate,
        )
    return state


def _aged(state: PolicyState, now: float) -> PolicyState:
    if state.doubt and now - state.doubted_s > CALM_S:
        return replace(state, doubt=0)
    return state


def _again_s(case: Case, state: PolicyState) -> float | None:
    """Return when time alone may change the verdict."""
    fleet, now = case.fleet, case.now
    times: list[float] = []
    if case.level != fleet.serving or state.answering:
        times.append(now + LOOK_S / 2)
    if case.level > max(1, fleet.least):
        times.append(now + LOOK_S)
    if state.fewer_since is not None:
        times.append(max(now, state.fewer_since + case.patience_s))
    idle_s = case.terms.idle_to_zero_s
    if idle_s > 0 and not fleet.least and case.level and not case.demand:
        times.append(now + max(0.0, idle_s - case.figures.idle_s))
    return min(times, default=None)
