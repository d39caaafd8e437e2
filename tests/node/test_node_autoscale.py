"""What a node tells the owners of models, and what becomes of their decisions."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from blitzgw.api.metrics import Recent
from blitzgw.api.status import ModelStatus
from blitzgw.autoscaling import Autoscaling
from blitzgw.core.clock import MonotonicClock, until_tick_s
from blitzgw.core.operation import CancelOrder, OperationFacts, ScaleAnswer, ScaleOrder
from blitzgw.core.rumours import Status
from blitzgw.core.scale import AUTOMATIC, Cede, DecisionFacts, Demand, bucket_of
from blitzgw.core.view import (
    ClusterView,
    LoadFacts,
    ModelFacts,
    NodeFacts,
    NodeView,
    ScaleFacts,
    ScaleTerms,
    ScaleWish,
)
from blitzgw.demands import IDLE_LOOK_S, LAZY_LOOK_S, REPEAT_S, TELL_S, Demands
from blitzgw.gossip.catalogue import Definition
from blitzgw.orderdesk import OrderDesk
from blitzgw.reporting import hindrance
from blitzgw.router.arrivals import Arrived, Held
from blitzgw.scalemetrics import ScaleMetrics
from blitzgw.scaleview import eta_s, scale_facts
from blitzgw.scaling import autoevents as auto
from blitzgw.scaling import effects as eff
from blitzgw.scaling.loads import newest
from blitzgw.scaling.ownership import owner_of

ME, OTHER = "a" * 16, "b" * 16


class Clock:
    """Stands still unless told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    async def sleep(self, duration_s: float) -> None:
        raise AssertionError("nothing here waits")


def view(mode: str = "auto", boots: str = "a", **more: Any) -> ClusterView:
    """Nodes that define the model m; `more` is of the first."""
    facts = ModelFacts("m", "d", 4, 1, scaling=ScaleTerms(mode=mode))
    nodes = {
        each * 16: NodeView(
            each * 16, each, "127.0.0.1", 1, Status.ALIVE, 1, NodeFacts(each, "http://h"),
            models={"m": facts}, **(more if each == boots[0] else {}),
        )
        for each in boots
    }  # fmt: skip
    return ClusterView(ME, nodes)


@dataclass
class Desk:
    """A node's figures, made up, and what it has told."""

    clock: Clock = field(default_factory=Clock)
    held: Held = field(default_factory=Held)
    arrived: Arrived = field(default_factory=Arrived)
    loads: list[LoadFacts] = field(default_factory=list)
    recent: Recent = field(default_factory=Recent)
    said: list[tuple[str, Demand]] = field(default_factory=list)

    def __post_init__(self) -> None:
        settled = {"m": Definition("m", "d", 4, 1, (), ())}
        self.demands = Demands(
            ME, Router(self), lambda: {"m": self.loads}, lambda: settled, self.say, self.clock
        )
        self.demands.latencies = lambda _: self.recent
        self.demands.follow(view())

    def say(self, boot: str, demand: Demand) -> None:
        self.said.append((boot, demand))

    def look(self, after_s: float = TELL_S) -> list[Demand]:
        """Return what is told at a look after so long."""
        before = len(self.said)
        self.clock.seconds += after_s
        self.demands.look()
        return [demand for _, demand in self.said[before:]]


@dataclass
class Router:
    """What a desk says."""

    desk: Desk

    def queue(self, model: str) -> Held:
        return self.desk.held

    def arrived(self, model: str) -> Arrived:
        return self.desk.arrived


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_nothing_is_told_where_nothing_has_happened(desk: Desk) -> None:
    assert desk.look() == desk.look(REPEAT_S) == []


def test_what_changes_is_told_and_no_more_than_that(desk: Desk) -> None:
    desk.arrived.requests, desk.arrived.tokens = 1, 40
    [demand] = desk.look()
    assert (demand.model, demand.digest, demand.arrived, demand.arrived_tokens) == ("m", "d", 1, 40)
    assert desk.look(5.0) == []
    desk.loads = [LoadFacts("m@a/gpu", running=1, kv_tokens=100)]
    [busy] = desk.look()
    assert busy.loads == tuple(desk.loads)
    assert busy.number > demand.number
    assert [d.loads for d in desk.look(REPEAT_S)] == [busy.loads], "it may have a new owner"
    assert desk.look(REPEAT_S / 2) == []
    desk.loads = [LoadFacts("m@a/gpu", kv_tokens=100)]
    assert len(desk.look()) == 1, "that it has ended is told"
    assert desk.look(REPEAT_S) == [], "and then there is silence"


