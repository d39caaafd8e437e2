"""Roads of a simulated cluster: what goes before what, and when it is there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from blitzgw.core.parcels import ParcelArrived, ParcelsSent
from blitzgw.core.span import Span
from blitzgw.core.step import Send
from blitzgw.sim.cluster.network import FlowNetwork
from blitzgw.sim.cluster.roads import RoadEnd, Roads
from blitzgw.sim.heap import EventHeap

LINK = 1000.0
HIDDEN, KV_LAYER = 10, 20.0
"""Bytes of a position."""


class World:
    """A road from node 0 to node 1, and what both ends have been told, with the moments."""

    def __init__(self) -> None:
        self.heap = EventHeap()
        rates = {"link": LINK, "disk": LINK, "host": LINK, "local": LINK}
        network = FlowNetwork(self.heap, 2, **rates)
        self.roads = Roads(SimpleNamespace(heap=self.heap, network=network))
        self.told: list[tuple[float, object]] = []
        for node in (0, 1):
            end = RoadEnd(node, self._note, HIDDEN, KV_LAYER)
            self.roads.open("road", end, sends=node == 0)

    def _note(self, message: object) -> None:
        self.told.append((round(self.heap.now, 6), message))

    def send(self, ticket: int, layers: int, positions: int = 10) -> None:
        self.roads.send(Send("road", ticket, 1, Span(0, layers), 0, positions, hidden=True))

    def arrived(self) -> list[tuple[float, int, bool]]:
        return [
            (at, message.parcel.ticket, message.parcel.is_hidden)
            for at, message in self.told
            if isinstance(message, ParcelArrived)
        ]


def test_hidden_states_go_before_the_kv_of_the_same_request():
    world = World()
    world.send(1, 5)
    world.heap.run_until(10.0)
    assert world.arrived() == [(0.1, 1, True), (1.1, 1, False)]
    sent = [(at, said.ticket) for at, said in world.told if isinstance(said, ParcelsSent)]
    assert sent == [(1.1, 1)]


@pytest.mark.parametrize("again", [False, True])
def test_hidden_states_pass_kv_that_flows(again):
    world = World()
    world.send(1, 5)
    world.heap.run_until(0.6)
    world.send(2, 5)
    if again:
        world.heap.run_until(0.65)
        world.send(3, 0)
    world.heap.run_until(10.0)
    more = [(0.8, 3, True)] * again
    late = 0.1 * again
    kv = [(round(1.2 + late, 6), 1, False), (round(2.2 + late, 6), 2, False)]
    assert world.arrived() == [(0.1, 1, True), (0.7, 2, True), *more, *kv]
    total = 2 * (10 * HIDDEN + 50 * KV_LAYER) + 10 * HIDDEN * again
    assert world.roads.sent_bytes == total


def test_what_waits_for_hidden_states_can_be_dropped():
    world = World()
    world.send(1, 5)
    world.heap.run_until(0.6)
    world.send(2, 0)
    world.roads.drop("road", (1,))
    world.heap.run_until(10.0)
    assert world.arrived() == [(0.1, 1, True), (0.7, 2, True)]
