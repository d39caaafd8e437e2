"""What the owner of a model does, rule by rule."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.rumours import Status
from blitzgw.core.scale import AUTOMATIC
from blitzgw.core.view import NodeFacts, ScaleTerms
from blitzgw.scaling.autoevents import (
    CancelOperation,
    Decided,
    OperationOver,
    OrderInstances,
    PublishScale,
    WishGiven,
)
from blitzgw.scaling.charge import OWNER_SETTLE_S, Charge
from blitzgw.scaling.events import NodeDied
from blitzgw.scaling.monitor import Monitor
from blitzgw.scaling.standstill import STANDSTILL_S
from tests.scaling.autoscaler_kit import (
    AUTO,
    EPOCH_S,
    Bench,
    decided,
    definition,
    load,
    of,
    orders,
)
from tests.scaling.view_kit import device


def busy(bench, where="a/g0", queued=5000, **fields):
    """Tell of an instance that has seconds of work queued."""
    return bench.demand(loads=(load(where, queued_tokens=queued, waiting=9, running=1, **fields),))


def alone(bench):
    """Leave the owner as the only decider; return the other node."""
    other = next(boot for boot in bench.nodes if boot != bench.owner())
    del bench.scalers[other]
    return other


def test_a_demand_over_the_bound_is_ordered_in_the_same_call():
    bench = Bench()
    bench.put("a/g0", prefill_tokens_per_s=1000.0)
    bench.settle()
    effects = busy(bench)
    (decision,) = decided(effects)
    (order,) = of(effects, OrderInstances)
    assert decision.action == "grow"
    assert decision.acted
    assert decision.present == 1
    assert decision.wanted == order.instances > 1
    assert decision.reason == order.reason
    assert decision.formula
    assert decision.inputs
    assert decision.at_s == EPOCH_S + bench.now
    assert decision.owner == "a"
    (number,) = [each.number for each in of(effects, Decided)]
    assert number == order.decision


def test_a_need_is_ordered_once():
    bench = Bench(devices=8)
    bench.put("a/g0")
    bench.settle()
    (first,) = orders(busy(bench, queued=1500))
    assert not orders(busy(bench, queued=1500))
    assert not orders(bench.run(0.1))
    bench.claim("o1")
    assert not orders(bench.changed())
    assert not orders(bench.run(0.5))
    assert not orders(busy(bench, queued=1500))
    bench.finish("o1")
    assert not orders(bench.run(0.2))
    assert len(bench.counted()) == first


def test_an_order_that_nobody_has_taken_is_given_again_after_a_while():
    bench = Bench()
    bench.hold_orders = True
    bench.settle()
    assert orders(bench.demand(held=1, held_tokens=10)) == [1]
    for _ in range(3):
        assert not orders(bench.demand(held=1, held_tokens=10)) + orders(bench.run(0.5))
    bench.demand(held=1, held_tokens=10)
    assert orders(bench.run(1.0)) == [1]


def test_nothing_is_decided_before_ownership_has_settled():
    bench = Bench()
    bench.put("a/g0")
    bench.changed()
    assert not orders(busy(bench))
    assert not orders(bench.run(OWNER_SETTLE_S * 0.9))
    assert orders(bench.run(OWNER_SETTLE_S * 0.2))


def test_held_requests_wake_a_model_at_once():
    bench = Bench()
    effects = bench.demand(held=1, held_tokens=10, held_s=0.001)
    (decision,) = decided(effects)
    assert orders(effects) == [1]
    assert decision.action == "wake"


def test_a_model_without_requests_goes_to_zero_and_stays_there():
    bench = Bench({"m": replace(AUTO, idle_to_zero_s=3.0)})
    bench.put("a/g0")
    bench.settle()
    effects = bench.run(10.0)
    assert orders(effects) == [0]
    assert decided(effects)[0].action == "zero"
    bench.finish("o1")
    assert not orders(bench.run(30.0))


def test_a_model_that_took_long_to_wake_waits_for_those_who_were_told_to_come_back():
    bench = Bench({"m": replace(AUTO, idle_to_zero_s=3.0)})
    bench.demand(held=1, held_tokens=10)
    bench.claim("o1")
    bench.demand()  # its patience has ended
    assert not orders(bench.run(9.0))
    bench.finish("o1")
    assert not orders(bench.changed() + bench.run(2.5))
    assert orders(bench.run(1.0)) == [0]


@pytest.mark.parametrize("mode", ["manual", "nonsense"])
def test_nobody_decides_for_an_operator(mode):
    bench = Bench({"m": ScaleTerms(mode=mode, min_instances=2)})
    bench.settle()
    assert not decided(bench.demand(held=9, held_tokens=9000)) + decided(bench.run(5.0))
    facts = bench.scaler.facts["m"]
    assert facts.mode == "manual"
    assert facts.wanted == facts.present == 0


def test_advice_is_told_once_until_it_changes():
    bench = Bench({"m": replace(AUTO, mode="advise")})
    bench.put("a/g0")
    bench.settle()
    effects = busy(bench) + bench.run(2.0) + busy(bench) + bench.run(1.0)
    (decision,) = decided(effects)
    assert decision.action == "grow"
    assert not decision.acted
    assert not orders(effects)
    assert bench.scaler.statistics().outcomes == {("m", "grow", "advised"): 1}
    busy(bench, queued=0)
    bench.demand(loads=(load("a/g0"),))
    bench.run(20.0)
    again = busy(bench)
    assert [each.action for each in decided(again)] == ["grow"]


def test_there_are_at_least_so_many():
    bench = Bench({"m": replace(AUTO, min_instances=2)})
    bench.changed()
    effects = bench.run(1.0)
    assert orders(effects) == [2]
    bench.claim("o1")
    bench.finish("o1")
    assert not orders(bench.run(10.0))


def test_more_than_is_allowed_goes_one_at_a_time():
    bench = Bench({"m": replace(AUTO, min_instances=1)})
    for i in range(4):
        bench.put(f"a/g{i}")
    bench.settle()
    told = []
    for i in range(3):
        told += orders(bench.run(40.0))
        bench.finish(f"o{i + 1}")
    assert told == [3, 2, 1]
    assert not orders(bench.run(40.0))


def test_fewer_waits_for_what_grows():
    bench = Bench(devices=8)
    bench.put("a/g0")
    bench.settle()
    busy(bench)
    bench.load_s = 100.0
    bench.claim("o1")
    busy(bench, queued=0)
    bench.demand(loads=(load("a/g0"),))
    assert not orders(bench.run(40.0))
    assert "coming" in bench.scaler.why("m", bench.now).now.reason
    bench.finish("o1")
    assert orders(bench.run(40.0))


def test_what_hangs_is_given_up_once_fewer_are_wanted():
    bench = Bench(devices=8)
    bench.put("a/g0")
    bench.settle()
    busy(bench)
    bench.claim("o1")
    bench.operations["o1"].hangs = True
    bench.demand(loads=(load("a/g0"),))
    assert not of(bench.run(STANDSTILL_S), CancelOperation)
    effects = bench.run(5.0)
    assert [each.operation for each in of(effects, CancelOperation)] == ["o1"]
    assert not orders(effects)  # the one that serves is enough
    assert bench.counted() == [("boot-a", "g0")]
    assert bench.scaler.facts["m"].present == bench.scaler.facts["m"].wanted == 1
    assert [each.action for each in decided(effects)] == ["shrink"]


def test_what_hangs_is_waited_for_while_it_is_needed():
    bench = Bench(devices=8)
    bench.put("a/g0")
    bench.settle()
    for _ in range(40):
        busy(bench)
        bench.run(0.5)
        for name in bench.operations:
            if not bench.operations[name].coming:
                bench.claim(name)
            bench.operations[name].hangs = True
    assert not of(bench.effects, CancelOperation)


def test_more_gives_up_what_shrinks():
    bench = Bench({"m": replace(AUTO, min_instances=1)})
    bench.put("a/g0")
    bench.put("a/g1")
    bench.settle()
    assert orders(bench.run(20.0)) == [1]
    effects = busy(bench, queued=20000)
    (cancel,) = of(effects, CancelOperation)
    assert cancel.operation == "o1"
    assert max(orders(effects)) > 1
    kinds = [type(each) for each in effects]
    assert kinds.index(CancelOperation) < kinds.index(OrderInstances)


def test_no_more_is_asked_for_than_devices_can_give():
    bench = Bench(devices=3)
    bench.put("a/g0")
    bench.put("a/g2", model="other")
    bench.settle()
    assert orders(busy(bench, queued=100_000)) == [2]
    bench.claim("o1")
    assert not orders(busy(bench, queued=100_000)) + orders(bench.run(0.9))


def test_devices_that_are_too_small_do_not_count():
    small = {"g0": device("g0"), "g1": device("g1", memory_bytes=5)}
    bench = Bench(devices=small)
    bench.put("a/g0")
    bench.settle()
    assert not orders(busy(bench, queued=100_000))


def test_kept_instances_count_as_devices():
    bench = Bench(devices=2)
    bench.put("a/g0")
    bench.put("a/g1", InstanceState.KEPT)
    bench.settle()
    assert orders(busy(bench, queued=100_000)) == [2]


def test_pauses_grow_with_failures_and_end_with_success():
    bench = Bench({"m": replace(AUTO, min_instances=1)})
    bench.changed()
    bench.run(0.4)
    at = []
    for i in range(1, 6):
        while f"o{i}" not in bench.operations:
            bench.look(0.01)
        at.append(bench.now)
        bench.finish(f"o{i}", "failed", "no source")
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert gaps == pytest.approx([0.5, 1.0, 2.0, 4.0], abs=0.1)
    assert "no source" in bench.scaler.why("m", bench.now).now.reason
    assert bench.scaler.statistics().outcomes["m", "mend", "failed"] == 5
    while "o6" not in bench.operations:
        bench.look(0.05)
    bench.claim("o6")
    bench.finish("o6")
    bench.run(2.0)
    bench.put("a/g0", None)
    assert orders(bench.changed() + bench.run(0.02)) == [1]


def test_a_new_device_ends_the_pause():
    bench = Bench({"m": replace(AUTO, min_instances=1)}, devices=1)
    bench.settle()
    for i in range(1, 6):
        while f"o{i}" not in bench.operations:
            bench.look(0.05)
        bench.finish(f"o{i}", "failed", "no source")
    assert not orders(bench.look(0.01))
    bench.change("boot-a", devices={"g0": device("g0"), "g7": device("g7")})
    assert orders(bench.changed()) == [1]


def test_a_refused_order_is_a_failure():
    bench = Bench({"m": replace(AUTO, min_instances=1)})
    bench.refuse = "still being read"
    bench.settle()
    bench.run(3.0)
    tried = len(orders(bench.effects))
    assert 2 <= tried <= 4
    assert bench.scaler.statistics().outcomes["m", "mend", "refused"] >= 1
    bench.refuse = ""
    assert orders(bench.run(10.0)) == [1]


def test_the_dead_are_replaced():
    bench = Bench({"m": replace(AUTO, min_instances=3)}, nodes=("a", "b"))
    other = alone(bench)
    for where in ("a/g0", "b/g0", "b/g1" if other == "boot-b" else "a/g1"):
        bench.put(where)
    bench.settle()
    assert not orders(bench.run(3.0))
    bench.change(other, status=Status.DEAD)
    effects = bench.say(NodeDied(other))
    assert orders(effects) == [3]
    assert decided(effects)[0].action == "mend"


def test_death_during_a_growth_is_mended_beside_it():
    bench = Bench({"m": replace(AUTO, min_instances=4)}, nodes=("a", "b"))
    other = alone(bench)
    bench.put("a/g0")
    bench.put("b/g0")
    bench.settle()
    bench.claim("o1")
    assert not orders(bench.changed())
    bench.change(other, status=Status.DEAD)
    assert orders(bench.say(NodeDied(other))) == [4]


def test_what_is_done_counts_until_the_view_shows_it():
    bench = Bench({"m": replace(AUTO, min_instances=2)})
    bench.changed()
    bench.run(0.5)
    bench.operations.pop("o1")
    effects = bench.say(OperationOver("m", "o1", "done", ""))
    assert not orders(effects)
    assert not orders(bench.run(0.9))
    assert orders(bench.run(0.5)) == [2]  # it has died again, or has never been


def test_facts_are_told_on_change_and_not_too_often():
    bench = Bench(devices=8)
    bench.put("a/g0")
    bench.settle()
    (facts,) = [each.facts for each in of(bench.effects, PublishScale)][-1:]
    assert facts.present == facts.wanted == 1
    assert facts.mode == "auto"
    assert not facts.ready_s
    assert facts.since_s == EPOCH_S
    bench.effects.clear()
    bench.load_s = 5.0
    for step in range(100):
        busy(bench, queued=2000 + 37 * step)
        bench.look(0.01)
        if step == 10:
            bench.claim("o1")
    told = of(bench.effects, PublishScale)
    assert 2 <= len(told) <= 6
    last = told[-1].facts
    assert last.wanted > 1
    assert last.pressure > 1
    assert bench.now < last.ready_s - EPOCH_S < bench.now + 6
    bench.effects.clear()
    bench.run(30.0)
    assert len(of(bench.effects, PublishScale)) < 20
    bench.effects.clear()
    bench.run(30.0)
    assert len(of(bench.effects, PublishScale)) <= 1


def test_who_owns_no_longer_says_so():
    bench = Bench(nodes=("a", "b"))
    owner = bench.owner()
    other = next(boot for boot in bench.nodes if boot != owner)
    bench.changed(owner)
    bench.run(1.0, owner)
    assert bench.scalers[owner].facts
    assert not bench.scalers[other].facts
    assert bench.nodes[owner].scaling["m"].since_s == EPOCH_S
    name = bench.nodes[owner].name
    bench.change(owner, facts=NodeFacts(name, "", draining=True))
    assert PublishScale("m", None) in bench.changed(owner)
    assert not bench.scalers[owner].facts
    assert bench.scalers[owner].why("m", bench.now) is None
    bench.changed(other)
    bench.run(1.0, other)
    assert bench.scalers[other].facts


def test_a_new_owner_knows_what_it_has_overheard():
    bench = Bench(nodes=("a", "b"))
    owner = bench.owner()
    heir = next(boot for boot in bench.nodes if boot != owner)
    bench.changed(heir)
    assert not orders(bench.demand(heir, boot=heir, held=2, held_tokens=20))
    bench.change(owner, status=Status.DEAD)
    assert orders(bench.changed(heir)) == [1]


def test_what_a_dead_node_held_is_forgotten():
    bench = Bench(nodes=("a", "b"))
    owner = bench.owner()
    other = next(boot for boot in bench.nodes if boot != owner)
    bench.hold_orders = True
    bench.changed(owner)
    assert orders(bench.demand(other, boot=owner, held=1, held_tokens=9)) == [1]
    bench.change(other, status=Status.DEAD)
    bench.say(NodeDied(other), owner)
    assert not orders(bench.run(5.0, owner))


def test_why_tells_the_figures_and_the_past():
    bench = Bench()
    assert bench.scaler.why("m", 0.0) is None
    bench.put("a/g0")
    bench.settle()
    calm = bench.scaler.why("m", bench.now)
    assert calm.now.action == "hold"
    assert not calm.past
    assert calm.wish is None
    assert calm.terms == AUTO
    assert calm.mode == "auto"
    assert calm.owner == "a"
    busy(bench)
    bench.demand(ttft={100: 5}, loads=(load("a/g0", queued_tokens=5000, waiting=9),))
    why = bench.scaler.why("m", bench.now)
    assert [each.action for each in why.past] == ["grow"]
    assert why.past[0].operation == why.now.operation == "o1"
    assert "ttft_p90_s" in why.quantiles
    assert bench.scaler.decisions() == list(why.past)
    bench.say(WishGiven("m", AUTOMATIC))
    assert bench.scaler.why("m", bench.now).wish == AUTOMATIC


def test_why_does_not_hide_a_change_from_the_next_event():
    bench = Bench({"m": replace(AUTO, min_instances=1)})
    bench.put("a/g0")
    bench.settle()
    bench.put("a/g0", None)
    bench.scaler.why("m", bench.now)
    assert orders(bench.look(0.02)) == [1]


def test_statistics_tell_present_wanted_and_pressure():
    bench = Bench()
    bench.put("a/g0")
    bench.settle()
    busy(bench, queued=20_000)
    figures = bench.scaler.statistics()
    assert figures.present == {"m": 1}
    assert figures.wanted["m"] > 1
    assert figures.pressure["m"] > 1
    bench.claim("o1")
    bench.finish("o1")
    assert bench.scaler.statistics().outcomes == {("m", "grow", "done"): 1}


def test_models_that_nobody_knows_are_left_alone():
    bench = Bench()
    bench.settle()
    assert not bench.demand(model="x", held=1)
    bench.terms["x"] = AUTO
    assert not orders(bench.run(3.0))


def test_a_definition_that_arrives_late_is_taken_up():
    bench = Bench()
    known = bench.terms.pop("m")
    bench.changed()
    assert not bench.scaler.facts
    bench.terms["m"] = known
    bench.run(3.0)
    assert bench.scaler.facts


@pytest.mark.parametrize(
    ("instances", "apart_s"), [(0, 0.01), (32, 0.01), (64, 0.02), (1000, 0.05)]
)
def test_looks_at_many_instances_are_further_apart(instances, apart_s):
    charge = Charge(definition(), Monitor("m", 0.0), 0.0, 0.0, 0.0)
    charge.looked(instances, 5.0)
    charge.look_soon(5.0)
    assert charge.look_at == pytest.approx(5.0 + apart_s)
    charge.look_soon(5.0, at_once=True)
    assert charge.look_at == 5.0