def test_a_load_is_told_as_newer_than_what_all_have_been_told(desk: Desk) -> None:
    """Or an owner would decide on what gossip says, which is a second old."""
    desk.demands.published = {"m@a/gpu": 7}.get  # type: ignore[assignment]
    desk.loads = [LoadFacts("m@a/gpu", running=1)]
    [demand] = desk.look()
    [told] = demand.loads
    assert newest([LoadFacts("m@a/gpu", number=7)], demand.loads)["m@a/gpu"] == told
    assert newest([LoadFacts("m@a/gpu", number=8)], demand.loads)["m@a/gpu"] != told
    assert desk.look() == [], "a number alone is no news"


def test_held_requests_are_told_at_every_look_with_how_long_they_have_waited(desk: Desk) -> None:
    desk.held = Held(2, 300, desk.clock.now())
    first, second = *desk.look(0.01), *desk.look(0.02)
    assert (first.held, first.held_tokens) == (2, 300)
    assert first.held_s == pytest.approx(0.01)
    assert second.held_s == pytest.approx(0.03)


def test_latencies_are_told_once(desk: Desk) -> None:
    desk.recent.ttft[bucket_of(0.5)] += 2
    [demand] = desk.look()
    assert demand.ttft == {bucket_of(0.5): 2}
    assert not demand.tpot
    assert desk.look(REPEAT_S) == []
    assert not desk.recent


def test_a_new_owner_is_told_at_once(desk: Desk) -> None:
    desk.loads = [LoadFacts("m@a/gpu", kv_tokens=100)]
    desk.look()
    names = [name for name in "bcdefghijk" if owner_of("m", view(boots=f"a{name}")) != ME]
    desk.demands.follow(view(boots=f"a{names[0]}"))
    desk.look(0.001)
    assert desk.said[-1][0] == names[0] * 16
    assert len(desk.said) == 2


@pytest.mark.parametrize(
    ("mode", "wished", "told"),
    [("auto", 0, 4), ("advise", 0, 4), ("manual", 0, 1), ("manual", 1, 4)],
)
def test_who_decides_by_hand_is_told_seldom(desk: Desk, mode: str, wished: int, told: int) -> None:
    wishes = {"m": ScaleWish("m", 3, 1, ME)} if wished else {}
    desk.demands.follow(view(mode, wishes=wishes))
    n_told = 0
    for requests in range(1, 5):
        desk.arrived.requests = requests
        n_told += len(desk.look(TELL_S))
    assert n_told == told


def test_a_node_looks_seldom_where_no_instance_is_here(desk: Desk) -> None:
    desk.arrived.requests = 1
    assert desk.demands.look() == LAZY_LOOK_S
    desk.arrived.requests = 2
    assert desk.demands.look() == TELL_S
    assert desk.demands.look() == LAZY_LOOK_S
    desk.loads = [LoadFacts("m@a/gpu", running=1)]
    assert desk.demands.look() == TELL_S
    desk.loads = [LoadFacts("m@a/gpu")]
    desk.look()
    assert desk.demands.look() == IDLE_LOOK_S, "peers may send something to it"


@pytest.mark.parametrize(
    ("now", "left_s"), [(10.0, 0.25), (10.1, 0.15), (10.2, 0.3), (10.2499, 0.2501), (10.125, 0.125)]
)
def test_ticks_come_together_and_none_twice(now: float, left_s: float) -> None:
    assert until_tick_s(now, 0.25) == pytest.approx(left_s)


async def test_a_request_after_silence_is_told_at_once_and_a_burst_together() -> None:
    desk = Desk()
    desk.demands.clock = MonotonicClock()
    desk.demands.open()
    try:
        await asyncio.sleep(0.1)
        assert not desk.said
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            desk.demands.stirred("m")
            desk.arrived.requests += 1
        while not desk.said:
            await asyncio.sleep(0)
        assert asyncio.get_running_loop().time() - began < TELL_S / 2
        assert [demand.arrived for _, demand in desk.said] == [100]
        assert 0 <= desk.said[0][1].news_s < TELL_S
    finally:
        desk.demands.close()
    await asyncio.sleep(2 * TELL_S)
    assert len(desk.said) == 1


