"""Both ends of requests that are served over a link, on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from blitzgw.core.instance import InstanceState
from blitzgw.core.peer import (
    Abort,
    Declined,
    Heartbeat,
    LoadReport,
    Loss,
    Lost,
    PlainTokens,
    Submit,
    Tokens,
)
from blitzgw.core.ports import Outlook
from blitzgw.core.request import FinishReason, GenerationRequest, StepTokens, TokenEvent
from blitzgw.core.rumours import Status
from blitzgw.core.view import InstanceFacts, LoadFacts, NodeFacts, NodeView
from blitzgw.errors import (
    GenerationFailed,
    InvalidRequest,
    Outdated,
    Overloaded,
    RequestError,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownModel,
)
from blitzgw.gossip import remote as remote_module
from blitzgw.gossip.content import ContentClient, ContentServer
from blitzgw.gossip.remote import RemoteIngress, RemoteInstance, rebuilt
from blitzgw.gossip.serving import Serving
from blitzgw.gossip.switchboard import Switchboard
from blitzgw.gossip.users import USERS_S
from blitzgw.router.router import Router
from blitzgw.wire import PEER_MESSAGES
from tests.cluster.link_kit import HIGH, LOW, End, event, request, until

FACTS = InstanceFacts("i", "m", "d", "dev", 3, InstanceState.SERVING, 4, 4)


class FakeOperations:
    """Nothing is scaled here."""

    def said(self, boot: str, message: Any) -> None:
        raise AssertionError(f"{boot} has said {message}")

    def link_lost(self, boot: str, reason: str) -> None:
        pass

    def count(self, boot: str) -> int:
        return 0


class FakeRouter:
    def __init__(self) -> None:
        self.calls: list[list[TokenEvent]] = []
        self.losses: list[tuple[Loss, str, bool]] = []
        self.declined: list[tuple[str, int, RequestError]] = []

    def on_tokens(self, events: Any) -> None:
        self.calls.append(events)

    def on_plain(self, tokens: Any) -> None:
        self.calls.append(StepTokens(tokens, []))

    def on_lost(self, losses: Any, reason: str, *, planned: bool = False) -> None:
        self.losses += [(loss, reason, planned) for loss in losses]

    def on_declined(self, request_id: str, attempt: int, error: RequestError) -> None:
        self.declined.append((request_id, attempt, error))

    @property
    def events(self) -> list[TokenEvent]:
        return [e for call in self.calls for e in call]


class Sink:
    """Whoever waits for an answer."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.errors: list[RequestError] = []

    def push(self, event: TokenEvent) -> None:
        self.events.append(event)

    def fail(self, error: RequestError) -> None:
        self.errors.append(error)


class FakePort:
    instance, model = "i", "m"

    def __init__(self) -> None:
        self.submitted: list[GenerationRequest] = []
        self.aborted: list[tuple[str, int]] = []
        self.react: Callable[[GenerationRequest], None] = lambda _: None

    def outlook(self) -> Outlook:
        return Outlook(0)

    def submit(self, request: GenerationRequest) -> None:
        self.react(request)
        self.submitted.append(request)

    def abort(self, request_id: str, attempt: int) -> None:
        self.aborted.append((request_id, attempt))


class Peer(End):
    """A node with a router, an instance and both ends of the peer protocol."""

    def __init__(self, boot: str, dilation: float = 1.0) -> None:
        self.loads: list[LoadReport] = []
        self.lost_peers: list[str] = []
        self.operations = FakeOperations()
        self.board = Switchboard(lambda _, load: self.loads.append(load), self.operations)
        super().__init__(boot, self.board, dilation)
        self.router, self.port = FakeRouter(), FakePort()
        self.serving = Serving(self.links, self.router, self.clock)
        self.serving.host(self.port, 3, "d")
        self.ingress = RemoteIngress(
            self.links, self.router, lambda boot, _: self.lost_peers.append(boot)
        )
        self.content = ContentServer(self.links, lambda _: None)
        self.client = ContentClient(self.links, self.clock)
        self.board.join(self.serving, self.ingress, self.content, self.client)

    def view(self, **facts: Any) -> NodeView:
        return NodeView(
            self.boot, "n", *self.address, Status.ALIVE, 0, NodeFacts("n", "http://n", **facts)
        )

    def remote(self, peer: Peer, facts: InstanceFacts = FACTS) -> RemoteInstance:
        return RemoteInstance(self.ingress, self.links, self.clock, peer.view(), facts)


