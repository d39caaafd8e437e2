"""Instances that lead a pipeline while they load: who goes there, and who does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.peer import Loss, Lost, Submit, Tokens
from blitzgw.core.ports import Outlook
from blitzgw.core.request import TokenEvent
from blitzgw.core.span import Span
from tests.cluster.link_kit import until
from tests.cluster.test_cluster_routes import (
    LOADING,
    ME,
    SERVING,
    A,
    B,
    Port,
    World,
    instance,
    model,
)


@pytest.fixture
async def world():
    async with World() as made:
        yield made


def leading(id_, start=0):
    return replace(instance(id_, LOADING, resident=1), stage=Span(start, start + 1))


class Closed(Port):
    """An instance of this node that loads."""

    takes = False

    def outlook(self):
        return Outlook(0, open=self.takes)


async def test_a_lead_takes_what_it_keeps_and_nothing_new(world):
    world.news(A, model(), instance("home"))
    world.news(B, leading("lead"))
    await world.routed("home", "lead")
    for number in range(8):
        world.ask(f"r{number}")
    assert {boot for boot, _ in world.submitted()} == {A}
    world.cluster.network.ingress.on_lost(A, Lost((Loss("r3", 0, "lead"),), "kept", planned=True))
    assert world.submitted()[-1] == (B, "r3")
    assert world.sent[-1][1] == Submit("lead", 1, world.sent[-1][1].request)


async def test_a_stage_that_is_not_the_first_is_nobody_to_go_to(world):
    world.news(A, model(), instance("home"))
    world.news(B, leading("end", 1))
    await world.routed("home")


async def test_what_a_lead_has_stays_there_when_it_is_complete(world):
    world.news(A, model(), instance("home"))
    world.news(B, leading("lead"))
    await world.routed("home", "lead")
    world.ask("r")
    world.cluster.network.ingress.on_lost(A, Lost((Loss("r", 0, "lead"),), "kept", planned=True))
    sent = len(world.submitted())
    world.news(B, instance("lead"))
    world.news(A)
    await until(lambda: world.router._fleet.get("lead").port.outlook().open)
    event = TokenEvent("r", 1, [5])
    world.cluster.network.ingress.on_tokens(B, Tokens([event]))
    assert list(world.router._log["r"].tokens) == [5]
    assert len(world.submitted()) == sent


async def test_a_lead_that_leads_no_more_gives_its_requests_back(world):
    world.news(A, model(), instance("home"))
    world.news(B, leading("lead"))
    await world.routed("home", "lead")
    world.ask("r")
    world.cluster.network.ingress.on_lost(A, Lost((Loss("r", 0, "lead"),), "kept", planned=True))
    world.news(B, instance("lead", LOADING))
    await world.routed("home")
    assert world.submitted()[-1] == (A, "r")


async def test_a_lead_of_this_node_goes_on_when_it_is_complete(world):
    world.news(A, model(), instance("home"))
    await world.routed("home")
    port = Closed("lead")
    await world.local(port, state=LOADING)
    await world.routed("home", "lead")
    world.ask("r")
    world.cluster.network.ingress.on_lost(A, Lost((Loss("r", 0, "lead"),), "kept", planned=True))
    assert port.calls == [("submit", "r", 1)]
    port.takes = True
    world.own[0] = instance("lead", SERVING)
    world.cluster.changed()
    world.cluster.local_up(port, 1, "d1")
    await until(lambda: world.cluster.view().nodes[ME].instances["lead"].state is SERVING)
    assert port.calls == [("submit", "r", 1)], "it is where it was"
    assert world.router._log["r"].instance == "lead"


# From zero: whoever holds something goes to a lead whose pipeline is there.


async def test_what_is_held_goes_to_a_lead_whose_pipeline_is_there(world):
    world.news(A, model())
    world.news(B, leading("lead"))
    await world.routed("lead")
    world.ask("r")
    assert world.router.held("m") == 1, "its pipeline is not there yet"
    assert world.submitted() == []
    world.news(B, replace(leading("lead"), open=True))
    await until(lambda: world.submitted() == [(B, "r")])
    assert world.router.held("m") == 0
    outlook = world.router._fleet.get("lead").port.outlook()
    assert (outlook.open, outlook.reluctant) == (True, True)


async def test_an_open_lead_is_left_alone_where_somebody_serves(world):
    world.news(A, model(), instance("home"))
    world.news(B, replace(leading("lead"), open=True))
    await world.routed("home", "lead")
    for number in range(8):
        world.ask(f"r{number}")
    assert {boot for boot, _ in world.submitted()} == {A}


async def test_a_lead_whose_pipeline_is_over_takes_nothing_more(world):
    world.news(A, model())
    world.news(B, replace(leading("lead"), open=True))
    await world.routed("lead")
    world.ask("one")
    assert world.submitted() == [(B, "one")]
    world.news(B, leading("lead"))
    await until(lambda: not world.router._fleet.get("lead").port.outlook().open)
    world.ask("two")
    assert world.router.held("m") == 1
    world.news(B, instance("lead"))
    await until(lambda: world.router.held("m") == 0)
    assert world.submitted()[-1] == (B, "two")


async def test_only_the_first_stage_can_be_open(world):
    world.news(A, model())
    world.news(B, replace(leading("end", 1), open=True))
    world.ask("r")
    await world.routed()
    assert world.router.held("m") == 1
