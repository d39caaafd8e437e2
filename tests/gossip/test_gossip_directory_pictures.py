"""What the directory's views have in common: they follow one another, change by change."""

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.rumours import Rumour, Status, Update
from blitzgw.core.view import InstanceFacts, LoadFacts, ModelFacts, NodeFacts
from blitzgw.gossip.directory import Directory, key_of
from blitzgw.wire import encode_fact

ME, A, B = "00" * 8, "aa" * 8, "bb" * 8


def member(boot, status=Status.ALIVE):
    return Rumour(boot, f"n{boot[0]}", "127.0.0.1", 7946, 1000, 0, status)


@pytest.fixture
def directory():
    made = Directory(member(ME), 0.0)
    for boot in (A, B):
        made.member_changed(member(boot), 1.0)
    told = NodeFacts("na", ""), ModelFacts("m", "d", 2, 0), instance(1)
    made.updated([Update(A, key_of(fact), 1, encode_fact(fact)) for fact in told], 1.0)
    return made


def instance(layers):
    return InstanceFacts("i", "m", "d", "g0", 1, InstanceState.LOADING, layers, 2)


def tell(directory, fact, version):
    directory.updated([Update(A, key_of(fact), version, encode_fact(fact))], 2.0)
    return directory.view()


def test_of_a_node_only_what_has_changed_is_new(directory):
    before = directory.view()
    after = tell(directory, LoadFacts("i", number=1), 2)
    assert after.nodes[B] is before.nodes[B]
    assert after.nodes[A].instances is before.nodes[A].instances
    assert after.nodes[A].models is before.nodes[A].models
    assert (before.nodes[A].loads, [*after.nodes[A].loads]) == ({}, ["i"])


def test_views_tell_whether_more_than_figures_has_changed(directory):
    before = directory.view()
    figures = [LoadFacts("i", number=1), instance(2)]
    for version, fact in enumerate(figures, 2):
        assert tell(directory, fact, version).picture.resembles(before.picture)
    for version, fact in enumerate([ModelFacts("n", "d", 2, 0), NodeFacts("na", "", True)], 4):
        after = tell(directory, fact, version)
        assert after.picture.continues(before.picture)
        assert not after.picture.resembles(before.picture)
        before = after


def test_members_come_and_go(directory):
    before = directory.view()
    directory.member_forgotten(B)
    directory.member_forgotten("cc" * 8)
    assert [*directory.view().nodes] == [ME, A]
    assert B in before.nodes
    directory.member_changed(member(A, Status.DEAD), 3.0)
    assert [node.boot for node in directory.view().living()] == [ME]
    directory.member_changed(member(B), 3.0)
    assert [node.boot for node in directory.view().living()] == [ME, B]
