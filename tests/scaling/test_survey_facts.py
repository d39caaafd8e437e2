"""What a view means to a plan."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.operation import ScaleOrder
from blitzgw.core.plan import Edge, Holder, Plan, Tier
from blitzgw.core.rumours import Status
from blitzgw.core.view import (
    CopyFacts,
    LoadFacts,
    NetworkFacts,
    NodeFacts,
)
from blitzgw.scaling.departures import victims
from blitzgw.scaling.events import OrderGiven
from blitzgw.scaling.freedevices import free_devices
from blitzgw.scaling.holders import holders_of
from blitzgw.scaling.links import MIN_PORT_SHARE, RATE_BYTES_PER_S, dial_address, links_of
from blitzgw.scaling.operation import Surroundings
from blitzgw.scaling.operations import Operations
from blitzgw.scaling.orders import edge_orders
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.survey import ModelDefinition, instances_of
from tests.scaling.view_kit import MODEL, W, device, holders, instance, node, view

ALL = frozenset(range(4))


@pytest.mark.parametrize(
    ("state", "mask", "expected"),
    [
        (InstanceState.SERVING, "f", ALL),
        (InstanceState.LOADING, "3", {0, 1}),
        (InstanceState.DRAINING, "f", ALL),
        (InstanceState.KEPT, "f", ALL),
        (InstanceState.GONE, "f", None),
        (InstanceState.SERVING, "0", None),
        (InstanceState.SERVING, "ff1", {0}),
        (InstanceState.SERVING, "zz", None),
    ],
)
def test_instances_give_what_they_say(state, mask, expected):
    mask = {"ff1": "f01"}.get(mask, mask)
    found = holders(MODEL, view(node("a", instances=[instance("g0", mask, state)])))
    assert found == ([Holder("a/g0", frozenset(expected))] if expected else [])


def test_other_weights_other_layouts_and_the_dead_give_nothing():
    serving = [instance("g0")]
    assert holders(MODEL, view(node("a", instances=[instance("g0", weights="x")]))) == []
    old = {"g0": device("g0", software={"layout": "0"})}
    assert (
        holders(
            MODEL,
            view(
                node("a", instances=serving, devices=1)
                if False
                else replace(node("a", instances=serving), devices=old)
            ),
        )
        == []
    )
    assert holders(MODEL, view(node("a", instances=serving, status=Status.DEAD))) == []
    twin = replace(node("a", instances=serving), boot="other", port=2)
    assert holders(MODEL, view(node("a", instances=serving), twin)) == []


def test_a_host_copy_is_sent_by_its_worker_and_read_by_targets_of_its_machine():
    copy = CopyFacts(W, "m", "g0", 60, "f", complete=True)
    there = view(node("a", devices=2, copies=[copy]), node("b"))
    assert holders(MODEL, there, ["b/g0"]) == [Holder("a/g0", ALL)]
    found = holders(MODEL, there, ["a/g1"])
    assert found == [Holder("a/g0", ALL), Holder("a/g1", ALL, Tier.HOST)]
    partly = replace(copy, blobs="1", complete=False)
    there = view(node("a", devices=2, copies=[partly]))
    assert holders(MODEL, there, ["a/g1"]) == [Holder("a/g0", frozenset({0}))]


def test_a_checkpoint_is_read_by_targets_and_by_one_worker_that_sends():
    there = view(node("a", devices=2, disk=True), node("b"))
    assert holders(MODEL, there, ["b/g0"]) == [Holder("a/g0", ALL, Tier.DISK)]
    assert holders(MODEL, there, ["a/g0"]) == [Holder("a/g0", ALL, Tier.DISK)]
    resident = view(node("a", devices=2, disk=True, instances=[instance("g1")]))
    assert holders(MODEL, resident) == [Holder("a/g1", ALL)]
    with_host = node("a", devices=1, disk=True)
    host = device("host", kind=DeviceKind.HOST)
    with_host = replace(with_host, devices={**with_host.devices, "host": host})
    assert holders(MODEL, view(with_host)) == [Holder("a/host", ALL, Tier.DISK)]


def test_of_checkpoints_on_nodes_that_are_alike_as_many_are_told_as_are_asked_for():
    alike = [node(f"n{i}", disk=True) for i in (3, 1, 2)]
    slow = [node("s0", disk=True, net=NetworkFacts("net", "h", 10.0)), node("z0", zone="r1")]
    busy = node("n0", disk=True, instances=[instance("g0", weights="x", model="x")])
    there = view(*alike, *slow, busy)

    def found(most, also=()):
        there_are, others = holders_of(MODEL, there, most=most, also=also)
        assert len(there_are) + others == 5
        return [holder.worker for holder in there_are]

    assert found(None) == ["n0/g0", "n1/g0", "n2/g0", "n3/g0", "s0/g0"]
    assert found(2) == ["n0/g0", "n1/g0", "s0/g0"]
    assert found(1, also=["n0", "n2", "gone"]) == ["n0/g0", "n2/g0", "n1/g0", "s0/g0"]


def test_free_devices_the_best_first():
    near = node("near", zone="r1")
    far = node("far", zone="r2")
    source = node("src", devices=2, instances=[instance("g0")], zone="r1")
    found = [free.worker for free in free_devices(MODEL, view(far, near, source))]
    assert found == ["src/g1", "near/g0", "far/g0"]


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": 59},
        {"software": {}},
        {"software": {"layout": "0"}},
        {"kind": DeviceKind.HOST},
    ],
)
def test_devices_that_cannot_take_it_are_not_free(changes):
    unfit = replace(node("a"), devices={"g0": device("g0", **changes)})
    assert [*free_devices(MODEL, view(unfit))] == []
    assert len([*free_devices(MODEL, view(node("a")))]) == 1


def test_draining_nodes_and_taken_devices_are_not_free():
    assert [*free_devices(MODEL, view(node("a", facts=NodeFacts("a", "", draining=True))))] == []
    assert [*free_devices(MODEL, view(node("a", facts=None)))] == []
    other = instance("g0", model="other", weights="x")
    assert [*free_devices(MODEL, view(node("a", instances=[other])))] == []
    gone = replace(other, state=InstanceState.GONE)
    assert len([*free_devices(MODEL, view(node("a", instances=[gone])))]) == 1


def test_ports_less_what_is_promised_to_others():
    net = NetworkFacts("net", "h", 100.0, 30.0, 100.0, serving_tx_bytes_per_s=7.0)
    port = links_of(view(node("a", net=net))).ports["a", "net"]
    assert (port.tx_bytes_per_s, port.serving_tx_bytes_per_s) == (70.0, 7.0)
    assert port.rx_bytes_per_s == 100.0 * MIN_PORT_SHARE
    own = {("a", "net"): (30.0, 60.0)}
    port = links_of(view(node("a", net=net)), own).ports["a", "net"]
    assert (port.tx_bytes_per_s, port.rx_bytes_per_s) == (100.0, 60.0)
    others = {("a", "net"): (50.0, 10.0), ("gone", "net"): (1.0, 1.0)}
    port = links_of(view(node("a", net=net)), None, others).ports["a", "net"]
    assert port.tx_bytes_per_s == 50.0, "the node has not told of all of it yet"
    assert port.rx_bytes_per_s == 100.0 * MIN_PORT_SHARE
    port = links_of(view(node("a", net=net)), own, others).ports["a", "net"]
    assert (port.tx_bytes_per_s, port.rx_bytes_per_s) == (50.0, 60.0)
    port = links_of(view(node("a", net=NetworkFacts("net", "h")))).ports["a", "net"]
    assert port.tx_bytes_per_s == RATE_BYTES_PER_S


def test_what_a_worker_may_send_is_told_shared_and_promised():
    net = NetworkFacts("net", "h", 100.0, weights_tx_bytes_per_s=30.0)
    there = view(
        node("a", net=net, devices=2),
        *(node(n, net=NetworkFacts("net", "h", 100.0)) for n in "bcd"),
    )
    links = links_of(there)
    assert links.ports["a", "net"].worker_tx_bytes_per_s == 30.0
    assert links.ports["b", "net"].worker_tx_bytes_per_s == math.inf
    others = {("a", "net"): (20.0, 0.0)}
    assert links_of(there, None, others).ports["a", "net"].worker_tx_bytes_per_s == 10.0
    assert links_of(there, others).ports["a", "net"].worker_tx_bytes_per_s == 30.0
    ways = [("a/g0", "b/g0"), ("a/g0", "c/g0"), ("a/g1", "d/g0")]
    plan = Plan("star", (), tuple(Edge(*way, (0,), "net") for way in ways))
    orders = edge_orders(
        plan, links, there, name="o.1", secret=bytes, unpromised=(), former=(), held={}
    )
    assert [order.rate_bytes_per_s for order in orders] == [15.0, 15.0, 30.0]


def test_where_a_worker_listens():
    there = view(node("a"))
    assert dial_address(there, "a/g0", "net") == ("h", 77)
    assert dial_address(there, "a/g0", "") == ("h", 77)
    assert dial_address(there, "a/g0", "fast") is None
    assert dial_address(there, "a/g9", "net") is None
    assert dial_address(there, "b/g0", "net") is None


def test_the_least_busy_go_first_and_then_from_where_there_are_most():
    crowd = node("a", devices=3, instances=[instance(f"g{i}") for i in range(3)])
    crowd = replace(
        crowd, instances={f"i{i}": replace(instance(f"g{i}"), id=f"i{i}") for i in range(3)}
    )
    lone = replace(node("b"), instances={"j": replace(instance("g0"), id="j")})
    placed = instances_of("m", view(crowd, lone))
    assert [p.worker for p in victims(placed, 2)] == ["a/g0", "a/g1"]
    busy = replace(crowd, loads={f"i{i}": LoadFacts(f"i{i}", running=1) for i in range(3)})
    placed = instances_of("m", view(busy, lone))
    assert [p.worker for p in victims(placed, 1)] == ["b/g0"]
    assert len(victims(placed, 9)) == 4
    loading = replace(instance("g0"), id="j", state=InstanceState.LOADING)
    placed = instances_of("m", view(crowd, replace(lone, instances={"j": loading})))
    assert [p.worker for p in victims(placed, 1)] == ["b/g0"]


def test_the_real_planner_makes_a_dry_run():
    nodes = [node("a", instances=[instance("g0")]), *(node(n) for n in "bcd")]
    there = view(*nodes)
    around = Surroundings(
        boot="boot-a",
        node="a",
        view=lambda: there,
        secret=lambda: bytes(range(32)),
        wall_s=lambda: 5.0,
        choose=choose,
    )
    owner = Operations(around, lambda name: MODEL)
    for strategy in ("", "chain", "star"):
        order = ScaleOrder(1, "m", 4, dry_run=True, strategy=strategy)
        (effect,) = owner.handle(OrderGiven("me", order), 0.0)
        facts = effect.message.operation
        assert facts.state == "planned", facts.reason
        assert facts.predicted_s > 0
        assert strategy in ("", facts.strategy)
        assert {"chain", "star"} <= set(facts.alternatives)
        assert len(facts.targets) == 3
        assert all(len(t.predicted_s) == 4 for t in facts.targets)
    (effect,) = owner.handle(OrderGiven("me", ScaleOrder(1, "m", 4, True, "nonsense")), 0.0)
    assert effect.message.operation.state == "failed"
    assert "nonsense" in effect.message.operation.reason


def test_orders_that_cannot_be_meant():
    there = view(node("a"))
    around = Surroundings("boot-a", "a", lambda: there, lambda: bytes(32), lambda: 0.0, choose)
    bare = ModelDefinition("bare", "d", "", ())
    owner = Operations(around, {"m": MODEL, "bare": bare}.get)
    for order, code in (
        (ScaleOrder(1, "x", 1), "model_not_found"),
        (ScaleOrder(1, "m", -1), "bad_request"),
        (ScaleOrder(1, "m", 1 << 40), "bad_request"),
        (ScaleOrder(1, "bare", 1), "no_capacity"),
    ):
        (effect,) = owner.handle(OrderGiven("me", order), 0.0)
        assert effect.message.code == code
        assert effect.message.message


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -1.0, 5e-324, 1e300])
def test_nonsense_of_one_member_stops_no_plan(figure):
    from blitzgw.scaling.links import _part, told_rate

    assert told_rate(figure, 7.0) == 7.0
    assert 0.0 <= _part(figure, 5.0) <= 5.0