class Pair:
    """An ingress `a` and the owner of an instance, `b`."""

    async def __aenter__(self) -> tuple[Peer, Peer]:
        self.a, self.b = Peer(LOW), Peer(HIGH)
        await self.a.__aenter__()
        await self.b.__aenter__()
        return self.a, self.b

    async def __aexit__(self, *exc: object) -> None:
        await self.a.__aexit__()
        await self.b.__aexit__()


async def test_a_request_is_served_over_a_link_one_message_per_step():
    async with Pair() as (a, b):
        port = a.remote(b)
        for i in range(8):
            port.submit(request(f"r{i}"))
        await until(lambda: len(b.port.submitted) == 8)
        assert b.port.submitted[3] == request("r3")
        assert b.serving.count(LOW) == a.ingress.count(HIGH) == 8
        for n in range(3):
            finish = FinishReason.STOP if n == 2 else None
            b.serving.on_tokens([event(f"r{i}", n, finish=finish) for i in range(8)])
            await asyncio.sleep(0.01)
        await until(lambda: len(a.router.events) == 24)
        assert [len(call) for call in a.router.calls] == [8, 8, 8]
        assert [e.tokens for e in a.router.events if e.request_id == "r5"] == [[0], [1], [2]]
        assert b.serving.count(LOW) == a.ingress.count(HIGH) == 0
        assert not b.router.calls
        assert not a.board.in_use(HIGH)


async def test_a_step_is_split_between_this_node_and_each_peer():
    async with Pair() as (a, b), Peer("88" * 8) as c:
        events = [event("mine", 1)]
        b.serving.on_tokens(events)
        assert b.router.calls[0] is events  # nobody else's: passed through
        a.remote(b).submit(request("of-a"))
        c.remote(b).submit(request("of-c"))
        await until(lambda: len(b.port.submitted) == 2)
        b.serving.on_tokens([event("of-a", 1), event("mine", 2), event("of-c", 3)])
        await until(lambda: a.router.calls and c.router.calls)
        assert a.router.events == [event("of-a", 1)]
        assert c.router.events == [event("of-c", 3)]
        assert b.router.calls[1:] == [[event("mine", 2)]]
        b.serving.on_lost([Loss("of-a", 0), Loss("mine", 0), Loss("of-c", 7)], "worker died")
        await until(lambda: a.router.losses)
        assert a.router.losses == [(Loss("of-a", 0), "worker died", False)]
        assert b.router.losses == [(Loss("mine", 0), "worker died", False)]
        assert [g.request_id for g in b.serving.requests()] == ["of-c"]
        b.serving.on_declined("of-c", 0, Unavailable("moved"))
        b.serving.on_declined("mine", 0, Unavailable("moved"))
        await until(lambda: c.router.declined)
        assert len(b.router.declined) == 1
        assert not b.serving.requests()


async def test_tokens_with_nothing_else_to_them_travel_as_such():
    async with Pair() as (a, b):
        for name in ("r0", "r1"):
            a.remote(b).submit(request(name))
        await until(lambda: len(b.port.submitted) == 2)
        last = event("r1", 5, finish=FinishReason.LENGTH)
        plain = [("r0", 0, 7), ("mine", 0, 8), ("r1", 3, 9)]
        b.serving.on_tokens(StepTokens(plain, [last, event("mine too", 4)]))
        await until(lambda: len(a.router.events) == 2)
        first, second = a.router.calls
        assert (first.plain, first.events) == ([("r0", 0, 7)], [])  # the other attempt is not here
        assert second == [last]
        [mine] = b.router.calls
        assert (mine.plain, mine.events) == ([("mine", 0, 8)], [event("mine too", 4)])
        b.serving.on_tokens(StepTokens([("r0", 0, 6)], []))
        await until(lambda: len(a.router.events) == 3)
        assert b.router.calls == [mine]
        assert b.serving.count(LOW) == a.ingress.count(HIGH) == 1


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (Overloaded("full", retry_after_s=2.5), 2.5),
        (InvalidRequest("no", param="prompt"), None),
        (Unavailable("not now"), None),
    ],
)
async def test_a_refusal_comes_back_as_the_same_error(error, retry):
    async with Pair() as (a, b):

        def refuse(_):
            raise error

        b.port.react = refuse
        a.remote(b).submit(request("r", attempt=2))
        await until(lambda: a.router.declined)
        [(request_id, attempt, got)] = a.router.declined
        assert (request_id, attempt) == ("r", 2)
        assert (type(got), got.message, got.param) == (type(error), error.message, error.param)
        assert got.retry_after_s == retry
        assert not b.serving.requests()
        assert a.ingress.count(HIGH) == 0


