"""Host copies: placed, restored, never too few for long, never too many for ever."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from blitzgw.core.instance import DeviceKind
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.rumours import Status
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    DeviceFacts,
    HostFacts,
    ModelFacts,
    NodeFacts,
    NodeView,
)
from blitzgw.scaling.copies import (
    DROP_SETTLE_S,
    OBTAIN_SETTLE_S,
    RETRY_MIN_S,
    CopyKeeper,
)
from blitzgw.scaling.effects import DropWeights, ObtainCopy
from blitzgw.scaling.events import CopyTried, TimePassed
from blitzgw.scaling.keepers import CopyNeed, keepers
from blitzgw.scaling.ownership import owner_of
from blitzgw.scaling.survey import ModelDefinition

W = "w" * 64
MODEL = ModelDefinition("m", "d" * 64, W, (10, 20, 10))
SOFTWARE = {"layout": str(LAYOUT_VERSION)}


def node(name, *, free=1000, disk=False, copies=1, status=Status.ALIVE, copy=None):
    held = (
        {"c": CopyFacts(W, "m", "g0", 40, "7" if copy else "1", copy)} if copy is not None else {}
    )
    return NodeView(
        boot=name,
        name=name,
        host="h",
        port=1,
        status=status,
        started_s=0,
        facts=NodeFacts(name, ""),
        devices={"g0": DeviceFacts("g0", DeviceKind.CPU, "x", 1 << 40, 1, SOFTWARE)},
        models={"m": ModelFacts("m", MODEL.digest, 1, 0, weights=W, disk=disk, host_copies=copies)},
        copies=held,
        host_facts=HostFacts(free),
    )


class Copies:
    """Nodes with keepers; a copy takes a second. Views can hide nodes from each other."""

    def __init__(self, n_nodes, count=1, seed=0):
        self.rng, self.now = random.Random(seed), 0.0
        self.truth = {
            f"b{i}": node(
                f"b{i}", free=self.rng.choice([100, 1000, 5000]), disk=i == 0, copies=count
            )
            for i in range(n_nodes)
        }
        self.hidden = set()
        self.due = []
        self.keepers = {b: self.keeper(b) for b in self.truth}
        self.least = []

    def keeper(self, boot):
        return CopyKeeper(
            lambda: self.view(boot), lambda name: MODEL, lambda device, weights: False
        )

    def view(self, boot):
        shown = {b: n for b, n in self.truth.items() if frozenset((b, boot)) not in self.hidden}
        return ClusterView(boot, shown)

    def holders(self):
        return sorted(b for b, n in self.truth.items() if n.living and n.copies)

    def kill(self, boot):
        self.truth[boot] = replace(self.truth[boot], status=Status.DEAD, copies={})

    def run(self, seconds):
        for _ in range(int(seconds / 0.5)):
            self.now += 0.5
            for when, boot in [due for due in self.due if due[0] <= self.now]:
                self.due.remove((when, boot))
                copy = CopyFacts(W, "m", "g0", 40, "7", complete=True)
                self.truth[boot] = replace(self.truth[boot], copies={"c": copy})
                self.keepers[boot].handle(CopyTried(W), self.now)
            for boot, keeper in self.keepers.items():
                if not self.truth[boot].living:
                    continue
                for effect in keeper.handle(TimePassed(), self.now):
                    if isinstance(effect, ObtainCopy):
                        self.due.append((self.now + 1.0, boot))
                    else:
                        assert isinstance(effect, DropWeights)
                        self.truth[boot] = replace(self.truth[boot], copies={})
                keeper.check_integrity()
            self.least.append(len(self.holders()))


def test_one_copy_is_made_and_restored():
    cluster = Copies(5)
    cluster.run(OBTAIN_SETTLE_S - 1)
    assert cluster.holders() == []
    cluster.run(5)
    (holder,) = cluster.holders()
    cluster.run(100)
    assert cluster.holders() == [holder]
    if holder == "b0":
        cluster.truth["b1"] = replace(cluster.truth["b1"], models=cluster.truth["b0"].models)
    cluster.kill(holder)
    cluster.run(6)
    assert len(cluster.holders()) == 1
    cluster.run(100)
    assert len(cluster.holders()) == 1


@pytest.mark.parametrize("seed", range(30))
def test_after_any_storm_there_are_as_many_as_wanted_and_never_none(seed):
    rng = random.Random(seed)
    count, n_nodes = rng.randint(1, 3), rng.randint(3, 7)
    cluster = Copies(n_nodes, count, seed)
    cluster.run(8)
    assert len(cluster.holders()) == count
    boots = list(cluster.truth)
    for _ in range(3):
        side = set(rng.sample(boots, rng.randint(1, n_nodes - 1)))
        cluster.hidden = {frozenset((a, b)) for a in side for b in set(boots) - side}
        cluster.run(rng.uniform(1, 50))
        cluster.hidden = set()
        cluster.run(rng.uniform(1, 50))
        for boot in boots:
            free = rng.choice([100, 1000, 5000])
            cluster.truth[boot] = replace(cluster.truth[boot], host_facts=HostFacts(free))
    cluster.run(2 * DROP_SETTLE_S + 20)
    assert len(cluster.holders()) == count
    assert min(cluster.least[16:]) >= count


def test_each_node_may_think_what_it_likes_and_one_copy_stays():
    for seed in range(20):
        cluster = Copies(6, 1, seed)
        copy = {"c": CopyFacts(W, "m", "g0", 40, "7", complete=True)}
        for boot in cluster.truth:
            cluster.truth[boot] = replace(cluster.truth[boot], copies=copy)
        rng = random.Random(seed)
        pairs = [frozenset((a, b)) for a in cluster.truth for b in cluster.truth if a < b]
        cluster.hidden = set(rng.sample(pairs, rng.randint(0, len(pairs))))
        cluster.run(3 * DROP_SETTLE_S)
        assert min(cluster.least) >= 1


def test_a_failure_is_tried_again_later_and_later():
    cluster = Copies(1)
    keeper = cluster.keepers["b0"]
    times = []
    for step in range(400):
        now = step * 0.5
        for effect in keeper.handle(TimePassed(), now):
            assert isinstance(effect, ObtainCopy)
            assert effect.disk
            times.append(now)
            keeper.handle(CopyTried(W, "no memory"), now)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps[0] == pytest.approx(RETRY_MIN_S, abs=0.6)
    assert all(later > sooner * 1.5 for sooner, later in pairwise(gaps))
    assert keeper.statistics().failed == len(times)


def test_without_memory_or_source_nothing_is_tried():
    cluster = Copies(2)
    for boot in cluster.truth:
        cluster.truth[boot] = replace(cluster.truth[boot], host_facts=HostFacts(39))
    cluster.run(20)
    assert cluster.holders() == []
    cluster = Copies(2)
    cluster.truth["b0"] = node("b0", disk=False)
    cluster.run(20)
    assert cluster.holders() == []


def test_a_model_that_nobody_defines_is_forgotten():
    cluster = Copies(3)
    cluster.run(8)
    for boot in cluster.truth:
        cluster.truth[boot] = replace(cluster.truth[boot], models={})
    cluster.run(DROP_SETTLE_S - 2)
    assert len(cluster.holders()) == 1
    cluster.run(5)
    assert cluster.holders() == []


def test_a_draining_holder_keeps_its_copy_and_another_gets_one():
    cluster = Copies(4)
    cluster.run(8)
    (holder,) = cluster.holders()
    leaving = cluster.truth[holder]
    cluster.truth[holder] = replace(leaving, facts=NodeFacts(holder, "", draining=True))
    cluster.run(6)
    assert len(cluster.holders()) == 2


def test_choice_is_in_proportion_to_free_memory():
    nodes = {"a": node("a", free=1000), "b": node("b", free=3000)}
    view = ClusterView("a", nodes)
    chosen = [keepers(CopyNeed(f"w{i}", "m", "d", 1), view, 10)[0] for i in range(2000)]
    assert 0.70 < chosen.count("b") / 2000 < 0.80


def test_a_node_that_leaves_moves_only_its_own():
    nodes = {f"b{i}": node(f"b{i}", free=1000 + 100 * i) for i in range(6)}
    view, less = (
        ClusterView("b0", nodes),
        ClusterView("b0", {k: nodes[k] for k in nodes if k != "b3"}),
    )
    for i in range(300):
        need = CopyNeed(f"w{i}", "m", "d", 1)
        (before,) = keepers(need, view, 10)
        assert before == "b3" or keepers(need, less, 10) == [before]


def test_a_holder_stays_however_little_memory_is_left():
    nodes = {"a": node("a", free=0, copy=True), "b": node("b", free=1 << 40)}
    assert keepers(CopyNeed(W, "m", "d", 1), ClusterView("b", nodes), 40) == ["a"]


def test_owners_are_spread_agreed_upon_and_never_dead_or_draining():
    nodes = {f"b{i}": node(f"b{i}") for i in range(5)}
    nodes["b1"] = replace(nodes["b1"], status=Status.DEAD)
    nodes["b2"] = replace(nodes["b2"], facts=NodeFacts("b2", "", draining=True))
    owners = [owner_of(f"m{i}", ClusterView("b0", nodes)) for i in range(600)]
    assert owners == [owner_of(f"m{i}", ClusterView("b4", nodes)) for i in range(600)]
    assert set(owners) == {"b0", "b3", "b4"}
    assert all(owners.count(boot) > 140 for boot in set(owners))
    assert owner_of("m", ClusterView("x", {})) == "x"
