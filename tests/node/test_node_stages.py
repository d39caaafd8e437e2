"""Stages of pipelines: who is joined to whom, what a device tells its scheduler, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from blitzgw.config import ModelConfig
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import DeviceKind, DeviceSpec, InstanceState, ModelSpec
from blitzgw.core.live import LivePolicy, Purpose
from blitzgw.core.model import Dtype, ModelShape, Rope
from blitzgw.core.span import Span
from blitzgw.core.transfer import EdgeClosed
from blitzgw.core.view import ClusterView
from blitzgw.device import DeviceRunner
from blitzgw.helping import RETRY_S
from blitzgw.placement import WorkerTerms
from blitzgw.scheduler.events import (
    InstanceOpened,
    InstanceReady,
    LayersResident,
    PairingClosed,
    PairingOpened,
    StageAssigned,
    StageResident,
)
from tests.node.test_node_pairings import LAYERS, Half, node, settle

HOME, LEAD, END = "m@a/gpu", "m@b/gpu", "m@c/gpu"
NODES = {"a": HOME, "b": LEAD, "c": END}
LOADING = InstanceState.LOADING


class Chain:
    """A home and a pipeline of two, each on a node of its own."""

    def __init__(self) -> None:
        self.halves = {
            name: Half(name, instance, InstanceState.SERVING if name == "a" else LOADING, self)  # type: ignore[arg-type]  # it asks for what this has, too
            for name, instance in NODES.items()
        }

    def view(self) -> ClusterView:
        nodes = {
            f"boot-{name}": node(name, NODES[name], half.instance.state)
            for name, half in self.halves.items()
        }
        return ClusterView("boot-a", nodes)

    def carry(self, source: str, target: str, message: Any) -> None:
        half = self.halves[target.removeprefix("boot-")]
        asyncio.get_running_loop().call_soon(half.pairings.said, source, message)

    def stage(self) -> None:
        self.halves["c"].helping.stage("gpu", END, Span(2, LAYERS), "")
        self.halves["b"].helping.stage("gpu", LEAD, Span(0, 2), END)

    def opened(self, name: str, purpose: Purpose = Purpose.STAGE) -> list[PairingOpened]:
        told = self.halves[name].runner.told
        return [e for e in told if isinstance(e, PairingOpened) and e.purpose is purpose]

    def closed(self, name: str) -> list[str]:
        told = self.halves[name].runner.told
        return [event.pairing for event in told if isinstance(event, PairingClosed)]


async def staged() -> Chain:
    chain = Chain()
    chain.stage()
    await settle()
    return chain


async def test_a_stage_is_the_guest_of_the_next_one_though_both_load() -> None:
    chain = await staged()
    (guest,), (host,) = chain.opened("b"), chain.opened("c")
    assert (guest.here, guest.there, guest.guest) == (LEAD, END, True)
    assert (host.here, host.there, host.guest) == (END, LEAD, False)
    assert chain.halves["b"].runner.span == Span(0, 2)
    assert chain.halves["c"].runner.span == Span(2, LAYERS)
    assert not chain.halves["b"].runner.helping


async def test_a_lead_helps_a_home_besides() -> None:
    chain = await staged()
    helping = chain.halves["b"].helping
    helping.pair("gpu", LEAD, HOME, LivePolicy.PIPELINE)
    await settle()
    (help_,) = chain.opened("b", Purpose.HELP)
    assert help_.there == HOME
    assert chain.halves["b"].runner.helping == HOME
    helping.unpair(LEAD)
    await settle()
    assert chain.closed("b") == [help_.pairing], "the pipeline goes on"
    assert chain.closed("c") == []


async def test_a_road_that_is_lost_is_made_again() -> None:
    chain = await staged()
    name = chain.opened("b")[0].pairing
    assert chain.halves["c"].pairings.told("gpu", EdgeClosed(name, "the peer has died", 0, 0.0))
    await settle()
    assert chain.closed("b") == chain.closed("c") == [name]
    await asyncio.sleep(2 * RETRY_S)
    first, second = chain.opened("b")
    assert first.pairing != second.pairing
    assert [e.pairing for e in chain.opened("c")] == [first.pairing, second.pairing]


async def test_a_stage_that_leaves_the_next_one_meets_it_again() -> None:
    chain = await staged()
    chain.halves["b"].pairings.port("gpu").end(chain.opened("b")[0].pairing, "the road is lost")
    await asyncio.sleep(2 * RETRY_S)
    assert len(chain.opened("b")) == 2


async def test_one_that_is_no_stage_any_more_asks_nobody() -> None:
    chain = await staged()
    name = chain.opened("b")[0].pairing
    chain.halves["b"].helping.unstage("gpu", LEAD)
    await asyncio.sleep(2 * RETRY_S)
    assert chain.closed("b") == chain.closed("c") == [name]
    assert len(chain.opened("b")) == 1
    assert chain.halves["b"].runner.span is None


async def test_a_lead_that_is_complete_asks_nobody() -> None:
    chain = await staged()
    chain.halves["b"].pairings.port("gpu").end(chain.opened("b")[0].pairing, "it is complete")
    chain.halves["b"].helping.settled(LEAD)
    await asyncio.sleep(2 * RETRY_S)
    assert len(chain.opened("b")) == 1


async def test_one_that_is_complete_is_a_stage_as_long_as_one_is_before_it() -> None:
    chain = await staged()
    chain.halves["c"].helping.completed(END)
    await settle()
    assert chain.closed("b") == chain.closed("c") == []
    name = chain.opened("b")[0].pairing
    chain.halves["b"].instance.stage = Span(1, 2)
    chain.halves["b"].helping.completed(LEAD)
    await asyncio.sleep(2 * RETRY_S)
    assert chain.closed("b") == chain.closed("c") == [name]
    assert len(chain.opened("b")) == 1


async def test_one_that_leads_is_joined_to_the_next_until_its_scheduler_takes_over() -> None:
    chain = await staged()
    chain.halves["b"].instance.stage = Span(0, 2)
    chain.halves["b"].helping.completed(LEAD)
    await asyncio.sleep(2 * RETRY_S)
    assert chain.closed("b") == chain.closed("c") == []
    assert len(chain.opened("b")) == 1


# -- the device ------------------------------------------------------------------------------------


class Listener:
    """Keeps what it is told of instances."""

    def __init__(self) -> None:
        self.ports: list[tuple[str, Any]] = []

    def instance_leads(self, port: Any, claim: int, digest: str) -> None:
        self.ports.append((f"leads {port.instance} {claim} {digest}", port))

    def instance_up(self, device: str, port: Any, claim: int, digest: str) -> None:
        self.ports.append((f"up {port.instance} {claim} {digest}", port))

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_more: None


class Nobody:
    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_more: None


class Rig:
    """A device whose worker is never started, with an instance that loads."""

    def __init__(self, *, tied: bool = False) -> None:
        shape = ModelShape("llama", LAYERS, 16, 2, 1, 8, 24, 301, 1e-5, Rope(), 256, tied)
        spec = ModelSpec("m", "", shape, Dtype.FLOAT32, 256, (2,))
        self.listener, self.told = Listener(), list[Any]()
        device = DeviceSpec("gpu", DeviceKind.PACED, kv_bytes=1 << 26)
        nobody: Any = Nobody()
        listener: Any = self.listener
        self.runner = DeviceRunner(
            "b", device, [], nobody, MonotonicClock(), listener,
            pairs=nobody, max_queue=64, max_wait_s=None, terms=WorkerTerms(),
        )  # fmt: skip
        self.name = self.runner.bring_up(spec, ModelConfig("m"), (), "digest")
        scheduler: Any = self.runner._scheduler
        scheduler.tell = self.told.append

    @property
    def heard(self) -> list[Any]:
        """What the scheduler has been told since the last time, but layers."""
        found, self.told[:] = list(self.told), []
        return [event for event in found if not isinstance(event, LayersResident)]


def test_a_first_stage_is_assigned_opened_and_told_when_it_has_its_layers() -> None:
    rig = Rig()
    rig.runner.blob_resident(rig.name, 1)
    rig.runner.stage(rig.name, Span(0, 2))
    opened, assigned = rig.heard
    assert isinstance(opened, InstanceOpened)
    assert assigned == StageAssigned(rig.name, Span(0, 2))
    for index in (3, 2, 5):
        rig.runner.blob_resident(rig.name, index)
    assert rig.heard == [], "the embedding lacks"
    rig.runner.blob_resident(rig.name, 0)
    rig.runner.blob_resident(rig.name, 4)
    assert rig.heard == [StageResident(rig.name)], "once"
    rig.runner.stage(rig.name, Span(0, 2))
    assert rig.heard == []


@pytest.mark.parametrize("tied", [False, True])
def test_a_last_stage_needs_the_head_and_what_that_is_tied_to(tied: bool) -> None:
    rig = Rig(tied=tied)
    for index in (3, 4):
        rig.runner.blob_resident(rig.name, index)
    rig.runner.stage(rig.name, Span(2, LAYERS))
    assert len(rig.heard) == 2
    rig.runner.blob_resident(rig.name, LAYERS + 1)
    assert rig.heard == ([] if tied else [StageResident(rig.name)])
    rig.runner.blob_resident(rig.name, 0)
    assert rig.heard == ([StageResident(rig.name)] if tied else [])
    assert rig.listener.ports == [], "only the first one keeps requests"


def test_one_that_has_all_already_is_told_at_once() -> None:
    rig = Rig()
    for index in (2, 3):
        rig.runner.blob_resident(rig.name, index)
    rig.runner.stage(rig.name, Span(1, 3))
    assert [type(event) for event in rig.heard] == [InstanceOpened, StageAssigned, StageResident]


def test_who_leads_is_reached_the_same_way_before_and_after_it_is_complete() -> None:
    rig = Rig()
    rig.runner.stage(rig.name, Span(0, 2))
    rig.runner.instance_ready(rig.name, 1.0)
    told = [type(event) for event in rig.heard]
    assert told == [InstanceOpened, StageAssigned, StageResident, InstanceReady]
    (leads, early), (up, late) = rig.listener.ports
    assert (leads, up) == (f"leads {rig.name} 0 digest", f"up {rig.name} 0 digest")
    assert early is late


def test_a_stage_of_nobody_or_of_what_is_complete_is_none() -> None:
    rig = Rig()
    rig.runner.stage("m@b/other", Span(0, 2))
    rig.runner.instance_ready(rig.name, 1.0)
    rig.heard.clear()
    rig.runner.stage(rig.name, Span(0, 2))
    assert rig.heard == []
