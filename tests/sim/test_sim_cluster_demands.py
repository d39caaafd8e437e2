"""When a simulated node tells the owner of a model what it knows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from blitzgw.core.view import LoadFacts
from blitzgw.sim.cluster.demands import LATER_S, REPEAT_S, TELL_S, Demands
from blitzgw.sim.heap import EventHeap


def make(nodes=8, *, manual=False, running=0):
    heap, told = EventHeap(), []
    model = SimpleNamespace(manual=manual, definition=SimpleNamespace(digest="d"))
    world = SimpleNamespace(
        heap=heap,
        setup=SimpleNamespace(nodes=nodes),
        models={"m": model},
        owner_of=lambda _: "owner",
        latencies=SimpleNamespace(demand_s=0.001),
        deliver=lambda _node, boot, demand, _delay: told.append((heap.now, boot, demand)),
    )
    node = SimpleNamespace(world=world, running=True, ingress=None, load=running)
    node.loads = lambda _: (LoadFacts("m@n0/g0", running=node.load),)
    return heap, Demands(node), told, node


def test_the_first_change_is_told_at_once_and_further_ones_with_a_pause():
    heap, demands, told, _ = make()
    for i in range(5):
        heap.at(1.0 + i * TELL_S / 4, demands.touched, "m")
    heap.run_until(2.0)
    assert [at_s for at_s, _, _ in told] == [1.0, pytest.approx(1.0 + TELL_S)]
    assert [demand.number for _, _, demand in told] == [1, 2]


def test_progress_is_told_later_in_a_large_cluster_and_at_once_when_more_comes():
    for nodes, expected in ((8, [1.0, 1.05]), (1000, [1.05]), (1000, [1.0 + LATER_S])):
        heap, demands, told, _ = make(nodes)
        heap.at(1.0, lambda demands=demands: demands.touched("m", urgent=False))
        if expected[-1] == 1.05:
            heap.at(1.05, demands.touched, "m")
        heap.run_until(2.0)
        assert [at_s for at_s, _, _ in told] == pytest.approx(expected)


def test_it_is_repeated_as_long_as_there_is_anything():
    heap, demands, told, node = make(running=1)
    heap.at(1.0, demands.touched, "m")
    heap.at(1.0 + 2.5 * REPEAT_S, setattr, node, "load", 0)
    heap.run_until(60.0)
    assert [at_s for at_s, _, _ in told] == [1.0 + i * REPEAT_S for i in range(4)]


def test_it_is_repeated_that_long_after_the_last_message():
    heap, demands, told, _ = make(running=1)
    for at_s in (1.0, 1.5, 2.75):
        heap.at(at_s, demands.touched, "m")
    heap.run_until(5.0)
    assert [at_s for at_s, _, _ in told] == [1.0, 1.5, 2.75, 2.75 + REPEAT_S]


def test_messages_leave_one_event_for_what_is_to_be_repeated():
    heap, demands, told, _ = make(running=1)
    for i in range(50):
        heap.at(1.0 + i * TELL_S, demands.touched, "m")
    heap.run_until(1.0 + 49.5 * TELL_S)
    assert len(told) == 50
    assert len(heap) == 1


def test_nothing_is_told_of_a_model_that_an_operator_decides_on():
    heap, demands, told, _ = make(manual=True)
    demands.touched("m")
    heap.run_until(10.0)
    assert not told
