"""From zero the plan is taken by which the first request can be served first, at a fair price."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.plan import Holder, Plan, Prediction, Tier
from blitzgw.scaling.planner import binomial, parts
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.choose import Choice, choose
from blitzgw.scaling.planner.pipelines import USEFUL, alone_s, pipelines
from blitzgw.scaling.zero import LATER, MAX_TARGETS, together
from tests.scaling.planner_kit import RATE, even_links, even_task
from tests.scaling.test_planner_parts import LAYERS, links, readers


def ready_s(choice):
    found = pipelines(choice.plan, choice.prediction, LAYERS)
    return min((each.ready_s for each in found), default=None)


def served_together(task, network):
    return together(choose, task, network, ready_s)


@pytest.mark.parametrize("tier", list(Tier))
def test_targets_that_read_for_themselves(tier):
    task, network = readers(4, tier), links(4, disks=RATE, rate=RATE / 4, hosts=2 * RATE)
    found = served_together(task, network)
    assert found.plan.strategy == parts.OWN_NAME
    assert ready_s(found) < 0.35 * alone_s(choose(task, network).prediction.arrivals)
    assert found.alternatives.keys() > {parts.OWN_NAME}, "what others would have taken"


def test_parts_are_passed_round_where_the_network_is_in_between():
    task, network = readers(2), links(2, disks=RATE, rate=0.6 * RATE)
    found = served_together(task, network)
    assert found.plan.strategy in (parts.NAME, parts.OWN_NAME)
    assert ready_s(found) <= USEFUL * alone_s(choose(task, network).prediction.arrivals)


def test_two_sources():
    task = even_task(2, 2, blobs=LAYERS + 2)
    found = served_together(task, even_links(4))
    assert found.plan.strategy == binomial.NAME


@pytest.mark.parametrize(
    ("task", "network"),
    [
        (even_task(4, 1, blobs=LAYERS + 2), even_links(5)),
        (readers(2), links(2, disks=RATE, rate=20 * RATE)),
        (readers(1), links(1, disks=RATE)),
        (readers(2, nodes=1), links(1, disks=RATE)),
        (readers(MAX_TARGETS + 1), links(MAX_TARGETS + 1, disks=RATE, rate=RATE / 4)),
    ],
)
def test_none_where_it_is_no_sooner_or_too_much_to_plan(task, network):
    assert served_together(task, network) is None


def test_one_host_copy_elsewhere_feeds_them_all_and_gains_nothing():
    task = even_task(2, 1, blobs=LAYERS + 2)
    every = frozenset(range(LAYERS + 2))
    task = replace(task, holders=(Holder("n0/0", every, Tier.HOST),))
    assert served_together(task, even_links(3)) is None


def test_not_at_the_price_of_a_much_later_end():
    def slow(late_s):
        def made(_task, _links, name):
            arrivals = {"a/0": (4.0, 10.0), "b/0": (5.0, 10.0)}
            end = late_s if name == parts.OWN_NAME else 10.0
            if name in (binomial.NAME, parts.NAME):
                raise PlanError("no")
            return Choice(Plan(name or "disk", ()), Prediction(arrivals, end, 1.0, 2.0))

        return made

    def ready(choice):
        return 2.0 if choice.plan.strategy == parts.OWN_NAME else None

    task = even_task(2, 2)
    network = even_links(4)
    assert together(slow(10.0 * LATER), task, network, ready).plan.strategy == parts.OWN_NAME
    assert together(slow(10.1 * LATER), task, network, ready) is None
