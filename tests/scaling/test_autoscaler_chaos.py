"""Owners in clusters where everything happens in any order: what must hold whatever comes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.rumours import Status
from blitzgw.core.scale import Cede
from blitzgw.core.view import ClusterView, NodeFacts
from blitzgw.scaling.autoevents import (
    CedeAsked,
    OperationOver,
    OrderInstances,
    OrderTaken,
    WishGiven,
)
from blitzgw.scaling.events import NodeDied
from blitzgw.scaling.ownership import heirs, owner_of
from tests.scaling.autoscaler_kit import AUTO, Bench, load, of, orders
from tests.scaling.view_kit import node

MODELS = ("m", "n")
NAMES = ("a", "b", "c")
MODES = ("auto", "advise", "manual")

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("demand"), st.integers(0, 2), st.integers(0, 1), st.integers(0, 40)),
        st.tuples(st.just("held"), st.integers(0, 2), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("time"), st.just(0), st.just(0), st.integers(1, 30)),
        st.tuples(st.just("claim"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("end"), st.just(0), st.just(0), st.integers(0, 4)),
        st.tuples(st.just("die"), st.integers(1, 2), st.just(0), st.just(0)),
        st.tuples(st.just("live"), st.integers(1, 2), st.just(0), st.just(0)),
        st.tuples(st.just("leave"), st.integers(1, 2), st.just(0), st.just(0)),
        st.tuples(st.just("wish"), st.integers(0, 2), st.integers(0, 1), st.integers(-1, 5)),
        st.tuples(st.just("cede"), st.integers(0, 2), st.integers(0, 1), st.integers(0, 5)),
        st.tuples(st.just("nonsense"), st.integers(0, 2), st.integers(0, 1), st.integers(0, 5)),
    ),
    max_size=40,
)


class Chaos:
    """Does one step after the other, and tells every decider."""

    def __init__(self, modes):
        terms = {
            model: replace(AUTO, mode=mode, min_instances=i, max_instances=4, priority=i)
            for i, (model, mode) in enumerate(zip(MODELS, modes, strict=True))
        }
        self.bench = Bench(terms, nodes=NAMES, devices=2)
        self.everybody()

    def everybody(self):
        for boot in self.bench.scalers:
            self.bench.changed(boot)

    def step(self, what, i, k, value):
        getattr(self, what)(f"boot-{NAMES[i]}", MODELS[k], value)
        self.everybody()
        self.check()

    def check(self):
        bench = self.bench
        for scaler in bench.scalers.values():
            scaler.check_integrity()
            due = scaler.deadline()
            assert due is None or due >= bench.now - 1e-9
            statistics = scaler.statistics()
            assert all(0 <= wanted <= 6 for wanted in statistics.wanted.values())
        for order in of(bench.effects, OrderInstances):
            assert 0 <= order.instances <= 6
        bench.effects.clear()

    def tell(self, sender, model, **fields):
        owner = self.bench.owner(model)
        self.bench.demand(sender, model, owner, **fields)

    def demand(self, boot, model, value):
        name = self.bench.nodes[boot].name
        mine = [d for b, d in self.bench.counted(model) if b == boot]
        loads = tuple(
            load(f"{name}/{d}", model, queued_tokens=500 * value, waiting=value) for d in mine
        )
        self.tell(boot, model, loads=loads, arrived=value)

    def held(self, boot, model, value):
        self.tell(boot, model, held=value, held_tokens=100 * value, held_s=0.01 * value)

    def time(self, _boot, _model, value):
        for boot in self.bench.scalers:
            before = self.bench.now
            self.bench.run(value / 10, boot)
            self.bench.now = before
        self.bench.now += value / 10

    def claim(self, *_):
        for operation in [*self.bench.operations.values()]:
            if operation.grows and not operation.coming:
                self.bench.claim(operation.name)

    def end(self, _boot, _model, value):
        how = [("done", "", False), ("done", "1 of 2", False), ("failed", "x", False)]
        how += [("cancelled", "by hand", True), ("cancelled", "else", False)]
        for name in [*self.bench.operations][:1]:
            self.bench.finish(name, *how[value])

    def die(self, boot, _model, _value):
        bench = self.bench
        bench.change(boot, status=Status.DEAD)
        bench.scalers.pop(boot, None)
        for name in [n for n, each in bench.operations.items() if each.owner == boot]:
            bench._drop(bench.operations.pop(name))
        for other in bench.scalers:
            bench.say(NodeDied(boot), other)

    def live(self, boot, _model, _value):
        bench = self.bench
        if not bench.nodes[boot].living:
            bench.change(
                boot, status=Status.ALIVE, instances={}, loads={}, facts=NodeFacts("x", "")
            )
            bench.start(boot)

    def leave(self, boot, _model, _value):
        self.bench.change(boot, facts=NodeFacts(self.bench.nodes[boot].name, "", draining=True))

    def wish(self, boot, model, value):
        if boot in self.bench.scalers:
            self.bench.say(WishGiven(model, value), boot)

    def cede(self, boot, model, value):
        taker = MODELS[1 - MODELS.index(model)]
        self.bench.say(CedeAsked(boot, Cede(model, taker, value, value)), self.bench.owner(model))

    def nonsense(self, boot, model, value):
        if boot in self.bench.scalers:
            self.bench.say(OperationOver(model, f"o{value}", "failed", "?"), boot)
            self.bench.say(OrderTaken(model, value, f"o{value}"), boot)
            self.bench.demand("boot-x", model, boot, held=value)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.sampled_from(MODES)] * 2), STEPS)
def test_the_books_hold_whatever_happens(modes, steps):
    chaos = Chaos(modes)
    for step in steps:
        chaos.step(*step)


@settings(max_examples=40, deadline=None)
@given(STEPS, st.integers(0, 4))
def test_a_wish_is_fulfilled_in_the_end(steps, wanted):
    chaos = Chaos(("auto", "manual"))
    bench = chaos.bench
    for step in steps:
        chaos.step(*step)
    owner = bench.owner("n")
    bench.say(WishGiven("m", 0), bench.owner("m"))
    bench.say(WishGiven("n", wanted), owner)
    for _ in range(60):
        chaos.everybody()
        chaos.claim()
        bench.finish_all()
        chaos.time("", "", 10)
    most = sum(2 for each in bench.nodes.values() if each.living)
    assert abs(len(bench.counted("n")) - min(wanted, most)) == 0 or _drains(bench)
    assert not bench.counted("m")


def _drains(bench):
    """Whether instances are on nodes that go: they count, though their devices do not."""
    return any(each.facts.draining for each in bench.nodes.values() if each.living)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7))
def test_a_burst_is_answered_once(waiting, at_first):
    bench = Bench(devices=30)
    for i in range(at_first):
        bench.put(f"a/g{i}")
    bench.settle()
    told = []
    loads = tuple(
        load(f"a/g{i}", queued_tokens=100 * waiting, waiting=waiting) for i in range(at_first)
    )
    for step in range(20):
        told += orders(bench.demand(loads=loads))
        if step == 5 and "o1" in bench.operations:
            bench.claim("o1")
        told += orders(bench.look(0.02))
    assert len(told) <= 1


def test_two_owners_in_a_partition_and_one_after_it():
    bench = Bench({"m": replace(AUTO, min_instances=2)}, nodes=("a", "b"), devices=4)
    cut = {boot: {boot: bench.nodes[boot]} for boot in bench.nodes}
    bench.view = lambda boot: ClusterView(boot, dict(cut[boot]))
    for boot in cut:
        bench.changed(boot)
        assert orders(bench.run(0.5, boot)) == [2]
    for name in [*bench.operations]:
        operation = bench.operations[name]
        for device in ("g0", "g1"):
            bench.put(f"{bench.nodes[operation.owner].name}/{device}")
        cut[operation.owner][operation.owner] = bench.nodes[operation.owner]
        bench.operations.pop(name)
        bench.say(OperationOver("m", name, "done", ""), operation.owner)
    del bench.view  # healed
    owner = bench.owner()
    other = next(boot for boot in bench.nodes if boot != owner)
    bench.changed(other)
    assert not bench.scalers[other].facts
    told = bench.changed(owner)
    for _ in range(20):
        told += bench.run(10.0, owner) + bench.run(0.0, other)
        bench.finish_all()
    assert len(bench.counted()) == 2
    assert orders(told) == [3, 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.text(max_size=8))
def test_heirs_are_the_owners_to_come(n_nodes, model):
    nodes = {f"boot-{i}": node(str(i)) for i in range(n_nodes)}
    order = heirs(model, ClusterView("x", {k: replace(v, boot=k) for k, v in nodes.items()}), 99)
    left = {k: replace(v, boot=k) for k, v in nodes.items()}
    for boot in order:
        assert owner_of(model, ClusterView("x", left)) == boot
        del left[boot]
    assert not left


def test_nodes_that_drain_inherit_last():
    nodes = {f"boot-{name}": node(name) for name in "abc"}
    for boot in ("boot-a", "boot-b"):
        nodes[boot] = replace(nodes[boot], facts=NodeFacts("", "", draining=True))
    assert heirs("m", ClusterView("x", nodes), 3) == ["boot-c"]
    del nodes["boot-c"]
    assert len(heirs("m", ClusterView("x", nodes), 3)) == 2
    assert heirs("m", ClusterView("x", {}), 3) == ["x"]
