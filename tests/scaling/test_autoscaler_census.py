"""What is kept of a view, and what an owner reckons with before a view shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.rumours import Status
from blitzgw.core.view import ClusterView, NodeFacts, ScaleFacts, ScaleTerms, ScaleWish
from blitzgw.scaling.autoevents import Coming, Underway
from blitzgw.scaling.census import Census
from blitzgw.scaling.freedevices import free_devices
from blitzgw.scaling.ownership import heirs
from blitzgw.scaling.reckoning import (
    CLAIMED_AFTER_S,
    LAG_S,
    MAX_ORDERS,
    ORDER_PATIENCE_S,
    Reckoning,
)
from blitzgw.scaling.standing import Standing
from tests.scaling.autoscaler_kit import AUTO, Bench, definition, load, model_facts

DRAINING, KEPT, LOADING = InstanceState.DRAINING, InstanceState.KEPT, InstanceState.LOADING


@pytest.fixture
def bench():
    made = Bench({"m": AUTO}, nodes=("a", "b", "c"), devices=2)
    made.put("a/g0")
    made.put("b/g0", LOADING)
    made.put("b/g1", KEPT)
    made.put("c/g0", DRAINING)
    return made


@pytest.fixture
def census(bench):
    made = Census(lambda: bench.view("boot-a"))
    assert made.refresh()
    assert not made.refresh()
    return made


def test_instances_are_counted_by_state(bench, census):
    standing = census.standing("m")
    assert sorted(here.worker for here in standing.counted) == ["a/g0", "b/g0"]
    assert standing.serving == 1
    assert len(standing.loading(census.view)) == 1
    assert standing.revivable(definition()) == {"b/g1", "c/g0"}
    assert standing.revivable(replace(definition(), digest="other")) == set()
    assert census.standing("unknown") == Standing()


def test_room_is_what_operations_find(bench, census):
    for changed in ({}, {"status": Status.DEAD}, {"facts": NodeFacts("b", "", draining=True)}):
        bench.change("boot-b", **changed)
        census.refresh()
        found = {each.worker for each in free_devices(definition(), census.view)}
        assert census.room(definition()) == found


def test_figures_change_nothing(bench, census):
    bench.change("boot-a", loads={"m@a/g0": load("a/g0", waiting=5)})
    bench.change("boot-b", scaling={"m": ScaleFacts("m", "auto", 1, 1)})
    b = bench.nodes["boot-b"]
    later = {name: replace(i, layers_resident=1, blobs="1") for name, i in b.instances.items()}
    bench.change("boot-b", instances=later)
    assert not census.refresh()
    assert census.standing("m").loads(census.view)[0].waiting == 5
    assert census.standing("m").loading(census.view)[0].layers_resident == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"status": Status.DEAD},
        {"facts": NodeFacts("b", "", draining=True)},
        {"instances": {}},
        {"devices": {}},
        {"models": {}},
        {"wishes": {"m": ScaleWish("m", 1, 1, "x")}},
        {"name": "a"},
    ],
)
def test_all_else_does_and_is_seen(bench, census, changes):
    bench.change("boot-b", **changes)
    assert census.refresh()
    fresh = Census(lambda: bench.view("boot-a"))
    fresh.refresh()
    assert census.models() == fresh.models()
    assert census.wishes() == fresh.wishes()
    assert list(census.heirs("m", 3)) == heirs("m", census.view, 3)
    assert census.standing("m") == fresh.standing("m")
    assert census.room(definition()) == fresh.room(definition())
    assert census.terms("m", "d-m") == fresh.terms("m", "d-m")


def test_nodes_that_come_and_go_are_seen(bench, census):
    gone = bench.nodes.pop("boot-b")
    assert census.refresh()
    assert len(census.standing("m").counted) == 1
    bench.nodes["boot-b"] = gone
    assert census.refresh()
    assert len(census.standing("m").counted) == 2


def test_the_oldest_definition_says_the_terms(bench, census):
    younger = replace(model_facts("m", ScaleTerms(priority=7)), since_s=9)
    bench.change("boot-a", models={"m": younger})
    census.refresh()
    assert census.terms("m", "d-m") == AUTO
    for boot in ("boot-b", "boot-c"):
        bench.change(boot, models={})
    census.refresh()
    assert census.terms("m", "d-m").priority == 7
    assert census.terms("m", "?") == ScaleTerms()


# Reckoning.


class Case:
    """A model's book with `serving` instances."""

    def __init__(self, serving):
        self.bench = Bench(devices=9)
        self.census = Census(lambda: self.bench.view("boot-a"))
        self.book, self.serving = Reckoning(), 0
        self.have(serving)

    def have(self, serving):
        for i in range(9):
            self.bench.put(f"a/g{i}", InstanceState.SERVING if i < serving else None)
        self.census.refresh()

    def present(self, now, *underway):
        standing = self.census.standing("m")
        return self.book.outlook(standing, self.census.view, underway, now).present


