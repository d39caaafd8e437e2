"""What a node makes of others' news: routes, ejections, names, hope. The nodes are made up."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from blitzgw.api.status import ModelStatus
from blitzgw.cluster import REFRESH_S, Cluster
from blitzgw.config import Config, NodeConfig
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import InstanceState
from blitzgw.core.peer import LoadReport, Submit
from blitzgw.core.ports import Outlook
from blitzgw.core.request import GenerationRequest, SamplingParams
from blitzgw.core.rumours import Rumour, Status, Update
from blitzgw.core.view import (
    ClusterView,
    InstanceFacts,
    LoadFacts,
    ModelFacts,
    NodeView,
    RequestFacts,
)
from blitzgw.errors import TooLarge, Unavailable
from blitzgw.gossip.directory import key_of
from blitzgw.gossip.events import MemberChanged, StateChanged
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.remote import TooLong
from blitzgw.network import REPORT_LOADS
from blitzgw.publishing import GOSSIP_LOAD_S
from blitzgw.reporting import FAILED, FETCHING, hindrance
from blitzgw.requestlist import ALL_REQUESTS, NODE_REQUESTS, RequestLists, gathered
from blitzgw.router.router import Router
from blitzgw.routes import ADDED_AT_ONCE, EJECTED_MIN_S, ejected_s
from blitzgw.wire import PEER_MESSAGES, dump, encode_fact, encode_requests, parse
from tests.cluster.link_kit import until

ME, A, B, C = "ff" * 8, "aa" * 8, "bb" * 8, "cc" * 8
SERVING, LOADING, GONE = InstanceState.SERVING, InstanceState.LOADING, InstanceState.GONE


class Clock(MonotonicClock):
    """The real one, which can be put forward."""

    ahead_s = 0.0

    def now(self):
        return super().now() + self.ahead_s


class Sink:
    def __init__(self):
        self.errors = []

    def push(self, event):
        pass

    def fail(self, error):
        self.errors.append(error)


class Port:
    """An instance of this node."""

    model, open = "m", True

    def __init__(self, instance="m@me/d"):
        self.instance, self.calls = instance, []

    def outlook(self):
        return Outlook(0)

    def submit(self, request):
        self.calls.append(("submit", request.id, request.attempt))

    def abort(self, request_id, attempt):
        self.calls.append(("abort", request_id, attempt))


def instance(id_, state=SERVING, digest="d1", resident=2, model="m"):
    return InstanceFacts(id_, model, digest, "d", 1, state, resident, 2)


class World:
    """A node of a cluster whose other nodes speak as a test lets them."""

    def __init__(self):
        self.clock, self.own, self.loads = Clock(), [], []
        self.router = Router(self.clock, max_attempts=3, hold_timeout_s=60, max_held=64, node="me")
        self.cluster = Cluster(
            Config(NodeConfig("me")),
            ME,
            [],
            self.router,
            self.clock,
            lambda: self.own,
            lambda: self.loads,
        )
        self.sent, self.versions = [], 0
        self.cluster.network.links.send = self._send

    async def __aenter__(self):
        await self.cluster.open(0)
        return self

    async def __aexit__(self, *exc):
        await self.cluster.close()

    def _send(self, boot, address, message):
        self.sent.append((boot, parse(dump(message), PEER_MESSAGES)))

    def news(self, boot, *facts, status=Status.ALIVE, name=None, started_s=5):
        self.cluster.members_changed(
            [self.member(boot, status, name, started_s), self.state(boot, *facts)]
        )

    def member(self, boot, status=Status.ALIVE, name=None, started_s=5):
        name = name or f"n{boot[0]}"
        port = int(boot, 16) % 60_000 + 1
        return MemberChanged(Rumour(boot, name, "10.0.0.1", port, started_s, 0, status))

    def state(self, boot, *facts):
        self.versions += len(facts)
        entries = (Update(boot, key_of(fact), self.versions, encode_fact(fact)) for fact in facts)
        return StateChanged(tuple(entries))

    def ask(self, id_="r", digest=""):
        sink = Sink()
        request = GenerationRequest(id_, "m", (1, 2), 2, SamplingParams(10), digest=digest)
        self.router.generate(request, sink)
        return sink

    def submitted(self):
        return [(boot, m.request.id) for boot, m in self.sent if isinstance(m, Submit)]

    async def routed(self, *instances):
        seats = self.router._fleet._seats
        await until(lambda: set(seats) == set(instances))

    async def local(self, port, **facts):
        self.own.append(instance(port.instance, **facts))
        self.cluster.changed()
        await until(lambda: port.instance in self.cluster.view().nodes[ME].instances)
        self.cluster.local_up(port, 1, "")


@pytest.fixture
async def world():
    async with World() as made:
        yield made


def model(digest="d1", since=100):
    return ModelFacts("m", digest, 2, since)


# Definitions.


async def test_a_request_goes_to_instances_of_its_own_definition(world):
    world.news(A, model(), instance("m@a/d"))
    await world.routed("m@a/d")
    assert world.router._fleet.get("m@a/d").digest == "d1"
    world.ask("r", digest="d1")
    assert world.submitted() == [(A, "r")]


async def test_what_waits_for_another_definition_is_told_when_one_takes_its_place(world):
    world.news(A, model("d2", since=200))
    await until(lambda: "m" in world.cluster.definitions.settled)
    sink = world.ask("r", digest="d2")
    assert not sink.errors
    world.news(B, model("d1", since=100), instance("m@b/d"))
    await until(lambda: sink.errors)
    assert isinstance(sink.errors[0], Unavailable)
    assert not world.submitted()


async def test_an_instance_whose_definition_changes_begins_anew(world):
    world.news(A, model("d1"), instance("m@a/d"))
    await world.routed("m@a/d")
    world.news(A, model("d2"), instance("m@a/d", digest="d2"))
    await until(lambda: world.router._fleet.get("m@a/d").digest == "d2")


async def test_requests_at_an_own_instance_end_there_when_its_definition_is_not_served(world):
    port = Port()
    world.news(B, model("d1", since=100))
    await until(lambda: "m" in world.cluster.definitions.settled)
    await world.local(port)
    await world.routed(port.instance)
    world.ask("r")
    world.news(B, model("d2", since=50))
    await world.routed()
    assert port.calls == [("submit", "r", 0), ("abort", "r", 0)]
    assert world.router.held("m") == 1


async def test_a_scheduler_that_is_gone_is_not_told_to_stop_anything(world):
    port = Port()
    world.news(B, model())
    await until(lambda: "m" in world.cluster.definitions.settled)
    await world.local(port)
    world.ask("r")
    world.cluster.local_down(port.instance, "the worker died")
    assert port.calls == [("submit", "r", 0)]


# Loads.


def watch(world):
    """Note which instances the router is told have changed."""
    told = []
    world.router.instance_changed = told.append
    return told


async def test_a_report_makes_the_router_look_once_for_each_model_that_is_waited_for(world):
    ids = [f"m@a/d{i}" for i in range(5)]
    world.news(
        A, model(), *(instance(i, InstanceState.DRAINING) for i in ids), instance("x", model="x")
    )
    await world.routed(*ids)
    told = watch(world)
    world.cluster.loads_reported(A, [LoadFacts(i, number=1) for i in ids])
    assert told == []
    world.ask("r")
    assert world.router.held("m") == 1
    world.cluster.loads_reported(A, [LoadFacts(i, queued_tokens=7, number=2) for i in ids])
    assert len(told) == 1
    world.cluster.members_changed([world.state(A, *(LoadFacts(i, number=3) for i in ids))])
    assert len(told) == 2
    world.cluster.loads_reported(B, [LoadFacts(ids[0], number=9)])  # not its instance
    assert len(told) == 2


async def test_figures_are_taken_without_making_a_view_or_following_it(world):
    world.news(A, model(), instance("m@a/d"))
    await world.routed("m@a/d")
    follow, calls = world.cluster.routes.follow, []
    world.cluster.routes.follow = lambda view: calls.append(view) or follow(view)
    for n in range(10):
        world.cluster.loads_reported(A, [LoadFacts("m@a/d", queued_tokens=n, number=n + 1)])
        news = instance("m@a/d", resident=n % 3)
        world.cluster.members_changed([world.state(A, news, LoadFacts("m@a/d", number=n))])
        await asyncio.sleep(0.005)
    assert world.router._fleet.get("m@a/d").port.outlook().queued_tokens == 9
    assert not calls
    assert world.cluster.view().nodes[A].instances["m@a/d"].layers_resident == 0


async def test_late_gossip_is_not_taken_for_news(world):
    world.news(A, model(), instance("m@a/d"))
    await world.routed("m@a/d")
    world.cluster.loads_reported(A, [LoadFacts("m@a/d", number=5)])
    heard_s = world.cluster.view().nodes[A].heard_s
    world.clock.ahead_s += 3.0
    late = LoadFacts("m@a/d", running=64, queued_tokens=50_000, number=4)
    world.cluster.members_changed([world.state(A, late)])
    outlook = world.router._fleet.get("m@a/d").port.outlook()
    assert outlook.queued_tokens == 0
    assert outlook.age_s >= 3.0
    assert world.cluster.view().nodes[A].heard_s == heard_s


async def test_reports_go_to_those_who_submit_and_fit_their_messages(world):
    world.loads = [LoadFacts(f"m@{'n' * 128}/{i}", number=0) for i in range(3 * REPORT_LOADS)]
    world.cluster.changed()
    await until(lambda: world.cluster.view().nodes[ME].loads)
    assert not world.sent
    request = GenerationRequest("r", "m", (1, 2), 2, SamplingParams(10))
    world.cluster.network.serving.on_submit(A, Submit("unknown", 1, request))
    world.sent.clear()
    world.loads = [replace(load, running=1) for load in world.loads]
    await until(lambda: len(world.sent) >= 3)
    assert {boot for boot, _ in world.sent} == {A}
    reports = [message for _, message in world.sent]
    assert all(isinstance(report, LoadReport) for report in reports)
    loads = [load for report in reports for load in report.loads]
    assert {load.instance for load in loads} == {load.instance for load in world.loads}
    assert {load.number for load in loads} == {2}
    world.clock.ahead_s += 60.0
    world.sent.clear()
    world.loads = world.loads[:1] + [replace(load, running=2) for load in world.loads[1:]]
    await asyncio.sleep(0.15)
    assert not world.sent


# Who is there.


async def test_many_who_come_at_once_are_taken_in_portions(world):
    boots = [f"{i + 1:016x}" for i in range(3)]
    each = ADDED_AT_ONCE * 2 // 3
    portions, follow = [], world.cluster.routes.follow
    world.cluster.routes.follow = lambda view: (
        portions.append(len(world.router._fleet)) or follow(view)
    )
    news = [world.member(boot) for boot in boots]
    news += [
        world.state(boot, model(), *(instance(f"m@{boot}/{i}") for i in range(each)))
        for boot in boots
    ]
    world.cluster.members_changed(news)
    await until(lambda: len(world.router._fleet) == 3 * each)
    assert portions[:2] == [0, ADDED_AT_ONCE]


async def test_an_own_instance_does_not_wait_for_others(world):
    world.news(A, model(), *(instance(f"m@a/{i}") for i in range(ADDED_AT_ONCE)))
    port = Port()
    world.own.append(instance(port.instance))
    world.cluster.definitions.settle(world.cluster.view())
    world.cluster.directory.published({key_of(world.own[0]): world.own[0]}, 0.0)
    world.cluster.local_up(port, 1, "")
    assert len(world.router._fleet) == ADDED_AT_ONCE
    assert world.router._fleet.get(port.instance)
    await until(lambda: len(world.router._fleet) == ADDED_AT_ONCE + 1)


async def test_of_two_who_claim_an_id_the_living_then_the_older_has_it(world):
    def owner():
        return world.router._fleet.get("m@n/d").port.boot

    world.news(B, model(), instance("m@n/d"), name="n", started_s=9)
    await world.routed("m@n/d")
    world.news(A, model(), instance("m@n/d"), name="n", started_s=7)
    await until(lambda: owner() == A)
    world.news(A, status=Status.SUSPECT, name="n", started_s=7)
    await until(lambda: owner() == B)
    world.news(A, status=Status.ALIVE, name="n", started_s=7)
    await until(lambda: owner() == A)


async def test_an_own_instance_gives_its_id_to_an_older_node_and_takes_it_back(world):
    port = Port("m@me/d")
    world.news(B, model())
    await until(lambda: "m" in world.cluster.definitions.settled)
    await world.local(port)
    world.ask("r")
    world.news(A, instance("m@me/d"), name="me", started_s=1)
    await until(lambda: world.submitted() == [(A, "r")])
    assert port.calls == [("submit", "r", 0), ("abort", "r", 0)]
    world.news(A, status=Status.DEAD, started_s=1)
    await until(lambda: port.calls[2:] and port.calls[2][:2] == ("submit", "r"))


async def test_a_node_whose_link_broke_is_left_alone_until_gossip_knows(world):
    world.news(A, model(), instance("m@a/d"))
    await world.routed("m@a/d")
    world.cluster.peer_lost(A, "no answer")
    assert len(world.router._fleet) == 0
    world.news(A, instance("m@a/other"))
    await asyncio.sleep(0.1)
    assert len(world.router._fleet) == 0
    world.clock.ahead_s += EJECTED_MIN_S
    await world.routed("m@a/d", "m@a/other")


async def test_a_node_with_nothing_to_tell_looks_only_when_it_is_told_of_something(world):
    looks = []
    world.cluster._loads = lambda: looks.append(1) or world.loads
    await asyncio.sleep(3 * REFRESH_S)  # what its start has stirred
    looks.clear()
    await asyncio.sleep(6 * REFRESH_S)
    assert not looks
    world.own.append(instance("m@me/d"))
    world.cluster.changed()
    await until(lambda: "m@me/d" in world.cluster.view().nodes[ME].instances)
    await asyncio.sleep(2 * REFRESH_S)
    looks.clear()
    await asyncio.sleep(6 * REFRESH_S)
    assert not looks
    world.loads.append(LoadFacts("m@me/d", 1, 0, 0, 0.0, None, None))
    world.cluster.tick()  # an instance's load changes untold
    assert world.cluster.view().nodes[ME].loads["m@me/d"].running == 1
    world.loads.clear()
    world.own.clear()
    world.cluster.changed()
    await until(lambda: "m@me/d" not in world.cluster.view().nodes[ME].instances)
    world.clock.ahead_s += GOSSIP_LOAD_S
    world.cluster.tick()  # that the load is gone is told by gossip, too
    await asyncio.sleep(2 * REFRESH_S)
    looks.clear()
    world.cluster.tick()
    await asyncio.sleep(6 * REFRESH_S)
    assert not looks


async def test_a_peer_that_uses_instances_hears_of_each_change_of_their_load(world):
    world.news(A)
    await world.local(Port())
    await asyncio.sleep(2 * REFRESH_S)
    request = GenerationRequest("r", "m", (1, 2), 2, SamplingParams(10))
    world.cluster.network.serving.on_submit(A, Submit("m@me/d", 1, request))
    for running in (1, 2, 3):
        world.loads[:] = [LoadFacts("m@me/d", running, 0, 0, 0.0, None, None)]
        await until(lambda: reported(world)[-1:] == [(A, running)])  # noqa: B023  at once


def reported(world):
    return [(boot, m.loads[0].running) for boot, m in world.sent if isinstance(m, LoadReport)]


@pytest.mark.parametrize(
    ("interval_s", "members", "expected_s"),
    [(0.25, 3, 2.5), (0.25, 1000, 4.0), (1.0, 10, 8.0), (0.05, 10, 2.5)],
)
def test_an_ejection_lasts_as_long_as_gossip_needs(interval_s, members, expected_s):
    assert ejected_s(Knobs.of(interval_s), members) == pytest.approx(expected_s)


# Hope.


async def test_a_model_that_has_failed_everywhere_is_given_up_and_hoped_for_again(world):
    world.news(A, model(), instance("m@a/d", GONE))
    await until(lambda: world.cluster._following._hopeless == {"m"})
    with pytest.raises(Unavailable, match="could not be loaded"):
        world.ask("r1")
    world.news(B, instance("m@b/d", LOADING))
    await until(lambda: not world.cluster._following._hopeless)
    world.news(B, instance("m@b/d"))
    await world.routed("m@b/d")
    world.news(B, instance("m@b/d", LOADING))
    await world.routed()
    sink = world.ask("r2")  # held: it is on its way
    assert not sink.errors
    world.news(B, instance("m@b/d", GONE))
    await until(lambda: sink.errors)
    assert isinstance(sink.errors[0], Unavailable)


async def test_what_a_rival_definition_has_is_no_hope_and_no_failure(world):
    world.news(A, model("d1", since=1), instance("m@a/d", GONE))
    world.news(B, model("d2", since=2), instance("m@b/d", digest="d2"))
    await until(lambda: world.cluster._following._hopeless == {"m"})
    world.news(A, instance("m@a/d", LOADING))
    world.news(B, instance("m@b/d", GONE, digest="d2"))
    await until(lambda: not world.cluster._following._hopeless)
    await asyncio.sleep(0.1)
    assert not world.cluster._following._hopeless


async def test_a_failure_here_is_told_with_its_reason(world):
    world.news(A, model())
    await until(lambda: "m" in world.cluster.definitions.settled)
    sink = world.ask("r")
    world.own.append(instance("m@me/d", GONE))
    world.cluster.local_failed("m", "the disk is full")
    await until(lambda: sink.errors)
    assert "the disk is full" in sink.errors[0].message


# Names.


async def test_a_name_given_twice_is_told_once_and_the_younger_makes_room(world, caplog):
    mine = "me"
    with caplog.at_level(logging.WARNING, "blitzgw.cluster"):
        world.news(A, model(), name=mine, started_s=1)
        await until(world.cluster.displaced)
        world.news(A, instance("m@x/d"), name=mine, started_s=1)
        await world.routed("m@x/d")
    told = [r.getMessage() for r in caplog.records if "node_name_conflict" in r.getMessage()]
    assert told == [f"node_name_conflict name={mine} boots={A},{ME}"]
    world.news(A, status=Status.DEAD, name=mine, started_s=1)
    await until(lambda: not world.cluster.displaced())
    world.news(B, name=mine, started_s=1 << 40)
    await until(lambda: world.cluster._following._namesakes)
    assert not world.cluster.displaced()


def test_a_process_in_the_place_of_one_that_died_shares_its_name_with_nobody():
    def node(boot, port, started_s, status=Status.ALIVE):
        return NodeView(boot, "n", "10.0.0.1", port, status, started_s)

    def namesakes(*nodes):
        found = ClusterView(ME, {node.boot: node for node in nodes}).namesakes()
        return {name: [node.boot for node in nodes] for name, nodes in found.items()}

    assert namesakes(node(A, 1, 5), node(B, 1, 9)) == {}
    assert namesakes(node(A, 1, 5), node(B, 2, 9, Status.LEFT)) == {}
    assert namesakes(node(A, 2, 9), node(B, 1, 5)) == {"n": [B, A]}
    assert namesakes(node(A, 1, 5), node(B, 2, 7), node(C, 1, 9)) == {"n": [B, C]}


# Requests of all.


def facts(n, age_s=1.0):
    return RequestFacts(f"r{n}", "m", "n", "i", 0, 1, 1, 1, age_s)


def test_lists_of_requests_are_cut_and_say_so():
    few = [facts(n, age_s=n) for n in range(3)]
    found = gathered(few[:1], ["b", "a", "c"], [encode_requests(few[1:]), None, b"\xff"])
    assert [r.id for r in found.requests] == ["r2", "r1", "r0"]
    assert (found.unanswered, found.truncated) == (("a", "c"), False)
    many = [facts(n) for n in range(NODE_REQUESTS + 1)]
    found = gathered([], ["a"], [encode_requests(many)])
    assert (len(found.requests), found.truncated) == (NODE_REQUESTS, True)
    found = gathered(many, [], [])
    assert (len(found.requests), found.truncated) == (NODE_REQUESTS, True)


def test_of_too_many_requests_the_oldest_are_told():
    nodes = 3 * ALL_REQUESTS // NODE_REQUESTS
    answers = [
        encode_requests([facts(n, age_s=float(node)) for n in range(NODE_REQUESTS)])
        for node in range(nodes)
    ]
    found = gathered([], [str(n) for n in range(nodes)], answers)
    assert (len(found.requests), found.truncated) == (ALL_REQUESTS, True)
    assert min(r.age_s for r in found.requests) == nodes - ALL_REQUESTS / NODE_REQUESTS


class Peers:
    """A network that counts how often everybody is asked."""

    def __init__(self):
        self.asked = 0

    async def ask_all(self, nodes, what):
        self.asked += 1
        await asyncio.sleep(0.01)
        return [None for _ in nodes]


async def test_one_answer_is_shared_by_all_who_ask_within_a_second(world):
    peers = Peers()
    lists = RequestLists(world.router, peers, world.clock)
    first, second = await asyncio.gather(lists.everywhere([]), lists.everywhere([]))
    assert first is second is await lists.everywhere([])
    assert peers.asked == 1
    own = lists.own()
    world.ask("r")
    assert lists.own() is own
    world.clock.ahead_s += 1.0
    assert lists.own() != own
    gone = asyncio.get_running_loop().create_task(lists.everywhere([]))
    await asyncio.sleep(0)
    gone.cancel()
    assert [r.id for r in (await lists.everywhere([])).requests] == ["r"]
    assert peers.asked == 2
    await lists.close()


# Refusals, states.


async def test_what_no_message_holds_goes_to_another_instance(world):
    class Far(Port):
        def outlook(self):
            return Outlook(0, distance_s=0.001)

        def submit(self, request):
            raise TooLong("the request is too long to be sent to another node")

    near = Port("near")
    world.router.instance_up(Far("far"))
    with pytest.raises(Unavailable) as caught:
        world.ask("r1")
    assert (caught.value.status, caught.value.code) == (TooLarge.status, TooLarge.code)
    world.router.instance_up(near)
    for n in range(8):
        world.ask(f"s{n}")
    assert len(near.calls) == 8


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ([], "no model is known yet"),
        ([FETCHING], "fetching a"),
        ([FAILED, FAILED], "no model could be loaded"),
        ([LOADING, FAILED], "loading a"),
        ([FETCHING, LOADING], "loading b; fetching a"),
        ([FETCHING, FAILED], "fetching a"),
        ([FETCHING, SERVING], ""),
        ([LOADING, "scaled_to_zero"], ""),
    ],
)
def test_a_node_is_ready_when_a_model_can_be_answered_or_waited_for(states, reason):
    models = [ModelStatus(name, state) for name, state in zip("abc", states, strict=False)]
    assert hindrance(models) == reason
