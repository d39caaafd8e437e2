"""The policy, one question at a time: the equations as tables, and what holds for all figures."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.figures import Figures
from blitzgw.scaling.policy import Fleet, PolicyState, decide

TERMS = ScaleTerms(mode="auto", ttft_s=1.0, tpot_s=0.1, min_instances=1, patience_s=2.0)
RATED = Figures("m", prefill_tokens_per_s=1000.0, kv_tokens=10_000)
QUEUE = 40
"""Requests: more than any number of instances here."""


def figures(**more):
    if more.get("backlog_tokens") and "held" not in more:
        more.setdefault("waiting", QUEUE)
    return replace(RATED, **more)


def fleet(serving=1, devices=100, **more):
    return Fleet(serving=serving, devices=devices, least=more.pop("least", 1), **more)


def wanted(told, has, state=None, now=100.0, terms=TERMS):
    return decide(told, terms, has, state or PolicyState(), now).wanted


def after_patience(told, has, terms=TERMS):
    state = decide(told, terms, has, PolicyState(), 100.0).state
    return decide(told, terms, has, state, 100.0 + terms.patience_s)


# Before anything has been measured.


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize(
    ("told", "present", "expected"),
    [
        ({"held": 1, "held_tokens": 9, "backlog_tokens": 9}, 0, 1),
        ({"held": 1, "held_tokens": 9, "backlog_tokens": 9}, 1, 1),
        ({"waiting": 1, "backlog_tokens": 9}, 1, 1),
        ({"held": 30, "held_tokens": 900, "backlog_tokens": 900}, 1, 1),
        ({"waiting": 1, "backlog_tokens": 9}, 2, 2),  # an operator's, or of a time before
    ],
)
def test_one_instance_is_there_to_measure_however_late_it_is(told, present, expected, least):
    coming = tuple(Coming(f"m@a/g{i}", 0.1, 50.0, computes=False) for i in range(present))
    has = Fleet(coming=coming, least=least, devices=9, load_s=1.0)
    assert wanted(Figures("m", **told), has) == expected


@pytest.mark.parametrize("serving", [1, 2])
def test_nobody_is_added_to_those_that_have_not_measured_yet(serving):
    told = Figures("m", waiting=1, running=1, backlog_tokens=5000)
    assert wanted(told, fleet(serving)) == serving


# The bands.


@pytest.mark.parametrize(
    ("tokens", "serving", "expected"),
    [
        (700, 1, 1),  # 0.7 s of backlog each: just what is allowed
        (701, 1, 2),  # 0.701 s: to 0.6 s each
        (1400, 2, 2),
        (1401, 2, 3),
        (6000, 1, 10),
        (6000, 8, 10),
        (6000, 9, 9),  # 0.67 s each
        (6000, 12, 12),  # 0.5 s each: as many as are of use
    ],
)
def test_prefill_jumps_to_the_middle_of_the_band(tokens, serving, expected):
    assert wanted(figures(backlog_tokens=tokens, running=1), fleet(serving)) == expected


@pytest.mark.parametrize(("ttft_s", "expected"), [(1.0, 5), (0.5, 10), (2.0, 3), (5.0, 1)])
def test_the_band_follows_the_target(ttft_s, expected):
    terms = replace(TERMS, ttft_s=ttft_s)
    told = figures(backlog_tokens=3000, running=1)
    assert wanted(told, fleet(1), terms=terms) == expected


@pytest.mark.parametrize(
    ("committed", "serving", "expected"),
    [(9_500, 1, 1), (9_501, 1, 2), (19_001, 2, 3), (50_000, 1, 6), (50_000, 6, 6)],
)
def test_decode_is_scaled_by_what_is_committed(committed, serving, expected):
    assert wanted(figures(committed_tokens=committed, running=1), fleet(serving)) == expected


@pytest.mark.parametrize(("running", "serving", "expected"), [(8, 1, 1), (9, 1, 2), (80, 2, 12)])
def test_tpot_bounds_the_batch(running, serving, expected):
    assert wanted(figures(running=running, batch_within=8), fleet(serving)) == expected


@pytest.mark.parametrize(
    ("tokens_per_s", "requests", "serving", "expected"),
    [
        (1890.0, 500, 2, 2),
        (1910.0, 500, 2, 3),  # above 0.95: to 0.8
        (1910.0, 20, 2, 2),  # too few requests to know
    ],
)
def test_instances_are_not_run_close_to_full_use(tokens_per_s, requests, serving, expected):
    told = figures(steady_tokens_per_s=tokens_per_s, steady_requests=requests, arrivals_per_s=10.0)
    assert wanted(told, fleet(serving)) == expected


def test_a_prompt_longer_than_the_target_does_not_ask_for_more_than_helps():
    told = figures(
        backlog_tokens=6000, running=2, arrivals_per_s=0.1, steady_tokens_per_s=300.0
    )  # prompts of 3 s, worth two of them
    assert wanted(told, fleet(2)) == 2


def test_no_more_are_of_use_to_a_queue_than_it_has_requests():
    one = figures(backlog_tokens=6000, waiting=0, running=1)
    assert wanted(one, fleet(1)) == 1
    assert wanted(replace(one, waiting=3), fleet(1)) == 4
    assert after_patience(one, fleet(3)).wanted == 2


def long_prompts(requests):
    """So many requests whose prompts take 1.5 s each, and one every three seconds."""
    return Figures(
        "m",
        backlog_tokens=1500 * requests,
        waiting=requests,
        prefill_tokens_per_s=1000.0,
        arrivals_per_s=1 / 3,
        steady_tokens_per_s=500.0,
    )


@pytest.mark.parametrize("ttft_s", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("requests", range(6))
def test_what_has_gone_is_not_asked_for_again_by_one_request_more(requests, ttft_s):
    terms, there = replace(TERMS, ttft_s=ttft_s), 9
    while after_patience(long_prompts(requests), fleet(there), terms).wanted < there:
        there -= 1
    assert 1 <= there <= requests + 1
    assert wanted(long_prompts(requests + 1), fleet(there), terms=terms) == there


@pytest.mark.parametrize("has", [fleet(2, kept=4), fleet(2, load_s=1.0)])
def test_no_more_are_revived_or_ordered_than_there_will_be_requests(has):
    terms = replace(TERMS, ttft_s=2.0)
    assert wanted(long_prompts(3), has, terms=terms) == 3
    more = replace(long_prompts(3), sustained_tokens_per_s=3000.0)
    assert wanted(more, has, terms=terms) > 3


# Down.


@pytest.mark.parametrize(
    ("more", "serving", "expected"),
    [
        ({}, 5, 4),
        ({"backlog_tokens": 2000}, 5, 4),  # 0.5 s of each of four
        ({"backlog_tokens": 2001}, 5, 5),
        ({"committed_tokens": 30_000}, 5, 4),  # 0.75 of each of four
        ({"committed_tokens": 30_001}, 5, 5),
        ({"running": 32, "batch_within": 10}, 5, 4),
        ({"running": 33, "batch_within": 10}, 5, 5),
        ({"steady_tokens_per_s": 2800.0}, 5, 4),
        ({"steady_tokens_per_s": 2801.0}, 5, 5),
        ({"recent_tokens_per_s": 2801.0, "steady_tokens_per_s": 1.0}, 5, 5),
        ({}, 1, 1),
    ],
)
def test_one_goes_after_patience_if_the_others_suffice(more, serving, expected):
    verdict = after_patience(figures(**more), fleet(serving))
    assert verdict.wanted == expected
    assert verdict.action == ("shrink" if expected < serving else "hold")


def test_steps_down_are_one_by_one_each_after_patience():
    state, serving, steps = PolicyState(), 4, []
    for tick in range(100):
        verdict = decide(figures(), TERMS, fleet(serving), state, tick * 0.1)
        state, serving = verdict.state, verdict.wanted
        if verdict.changes:
            steps.append((round(tick * 0.1, 1), serving))
    assert [n for _, n in steps] == [3, 2, 1]
    assert all(b - a >= 2.0 for (a, _), (b, _) in pairwise(steps))


@pytest.mark.parametrize(
    ("serving", "expected"), [(15, [14, 13, 12]), (16, [14, 13, 12]), (80, [70, 62, 55])]
)
def test_a_large_fleet_shrinks_by_a_part_of_it(serving, expected):
    state, level, steps = PolicyState(), serving, []
    for tick in range(64):
        verdict = decide(figures(), TERMS, fleet(level), state, tick * 0.1)
        state = verdict.state
        if verdict.wanted < level:
            steps.append(verdict.wanted)
            level = verdict.wanted
    assert steps == expected


def test_a_large_fleet_keeps_as_many_as_were_needed_meanwhile():
    state = PolicyState()
    for tick in range(21):
        told = figures(steady_tokens_per_s=53_000 if tick == 9 else 0)  # 0.7 of each of 76
        verdict = decide(told, TERMS, fleet(80), state, tick * 0.1)
        state = verdict.state
        assert verdict.wanted == (80 if tick < 20 else 76)


def test_who_has_died_meanwhile_is_not_replaced_for_what_was_needed_before():
    state = PolicyState()
    for tick in range(21):
        busy = tick == 9
        told = figures(steady_tokens_per_s=53_000 if busy else 0)
        verdict = decide(told, TERMS, fleet(80 if tick < 15 else 40), state, tick * 0.1)
        state = verdict.state
        assert verdict.action == ("hold" if tick < 20 else "shrink")
        assert "-" not in verdict.reason
    assert verdict.wanted == 39


def test_patience_begins_anew_when_they_were_needed():
    state = PolicyState()
    for tick in range(100):
        busy = tick % 15 == 0  # every 1.5 s; patience is 2 s
        told = figures(backlog_tokens=2000 if busy else 0)
        verdict = decide(told, TERMS, fleet(3), state, tick * 0.1)
        state = verdict.state
        assert verdict.wanted == 3


def test_an_instance_that_went_wrongly_makes_for_doubt():
    state = decide(figures(), TERMS, fleet(2), PolicyState(fewer_since=90.0), 100.0).state
    assert state.shrunk_from == 2
    state = decide(figures(backlog_tokens=800, running=1), TERMS, fleet(1), state, 105.0).state
    assert state.doubt == 1
    state = decide(figures(), TERMS, fleet(2), state, 110.0).state
    assert decide(figures(), TERMS, fleet(2), state, 113.9).action == "hold"
    assert decide(figures(), TERMS, fleet(2), state, 114.1).action == "shrink"


# Once.


def test_a_burst_is_answered_once_while_it_is_coming():
    told = figures(backlog_tokens=6000, running=1)
    first = decide(told, TERMS, fleet(1), PolicyState(), 100.0)
    assert (first.action, first.wanted) == ("grow", 10)
    # The order has not shown yet, then it loads, then it serves: the queue is being worked off.
    assert decide(told, TERMS, fleet(1), first.state, 100.02).action == "hold"
    coming = tuple(Coming(f"c{i}", 0.1, 0.9, False) for i in range(9))
    second = decide(told, TERMS, fleet(1, coming=coming), first.state, 100.5)
    assert second.action == "hold"
    third = decide(replace(told, backlog_tokens=9000), TERMS, fleet(10), second.state, 101.1)
    assert third.action == "hold"


def test_more_than_the_burst_is_answered_again():
    first = decide(figures(backlog_tokens=1000, running=1), TERMS, fleet(1), PolicyState(), 100.0)
    more = figures(backlog_tokens=20_000, running=1)
    assert decide(more, TERMS, fleet(1), first.state, 100.5).wanted > first.wanted


def test_an_order_that_never_shows_is_given_again():
    told = figures(backlog_tokens=6000, running=1)
    first = decide(told, TERMS, fleet(1), PolicyState(), 100.0)
    again = decide(told, TERMS, fleet(1), first.state, 103.0)
    assert again.action == "grow"


def test_a_loading_instance_that_comes_late_counts_as_a_fraction():
    late = (Coming("c", 0.0, 60.0, False),)
    soon = (Coming("c", 0.5, 0.5, False),)
    told = figures(committed_tokens=18_000, running=1)
    assert wanted(told, fleet(1, coming=soon)) == 2
    assert wanted(told, fleet(1, coming=late)) > 2


@pytest.mark.parametrize(("serving", "least", "expected"), [(1, 2, 2), (0, 1, 1), (1, 4, 4)])
def test_the_least_there_are_to_be_come_no_sooner_for_others_besides(serving, least, expected):
    late = (Coming("c", 0.1, 60.0, False),)
    has = fleet(serving, coming=late, least=least, load_s=0.5)
    assert wanted(figures(), has) == expected
    answered = decide(figures(), TERMS, has, PolicyState(ordered=4, ordered_until_s=101.0), 100.0)
    assert answered.wanted == 4


@pytest.mark.parametrize(("held", "expected"), [(1, 1), (2, 2)])
def test_a_held_request_wakes_one_instance_however_late_that_is(held, expected):
    late = (Coming("c", 0.3, 5.0, False),)
    told = figures(held=held, held_tokens=14, backlog_tokens=14, committed_tokens=14, held_s=1.0)
    has = fleet(0, coming=late, least=0, load_s=0.5)
    assert wanted(told, has) == expected


def test_what_goes_on_arriving_is_answered_for_what_it_will_be():
    batch = figures(backlog_tokens=800, running=1)
    stream = replace(batch, sustained_tokens_per_s=8000.0, certain_tokens_per_s=6000.0)
    assert wanted(batch, fleet(1)) == 2
    assert wanted(stream, fleet(1)) == 11, "7.8 s are left after a second, and 4 s more come soon"


# Bounds, zero, unknown.


@pytest.mark.parametrize(
    ("told", "has", "expected", "action"),
    [
        ({}, Fleet(devices=9), 0, "hold"),
        ({"held": 1, "held_tokens": 10, "backlog_tokens": 10}, Fleet(devices=9), 1, "wake"),
        ({"held": 1}, Fleet(devices=9), 1, "wake"),
        ({"held": 1}, Fleet(devices=0), 0, "hold"),
        ({"held": 2, "backlog_tokens": 1800}, Fleet(devices=9), 2, "wake"),
        ({"held": 9, "backlog_tokens": 1800}, Fleet(devices=9), 3, "wake"),
        ({}, Fleet(devices=9, least=2), 2, "mend"),
        ({}, Fleet(serving=1, devices=0, least=2), 1, "hold"),
        ({"backlog_tokens": 9000}, Fleet(serving=1, devices=9, most=4), 4, "grow"),
        ({"backlog_tokens": 9000}, Fleet(serving=1, devices=2), 3, "grow"),
        ({}, Fleet(serving=6, devices=9, most=4), 4, "shrink"),
        ({"backlog_tokens": 9000}, Fleet(serving=6, devices=9, most=4), 4, "shrink"),
        ({"backlog_tokens": 9000}, Fleet(serving=1, devices=9, fixed=2), 2, "mend"),
        ({"backlog_tokens": 9000}, Fleet(serving=4, devices=9, fixed=0), 0, "zero"),
        ({}, Fleet(serving=1, devices=2, fixed=9), 3, "mend"),
    ],
)
def test_bounds_and_from_zero(told, has, expected, action):
    verdict = decide(figures(**told), TERMS, has, PolicyState(), 100.0)
    assert (verdict.wanted, verdict.action) == (expected, action)


def test_what_is_lacking_is_told():
    told = figures(backlog_tokens=9000)
    verdict = decide(told, TERMS, fleet(1, devices=2), PolicyState(), 0.0)
    assert (verdict.wanted, verdict.needed) == (3, 15)
    verdict = decide(told, TERMS, fleet(3, devices=0), PolicyState(), 0.0)
    assert (verdict.action, verdict.wanted) == ("hold", 3)
    assert verdict.needed == 15


@pytest.mark.parametrize(
    ("idle_s", "idle_to_zero_s", "least", "running", "expected"),
    [
        (29.0, 30.0, 0, 0, 3),
        (30.0, 30.0, 0, 0, 0),
        (99.0, 0.0, 0, 0, 3),
        (99.0, 30.0, 1, 0, 3),
        (99.0, 30.0, 0, 1, 3),
    ],
)
def test_to_zero_after_idling(idle_s, idle_to_zero_s, least, running, expected):
    terms = replace(TERMS, idle_to_zero_s=idle_to_zero_s)
    verdict = decide(
        figures(idle_s=idle_s, running=running), terms, fleet(3, least=least), PolicyState(), 9.0
    )
    assert verdict.wanted == expected
    if not expected:
        assert verdict.action == "zero"
    elif idle_to_zero_s == 30.0 and idle_s == 29.0:
        assert verdict.again_s <= 10.0


def test_without_a_rate_one_is_begun_with_and_none_goes():
    unknown = Figures("m", held=50, held_tokens=90_000, backlog_tokens=90_000)
    first = decide(unknown, TERMS, Fleet(devices=9), PolicyState(), 0.0)
    assert (first.action, first.wanted) == ("wake", 1)
    waits = Figures("m", waiting=50, backlog_tokens=90_000)
    assert after_patience(waits, fleet(3)).wanted == 3
    assert after_patience(Figures("m"), fleet(3)).wanted == 2


def test_a_verdict_says_why_with_numbers():
    told = figures(backlog_tokens=6000, running=1, predicted_ttft_s=5.4)
    verdict = decide(told, TERMS, fleet(1), PolicyState(), 0.0)
    assert "6000 prompt tokens" in verdict.reason
    assert "target 1 s" in verdict.reason
    formula, inputs = verdict.basis()
    assert "(6000 tokens)/(1e+03 tokens/s)/(hi 0.7 s) = 8.57" in formula
    assert inputs["backlog_tokens"] == 6000.0
    assert inputs["serving_instances"] == 1.0


# What holds for all.

comings = st.lists(
    st.builds(
        Coming,
        st.just("c"),
        st.floats(0, 1),
        st.one_of(st.just(-1.0), st.floats(0, 30)),
        st.booleans(),
    ),
    max_size=3,
).map(tuple)
fleets = st.builds(
    Fleet,
    serving=st.integers(0, 8),
    draining=st.integers(0, 2),
    kept=st.integers(0, 2),
    coming=comings,
    least=st.integers(0, 3),
    most=st.sampled_from([0, 0, 1, 4, 9]),
    devices=st.integers(0, 20),
    load_s=st.floats(0, 10),
)
loads = st.builds(
    Figures,
    model=st.just("m"),
    backlog_tokens=st.integers(0, 30_000),
    committed_tokens=st.integers(0, 100_000),
    held=st.integers(0, 5),
    waiting=st.integers(0, 5),
    running=st.integers(0, 100),
    arrivals_per_s=st.sampled_from([0.0, 5.0]),
    sustained_tokens_per_s=st.floats(0, 20_000),
    certain_tokens_per_s=st.floats(0, 20_000),
    steady_tokens_per_s=st.floats(0, 20_000),
    recent_tokens_per_s=st.floats(0, 20_000),
    steady_requests=st.integers(0, 100),
    prefill_tokens_per_s=st.sampled_from([None, 1000.0, 1000.0, 1000.0]),
    kv_tokens=st.sampled_from([0, 10_000]),
    batch_within=st.sampled_from([0, 8]),
    idle_s=st.floats(0, 100),
)
states = st.builds(
    PolicyState,
    fewer_since=st.sampled_from([None, 90.0, 99.5]),
    ordered=st.integers(0, 9),
    ordered_until_s=st.sampled_from([0.0, 100.5]),
    grown_s=st.sampled_from([0.0, 99.9]),
    answering=st.booleans(),
    doubt=st.integers(0, 2),
)


@settings(max_examples=100, deadline=None)
@given(loads, fleets, states)
def test_bounds_hold_for_all_figures(told, has, state):
    terms = replace(TERMS, idle_to_zero_s=30.0)
    verdict = decide(told, terms, has, state, 100.0)
    ordered = state.ordered if state.ordered_until_s > 100.0 else 0
    level = max(has.present, ordered)
    reachable = max(level, has.present + has.devices)
    assert min(has.least, reachable) <= verdict.wanted <= reachable
    if has.most:
        assert verdict.wanted <= max(has.most, has.least)
        level = min(level, max(has.most, has.least))
    assert verdict.wanted == 0 or verdict.wanted >= level - 1
    assert verdict.wanted <= verdict.needed or verdict.wanted <= level
    assert (told.held == 0) or verdict.wanted >= min(1, reachable)
    assert verdict.reason
    assert verdict.again_s is None or verdict.again_s >= 100.0


@settings(max_examples=150, deadline=None)
@given(loads, fleets, states, st.integers(0, 20_000), st.integers(0, 50_000), st.integers(0, 5))
def test_more_load_never_asks_for_fewer(told, has, state, tokens, committed, held):
    more = replace(
        told,
        backlog_tokens=told.backlog_tokens + tokens,
        committed_tokens=told.committed_tokens + committed,
        held=told.held + held,
    )
    assert wanted(more, has, state) >= wanted(told, has, state)


@settings(max_examples=80, deadline=None)
@given(loads, fleets)
def test_what_is_wanted_is_enough_and_the_same_figures_ask_for_no_more(told, has):
    """With all that was ordered there at once, neither more nor fewer are wanted at that moment."""
    first = decide(told, TERMS, has, PolicyState(), 100.0)
    there = replace(has, serving=first.wanted, coming=(), devices=50)
    second = decide(told, TERMS, there, first.state, 100.01)
    if first.action in ("grow", "wake") and first.wanted == first.needed:
        assert second.wanted == first.wanted
