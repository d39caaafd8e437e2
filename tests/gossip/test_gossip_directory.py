"""Facts come in as entries and go out as one frozen picture."""

import pytest

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.rumours import Rumour, Status, Update
from blitzgw.core.view import DeviceFacts, InstanceFacts, LoadFacts, ModelFacts, NodeFacts
from blitzgw.gossip.catalogue import settle
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
