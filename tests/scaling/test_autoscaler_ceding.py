"""Whose device it is when there are not enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.scale import Cede
from blitzgw.core.view import ScaleFacts
from blitzgw.scaling.autoevents import (
    CancelOperation,
    CedeAsked,
    OrderInstances,
    SendCede,
    WishGiven,
)
from blitzgw.scaling.ceding import (
    CEDE_HOLD_S,
    CEDE_PAUSE_S,
    MAX_CEDE_PAUSE_S,
    Asking,
    has_the_device,
    pressure_after,
)
from tests.scaling.autoscaler_kit import AUTO, Bench, decided, load, of, orders
from tests.scaling.view_kit import device

HIGH = replace(AUTO, priority=5)


def two_models(terms_a=HIGH, terms_b=AUTO, devices=4):
    """Return a node where b has every device but the first, which is a's."""
    bench = Bench({"a": terms_a, "b": terms_b}, devices=devices)
    bench.put("a/g0", model="a")
    for i in range(1, devices):
        bench.put(f"a/g{i}", model="b")
    bench.settle()
    return bench


def press(bench, queued=50_000):
    return bench.demand(
        model="a", loads=(load("a/g0", "a", queued_tokens=queued, waiting=9, running=1),)
    )


@pytest.mark.parametrize(
    ("taker", "priority", "pressure", "instances", "has"),
    [
        ((5, 1.1), 0, 50.0, 1, True),
        ((0, 99.0), 1, 0.0, 9, False),
        ((0, 3.0), 0, 1.0, 4, True),
        ((0, 1.2), 0, 1.0, 4, False),
        ((0, 0.9), 0, 0.0, 4, False),
        ((0, 50.0), 0, 0.1, 1, False),
        ((0, 50.0), 0, 0.0, 1, True),
    ],
)
def test_who_has_the_device(taker, priority, pressure, instances, has):
    assert has_the_device(Cede("b", "a", *taker), priority, pressure, instances) == has


def test_two_of_the_same_priority_do_not_take_from_each_other_in_turn():
    for n_a in range(1, 6):
        for n_b in range(2, 6):
            for load_a in (1.0, 3.0, 9.0):
                for load_b in (0.5, 3.0, 8.0):
                    taken = has_the_device(Cede("b", "a", 0, load_a / n_a), 0, load_b / n_b, n_b)
                    back = has_the_device(
                        Cede("a", "b", 0, load_b / (n_b - 1)), 0, load_a / (n_a + 1), n_a + 1
                    )
                    assert not (taken and back)
    assert pressure_after(2.0, 2) == 4.0
    assert pressure_after(0.0, 1) == 0.0


def test_the_higher_priority_has_a_device_of_the_lower():
    bench = two_models()
    effects = press(bench)
    (decision,) = [each for each in decided(effects) if each.action == "cede"]
    (order,) = [each for each in of(effects, OrderInstances) if each.model == "b"]
    assert decision.model == "b"
    assert order.instances == 2
    assert "a needs it" in decision.reason
    assert not of(effects, SendCede)  # both are this node's
    (name,) = [each.name for each in bench.operations.values() if each.model == "b"]
    bench.finish(name)
    effects = bench.changed() + bench.run(0.1)
    assert [each.model for each in of(effects, OrderInstances)] == ["a"]


def test_one_device_at_a_time():
    bench = two_models(devices=6)
    press(bench)
    for _ in range(20):
        press(bench)
        bench.look(CEDE_PAUSE_S / 21)
    assert len([each for each in decided(bench.effects) if each.action == "cede"]) == 1


def test_who_has_let_go_does_not_claim_at_once():
    bench = two_models()
    press(bench)
    (name,) = [each.name for each in bench.operations.values() if each.model == "b"]
    bench.hold_orders = True  # a's order goes astray
    bench.finish(name)
    hot = (load("a/g1", "b", queued_tokens=90_000, waiting=90, running=1),)
    told = bench.demand(model="b", loads=hot) + bench.run(CEDE_HOLD_S - 0.5)
    assert {each.action for each in decided(told) if each.model == "b"} <= {"cede"}


def test_a_device_that_drains_for_long_is_not_taken_back():
    bench = two_models()
    press(bench)
    (name,) = [each.name for each in bench.operations.values() if each.model == "b"]
    bench.put("a/g3", InstanceState.DRAINING, model="b")
    hot = (load("a/g1", "b", queued_tokens=90_000, waiting=90, running=1),)
    for _ in range(9):
        told = bench.demand(model="b", loads=hot) + bench.run(CEDE_HOLD_S / 3)
        assert [each for each in decided(told) if each.model == "b"] == []
    bench.put("a/g3", None, model="b")
    bench.finish(name)
    told = press(bench) + bench.run(0.1)
    assert [each.model for each in of(told, OrderInstances)] == ["a"]