# The shell of the autoscaler.


class Decider:
    """Answers events as it is told, by their kind; notes them all."""

    def __init__(self) -> None:
        self.answers: dict[type, list[Any]] = {}
        self.told: list[Any] = []

    def handle(self, event: Any, now: float) -> list[Any]:
        self.told.append(event)
        return self.answers.pop(type(event), [])

    def deadline(self) -> float | None:
        return None

    def why(self, model: str, now: float) -> None:
        return None


class World:
    """A shell with a decider and operations that do as they are told."""

    def __init__(self) -> None:
        self.decider, self.changes, self.said = Decider(), 0, []
        self.metrics = ScaleMetrics()
        self.effects: list[Any] = []
        self.desk = OrderDesk(
            ME, self, lambda: {"m"}, self.perform, self.say, Clock(), self.metrics
        )  # type: ignore[arg-type]
        self.shell = Autoscaling(
            self.decider, Clock(), self.metrics, self.desk.give, self.cancelled, self.say,
            self.changed, lambda: None,
        )  # type: ignore[arg-type]  # fmt: skip
        self.desk.join(self.shell)
        self.done: list[Any] = []
        self.given: list[Any] = []
        self.known = OperationFacts("op", "m", "d", "w", "a", "claiming", 0.0, 0, 2)

    def perform(self, effects: Any) -> None:
        self.done += effects
        for effect in effects:
            if isinstance(effect, eff.OperationEnded):
                self.desk.ended(effect)

    def say(self, boot: str, message: Any) -> None:
        self.said.append((boot, message))

    def changed(self) -> None:
        self.changes += 1

    def cancelled(self, operation: str, reason: str) -> None:
        self.done.append(("cancel", operation, reason))

    # `Operations`.

    def handle(self, event: Any, now: float) -> list[Any]:
        self.given.append(event)
        return self.effects

    def facts_of(self, operation: str, now: float) -> OperationFacts | None:
        return self.known if operation == self.known.id else None


def decided(action: str = "grow", acted: bool = True) -> auto.Decided:
    facts = DecisionFacts("m", "a", 1.0, action, 1, 2, acted, "much to do", "a + b", {"a_s": 1.0})
    return auto.Decided(7, facts)


def answered(number: int, facts: OperationFacts | None, code: str = "") -> eff.Send:
    return eff.Send(ME, ScaleAnswer(number, facts, code, code and "no"))


def test_what_is_decided_is_ordered_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    world, registry = World(), CollectorRegistry()
    world.metrics.register(registry)
    world.effects = [
        eff.OperationEnded("op", "m", "w", "failed", "no device"), answered(1, world.known),
    ]  # fmt: skip
    order = auto.OrderInstances("m", 2, "much to do", 7)
    world.decider.answers[auto.DemandCame] = [decided(), order]
    with caplog.at_level(logging.INFO):
        world.shell.said(OTHER, Demand("m", "d", 1, news_s=0.01))
    [given] = world.given
    assert given.order.automatic
    assert given.order.instances == 2
    _, taken, over = world.decider.told
    assert taken == auto.OrderTaken("m", 7, "op")
    assert over == auto.OperationOver("m", "op", "failed", "no device")
    assert not world.said, "nobody has asked for an answer"
    assert "scale_decided model=m action=grow present=1 wanted=2" in caplog.text
    labels = {"model": "m", "direction": "up", "reason": "grow", "outcome": "claiming"}
    assert registry.get_sample_value("blitzgw_scale_events_total", labels) == 1
    decide = registry.get_sample_value("blitzgw_scale_phase_seconds_count", {"phase": "decide"})
    assert decide == 1


def test_an_order_that_is_refused_or_breaks_is_over() -> None:
    world = World()
    order = auto.OrderInstances("m", 2, "much to do", 7)
    for effects in ([answered(1, None, "no_capacity")], []):
        world.effects = effects
        world.decider.answers[auto.ViewChanged] = [order]
        world.shell.tell(auto.ViewChanged())
        over = world.decider.told[-1]
        assert (over.operation, over.state) == ("", "failed")
        world.shell._ids = iter([1])