def growth(wanted, *workers, name="o"):
    return Underway(name, True, wanted, tuple(Coming(f"m@{w}", 0.1, 1.0, False) for w in workers))


def test_orders_count_until_they_show_or_are_lost():
    case = Case(1)
    case.book.ordered(1, 3, True, 0.0)
    assert case.present(0.1) == 3
    case.book.taken(1, "o")
    assert case.present(1.0, growth(3)) == 3
    assert case.present(ORDER_PATIENCE_S + 1, growth(3)) == 3
    assert case.present(ORDER_PATIENCE_S + 2) == 1  # it has ended without a word


def test_a_refused_order_counts_no_more():
    case = Case(1)
    case.book.ordered(1, 3, True, 0.0)
    assert case.book.refused().decision == 1
    assert case.book.refused() is None
    assert case.present(0.1) == 1


def test_the_contrary_voids_orders():
    case = Case(4)
    case.book.ordered(1, 2, False, 0.0)
    assert case.present(0.1) == 2
    case.book.ordered(2, 6, True, 0.2)
    assert case.present(0.3) == 6
    case.book.ordered(3, 1, False, 0.4)
    assert case.present(0.5) == 1


def test_claims_that_are_through_are_all_that_comes():
    case = Case(2)
    running = growth(5, "a/g5")
    assert case.present(0.0, running) == 5
    assert case.present(CLAIMED_AFTER_S / 2, running) == 5
    assert case.present(CLAIMED_AFTER_S, running) == 3


def test_after_a_death_only_claims_count():
    case = Case(2)
    running = growth(3, "a/g5")
    assert case.present(0.0, running) == 3
    case.have(1)
    assert case.present(0.1, running) == 2


def test_what_is_over_counts_as_its_outcome_for_a_while():
    case = Case(1)
    case.present(0.0, growth(3))
    assert case.book.over("o", True, short=False, now=0.5) == (True, [])
    assert case.present(0.6) == 3
    assert case.present(0.6 + LAG_S) == 1
    case.have(3)
    case.present(5.0, Underway("r", False, 1))
    case.book.over("r", True, short=False, now=5.5)
    assert case.present(5.6) == 1
    assert case.present(5.6 + LAG_S) == 3
    case.present(9.0, growth(6, name="s"))
    case.book.over("s", True, short=True, now=9.5)
    assert case.present(9.6) == 3


def test_what_is_given_up_counts_no_more_though_it_shows():
    case = Case(2)
    case.present(0.0, growth(5))
    case.book.cancelled("o")
    assert case.present(0.1, growth(5)) == 2
    assert case.present(0.2) == 2
    assert case.present(0.3, growth(5)) == 5


def test_orders_are_bounded():
    book = Reckoning()
    for i in range(3 * MAX_ORDERS):
        book.ordered(i, i, True, 0.0)
        book.check_integrity()
    assert book.deadline() == ORDER_PATIENCE_S


def test_instances_of_others_count():
    case = Case(1)
    case.bench.put("a/g7", LOADING)
    case.census.refresh()
    outlook = case.book.outlook(
        case.census.standing("m"), ClusterView("", case.bench.nodes), (), 0.0
    )
    assert [each.instance for each in outlook.coming] == ["m@a/g7"]
    assert outlook.coming[0].fraction == 1.0
    assert outlook.coming[0].left_s < 0