def test_every_error_has_a_code_that_leads_back_to_it():
    kinds = [InvalidRequest, Unauthorized, UnknownModel, TooLarge, Overloaded, Unavailable]
    for cls in [*kinds, Outdated, GenerationFailed]:
        assert type(rebuilt(Declined("r", 0, cls.code, "text"))) is cls
    assert type(rebuilt(Declined("r", 0, "news from the future", "text"))) is Unavailable


@pytest.mark.parametrize("spoil", ["claim", "draining", "instance"])
async def test_what_is_not_here_as_the_ingress_thinks_is_declined(spoil):
    async with Pair() as (a, b):
        facts = FACTS
        if spoil == "claim":
            facts = replace(FACTS, claim=2)
        elif spoil == "draining":
            b.serving.draining = True
        else:
            b.serving.unhost("i")
        a.remote(b, facts).submit(request("r"))
        await until(lambda: a.router.declined)
        expected = Unavailable if spoil == "draining" else Outdated
        assert type(a.router.declined[0][2]) is expected
        assert not b.port.submitted


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_request_waits_for_an_instance_that_is_just_beginning_anew(comes_back):
    """The ingress has not heard yet that the only worker has died; the owner has."""
    async with Pair() as (a, b):
        router = Router(a.clock, max_attempts=3, hold_timeout_s=60.0, max_held=1)
        a.ingress._router = router
        b.serving.unhost("i")
        router.instance_up(a.remote(b), "d")
        sink = Sink()
        router.generate(request("r"), sink)
        await until(lambda: router.held("m"))
        assert not sink.errors
        if comes_back:
            b.serving.host(b.port, 4, "d")
            router.instance_down("i", "the worker has died")
            router.instance_up(a.remote(b, replace(FACTS, claim=4)), "d")
            await until(lambda: b.port.submitted)
            b.serving.on_tokens([event("r", 5, attempt=1, finish=FinishReason.LENGTH)])
            await until(lambda: sink.events)
            assert sink.events[0].tokens == [5]
            assert not sink.errors
        else:
            router.give_up("m", "it cannot be loaded")
            assert [type(error) for error in sink.errors] == [Unavailable]
        assert not router.requests(0.0)


async def test_a_request_for_another_definition_is_declined():
    async with Pair() as (a, b):
        port = a.remote(b)
        port.submit(replace(request("other"), digest="e"))
        await until(lambda: a.router.declined)
        assert [(i, n) for i, n, _ in a.router.declined] == [("other", 0)]
        assert type(a.router.declined[0][2]) is Outdated
        for number, digest in enumerate(("d", "")):
            port.submit(replace(request(f"r{number}"), digest=digest))
        await until(lambda: len(b.port.submitted) == 2)
        assert len(a.router.declined) == 1


async def test_users_are_those_who_have_submitted_lately():
    async with Pair() as (a, b):
        now = b.clock.now()
        assert b.serving.users.at(now) == []
        a.remote(b).submit(request("r"))
        await until(lambda: b.port.submitted)
        assert b.serving.users.at(now) == [LOW]
        assert b.serving.users.at(now + USERS_S + 5.0) == []


async def test_an_answer_given_before_submit_returns_is_not_lost():
    async with Pair() as (a, b):
        done = event("r", finish=FinishReason.LENGTH)
        b.port.react = lambda _: b.serving.on_tokens([done])
        a.remote(b).submit(request("r"))
        await until(lambda: a.router.events)
        assert a.router.events == [done]
        assert not b.serving.requests()


