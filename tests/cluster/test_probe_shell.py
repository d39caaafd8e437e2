"""Probes without links and workers: every order is ended, whoever falls silent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from blitzgw import probeends, probes
from blitzgw.core.probe import ProbeCancel, ProbeDone, ProbeOrder, ProbeWish
from blitzgw.core.transfer import (
    PROBE,
    CloseEdge,
    EdgeClosed,
    EdgeProgress,
    OpenReceive,
    OpenSend,
    TrafficClass,
)
from blitzgw.core.view import HostFacts, NetworkFacts
from blitzgw.errors import InvalidRequest, Overloaded, Unavailable
from blitzgw.probes import Probes
from tests.scaling.view_kit import node, view

MIB = 1 << 20
WISH = ProbeWish("a/g0", "b/g0", MIB, 30.0, TrafficClass.KV)


@dataclass
class Runner:
    """A device of which nothing is asked but to pass commands on."""

    up: bool = True
    sent: list = field(default_factory=list)

    @property
    def supervisor(self):
        return self

    def send(self, message):
        self.sent.append(message)


class World:
    """Nodes a, b and c, of which `me` is real; what it says is kept, or heard by itself."""

    def __init__(self, me="c", *nodes):
        self.said, self.me = [], f"boot-{me}"
        self.devices = {"g0": Runner()}
        seen = view(*(nodes or map(node, "abc")))
        self.probes = Probes(me, lambda: seen, self.devices, self.say)

    def say(self, boot, message):
        self.said.append((boot, message))

    def told(self, kind):
        return [(boot, m) for boot, m in self.said if isinstance(m, kind)]

    async def begin(self, wish=WISH):
        task = asyncio.get_running_loop().create_task(self.probes.probe(wish))
        await asyncio.sleep(0)
        return task, self.told(ProbeOrder)[-1][1]


async def test_both_nodes_are_told_and_both_answers_make_the_result():
    world = World()
    task, order = await world.begin()
    assert [boot for boot, _ in world.told(ProbeOrder)] in (
        ["boot-a", "boot-b"],
        ["boot-b", "boot-a"],
    )
    assert (order.edge.source, order.edge.target, order.edge.port) == ("a/g0", "b/g0", 77)
    assert len(order.edge.key) == 32
    assert world.probes.count("boot-a") == world.probes.count("boot-b") == 1
    done = ProbeDone(order.edge.id, False, "", MIB, 2.0)
    world.probes.said("boot-c", replace(done, payload_bytes=7))  # from who has no part in it
    world.probes.said("boot-b", done)
    await asyncio.sleep(0)
    assert not task.done()
    assert {boot for boot, _ in world.told(ProbeCancel)} == {"boot-a", "boot-b"}
    world.probes.said("boot-a", ProbeDone(order.edge.id, True, "", MIB, 1.9, 0.5, 0.25))
    facts = await task
    assert (facts.payload_bytes, facts.seconds, facts.network) == (MIB, 2.0, "net")
    assert (facts.yielded_s, facts.delayed_s) == (0.5, 0.25)
    assert world.probes.count("boot-a") == 0
    world.probes.said("boot-b", done)  # once more, too late


@pytest.mark.parametrize("how", ["failure", "link", "silence", "client"])
async def test_whatever_ends_a_probe_cancels_it_at_both_ends(monkeypatch, how):
    if how == "silence":
        for module in (probes, probeends):
            for name in ("OPEN_S", "CLOSE_S"):
                monkeypatch.setattr(module, name, 0.02, raising=False)
    world = World()
    task, order = await world.begin(replace(WISH, seconds=0.02) if how == "silence" else WISH)
    if how == "failure":
        world.probes.said("boot-a", ProbeDone(order.edge.id, True, "a/g0: no worker is up there"))
    elif how == "link":
        world.probes.link_lost("boot-b")
    elif how == "client":
        task.cancel()
    texts = {"failure": "no worker is up", "link": "was lost", "silence": "nothing arrived"}
    kind = asyncio.CancelledError if how == "client" else Unavailable
    with pytest.raises(kind, match=texts.get(how)):
        await asyncio.wait_for(task, 10.0)
    assert {boot for boot, _ in world.told(ProbeCancel)} == {"boot-a", "boot-b"}
    assert world.probes.count("boot-a") == 0


async def test_a_few_are_asked_for_at_a_time():
    world = World()
    tasks = [(await world.begin())[0] for _ in range(probeends.MAX_PROBES)]
    with pytest.raises(Overloaded):
        await world.probes.probe(WISH)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    tasks = [(await world.begin())[0]]
    tasks[0].cancel()
    await asyncio.wait(tasks)


WRONG = {
    "source": replace(WISH, source="x/g0"),
    "target": replace(WISH, target="b/g9"),
    "network": replace(WISH, network="other"),
    "size_bytes": replace(WISH, size_bytes=0),
}


@pytest.mark.parametrize("param", WRONG)
async def test_what_is_not_there_is_told(param):
    world = World()
    with pytest.raises(InvalidRequest) as caught:
        await world.probes.probe(WRONG[param])
    assert caught.value.param == param
    if param in ("source", "target"):
        assert "there are: a/g0, b/g0, c/g0" in str(caught.value)
    assert not world.said


async def test_the_fastest_network_that_both_have_is_taken():
    def on(name, **rates):
        facts = tuple(NetworkFacts(net, "h", rate) for net, rate in rates.items())
        made = node(name, host_facts=HostFacts(100, networks=facts))
        ports = dict.fromkeys(rates, 77)
        return replace(made, devices={"g0": replace(made.devices["g0"], data_ports=ports)})

    nodes = on("a", slow=10.0, fast=100.0, lone=900.0), on("b", slow=10.0, fast=50.0)
    for network, used in ((None, "fast"), ("slow", "slow")):
        world = World("c", *nodes)
        task, order = await world.begin(replace(WISH, network=network))
        assert order.edge.network == used
        task.cancel()
        await asyncio.wait([task])


async def order_for(world_asked="c", **changes):
    """An order as its node would give it."""
    world = World(world_asked)
    task, order = await world.begin(replace(WISH, **changes))
    task.cancel()
    await asyncio.wait([task])
    return order


async def test_an_end_is_opened_counted_from_its_first_byte_and_closed():
    order = await order_for(seconds=0.05)
    world = World("b")
    worker = world.devices["g0"]
    world.probes.said("boot-c", order)
    (opened,) = worker.sent
    assert isinstance(opened, OpenReceive)
    assert (opened.edge.weights, opened.edge.lane) == (PROBE, TrafficClass.KV)
    assert world.probes.count("boot-c") == 1
    await asyncio.sleep(0.1)
    assert len(worker.sent) == 1, "the time counts from the first byte"
    assert world.probes.ends.told("g0", EdgeProgress(order.edge.id, 5))
    await asyncio.sleep(0.15)
    assert worker.sent[1:] == [CloseEdge(order.edge.id)]
    assert world.probes.ends.told("g0", EdgeClosed(order.edge.id, "closed", 9, 0.05))
    assert world.told(ProbeDone) == [("boot-c", ProbeDone(order.edge.id, False, "", 9, 0.05))]
    assert world.probes.count("boot-c") == 0
    assert not world.probes.ends.told("g0", EdgeClosed("another", "", 0, 0.0))
    world.probes.ends.close()


@pytest.mark.parametrize("how", ["cancel", "link", "worker"])
async def test_an_end_is_closed_whatever_becomes_of_who_has_asked(how):
    order = await order_for()
    world = World("a")
    worker = world.devices["g0"]
    world.probes.said("boot-c", order)
    assert isinstance(worker.sent[0], OpenSend)
    world.probes.said("boot-b", ProbeCancel(order.edge.id))
    assert len(worker.sent) == 1, "another's probe is not cancelled"
    if how == "cancel":
        world.probes.said("boot-c", ProbeCancel(order.edge.id))
    elif how == "link":
        world.probes.link_lost("boot-c")
    else:
        world.probes.ends.worker_lost("g0")
        assert "has died" in world.told(ProbeDone)[0][1].reason
        assert world.probes.count("boot-c") == 0
        return
    assert worker.sent[1:] == [CloseEdge(order.edge.id)]
    world.probes.ends.close()


async def test_ends_that_cannot_be_opened_are_refused():
    world = World("a")
    orders = [await order_for() for _ in range(probeends.MAX_PROBES + 1)]
    for order in [*orders, orders[0]]:
        world.probes.said("boot-c", order)
    reasons = [done.reason for _, done in world.told(ProbeDone)]
    assert reasons == [
        "a/g0: 4 probes are under way there",
        "a/g0: it has an end of this probe already",
    ]
    assert len(world.devices["g0"].sent) == probeends.MAX_PROBES
    world.probes.ends.close()
    world.devices["g0"].up = False
    world.probes.said("boot-c", orders[0])
    assert "no worker is up" in world.told(ProbeDone)[-1][1].reason
