"""Pairings: who is told what, at both ends, whatever ends. Schedulers and workers are lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from blitzgw import helping
from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.live import Attach, Detach, LivePolicy, Pull, Purpose, Road
from blitzgw.core.parcels import DropParcels, Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.rumours import Status
from blitzgw.core.span import Span
from blitzgw.core.transfer import CloseEdge, EdgeClosed, EdgeTerms, OpenReceive, OpenSend
from blitzgw.core.view import (
    ClusterView,
    DeviceFacts,
    HostFacts,
    InstanceFacts,
    NetworkFacts,
    NodeFacts,
    NodeView,
)
from blitzgw.helping import RETRY_S, Helping
from blitzgw.pairings import Pairings
from blitzgw.scheduler.events import MoveOut, PairingClosed, PairingOpened

HOME, HELPER = "m@a/gpu", "m@b/gpu"
LAYERS = 4


@dataclass
class Runner:
    """A device as pairings see it, which keeps what it is told."""

    instances: dict[str, Any]
    claim: int = 3
    up: bool = True
    told: list[Any] = field(default_factory=list)
    sent: list[Any] = field(default_factory=list)
    helping: str = ""
    running: int = 0
    span: Span | None = None

    @property
    def supervisor(self) -> Any:
        return SimpleNamespace(send=self.sent.append)

    def lanes(self) -> dict[str, Any]:
        return dict.fromkeys(self.instances, SimpleNamespace(running=self.running))

    def live(self, event: Any) -> None:
        self.told.append(event)

    def helps(self, _name: str, other: str) -> None:
        self.helping = other

    def stage(self, _name: str, span: Span | None) -> None:
        self.span = span


class Half:
    """One node with one device that has one instance."""

    def __init__(self, name: str, instance: str, state: InstanceState, world: World) -> None:
        served = SimpleNamespace(n_layers=LAYERS, model="m")
        self.instance = SimpleNamespace(state=state, served=served, stage=None)
        self.runner = Runner({instance: self.instance})
        devices: Mapping[str, Any] = {"gpu": self.runner}
        self.helping = Helping(world.view, devices)
        self.pairings = Pairings(
            f"boot-{name}",
            name,
            world.view,
            devices,
            lambda boot, message: world.carry(f"boot-{name}", boot, message),
            self.helping.ended,
            encrypt=True,
        )
        self.helping.join(self.pairings)


class World:
    """Two nodes; what they say arrives at the next turn of the loop, unless the link is cut."""

    def __init__(self) -> None:
        self.cut = False
        self.home = Half("a", HOME, InstanceState.SERVING, self)
        self.helper = Half("b", HELPER, InstanceState.LOADING, self)

    def view(self) -> ClusterView:
        halves = (("a", HOME, self.home), ("b", HELPER, self.helper))
        nodes = {
            f"boot-{name}": node(name, instance, half.instance.state)
            for name, instance, half in halves
        }
        return ClusterView("boot-a", nodes)

    def carry(self, source: str, target: str, message: Any) -> None:
        if not self.cut:
            half = self.home if target == "boot-a" else self.helper
            asyncio.get_running_loop().call_soon(half.pairings.said, source, message)

    def pair(self) -> None:
        self.helper.helping.pair("gpu", HELPER, HOME, LivePolicy.ZIGZAG)


def node(name: str, instance: str, state: InstanceState) -> NodeView:
    facts = InstanceFacts(instance, "m", "d", "gpu", 3, state, 0, LAYERS)
    return NodeView(
        boot=f"boot-{name}",
        name=name,
        host="h",
        port=1,
        status=Status.ALIVE,
        started_s=0,
        facts=NodeFacts(name, ""),
        devices={"gpu": DeviceFacts("gpu", DeviceKind.PACED, "", 0, 3, data_ports={"net": 7})},
        instances={instance: facts},
        host_facts=HostFacts(1, networks=(NetworkFacts("net", f"host-{name}", 1e9),)),
    )


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def kinds(messages: list[Any]) -> list[type[Any]]:
    return [type(message) for message in messages]


def opened(half: Half) -> PairingOpened:
    return next(event for event in half.runner.told if isinstance(event, PairingOpened))


async def paired() -> World:
    world = World()
    world.pair()
    await settle()
    return world


async def test_a_helper_and_its_home_are_joined_by_a_sealed_road() -> None:
    world = await paired()
    guest, host = opened(world.helper), opened(world.home)
    assert (guest.guest, guest.here, guest.there) == (True, HELPER, HOME)
    assert (host.guest, host.here, host.there) == (False, HOME, HELPER)
    assert guest.policy is host.policy is LivePolicy.ZIGZAG
    (send,), (receive,) = world.helper.runner.sent, world.home.runner.sent
    assert isinstance(send, OpenSend)
    assert isinstance(receive, OpenReceive)
    assert send.edge == receive.edge
    assert send.edge.encrypt
    assert (receive.host, receive.port) == ("host-b", 7)
    assert world.helper.runner.helping == HOME


async def test_what_a_scheduler_says_reaches_the_other_one_and_nobody_else() -> None:
    world = await paired()
    pull = Pull(opened(world.helper).pairing, 4, 100)
    world.helper.pairings.port("gpu").say(pull)
    await settle()
    assert world.home.runner.told[-1] == pull
    world.home.pairings.said("boot-stranger", pull)
    assert world.home.runner.told.count(pull) == 1


async def test_parcels_are_told_to_the_end_that_they_concern() -> None:
    world = await paired()
    name = opened(world.home).pairing
    arrived = ParcelArrived(name, Parcel(1, Span(2, 2), 0, 8))
    sent = ParcelsSent(name, 1, 64, 0.1)
    assert world.home.pairings.told("gpu", arrived)
    assert world.helper.pairings.told("gpu", sent)
    assert world.home.runner.told[-1] == arrived
    assert world.helper.runner.told[-1] == sent
    assert world.helper.pairings.sent_bytes == 64


async def test_a_parcel_that_comes_after_the_end_is_dropped() -> None:
    world = await paired()
    name = opened(world.home).pairing
    world.home.pairings.port("gpu").end(name, "done")
    assert world.home.pairings.told("gpu", ParcelArrived(name, Parcel(9, Span(2, 2), 0, 8)))
    assert world.home.runner.sent[-1] == DropParcels(name, (9,))
    assert not any(isinstance(event, ParcelArrived) for event in world.home.runner.told)


async def test_an_end_that_the_scheduler_wants_is_told_to_the_other_one_only() -> None:
    world = await paired()
    name = opened(world.home).pairing
    world.helper.runner.instances.clear()  # nobody asks again
    world.home.pairings.port("gpu").end(name, "done")
    await settle()
    assert PairingClosed not in kinds(world.home.runner.told)
    assert world.helper.runner.told[-1] == PairingClosed(name, "done")
    assert world.home.runner.sent[-1] == world.helper.runner.sent[-1] == CloseEdge(name)
    assert world.helper.runner.helping == ""


ENDS: dict[str, Callable[[World, str], None]] = {
    "road": lambda world, name: void(
        world.home.pairings.told("gpu", EdgeClosed(name, "the peer has died", 0, 0.0))
    ),
    "link": lambda world, _: (
        world.home.pairings.link_lost("boot-b"),
        world.helper.pairings.link_lost("boot-a"),
    )[0],
}


def void(_value: object) -> None:
    return None


@pytest.mark.parametrize("what", ENDS)
async def test_whatever_is_lost_both_schedulers_hear_of_it_and_the_helper_asks_again(
    what: str,
) -> None:
    world = await paired()
    name = opened(world.home).pairing
    ENDS[what](world, name)
    await settle()
    for half in (world.home, world.helper):
        assert [e.pairing for e in half.runner.told if isinstance(e, PairingClosed)] == [name]
    await asyncio.sleep(2 * RETRY_S)
    names = [e.pairing for e in world.home.runner.told if isinstance(e, PairingOpened)]
    assert len(set(names)) == 2


async def test_a_worker_that_dies_takes_its_pairings_with_it() -> None:
    world = await paired()
    name = opened(world.home).pairing
    world.home.pairings.worker_lost("gpu")
    await settle()
    assert PairingClosed not in kinds(world.home.runner.told), "its scheduler is a new one"
    assert PairingClosed(name, "the worker has died") in world.helper.runner.told


async def test_a_helper_that_is_complete_does_not_ask_again() -> None:
    world = await paired()
    name = opened(world.home).pairing
    world.helper.helping.settled(HELPER)
    world.helper.pairings.said("boot-a", Detach(name, "done"))
    await asyncio.sleep(2 * RETRY_S)
    assert kinds(world.helper.runner.told).count(PairingOpened) == 1


async def test_a_home_that_is_not_there_yet_is_asked_later() -> None:
    world = World()
    world.home.instance.state = InstanceState.LOADING
    world.pair()
    await settle()
    assert not world.helper.runner.told
    world.home.instance.state = InstanceState.SERVING
    await asyncio.sleep(2 * RETRY_S)
    assert opened(world.home).there == HELPER


def edge(name: str, weights: str = "parcels") -> EdgeTerms:
    return EdgeTerms(name, "op", weights, (), b"k" * 32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"host": "m@a/other"}, "not here"),
        ({"claim": 2}, "not what it was"),
        ({"layers": 5}, "4 layers"),
        ({"road": Road(edge("road-x", "root"), "h", 1)}, "not a road"),
        ({"road": Road(edge("another"), "h", 1)}, "not a road"),
        ({"pairing": "weights-7", "road": Road(edge("weights-7"), "h", 1)}, "not a road"),
    ],
)
async def test_a_guest_that_is_not_meant_is_told_why(change: dict[str, Any], reason: str) -> None:
    world = World()
    told: list[Any] = []
    world.home.pairings._say = lambda _, message: told.append(message)
    terms = {
        "pairing": "road-x",
        "host": HOME,
        "claim": 3,
        "layers": LAYERS,
        "road": Road(edge("road-x"), "h", 1),
    }
    world.home.pairings.said(
        "boot-b", Attach(purpose=Purpose.HELP, guest=HELPER, **(terms | change))
    )
    (answer,) = told
    assert isinstance(answer, Detach)
    assert reason in answer.reason
    assert not world.home.runner.told


async def test_sequences_move_to_the_least_busy_other_instance() -> None:
    world = World()
    world.helper.instance.state = InstanceState.SERVING
    assert world.home.helping.move_out("gpu", HOME, 5, queued=True)
    await settle()
    begun, move = world.home.runner.told
    assert (begun.purpose, begun.there, begun.guest) == (Purpose.MOVE, HELPER, True)
    assert move == MoveOut(begun.pairing, 5, queued=True)


async def test_a_home_gives_half_of_its_surplus_to_a_helper_that_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(helping, "EVEN_S", 0.01)
    world = await paired()
    name = opened(world.home).pairing
    world.home.runner.running = 9
    world.helper.instance.state = InstanceState.SERVING
    world.home.pairings.port("gpu").end(name, "finished")
    await asyncio.sleep(0.1)
    (move,) = [event for event in world.home.runner.told if isinstance(event, MoveOut)]
    assert move.count == 4


@pytest.mark.parametrize(("running", "state"), [(3, "serving"), (9, "loading")])
async def test_little_is_not_worth_it_and_one_that_is_not_complete_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, running: int, state: str
) -> None:
    monkeypatch.setattr(helping, "EVEN_S", 0.01)
    world = await paired()
    name = opened(world.home).pairing
    world.home.runner.running = running
    world.helper.instance.state = InstanceState(state)
    world.home.pairings.port("gpu").end(name, "finished")
    await asyncio.sleep(0.1)
    assert not [event for event in world.home.runner.told if isinstance(event, MoveOut)]


async def test_with_nobody_to_move_to_nothing_moves() -> None:
    world = World()
    assert not world.home.helping.move_out("gpu", HOME, 5)
    assert not world.home.runner.told