async def test_an_abort_stops_that_attempt_of_that_peer_only():
    async with Pair() as (a, b), Peer("88" * 8) as c:
        port = a.remote(b)
        port.submit(request("r", attempt=1))
        await until(lambda: b.port.submitted)
        c.links.send(HIGH, b.address, Abort("r", 1))
        a.links.send(HIGH, None, Abort("r", 0))
        a.links.send(HIGH, None, Abort("unknown", 0))
        port.abort("r", 0)
        port.abort("unknown", 0)
        c.remote(b).submit(request("marker"))
        await until(lambda: len(b.port.submitted) == 2)
        await asyncio.sleep(0.02)
        assert not b.port.aborted
        port.abort("r", 1)
        await until(lambda: b.port.aborted)
        assert b.port.aborted == [("r", 1)]
        assert b.serving.count(LOW) == a.ingress.count(HIGH) == 0
        b.serving.on_tokens([event("marker", 1)])
        await until(lambda: c.router.events)
        assert not a.router.events


async def test_only_a_newer_attempt_of_the_same_peer_takes_the_place_of_one():
    async with Pair() as (a, b), Peer("88" * 8) as c:
        address = b.address
        a.links.send(HIGH, address, Submit("i", 3, request("r", attempt=1)))
        await until(lambda: b.port.submitted)
        a.links.send(HIGH, address, Submit("i", 3, request("r", attempt=1)))
        a.links.send(HIGH, address, Submit("i", 3, request("r", attempt=0)))
        c.links.send(HIGH, address, Submit("i", 3, request("r", attempt=5)))
        c.remote(b).submit(request("marker"))
        await until(lambda: len(b.port.submitted) == 2)
        a.links.send(HIGH, address, Submit("i", 3, request("r", attempt=2)))
        await until(lambda: len(b.port.submitted) == 3)
        assert b.port.aborted == [("r", 1)]
        guests = {(g.request_id, g.attempt, g.boot) for g in b.serving.requests()}
        assert guests == {("r", 2, LOW), ("marker", 0, "88" * 8)}
        b.serving.on_tokens([event("r", 5, attempt=1), event("marker", 1)])
        await until(lambda: c.router.events)
        assert not a.router.calls + b.router.calls


async def test_what_is_said_of_requests_that_are_elsewhere_is_dropped():
    async with Pair() as (a, b), Peer("88" * 8) as c:
        a.remote(b).submit(request("r", attempt=1))
        a.remote(c).submit(request("s"))
        await until(lambda: b.port.submitted and c.port.submitted)
        old, foreign, unknown = event("r", 1), event("s", 1), event("x", 1)
        b.links.send(LOW, None, Tokens([old, foreign, unknown]))
        b.links.send(LOW, None, PlainTokens([("r", 0, 1), ("s", 0, 1), ("x", 0, 1)]))
        b.links.send(LOW, None, Lost((Loss("r", 0), Loss("s", 0), Loss("x", 0)), "why"))
        b.links.send(LOW, None, Declined("s", 0, "overloaded", ""))
        b.links.send(LOW, None, Declined("r", 0, "overloaded", ""))
        b.links.send(LOW, None, Tokens([old, event("r", 7, attempt=1)]))
        await until(lambda: a.router.calls)
        assert a.router.calls == [[event("r", 7, attempt=1)]]
        assert not a.router.losses + a.router.declined
        assert a.ingress.count(HIGH) == 1


async def test_a_broken_link_gives_everything_back_once_and_frees_the_other_end():
    async with Pair() as (a, b):
        port = a.remote(b)
        order: list[str] = []
        a.ingress._on_peer_lost = lambda boot, _: order.append(boot)
        on_lost = a.router.on_lost
        a.router.on_lost = lambda *args, **more: (order.append("lost"), on_lost(*args, **more))
        for i in range(5):
            port.submit(request(f"r{i}", attempt=i))
        await until(lambda: len(b.port.submitted) == 5)
        b.link(LOW).drop("test")
        b.serving.on_tokens([event("r0", 1)])  # into the void
        await until(lambda: a.router.losses and len(b.port.aborted) == 5)
        await asyncio.sleep(0.05)
        assert order == [HIGH, "lost"]  # out of the router first, else it goes there again
        assert [loss for loss, _, _ in a.router.losses] == [Loss(f"r{i}", i) for i in range(5)]
        assert sorted(b.port.aborted) == [(f"r{i}", i) for i in range(5)]
        assert not b.serving.requests()
        assert b.lost_peers == [LOW]
        port.submit(request("again"))
        await until(lambda: len(b.port.submitted) == 6)


