"""What instances leave behind for a while is none of the copies that a cluster counts on."""

from dataclasses import replace

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.plan import Holder, Plan, Read, Tier
from blitzgw.core.view import ClusterView, CopyFacts, InstanceFacts
from blitzgw.scaling.copies import (
    DROP_SETTLE_S,
    OBTAIN_SETTLE_S,
    CopyKeeper,
)
from blitzgw.scaling.effects import ObtainCopy
from blitzgw.scaling.events import TimePassed
from blitzgw.scaling.keepers import CopyNeed, complete_copy, copy_needs, keepers
from blitzgw.scaling.links import HOST_BYTES_PER_S, links_of
from blitzgw.scaling.sourcing import Sourcing
from tests.scaling.test_copies_keeper import MODEL, Copies, W, node
from tests.scaling.view_kit import holders

NEED = CopyNeed(W, "m", MODEL.digest, 1)
CACHED = {"c": CopyFacts(W, "m", "g0", 40, "7", complete=True, cached=True)}


def view(*nodes):
    return ClusterView(nodes[0].boot, {each.boot: each for each in nodes})


def kept(which, seconds):
    """What the keeper of the first node does in so long, with a view that stays."""
    keeper = CopyKeeper(lambda: which, lambda _: MODEL, lambda *_: False)
    return [
        effect
        for half in range(int(2 * seconds))
        for effect in keeper.handle(TimePassed(), half / 2)
    ]


def test_it_does_not_count_and_is_left_alone():
    alone = view(replace(node("a"), copies=CACHED))
    assert complete_copy(alone.nodes["a"], W) is None
    assert kept(alone, OBTAIN_SETTLE_S + 1) == [ObtainCopy("g0", "m", MODEL.digest, W, disk=False)]
    none_wanted = view(replace(node("a", copies=0, disk=True), copies=CACHED))
    assert kept(none_wanted, DROP_SETTLE_S + 10) == [], "it goes by its own time"


def test_who_has_it_is_the_first_to_get_one_that_counts():
    nodes = view(node("a"), replace(node("b", free=1), copies=CACHED), node("c", free=1 << 40))
    assert keepers(NEED, nodes, MODEL.size_bytes) == ["b"]
    assert keepers(NEED, view(*nodes.nodes.values(), node("d", copy=True)), 40) == ["d"]


def test_a_copy_is_kept_apart_from_instances():
    there = InstanceFacts("i", "m", MODEL.digest, "g0", 1, InstanceState.SERVING, 1, 1, weights=W)
    busy = [replace(node(name, free=1 << 40), instances={"i": there}) for name in "abc"]
    free = node("d", free=100)
    assert keepers(NEED, view(*busy, free), MODEL.size_bytes) == ["d"]
    assert len(keepers(NEED, view(*busy), MODEL.size_bytes)) == 1, "better there than nowhere"


def test_what_an_instance_has_beside_it_is_not_what_its_death_would_spare():
    there = InstanceFacts("i", "m", MODEL.digest, "g0", 1, InstanceState.SERVING, 1, 1, weights=W)
    beside = replace(node("a", free=1 << 40), instances={"i": there}, copies=CACHED)
    assert keepers(NEED, view(beside, node("b", free=100)), MODEL.size_bytes) == ["b"]
    assert keepers(NEED, view(beside, node("b", free=1)), MODEL.size_bytes) == ["a"]
    assert kept(view(beside, node("b", free=100)), OBTAIN_SETTLE_S + 1) == []


def test_a_copy_is_gone_on_with_where_it_was_begun():
    device = node("a").devices["g0"]
    two = {name: replace(device, id=name) for name in ("g0", "g1")}
    begun = {"c": CopyFacts(W, "m", "g1", 40, "1", complete=False)}
    other = replace(node("b", disk=True, free=1), devices={})
    [effect] = kept(view(replace(node("a"), devices=two, copies=begun), other), OBTAIN_SETTLE_S + 1)
    assert effect.device == "g1"


def test_each_node_can_have_one():
    cluster = Copies(6, count=4096)
    assert {need.count for need in copy_needs(cluster.view("b0")).values()} == {4096}
    cluster.run(30)
    assert cluster.holders() == sorted(cluster.truth)
    cluster.run(100)
    assert cluster.holders() == sorted(cluster.truth)


def test_plans_read_it_at_the_rate_of_its_machine():
    nodes = view(replace(node("a"), copies=CACHED), node("b"))
    found = holders(MODEL, nodes, ["a/g0"])
    assert [(holder.worker, holder.tier) for holder in found] == [("a/g0", Tier.HOST)]
    for told, counts in ((5e6, 5e6), (2.5e10, HOST_BYTES_PER_S)):
        facts = replace(node("a").host_facts, host_bytes_per_s=told)
        limited = replace(nodes.nodes["a"], host_facts=facts)
        found = links_of(view(limited, nodes.nodes["b"])).hosts
        assert found == {"a": counts, "b": HOST_BYTES_PER_S}


@pytest.mark.parametrize("copies", [{}, CACHED], ids=["none", "a copy"])
def test_who_had_no_copy_when_it_began_is_not_planned_to_take_one_later(copies):
    first, later = (
        view(replace(node("a"), copies=which), node("b", disk=True)) for which in (copies, CACHED)
    )
    sourcing = Sourcing(MODEL)
    assert takes_copy(sourcing, first) == bool(copies)
    reads = (Read("a/g0", Tier.HOST, (0, 1, 2)),) if copies else ()
    sourcing.planned(Plan("x", ("a/g0",), (), reads))
    assert takes_copy(sourcing, later) == bool(copies)


def takes_copy(sourcing, which):
    task = sourcing.task(which, ["a/g0"], {"a/g0": ()})
    return Holder("a/g0", frozenset(range(3)), Tier.HOST) in task.holders
