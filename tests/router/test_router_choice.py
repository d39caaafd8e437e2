"""Which instance a router prefers: predictions, caches, sessions, chance."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.ports import Outlook
from blitzgw.router.choice import (
    MAX_DOUBT_S,
    PRIOR_TOKENS_PER_S,
    SLACK_S,
    SLACK_SHARE,
    assess,
    choose,
    predicted_ttft_s,
    rendezvous,
    usual_rate,
)
from blitzgw.router.fleet import Fleet

REMOTE = {"distance_s": 0.001, "age_s": 0.05}


class Figures:
    """An instance that is nothing but its outlook."""

    def __init__(self, instance, outlook):
        self.instance, self.model, self._outlook = instance, "m", outlook

    def outlook(self):
        return self._outlook


def fleet(**outlooks):
    made = Fleet()
    for name, outlook in outlooks.items():
        made.add(Figures(name, outlook))
    return made


def prospects(prompt_tokens=100, cached=(), **outlooks):
    seats = fleet(**outlooks).of("m")
    serials = {seat.port.instance: seat.serial for seat in seats}
    return assess(seats, prompt_tokens, {serials[name]: n for name, n in dict(cached).items()})


def picks(found, session="", draws=200):
    """How often each instance is chosen."""
    dice = random.Random(5)
    return Counter(choose(found, session, dice).instance for _ in range(draws))


@pytest.mark.parametrize(
    ("outlook", "uncached", "rate", "expected_s"),
    [
        (Outlook(0), 100, 1000.0, 0.1),
        (Outlook(900), 100, 1000.0, 1.0),
        (Outlook(900, distance_s=0.25), 100, 500.0, 2.25),
        (Outlook(0, distance_s=0.25), 0, 10.0, 0.25),
    ],
)
def test_the_prediction(outlook, uncached, rate, expected_s):
    assert predicted_ttft_s(outlook, uncached, rate) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ([], PRIOR_TOKENS_PER_S),
        ([None, None], PRIOR_TOKENS_PER_S),
        ([None, 0.0], PRIOR_TOKENS_PER_S),
        ([None, 300.0, 100.0], 200.0),
    ],
)
def test_an_unknown_rate_is_the_others(rates, expected):
    assert usual_rate(Outlook(0, prefill_tokens_per_s=rate) for rate in rates) == expected


def test_prospects_of_open_instances_with_what_is_cached():
    found = prospects(
        100,
        {"b": 64, "c": 1000},
        a=Outlook(50, 500.0),
        b=Outlook(14, 500.0),
        c=Outlook(0),
        shut=Outlook(0, 500.0, open=False),
    )
    assert [(p.instance, p.cached_tokens) for p in found] == [("a", 0), ("b", 64), ("c", 99)]
    assert [p.predicted_s for p in found] == pytest.approx([0.3, 0.1, 1 / 500])


def test_one_of_this_node_has_exact_figures():
    found = prospects(a=Outlook(0), b=Outlook(0, age_s=0.1), c=Outlook(0, distance_s=0.1))
    assert [p.exact for p in found] == [True, False, False]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_instances_are_taken_equally(n):
    found = prospects(**{f"i{i}": Outlook(7, 1e4, **REMOTE) for i in range(n)})
    counts = picks(found, draws=400)
    assert len(counts) == n
    assert min(counts.values()) > 0.6 * 400 / n


def test_one_that_is_clearly_worse_is_not_taken():
    found = prospects(a=Outlook(0, 1e3, **REMOTE), b=Outlook(1000, 1e3, **REMOTE))
    assert picks(found) == {"a": 200}


def test_of_three_that_may_be_the_best_the_worst_is_never_better_of_two():
    found = prospects(
        a=Outlook(0, 1e3, **REMOTE), b=Outlook(20, 1e3, **REMOTE), c=Outlook(40, 1e3, **REMOTE)
    )
    counts = picks(found)
    assert counts["a"] > counts["b"] > counts["c"] == 0


def test_old_figures_are_doubted_up_to_a_limit():
    def chosen(queued, age_s):
        return picks(
            prospects(
                100,
                a=Outlook(0, 1e3, 0.001, age_s),
                b=Outlook(queued, 1e3, 0.001, age_s),
                c=Outlook(queued, 1e3, 0.001, age_s),
            )
        ).keys()

    assert chosen(90, 0.01) == {"a"}
    assert chosen(90, 0.05) == {"a", "b", "c"}
    limit_tokens = 1e3 * (2 * MAX_DOUBT_S + SLACK_S + 0.101 * SLACK_SHARE)
    assert chosen(limit_tokens - 1, 1e6) == {"a", "b", "c"}
    assert chosen(limit_tokens + 1, 1e6) == {"a"}


def test_one_of_this_node_is_preferred_where_it_is_as_good():
    here = Outlook(0, 1e3)
    others = {f"i{i}": Outlook(0, 1e3, **REMOTE) for i in range(5)}
    assert picks(prospects(here=here, **others)) == {"here": 200}
    busy = Outlook(70, 1e3)
    assert picks(prospects(here=busy, **others))["here"] == 0


def test_of_those_of_this_node_the_best_is_taken():
    found = prospects(a=Outlook(9, 1e3), b=Outlook(5, 1e3), c=Outlook(7, 1e3))
    assert picks(found) == {"b": 200}


@pytest.mark.parametrize(
    ("queued", "cached", "attached"),
    [
        (0, 500, True),
        (400, 500, True),  # 400 tokens before it, 500 saved
        (500, 500, True),
        (800, 500, False),
        (0, 0, False),
    ],
)
def test_a_cached_prefix_attracts_for_as_long_as_it_saves(queued, cached, attached):
    others = {f"i{i}": Outlook(0, 1e3, **REMOTE) for i in range(5)}
    found = prospects(1000, {"warm": cached}, warm=Outlook(queued, 1e3, **REMOTE), **others)
    assert (picks(found)["warm"] == 200) == attached
    if queued > cached:
        assert picks(found)["warm"] == 0


def test_the_longest_cached_prefix_wins_and_many_share():
    figures = {name: Outlook(0, 1e3, **REMOTE) for name in "abcdef"}
    cached = {"a": 64, "b": 64, "c": 128, "d": 128, "e": 128}
    assert picks(prospects(1000, cached, **figures)).keys() == {"c", "d", "e"}


def test_sessions_go_where_all_nodes_agree_upon():
    names = [f"i{i}" for i in range(8)]
    sessions = [f"tenant/s{i}" for i in range(200)]

    def places(order, seed):
        dice = random.Random(seed)
        found = prospects(**{name: Outlook(seed, 1e4, **REMOTE) for name in order})
        return {session: choose(found, session, dice).instance for session in sessions}

    first = places(names, 1)
    assert first == places(reversed(names), 2)
    assert min(Counter(first.values()).values()) > 10
    without = places(names[1:], 3)
    moved = {session for session in sessions if first[session] != without[session]}
    assert moved == {session for session in sessions if first[session] == "i0"}


def test_what_a_session_belongs_to_is_the_same_in_every_process():
    assert rendezvous("t/s", "m@node/gpu0") == 16058793521603985854


def test_a_session_leaves_an_instance_that_is_clearly_worse():
    found = prospects(**{f"i{i}": Outlook(0, 1e4, **REMOTE) for i in range(4)})
    place = choose(found, "s", random.Random(1)).instance
    figures = {f"i{i}": Outlook(0, 1e4, **REMOTE) for i in range(4)}
    figures[place] = Outlook(9000, 1e4, **REMOTE)
    assert choose(prospects(**figures), "s", random.Random(1)).instance != place


@given(
    figures=st.lists(
        st.tuples(
            st.integers(0, 5000),
            st.sampled_from([None, 500.0, 5000.0]),
            st.sampled_from([0.0, 0.001, 0.05]),
            st.sampled_from([0.0, 0.05, 9.0]),
            st.integers(0, 300),
        ),
        min_size=1,
        max_size=8,
    ),
    session=st.sampled_from(["", "s", "t"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_never_is_one_chosen_that_could_not_be_the_best(figures, session, seed):
    outlooks = {f"i{n}": Outlook(*figure[:4]) for n, figure in enumerate(figures)}
    cached = {f"i{n}": figure[4] for n, figure in enumerate(figures)}
    found = prospects(300, cached, **outlooks)
    chosen = choose(found, session, random.Random(seed))
    best_s = min(p.predicted_s for p in found)
    bound_s = best_s * (1 + SLACK_SHARE) + SLACK_S + 2 * MAX_DOUBT_S
    assert chosen.predicted_s <= bound_s * (1 + SLACK_SHARE)