async def test_a_peer_that_cannot_be_reached_gives_the_request_back():
    async with Pair() as (a, b):
        b.hush()
        b._socket.close()
        a.remote(b).submit(request("r"))
        assert not a.router.losses
        await until(lambda: a.router.losses)
        assert a.lost_peers == [HIGH]
        assert a.ingress.count(HIGH) == 0


async def test_a_link_known_to_be_broken_takes_nothing():
    async with Pair() as (a, b):
        port = a.remote(b)
        port.submit(request("r"))
        await until(lambda: b.port.submitted)
        a.link(HIGH).drop("test")
        with pytest.raises(Unavailable):
            port.submit(request("s"))
        await until(lambda: a.router.losses)
        assert [loss.request_id for loss, _, _ in a.router.losses] == ["r"]


async def test_a_request_that_no_message_holds_is_too_large():
    async with Pair() as (a, b):
        long = replace(request("r"), tokens=(2**31 - 1,) * 900_000)
        with pytest.raises(Unavailable) as caught:  # a refusal: another one may take it
            a.remote(b).submit(long)
        assert (caught.value.status, caught.value.code) == (TooLarge.status, TooLarge.code)
        assert a.ingress.count(HIGH) == 0


async def test_giving_away_hands_tokens_over_first_and_is_planned():
    async with Pair() as (a, b):
        port = a.remote(b)
        port.submit(request("r"))
        port.submit(request("s"))
        await until(lambda: len(b.port.submitted) == 2)
        b.serving.on_tokens([event("r", 1)])
        b.serving.draining = True
        assert b.serving.give_away("draining") == 2
        assert b.serving.give_away("draining") == 0
        await until(lambda: len(a.router.losses) == 2)
        assert a.router.events == [event("r", 1)]
        assert {planned for _, _, planned in a.router.losses} == {True}
        assert sorted(b.port.aborted) == [("r", 0), ("s", 0)]


async def test_an_attempt_that_moves_on_is_stopped_where_it_was():
    async with Pair() as (a, b), Peer("88" * 8) as c:
        a.remote(b).submit(request("r"))
        await until(lambda: b.port.submitted)
        a.remote(c).submit(request("r", attempt=1))
        await until(lambda: b.port.aborted and c.port.submitted)
        a.ingress.forget("i")
        await until(lambda: c.port.aborted)
        assert c.port.aborted == [("r", 1)]
        assert b.port.aborted == [("r", 0)]


async def test_load_reports_reach_the_node():
    async with Pair() as (a, b):
        report = LoadReport((LoadFacts("i", running=3),))
        b.links.send(LOW, a.address, report)
        await until(lambda: a.loads)
        assert a.loads == [report]


async def test_every_message_of_a_peer_has_somebody_who_takes_it():
    async with Peer(LOW) as a:
        assert set(a.board._takers) == PEER_MESSAGES - {Heartbeat}


# The outlook.


class ManualClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time


async def test_the_outlook_counts_what_was_sent_since_the_last_report():
    async with Pair() as (a, b):
        clock = ManualClock()
        node = replace(b.view(), heard_s=99.0)
        load = LoadFacts("i", queued_tokens=100, prefill_tokens_per_s=5.0)
        port = RemoteInstance(a.ingress, a.links, clock, node, FACTS, load)
        assert port.outlook() == Outlook(100, 5.0, remote_module.UNKNOWN_DISTANCE_S, 1.0)
        port.submit(request("r", prompt=10))
        clock.time += 0.2
        port.submit(request("s", prompt=20))
        assert port.outlook().queued_tokens == 130
        port.update_load(LoadFacts("i", queued_tokens=10))
        outlook = port.outlook()
        assert (outlook.queued_tokens, outlook.age_s) == (30, 0.0)  # "s" is too new to be in it
        clock.time += remote_module.CORRECTION_S
        assert port.outlook().queued_tokens == 10
        await until(lambda: a.links.rtt_s(HIGH))
        assert port.outlook().distance_s == a.links.rtt_s(HIGH)


async def test_only_a_serving_instance_of_a_living_node_is_open():
    async with Pair() as (a, b):
        port = a.remote(b)
        assert port.outlook().open
        port.update(b.view(draining=True), FACTS)
        assert not port.outlook().open
        port.update(b.view(), replace(FACTS, state=InstanceState.LOADING))
        assert not port.outlook().open
        port.update(replace(b.view(), status=Status.DEAD), FACTS)
        assert not port.outlook().open
        port.update(b.view(), FACTS)
        assert port.outlook().open
