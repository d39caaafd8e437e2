"""Facts come in as entries and go out as one frozen picture."""

from dataclasses import replace

import pytest

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.rumours import Rumour, Status, Update
from blitzgw.core.view import DeviceFacts, InstanceFacts, LoadFacts, ModelFacts, NodeFacts
from blitzgw.gossip.catalogue import KEPT_S, MAX_KEPT, Catalogue, first_since, settle
from blitzgw.gossip.directory import Directory, changed, key_of
from blitzgw.wire import encode_fact

ME, A, B = "00" * 8, "aa" * 8, "bb" * 8


def member(boot, status=Status.ALIVE, name=None):
    return Rumour(boot, name or f"n{boot[0]}", "127.0.0.1", 7946, 1000, 0, status)


def entry(boot, fact, version=1):
    return Update(boot, key_of(fact), version, encode_fact(fact))


def model(digest="d1", since=100, name="m", aliases=()):
    return ModelFacts(name, digest, 30, since, aliases)


@pytest.fixture
def directory():
    directory = Directory(member(ME), 0.0)
    directory.member_changed(member(A), 1.0)
    return directory


FACTS = [
    NodeFacts("na", "http://127.0.0.1:1", software={"torch": "2"}),
    DeviceFacts("cpu0", DeviceKind.CPU, "cpu", 1 << 30, 3),
    model(),
    InstanceFacts("m@na/cpu0", "m", "d1", "cpu0", 3, InstanceState.SERVING, 30, 30),
    LoadFacts("m@na/cpu0", 1, 2, 300, 0.5, 1000.0, 0.01),
]


def test_each_fact_arrives_under_its_kind(directory):
    directory.updated([entry(A, fact) for fact in FACTS], 2.0)
    node = directory.view().nodes[A]
    assert node.facts == FACTS[0]
    assert node.devices == {"cpu0": FACTS[1]}
    assert node.models == {"m": FACTS[2]}
    assert node.instances == {"m@na/cpu0": FACTS[3]}
    assert node.loads == {"m@na/cpu0": FACTS[4]}
    assert node.heard_s == 2.0


def test_own_facts_and_others_look_the_same(directory):
    directory.updated([entry(A, fact) for fact in FACTS], 2.0)
    directory.published({key_of(fact): fact for fact in FACTS}, 2.0)
    nodes = directory.view().nodes
    assert nodes[ME].instances == nodes[A].instances
    directory.published({"load/m@na/cpu0": None}, 3.0)
    assert not directory.view().nodes[ME].loads


def test_entries_may_come_before_their_node(directory):
    directory.updated([entry(B, FACTS[0])], 2.0)
    assert B not in directory.view().nodes
    directory.member_changed(member(B), 3.0)
    assert directory.view().nodes[B].facts == FACTS[0]


def test_what_does_not_decode_or_is_of_a_later_version_changes_nothing(directory):
    before = directory.view()
    directory.updated([Update(A, "node", 1, b"\xff"), Update(A, "node", 2, b"\xc0")], 2.0)
    assert directory.undecodable == 2
    directory.updated([Update(A, "orbit/moon", 3, b"\xc0")], 2.0)
    after = directory.view().nodes[A]
    assert (after.facts, after.devices) == (before.nodes[A].facts, {})


def test_what_is_about_something_else_than_its_key_says_is_left_out(directory):
    directory.updated(
        [
            Update(A, "model/odd", 1, encode_fact(model())),
            Update(A, "instance/m@nb/cpu0", 2, encode_fact(FACTS[3])),
            Update(A, "node/x", 3, encode_fact(FACTS[0])),
            Update(A, "load/other", 4, encode_fact(FACTS[4])),
        ],
        2.0,
    )
    node = directory.view().nodes[A]
    assert directory.undecodable == 4
    assert not any((node.facts, node.models, node.instances, node.loads))
    assert node.heard_s == 1.0


