"""What is carried on from one picture to the next is what a new one would say."""

from __future__ import annotations

import random
from dataclasses import replace
from types import MappingProxyType

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.membership import DEFINITIONS, LIVING, MEMBERSHIP
from blitzgw.core.picture import FIGURES, MAX_STALE, MEMBERS, PLACES, Derived, Picture
from blitzgw.core.rumours import Status
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    HostFacts,
    NetworkFacts,
    NodeFacts,
    ScaleTerms,
    ScaleWish,
)
from blitzgw.core.whereabouts import nodes_with
from blitzgw.scaling.census import Census
from blitzgw.scaling.freedevices import free_devices
from blitzgw.scaling.holders import holders_of
from blitzgw.scaling.links import links_of
from blitzgw.scaling.ownership import heirs, owner_of
from blitzgw.scaling.residents import residents
from blitzgw.scaling.survey import instances_of, members
from tests.scaling.autoscaler_kit import definition, load, model_facts, placed
from tests.scaling.view_kit import node

MODELS = ("m", "n", "o")


def changed(rng, of):
    """Return a node with something different, perhaps only figures."""
    pick = rng.randrange(11)
    name = of.name
    if pick == 0:
        return replace(of, status=rng.choice([Status.ALIVE, Status.SUSPECT, Status.DEAD]))
    if pick == 1:
        return replace(of, facts=rng.choice([None, *[NodeFacts(name, "", d) for d in (0, 1)]]))
    if pick == 2:
        return replace(of, name=rng.choice("abc"), port=rng.choice([1, 2]))
    if pick == 3:
        defined = rng.sample(MODELS, rng.randrange(4))
        terms = ScaleTerms(priority=rng.randrange(5))
        told = {
            m: replace(model_facts(m, terms), since_s=rng.randrange(3), disk=rng.random() < 0.8)
            for m in defined
        }
        return replace(of, models=told)
    if pick == 4:
        wished = rng.sample(MODELS, rng.randrange(3))
        return replace(of, wishes={m: ScaleWish(m, rng.randrange(4), 1, of.boot) for m in wished})
    if pick in (5, 6):
        made = [
            placed(device, rng.choice([*InstanceState]), rng.choice(MODELS), name)
            for device in rng.sample(sorted(of.devices), rng.randrange(len(of.devices) + 1))
        ]
        return replace(of, instances={each.id: each for each in made})
    if pick == 7:
        weights = rng.sample([f"w-{m}" for m in MODELS], rng.randrange(3))
        made = [CopyFacts(w, w[2:], "g0", 60, "f", rng.random() < 0.5) for w in weights]
        return replace(of, copies={each.weights: each for each in made})
    if pick == 8:
        names = rng.choice([["net"], ["net", "lan"], ["lan"]])
        rate, reserved = rng.choice([1e8, 1e9]), rng.choice([0.0, 1e6])
        networks = tuple(NetworkFacts(name, "h", rate, reserved) for name in names)
        told = HostFacts(rng.choice([0, 1 << 40]), rng.choice(["", "r1"]), networks, 1e9)
        return replace(of, host_facts=rng.choice([None, told]))
    grown = {i: replace(f, layers_resident=rng.randrange(9)) for i, f in of.instances.items()}
    return replace(of, instances=grown, loads={i: load("x", waiting=1) for i in grown})


def says(picture, local):
    """Return all that is derived from a picture."""
    view = ClusterView(local, picture.nodes, picture)
    census = Census(lambda: view)
    census.refresh()
    membership = picture.recall(MEMBERSHIP)
    return {
        "living": [each.boot for each in view.living()],
        "namesakes": {name: [n.boot for n in found] for name, found in view.namesakes().items()},
        "members": list(members(view).items()),
        "ranks": sorted(membership.ranks, key=membership.ranks.__getitem__),
        "definitions": [view.oldest_definition(m, f"d-{m}") for m in MODELS],
        "names": picture.recall(DEFINITIONS).names,
        "heirs": [heirs(m, view, n) for m in MODELS for n in (1, 3, 9)],
        "owners": [owner_of(m, view) for m in MODELS],
        "owned": {boot: list(census.owned(boot)) for boot in picture.nodes},
        "models": list(census.models()),
        "wishes": list(census.wishes()),
        "residents": [sorted(residents(m, view)) for m in MODELS],
        "instances": [instances_of(m, view) for m in MODELS],
        "where": {
            instance: [each.boot for each in nodes_with(instance, view)]
            for instance in ("", *(i for each in picture.nodes.values() for i in each.instances))
        },
        "standings": [census.standing(m) for m in MODELS],
        "loads": [census.standing(m).loads(view) for m in MODELS],
        "loading": [census.standing(m).loading(view) for m in MODELS],
        "rooms": [census.room(definition(m, size)) for m in MODELS for size in (1, 10**12)],
        "free": [
            [*free_devices(definition(m, size), view)] for m in MODELS for size in (1, 10**12)
        ],
        "holders": [
            holders_of(definition(m), view, targets, most=most, also="b")
            for m in MODELS
            for targets in ((), ["a/g0"])
            for most in (None, 1)
        ],
        "links": [links_of(view), links_of(view, {("a", "net"): (1e6, 0.0)})],
        "networks": links_of(view).networks,
        "kinds": [census.next_kind(definition(m)) for m in MODELS],
    }


