"""The register of wishes, and what an owner does about them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.instance import InstanceState
from blitzgw.core.rumours import Status
from blitzgw.core.scale import AUTOMATIC
from blitzgw.core.view import ScaleTerms, ScaleWish
from blitzgw.scaling.autoevents import (
    CancelOperation,
    OperationOver,
    OrderInstances,
    PublishWish,
    WishGiven,
)
from blitzgw.scaling.census import MAX_MODELS
from blitzgw.scaling.events import NodeDied
from blitzgw.scaling.wishes import MAX_STAMP, MAX_WANTED, Wishes, newer
from tests.scaling.autoscaler_kit import AUTO, Bench, Running, decided, load, of, orders

WISHES = st.builds(
    ScaleWish,
    st.sampled_from(["m", "n"]),
    st.integers(-3, 5),
    st.integers(-1, 6),
    st.sampled_from(["a", "b", "c"]),
)


def wishes(effects):
    return [each.wish for each in of(effects, PublishWish)]


# The register.


@settings(max_examples=60, deadline=None)
@given(st.lists(WISHES, max_size=12), st.randoms(use_true_random=False))
def test_the_newest_holds_in_whatever_order_they_come(told, random):
    first, second = Wishes("x"), Wishes("y")
    first.learn(told)
    shuffled = told[:]
    random.shuffle(shuffled)
    for wish in shuffled:
        second.learn([wish])
        second.check_integrity()
    for model in ("m", "n"):
        assert first.of(model) == second.of(model)
        sound = [w for w in told if w.model == model and w.wanted >= -1 and w.stamp > 0]
        assert first.of(model) in sound or not sound
    given_here = first.give("m", 2)
    assert all(
        w == given_here or newer(given_here, w) for w in told if w.model == "m" and w in sound
    )
    assert first.wanted("m") == 2


def test_wishes_that_are_none_are_left_out():
    register = Wishes("x")
    bad = [ScaleWish("m", -2, 1, "a"), ScaleWish("m", MAX_WANTED + 1, 1, "a")]
    bad += [ScaleWish("m", 1, 0, "a"), ScaleWish("m", 1, MAX_STAMP + 1, "a")]
    assert register.learn(bad) == []
    assert register.of("m") is None
    assert register.give("m", -2) is None
    assert register.give("m", MAX_WANTED + 1) is None
    assert register.wanted("m") == AUTOMATIC


def test_the_register_is_bounded():
    register = Wishes("x")
    register.learn(ScaleWish(f"m{i}", 1, 1, "a") for i in range(MAX_MODELS + 10))
    assert register.give("new", 1) is None
    assert register.give("m0", 2) is not None
    register.check_integrity()


def test_heirs_pass_a_wish_on_once():
    register = Wishes("x")
    wish = ScaleWish("m", 3, 7, "a")
    register.learn([wish])
    assert register.to_pass_on(lambda _: ["a", "b"]) == []
    assert register.to_pass_on(lambda _: ["a", "x"]) == [wish]
    assert register.to_pass_on(lambda _: ["a", "x"]) == []
    later = replace(wish, stamp=8)
    register.learn([later])
    assert register.to_pass_on(lambda _: ["x"]) == [later]


# The owner.


def test_an_operators_number_is_ordered_at_once_and_kept():
    bench = Bench({"m": ScaleTerms(mode="manual", max_instances=1)}, devices=6)
    effects = bench.say(WishGiven("m", 3))
    assert wishes(effects) == [ScaleWish("m", 3, 1, "boot-a")]
    assert orders(effects) == [3]
    assert decided(effects)[0].action == "order"
    bench.claim("o1")
    bench.finish("o1")
    assert not orders(bench.run(20.0))
    bench.put("a/g0", None)
    effects = bench.run(0.5)
    assert orders(effects) == [3]
    assert decided(effects)[0].action == "mend"
    assert bench.scaler.facts["m"].wanted == 3
    assert bench.scaler.facts["m"].mode == "manual"
    why = bench.scaler.why("m", bench.now)
    assert why.wish == 3
    assert why.mode == "manual"


def test_load_does_not_move_an_operators_number():
    bench = Bench(devices=6)
    bench.put("a/g0")
    bench.say(WishGiven("m", 1))
    busy = (load("a/g0", queued_tokens=90_000, waiting=50),)
    assert not orders(bench.demand(loads=busy)) + orders(bench.run(4.0))


def test_what_has_been_begun_for_a_wish_is_not_ordered_again():
    bench = Bench()
    bench.changed()
    bench.operations["x"] = _growth(bench, 2)
    effects = bench.say(WishGiven("m", 2, ordered=True))
    assert wishes(effects)
    assert not orders(effects)
    assert not orders(bench.run(1.0))


def _growth(bench, wanted):
    from tests.scaling.autoscaler_kit import Running

    return Running("x", "m", wanted, True, min(bench.scalers))


def test_zero_means_zero():
    bench = Bench({"m": replace(AUTO, min_instances=2)})
    bench.put("a/g0")
    bench.put("a/g1")
    bench.changed()
    assert orders(bench.say(WishGiven("m", 0))) == [0]
    bench.finish("o1")
    assert not orders(bench.demand(held=3, held_tokens=30)) + orders(bench.run(5.0))


@pytest.mark.parametrize("mode", ["manual", "advise", "auto"])
def test_automatic_is_automatic_whatever_is_configured(mode):
    bench = Bench({"m": replace(AUTO, mode=mode)})
    bench.say(WishGiven("m", AUTOMATIC))
    assert orders(bench.demand(held=1, held_tokens=5)) == [1]
    assert bench.scaler.facts["m"].mode == "auto"


def test_a_lower_number_gives_up_what_grows():
    bench = Bench(devices=6)
    bench.put("a/g0")
    bench.say(WishGiven("m", 5))
    bench.claim("o1")
    bench.run(0.2)
    effects = bench.say(WishGiven("m", 0))
    assert [each.operation for each in of(effects, CancelOperation)] == ["o1"]
    assert orders(effects) == [0]


def test_a_new_number_is_tried_in_spite_of_a_pause():
    bench = Bench(devices=6)
    bench.say(WishGiven("m", 2))
    for i in range(1, 5):
        while f"o{i}" not in bench.operations:
            bench.look(0.05)
        bench.finish(f"o{i}", "failed", "no source")
    assert not orders(bench.look(0.05))
    assert orders(bench.say(WishGiven("m", 3))) == [3]


def test_devices_alone_bound_an_operators_number():
    bench = Bench(devices=3)
    assert orders(bench.say(WishGiven("m", 9))) == [3]
    bench.claim("o1")
    bench.finish("o1")
    assert not orders(bench.run(10.0))
    assert bench.scaler.facts["m"].wanted == 3


def test_a_cancelled_order_makes_what_is_there_the_wish():
    bench = Bench(devices=6)
    bench.put("a/g0")
    bench.say(WishGiven("m", 4))
    bench.claim("o1")
    bench.put("a/g1")  # one has got ready already
    bench.run(0.1)
    effects = bench.finish("o1", "cancelled", "by hand", asked=True)
    effects += bench.run(20.0)
    assert not orders(effects)
    assert bench.nodes["boot-a"].wishes["m"].wanted == len(
        bench.counted("m", InstanceState.SERVING)
    )


def test_what_a_cancelled_order_leaves_behind_for_long_is_not_wished_for():
    bench = Bench(devices=6)
    bench.put("a/g0")
    bench.say(WishGiven("m", 3))
    bench.claim("o1")
    bench.run(0.1)
    gone = bench.operations.pop("o1").coming
    effects = bench.say(OperationOver("m", "o1", "cancelled", "by hand", asked=True))
    effects += bench.run(4.0)  # its targets do not answer
    for boot, device in gone:
        bench.put(f"{bench.nodes[boot].name}/{device}", None)
    effects += bench.changed() + bench.run(20.0)
    assert not orders(effects)
    assert wishes(effects)[-1].wanted == 1


def test_what_gets_ready_while_an_order_is_cancelled_stays():
    bench = Bench(devices=6)
    bench.put("a/g0")
    bench.say(WishGiven("m", 2))
    bench.operations.pop("o1")
    effects = bench.say(OperationOver("m", "o1", "cancelled", "by hand", asked=True))
    assert wishes(effects)[-1].wanted == 1
    bench.put("a/g1")  # the view was late
    effects = bench.run(20.0)
    assert not orders(effects)
    assert wishes(effects)[-1].wanted == 2


@pytest.mark.parametrize("claimed", [True, False])
def test_what_others_bring_goes_on_when_one_of_several_is_cancelled(claimed):
    bench = Bench({"m": replace(AUTO, min_instances=2)}, devices=6)
    bench.put("a/g0")
    assert orders(bench.settle()) == [2]
    bench.claim("o1")
    bench.operations["x"] = Running("x", "m", 4, True, "boot-a")
    if claimed:
        bench.claim("x")
    bench.say(WishGiven("m", 4, ordered=True))
    effects = bench.finish("o1", "cancelled", "by hand", asked=True)
    if not claimed:
        bench.run(0.1)
        bench.operations["x"].wanted = 3  # what it finds lacking is for it to say
        bench.claim("x")
        bench.operations["x"].wanted = 4
    effects += bench.run(5.0)
    assert not of(effects, CancelOperation)
    bench.finish("x")
    effects += bench.run(20.0)
    assert not orders(effects)
    assert wishes(effects)[-1].wanted == 3
    assert len(bench.counted("m", InstanceState.SERVING)) == 3


def test_an_automatic_operation_that_was_cancelled_is_not_begun_again_at_once():
    bench = Bench({"m": replace(AUTO, min_instances=1)})
    bench.settle()
    bench.finish("o1", "cancelled", "by hand", asked=True)
    assert not orders(bench.run(5.0))
    assert orders(bench.run(10.0)) == [1]
    assert not of(bench.effects, PublishWish)


def test_a_wish_outlives_its_owner():
    names = ("a", "b", "c", "d", "e")
    bench = Bench({"m": ScaleTerms(mode="manual")}, nodes=names)
    owner = bench.owner()
    bench.say(WishGiven("m", 2), owner)
    for boot in bench.scalers:
        bench.changed(boot)
    holders = [boot for boot, node in bench.nodes.items() if "m" in node.wishes]
    assert len(holders) == 3
    assert owner in holders
    bench.operations.clear()
    bench.change(owner, status=Status.DEAD, wishes={})
    del bench.scalers[owner]
    told = []
    for boot in bench.scalers:
        told += bench.say(NodeDied(owner), boot) + bench.run(0.5, boot)
    assert orders(told) == [2]


def test_a_wish_learnt_by_gossip_is_an_order():
    bench = Bench({"m": ScaleTerms(mode="manual")})
    bench.changed()
    bench.change("boot-a", wishes={"m": ScaleWish("m", 2, 9, "boot-z")})
    effects = bench.run(0.5)
    (order,) = of(effects, OrderInstances)
    assert order.instances == 2
    assert decided(effects)[0].action == "order"