def test_figures_are_told_from_what_changes_the_picture(directory):
    here = FACTS[3]
    assert directory.updated([entry(A, here)], 2.0).structural
    assert not directory.updated([entry(A, here)], 2.0).structural
    assert not directory.updated([entry(A, replace(here, layers_resident=7))], 2.0).structural
    assert directory.updated([entry(A, replace(here, claim=9))], 2.0).structural
    loaded = directory.updated([entry(A, FACTS[4])], 2.0)
    assert (loaded.structural, loaded.loads) == (False, {A: [FACTS[4]]})
    assert not directory.updated([Update(A, key_of(FACTS[4]), 9, None)], 2.0).structural
    assert directory.updated([Update(A, key_of(here), 9, None)], 2.0).structural
    assert directory.published({"node": FACTS[0]}, 2.0)
    assert not directory.published({"node": FACTS[0]}, 2.0)


def test_of_two_loads_the_one_with_the_higher_number_holds(directory):
    old, new = (LoadFacts("i", running=n, number=n) for n in (1, 2))
    assert directory.loads_reported(A, [new], 2.0) == [new]
    assert directory.updated([entry(A, old), entry(A, new)], 5.0).loads == {}
    node = directory.view().nodes[A]
    assert (node.loads["i"], node.heard_s) == (new, 2.0)
    newer = replace(new, number=3)
    assert directory.updated([entry(A, newer)], 5.0).loads == {A: [newer]}
    assert directory.view().nodes[A].heard_s == 5.0


def test_a_view_does_not_change_and_shares_what_has_not(directory):
    directory.member_changed(member(B), 1.0)
    before = directory.view()
    assert directory.view() is before
    directory.updated([entry(A, FACTS[0])], 2.0)
    after = directory.view()
    assert before.nodes[A].facts is None
    assert after.nodes[A].facts == FACTS[0]
    assert after.nodes[B] is before.nodes[B]
    with pytest.raises(TypeError):
        after.nodes[A].loads["x"] = None


def test_the_dead_stay_in_the_picture_until_they_are_forgotten(directory):
    directory.member_changed(member(A, Status.DEAD), 2.0)
    assert [node.boot for node in directory.view().living()] == [ME]
    assert A in directory.view().nodes
    directory.member_forgotten(A)
    directory.updated([entry(A, FACTS[0])], 3.0)
    assert A not in directory.view().nodes


def test_a_load_report_is_newer_than_gossip(directory):
    directory.updated([entry(A, FACTS[4])], 2.0)
    report = LoadFacts("m@na/cpu0", running=7)
    directory.loads_reported(A, [report], 3.0)
    directory.loads_reported(B, [report], 3.0)
    assert directory.view().nodes[A].loads["m@na/cpu0"] == report


def test_only_differences_are_published():
    before = {key_of(fact): fact for fact in FACTS}
    after = before | {"node": NodeFacts("na", "http://127.0.0.1:1", draining=True)}
    del after["model/m"]
    assert changed(before, before) == {}
    assert changed(before, after) == {"node": after["node"], "model/m": None}


def defined(directory, boot, *models):
    directory.member_changed(member(boot), 1.0)
    directory.updated([entry(boot, facts) for facts in models], 1.0)


def test_the_older_definition_of_a_name_holds_everywhere(directory):
    defined(directory, A, model("newer", since=200, aliases=("x",)))
    defined(directory, B, model("older", since=100, aliases=("y",)))
    definition = settle(directory.view())["m"]
    assert (definition.digest, definition.since_s) == ("older", 100)
    assert definition.sources == (B,)
    assert definition.rivals == (A,)
    assert definition.aliases == ("y",)


def test_equal_definitions_are_one_and_count_from_the_first(directory):
    defined(directory, A, model("same", since=50, aliases=("x",)), model("p", name="other"))
    defined(directory, B, model("same", since=100, aliases=("y",)))
    directory.published({"model/m": model("rival", since=60)}, 1.0)
    settled = settle(directory.view())
    assert settled["m"].digest == "same"
    assert settled["m"].sources == (A, B)
    assert settled["m"].aliases == ("x", "y")
    assert settled["m"].rivals == (ME,)
    assert list(settled) == ["m", "other"]