def without_figures(found):
    """Return that with instances as they were when they were counted: figures are read anew."""
    for standing in found["standings"]:
        for here in (*standing.counted, *standing.leaving, *standing.working):
            object.__setattr__(here, "facts", replace(here.facts, layers_resident=0))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_pictures_that_follow_one_another_say_what_new_ones_would(seed):
    rng = random.Random(seed)
    nodes = {}
    for i in range(7):
        made = node(f"n{i}", devices=2, models={"m": model_facts("m", ScaleTerms())})
        nodes[f"b{i}"] = replace(made, boot=f"b{i}", name=rng.choice("abcdefg"))
    picture, kept = Picture(MappingProxyType(dict(nodes))), []
    for _ in range(120):
        changes = {}
        for boot in rng.sample(sorted(nodes), rng.choice([0, 1, 1, 1, 2, 4])):
            changes[boot] = None if rng.random() < 0.1 else changed(rng, nodes[boot])
            nodes[boot] = changes[boot]
        picture = picture.after(changes)
        assert all(picture.nodes.get(boot) is made for boot, made in changes.items())
        nodes = {boot: made for boot, made in nodes.items() if made is not None}
        if len(nodes) < 5:
            boot = f"b{rng.randrange(100, 10**6)}"
            nodes[boot] = replace(node(rng.choice("abcdefg"), devices=2), boot=boot)
            picture = picture.after({boot: nodes[boot]})
        if rng.random() < 0.4:
            fresh = says(Picture(MappingProxyType(dict(picture.nodes))), "b0")
            assert without_figures(says(picture, "b0")) == without_figures(fresh)
            kept.append((picture, fresh))
    for former, fresh in kept:  # what comes later leaves it as it was
        assert without_figures(says(former, "b0")) == without_figures(fresh)


asked = []
BOOTS = Derived(MEMBERS, lambda picture, _former, stale: asked.append(stale) or [*picture.nodes])
NOW = Derived(FIGURES | PLACES, lambda picture, *_: asked.append("now") or len(picture.nodes))


@pytest.fixture
def picture():
    asked.clear()
    made = [replace(node(f"n{i}"), boot=f"b{i}") for i in range(MAX_STALE + 2)]
    return Picture({each.boot: each for each in made})


def dead(picture, *boots):
    return {boot: replace(picture.nodes[boot], status=Status.DEAD) for boot in boots}


def test_something_is_worked_out_once_and_again_when_it_may_be_different(picture):
    assert picture.recall(BOOTS) is picture.recall(BOOTS)
    assert asked == [frozenset()]
    later = picture.after({"b1": replace(picture.nodes["b1"], heard_s=5.0)})
    assert later.recall(BOOTS) is picture.recall(BOOTS)
    assert later.resembles(picture)
    later = later.after(dead(later, "b1")).after(dead(later, "b2"))
    assert not later.resembles(picture)
    assert later.continues(picture)
    later.recall(BOOTS)
    assert asked == [frozenset(), frozenset({"b1", "b2"})]


def test_with_many_changes_it_is_made_anew(picture):
    picture.recall(BOOTS)
    picture.after(dead(picture, *picture.nodes)).recall(BOOTS)
    assert asked == [frozenset(), frozenset()]


def test_what_rests_on_figures_follows_every_node_that_is_another_object(picture):
    picture.recall(NOW), picture.recall(NOW)
    picture.after({}).recall(NOW)
    assert asked == ["now"]
    b1 = {"b1": replace(picture.nodes["b1"], heard_s=5.0)}
    picture.after(b1).after({"b2": picture.nodes["b2"]}).recall(NOW)
    assert asked == ["now", "now"]


def test_observers_share_a_picture(picture):
    views = [ClusterView(boot, picture.nodes, picture) for boot in picture.nodes]
    assert all(view.picture is picture and view.nodes is picture.nodes for view in views)
    assert picture.recall(LIVING) is views[0].picture.recall(LIVING)
    assert {owner_of("m", view) for view in views} == {owner_of("m", views[0])}


def test_a_view_of_other_nodes_has_a_picture_of_these(picture):
    view = ClusterView("b0", picture.nodes, picture)
    fewer = {boot: found for boot, found in picture.nodes.items() if boot != "b3"}
    other = replace(view, nodes=fewer)
    assert other.picture.continues(picture)
    assert "b3" not in {each.boot for each in other.living()}
    assert "b3" in {each.boot for each in view.living()}