@pytest.mark.parametrize(
    "terms",
    [replace(AUTO, priority=9), replace(AUTO, min_instances=3), replace(AUTO, mode="manual")],
)
def test_nobody_is_asked_who_need_not_give(terms):
    bench = two_models(terms_b=terms)
    press(bench)
    bench.run(3.0)
    assert not [each for each in decided(bench.effects) if each.action == "cede"]


def test_an_operators_number_is_not_touched():
    bench = two_models()
    bench.say(WishGiven("b", 3))
    press(bench)
    bench.run(3.0)
    assert not [each for each in decided(bench.effects) if each.model == "b"]


def test_devices_that_are_too_small_are_not_asked_for():
    bench = Bench(
        {"a": HIGH, "b": AUTO},
        devices={"g0": device("g0"), "g1": device("g1", memory_bytes=29)},
    )
    bench.put("a/g0", model="a")
    bench.put("a/g1", model="b")
    bench.settle()
    press(bench)
    assert not [each for each in decided(bench.effects) if each.action == "cede"]


def test_the_least_important_is_asked_first():
    terms = {"a": HIGH, "b": replace(AUTO, priority=2), "c": replace(AUTO, priority=1)}
    bench = Bench(terms, devices=5)
    for where, model in (("a/g0", "a"), ("a/g1", "b"), ("a/g2", "b"), ("a/g3", "c"), ("a/g4", "c")):
        bench.put(where, model=model)
    bench.settle()
    (decision,) = [each for each in decided(press(bench)) if each.action == "cede"]
    assert decision.model == "c"


def test_what_is_coming_goes_first():
    bench = two_models(devices=5)
    bench.put("a/g4", None, "b")
    bench.put("a/g2", InstanceState.SERVING, "b")
    bench.run(0.1)
    hot = (load("a/g1", "b", queued_tokens=90_000, waiting=90, running=1),)
    bench.demand(model="b", loads=hot)
    (name,) = [each.name for each in bench.operations.values() if each.model == "b"]
    bench.claim(name)
    bench.run(0.1)
    effects = press(bench) + bench.run(1.0)
    assert name in [each.operation for each in of(effects, CancelOperation)]
    assert len(bench.counted("b", InstanceState.SERVING)) == 3


def test_another_nodes_model_is_asked_for_by_message():
    bench = Bench({"a": HIGH, "b": AUTO}, nodes=("x", "y", "z", "w"), devices=1)
    owners = {model: bench.owner(model) for model in "ab"}
    assert owners["a"] != owners["b"], "take other names"
    names = list(bench.nodes.values())
    bench.put(f"{names[0].name}/g0", model="a")
    for node in names[1:]:
        bench.put(f"{node.name}/g0", model="b")
    for boot in owners.values():
        bench.changed(boot)
        bench.run(0.5, boot)
    assert bench.nodes[owners["b"]].scaling["b"] == bench.scalers[owners["b"]].facts["b"]
    hot = (load(f"{names[0].name}/g0", "a", queued_tokens=50_000, waiting=9, running=1),)
    (sent,) = of(bench.demand(names[0].boot, "a", owners["a"], loads=hot), SendCede)
    assert sent.boot == owners["b"]
    assert (sent.cede.model, sent.cede.taker, sent.cede.priority) == ("b", "a", 5)
    effects = bench.say(CedeAsked(owners["a"], sent.cede), owners["b"])
    assert orders(effects) == [2]
    again = bench.say(CedeAsked(owners["a"], sent.cede), owners["b"])
    assert not again


def test_strangers_and_the_dead_have_nothing_to_ask():
    bench = two_models()
    cede = Cede("b", "a", 9, 9.0)
    assert not bench.say(CedeAsked("boot-nobody", cede))
    assert not bench.say(CedeAsked("boot-a", replace(cede, model="nothing")))
    assert orders(bench.say(CedeAsked("boot-a", cede))) == [2]


def test_asking_in_vain_gets_rarer():
    asking, now, asked = Asking(), 0.0, []
    for _ in range(9):
        asking.asked(now)
        asked.append(asking.until - now)
        now = asking.until
    assert asked[:4] == [1.0, 2.0, 4.0, 8.0]
    assert asked[-1] == MAX_CEDE_PAUSE_S
    asking.answered()
    asking.asked(now)
    assert asking.until == now + CEDE_PAUSE_S


def test_nonsense_of_others_is_survived():
    bench = two_models()
    facts = ScaleFacts("b", "auto", 10**9, 10**9, float("nan"))
    bench.change("boot-a", scaling={"b": facts})
    press(bench)
    bench.say(CedeAsked("boot-a", Cede("b", "a", 0, float("nan"))))
    bench.say(CedeAsked("boot-a", Cede("b", "a", 0, float("inf"), -5)))
    bench.run(2.0)