def test_wishes_and_facts_are_published_until_they_are_taken_back() -> None:
    world = World()
    wish, facts = ScaleWish("m", 3, 1, ME), ScaleFacts("m", "auto", 1, 3)
    published = [auto.PublishWish(wish), auto.PublishScale("m", facts)]
    world.decider.answers[auto.ViewChanged] = [
        *published,
        auto.SendCede(OTHER, Cede("m", "n", 0, 2.0)),
    ]
    world.shell.tell(auto.ViewChanged())
    assert world.shell.facts() == [wish, facts]
    assert world.changes == 2
    assert world.said == [(OTHER, Cede("m", "n", 0, 2.0))]
    world.decider.answers[auto.ViewChanged] = [auto.PublishScale("m", None)]
    world.shell.tell(auto.ViewChanged())
    assert world.shell.facts() == [wish]


def test_an_effect_that_breaks_leaves_the_others_alone(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    facts = ScaleFacts("m", "auto", 1, 3)
    world.decider.answers[auto.ViewChanged] = ["no effect", auto.PublishScale("m", facts)]
    world.shell.tell(auto.ViewChanged())
    assert world.shell.facts() == [facts]
    assert "effect_failed" in caplog.text


@pytest.mark.parametrize(
    ("order", "code", "wished"),
    [
        (ScaleOrder(5, "m", 2), "", [auto.WishGiven("m", 2, True)]),
        (ScaleOrder(5, "m", 2, dry_run=True), "", []),
        (ScaleOrder(5, "m", 2), "no_capacity", []),
        (ScaleOrder(5, "m", AUTOMATIC), "", [auto.WishGiven("m", AUTOMATIC, False)]),
        (ScaleOrder(5, "n", AUTOMATIC), "model_not_found", []),
    ],
)
def test_an_operators_order_becomes_a_wish_once_it_is_taken(
    order: ScaleOrder, code: str, wished: list[auto.WishGiven]
) -> None:
    world = World()
    world.effects = [answered(5, None if code else world.known, code)]
    world.desk.order(OTHER, order)
    assert world.decider.told == wished
    if order.instances == AUTOMATIC:
        [(boot, answer)] = world.said
        assert (boot, answer.operation, answer.code) == (OTHER, None, code)
    else:
        assert world.done == world.effects


@pytest.mark.parametrize("operation", ["op", "unknown"])
def test_what_an_operator_cancels_is_told_as_such(operation: str) -> None:
    world = World()
    world.effects = (
        [eff.OperationEnded("op", "m", "w", "cancelled", "")] if operation == "op" else []
    )
    world.desk.cancel(OTHER, CancelOrder(9, operation))
    [(boot, answer)] = world.said
    assert (boot, answer.id) == (OTHER, 9)
    assert answer.code == ("" if operation == "op" else "unknown_operation")
    asked = [event.asked for event in world.decider.told]
    assert asked == ([True] if operation == "op" else [])


# What is told of it.


def test_of_two_owners_the_later_one_is_believed() -> None:
    old, new = (
        ScaleFacts("m", "auto", 1, 1, since_s=1.0),
        ScaleFacts("m", "auto", 1, 5, since_s=2.0),
    )
    both = view(boots="ab", scaling={"m": new})
    both.nodes["b" * 16] = NodeView("b" * 16, "b", "h", 1, Status.ALIVE, 1, scaling={"m": old})  # type: ignore[index]
    assert scale_facts(both) == {"m": new}


def test_the_eta_is_counted_from_now() -> None:
    facts = ScaleFacts("m", "auto", 0, 1, ready_s=1000.5)
    assert eta_s(facts, 999.0) == 1.5
    assert eta_s(facts, 1001.0) == 0.0
    assert eta_s(ScaleFacts("m", "auto", 0, 1), 1.0) is None
    assert eta_s(None, 1.0) is None


@pytest.mark.parametrize(
    ("status", "ready"),
    [
        (ModelStatus("m", "scaled_to_zero", mode="auto"), True),
        (ModelStatus("m", "loading", mode="auto"), True),
        (ModelStatus("m", "loading", mode="auto", starting=True), False),
        (ModelStatus("m", "loading"), False),
    ],
)
def test_a_model_that_comes_back_by_itself_is_no_hindrance(
    status: ModelStatus, ready: bool
) -> None:
    assert (hindrance([status]) == "") == ready


def test_latencies_are_taken_once() -> None:
    recent = Recent()
    assert not recent
    recent.tpot[3] += 1
    assert recent
    assert recent.take() == {"ttft": {}, "tpot": Counter({3: 1}), "queue": {}}
    assert not recent
