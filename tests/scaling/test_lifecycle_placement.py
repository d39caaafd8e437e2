"""Which device an instance is put on, and which instances go: tables."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import CopyFacts, HostFacts, LoadFacts, NetworkFacts
from blitzgw.scaling.departures import victims
from blitzgw.scaling.freedevices import free_devices, in_turn
from blitzgw.scaling.placement import Candidate, Distance, Revival, ranked
from blitzgw.scaling.survey import instances_of
from tests.scaling.view_kit import MODEL, W, device, instance, node, view

PLAIN = Candidate("n/g", "n", rate_bytes_per_s=1e9, free_bytes=1 << 30, host_bytes=1 << 30)


def at(worker, **changes):
    return replace(PLAIN, worker=worker, node=worker.partition("/")[0], **changes)


@pytest.mark.parametrize(
    "better",
    [
        {"revival": Revival.DRAINING},
        {"revival": Revival.KEPT},
        {"distance": Distance.MEMORY},
        {"distance": Distance.DISK},
        {"near": True},
        {"rate_bytes_per_s": 4e9},
        {"free_bytes": 1 << 32},
        {"host_bytes": 1 << 32},
    ],
)
def test_what_counts_for_a_device(better):
    found = ranked([at("a/g0"), at("b/g0", **better)])
    assert [each.worker for each in found] == ["b/g0", "a/g0"]


@pytest.mark.parametrize("worse", [{"displaces": True}, {"instances_here": 3}])
def test_what_counts_against_a_device(worse):
    found = ranked([at("a/g0", **worse), at("b/g0")])
    assert [each.worker for each in found] == ["b/g0", "a/g0"]


def test_each_reason_goes_before_those_after_it():
    order = [
        {"revival": Revival.DRAINING, "distance": Distance.ELSEWHERE, "displaces": True},
        {"revival": Revival.KEPT, "distance": Distance.ELSEWHERE},
        {"distance": Distance.MEMORY, "displaces": True},
        {"distance": Distance.DISK, "displaces": True},
        {"near": True, "rate_bytes_per_s": 1e6},
        {"rate_bytes_per_s": 8e9, "free_bytes": 1},
        {"free_bytes": 1 << 40, "host_bytes": 1},
        {"host_bytes": 1 << 40, "instances_here": 0},
        {},
    ]
    made = [at(f"n{9 - i}/g0", **changes) for i, changes in enumerate(order)]
    assert [*ranked(reversed(made))] == made


def test_instances_are_spread_over_nodes():
    found = ranked([at(f"{n}/g{i}") for n in "ab" for i in range(3)])
    assert [each.node for each in found] == ["a", "b", "a", "b", "a", "b"]
    there = ranked([at("a/g0", instances_here=2), *(at(f"b/g{i}") for i in range(4))])
    assert [each.node for each in there] == ["b", "b", "a", "b", "b"]


def test_a_fast_port_is_worth_several_slow_ones():
    fast = [at(f"fast/g{i}", rate_bytes_per_s=8e9) for i in range(3)]
    slow = [at(f"slow{i}/g0", rate_bytes_per_s=1e9) for i in range(3)]
    assert [each.node for each in ranked(slow + fast)][:3] == ["fast"] * 3


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=2, max_size=6))
@settings(max_examples=60)
def test_figures_of_nonsense_lose_nobody(rates):
    made = [at(f"n{i}/g0", rate_bytes_per_s=rate) for i, rate in enumerate(rates)]
    assert sorted(each.worker for each in ranked(made)) == [each.worker for each in made]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(Distance), st.sampled_from([1e6, 8e9])),
        max_size=12,
    )
)
@settings(max_examples=60)
def test_each_is_the_next_choice_after_those_before_it(told):
    made = [
        at(f"{name}/g{i:02}", distance=distance, rate_bytes_per_s=rate)
        for i, (name, distance, rate) in enumerate(told)
    ]
    left, found = list(made), [*ranked(made)]
    for number, each in enumerate(found):
        before = [one.node for one in found[:number]]
        after = [replace(one, instances_here=before.count(one.node)) for one in left]
        assert next(ranked(after)).worker == each.worker
        left.remove(each)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1e6, 8e9]), st.booleans()), max_size=5),
    st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from(Distance)), max_size=5),
)
@settings(max_examples=60)
def test_a_crowd_is_ranked_as_all_who_are_in_it(told, others):
    crowds = [
        [
            [at(f"{i}n{n}/g{g}", rate_bytes_per_s=rate, displaces=bool(g)) for g in range(devices)]
            for n in range(5 if many else 1)
        ]
        for i, (devices, rate, many) in enumerate(told)
    ]
    apart = [at(f"{name}/g{i}", distance=where) for i, (name, where) in enumerate(others)]
    everybody = [each for crowd in crowds for node in crowd for each in node]
    found = ranked(apart, [iter(crowd) for crowd in crowds])
    assert [*found] == [*ranked(apart + everybody)]


def test_no_more_of_a_crowd_is_looked_at_than_may_be_next():
    looked = []

    def crowd():
        for i in range(100):
            looked.append(i)
            yield [at(f"n{i:03}/g0")]

    assert [each.worker for each in islice(ranked([], [crowd()]), 3)] == [
        "n000/g0",
        "n001/g0",
        "n002/g0",
    ]
    assert len(looked) <= 4


@given(st.integers(1, 300), st.text(max_size=8))
def test_every_model_has_an_order_of_its_own_of_all_places(count, model):
    places = [f"n{i:03}/" for i in range(count)]
    turns = [*in_turn(places, model)]
    assert sorted(turns) == places
    assert turns == [*in_turn(places, model)]


def test_models_that_grow_at_the_same_time_mostly_ask_for_different_devices():
    there = view(*(node(f"n{i:03}") for i in range(200)))
    models = [replace(MODEL, name=f"m{i}") for i in range(10)]
    asked = [free.worker for one in models for free in islice(free_devices(one, there), 4)]
    assert len(asked) == 40
    assert len(set(asked)) > 30


def workers(*nodes):
    return [free.worker for free in free_devices(MODEL, view(*nodes))]


def test_devices_by_what_views_tell():
    kept = replace(instance("g0", state=InstanceState.KEPT), digest=MODEL.digest)
    drains = replace(instance("g0", state=InstanceState.DRAINING), digest=MODEL.digest)
    copy = CopyFacts(W, "m", "g0", 60, "f", complete=True)
    foreign = instance("g0", model="other", weights="x", state=InstanceState.KEPT)
    found = workers(
        node("a", instances=[foreign]),
        node("b"),
        node("c", zone="r1"),
        node("d", disk=True),
        node("e", copies=[copy], zone="r1"),
        node("f", instances=[kept]),
        node("g", instances=[drains]),
        node("h", net=NetworkFacts("net", "h", 1e12)),
    )
    assert found == ["g/g0", "f/g0", "e/g0", "d/g0", "c/g0", "h/g0", "b/g0", "a/g0"]


@pytest.mark.parametrize(
    "changes",
    [{"digest": "x"}, {"weights": "x"}, {"model": "o"}, {"state": InstanceState.SERVING}],
)
def test_only_an_instance_of_the_same_definition_is_revived(changes):
    drains = replace(instance("g0", state=InstanceState.DRAINING), digest=MODEL.digest)
    (there,) = free_devices(MODEL, view(node("a", instances=[drains])))
    assert there.revives
    assert workers(node("a", instances=[replace(drains, **changes)])) == []


def test_it_is_revived_beside_what_serves_on_its_device():
    kept = replace(instance("g0", state=InstanceState.KEPT), digest=MODEL.digest)
    other = instance("g0", model="other", weights="x")
    assert workers(node("a", instances=[kept, other])) == ["a/g0"]
    assert workers(node("a", instances=[other])) == []
    away = replace(node("a", instances=[kept]), devices={"g0": device("g0", software={})})
    assert workers(away) == []


def test_a_host_with_more_room():
    small = node("a", host_facts=HostFacts(1 << 20))
    large = node("b", host_facts=HostFacts(1 << 34))
    assert workers(small, large) == ["b/g0", "a/g0"]


# Who goes.


def placed(*nodes):
    return instances_of("m", view(*nodes))


def test_the_home_of_one_that_loads_stays_as_long_as_that():
    home = node("a", instances=[instance("g0")])
    spare = replace(
        node("b", instances=[instance("g1")]),
        loads={"m@g1": LoadFacts("m@g1", running=9)},
    )
    helper = replace(instance("g2", state=InstanceState.LOADING), helps="m@g0")
    there = placed(home, spare, node("c", instances=[helper]))
    order = [each.worker for each in victims(there, 3)]
    assert order == ["c/g2", "a/g0", "b/g1"], "once its helper goes, it is no home"
    idle = [each for each in there if each.worker != "c/g2"]
    assert [each.worker for each in victims(idle, 1)] == ["a/g0"]