def test_a_definition_goes_with_the_last_living_node_that_has_it(directory):
    defined(directory, A, model("older", since=100))
    defined(directory, B, model("newer", since=200))
    directory.member_changed(member(A, Status.DEAD), 2.0)
    assert settle(directory.view())["m"].digest == "newer"


def test_equal_ages_are_decided_alike_whoever_looks(directory):
    defined(directory, A, model("y"))
    defined(directory, B, model("x"))
    assert settle(directory.view())["m"].digest == "x"


def test_an_entry_that_contradicts_its_key_defines_nothing(directory):
    directory.member_changed(member(A), 1.0)
    directory.updated([Update(A, "model/x", 1, encode_fact(model(name="y")))], 1.0)
    assert settle(directory.view()) == {}


def test_what_nobody_defines_any_more_is_kept_for_a_while(directory):
    catalogue = Catalogue()
    defined(directory, A, model("d", since=100, aliases=("x",)), model("e", name="other"))
    before = catalogue.settle(directory.view(), 5.0)
    assert (before, catalogue.due_s) == (settle(directory.view()), None)
    directory.member_changed(member(A, Status.DEAD), 50.0)
    for now in (50.0, 60.0, 50.0 + KEPT_S - 1):
        kept = catalogue.settle(directory.view(), now)
        assert list(kept) == ["m", "other"]
        assert (kept["m"].digest, kept["m"].aliases) == ("d", ("x",))
        assert (kept["m"].sources, kept["m"].rivals) == ((), ())
        assert catalogue.due_s == 50.0 + KEPT_S
    assert catalogue.settle(directory.view(), 50.0 + KEPT_S) == {}
    assert catalogue.due_s is None


@pytest.mark.parametrize("end", [Status.DEAD, Status.LEFT])
def test_a_living_definition_takes_the_place_of_a_kept_one_at_once(directory, end):
    catalogue = Catalogue()
    defined(directory, A, model("old", since=100))
    catalogue.settle(directory.view(), 1.0)
    directory.member_changed(member(A, end), 2.0)
    assert catalogue.settle(directory.view(), 2.0)["m"].digest == "old"
    defined(directory, B, model("new", since=200))
    held = catalogue.settle(directory.view(), 3.0)["m"]
    assert (held.digest, held.sources, catalogue.due_s) == ("new", (B,), None)
    directory.member_changed(member(B, end), 4.0)
    assert catalogue.settle(directory.view(), 3.0 + KEPT_S)["m"].digest == "new"


def test_a_catalogue_begins_with_what_it_is_given(directory):
    own = settle_of(directory, model("mine"))
    catalogue = Catalogue(own.values(), 10.0)
    assert catalogue.settle(Directory(member(ME), 0.0).view(), 11.0)["m"].digest == "mine"
    assert catalogue.due_s == 10.0 + KEPT_S


def settle_of(directory, *models):
    defined(directory, A, *models)
    return settle(directory.view())


def test_what_is_kept_has_a_limit(directory):
    catalogue = Catalogue()
    for n in range(MAX_KEPT + 10):
        fact = model(name=f"m{n:04}")
        directory.published({key_of(fact): fact}, 1.0)
        catalogue.settle(directory.view(), float(n) / 100)
        directory.published({key_of(fact): None}, 1.0)
    kept = catalogue.settle(directory.view(), float(n) / 100)
    assert list(kept) == [f"m{n:04}" for n in range(10, MAX_KEPT + 10)]


def test_a_definition_counts_from_the_first_living_node_that_has_it(directory):
    defined(directory, A, model("d", since=11))
    defined(directory, B, model("d", since=10))
    directory.published({"model/m": model("d", since=5)}, 1.0)
    assert first_since(directory.view(), "m", "d") == 10
    assert first_since(directory.view(), "m", "other") is None
    assert first_since(directory.view(), "n", "d") is None
    directory.member_changed(member(B, Status.LEFT), 2.0)
    assert first_since(directory.view(), "m", "d") == 11
