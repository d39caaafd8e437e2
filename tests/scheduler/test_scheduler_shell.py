"""The shell performs effects in order and speaks the ports' language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from blitzgw.core.messages import StepFailed
from blitzgw.core.peer import Loss
from blitzgw.core.ports import InstancePort, Outlook
from blitzgw.core.request import FinishReason, GenerationRequest, SamplingParams, TokenEvent
from blitzgw.core.step import Step, StepResult
from blitzgw.errors import InvalidRequest, RequestError, Unavailable
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.scheduler.shell import SchedulerShell
from tests.scheduler.world import served


class Everything:
    """Worker, router and clock: writes down what it is told."""

    def __init__(self):
        self.steps: list[Step] = []
        self.tokens: list[TokenEvent] = []
        self.lost: list[tuple[tuple[Loss, ...], str]] = []
        self.shell = SchedulerShell(Scheduler(1000), self, self, self, self)
        self.abort_on_token = False

    def now(self) -> float:
        return 1.0

    async def sleep(self, duration_s: float) -> None:
        raise AssertionError("the shell never waits")

    def send(self, command) -> None:
        raise AssertionError("no parcels here")

    def post(self, step: Step) -> None:
        self.steps.append(step)

    def on_tokens(self, events: Sequence[TokenEvent]) -> None:
        self.tokens += events
        if self.abort_on_token:
            for event in events:
                self.shell.abort(event.request_id, event.attempt)

    def on_lost(self, losses: Sequence[Loss], reason: str, *, planned: bool = False) -> None:
        assert not planned
        self.lost.append((tuple(losses), reason))

    def on_declined(self, request_id: str, attempt: int, error: RequestError) -> None:
        raise AssertionError("an instance of this node refuses when it is asked")

    def answer(self, step: Step) -> None:
        n_tokens = sum(row.sample for row in step.rows)
        self.shell.on_result(StepResult(step.id, step.instance, (5,) * n_tokens, 0.01))


def request(name: str = "r", n_tokens: int = 10, max_tokens: int = 2) -> GenerationRequest:
    tokens = tuple(range(1, n_tokens + 1))
    return GenerationRequest(name, "toy", tokens, n_tokens, SamplingParams(max_tokens))


def test_a_request_runs_through_the_ports():
    world = Everything()
    port: InstancePort = world.shell.add_instance(served())
    assert (port.instance, port.model, port.outlook()) == ("a", "toy", Outlook(0))
    port.submit(request())
    assert port.outlook() == Outlook(10)
    while world.steps:
        world.answer(world.steps.pop(0))
    assert [event.tokens for event in world.tokens] == [[5], [5]]
    assert world.tokens[-1].finish is FinishReason.LENGTH
    assert port.outlook() == Outlook(0, prefill_tokens_per_s=pytest.approx(10 / 0.01))
    assert world.shell._scheduler.ahead("a") == (0, port.outlook().prefill_tokens_per_s)
    assert world.shell.statistics().instances["a"].running == 0


def test_a_refusal_is_raised():
    world = Everything()
    port = world.shell.add_instance(served())
    with pytest.raises(InvalidRequest):
        port.submit(request(n_tokens=90))
    with pytest.raises(Unavailable):
        world.shell.submit("elsewhere", request())
    assert world.steps == []


def test_a_failed_step_is_told_to_the_router():
    world = Everything()
    world.shell.add_instance(served()).submit(request(max_tokens=30))
    world.shell.on_step_failed(StepFailed(world.steps[0].id, "a", "out of luck"))
    assert world.lost == [((Loss("r", 0),), "out of luck")]


def test_removing_an_instance_loses_what_it_has():
    world = Everything()
    port = world.shell.add_instance(served())
    port.submit(request("x"))
    port.submit(request("y"))
    world.shell.remove_instance("a")
    assert world.lost == [((Loss("x", 0), Loss("y", 0)), "instance a was removed")]
    with pytest.raises(Unavailable):
        port.submit(request())
    assert not port.outlook().open


def test_a_listener_may_call_back_in():
    world = Everything()
    world.abort_on_token = True
    world.shell.add_instance(served()).submit(request(max_tokens=30))
    while world.steps:
        world.answer(world.steps.pop(0))
    assert len(world.tokens) == 1
    assert world.shell.statistics().kv_active_bytes == 0


def test_what_only_frees_is_posted_after_the_tokens_and_before_later_steps():
    world = Everything()
    port = world.shell.add_instance(served())
    told: list[int] = []
    world.on_tokens = lambda events: told.append(len(world.steps))
    port.submit(request("x", max_tokens=1))
    world.answer(world.steps.pop(0))
    assert told == [0]
    (news,) = world.steps
    assert (news.rows, len(news.drop)) == ((), 1)

    world.steps.clear()
    port.submit(request("x", max_tokens=1))
    world.on_tokens = lambda events: port.submit(request("y"))
    world.answer(world.steps.pop(0))
    news, *later = world.steps
    assert news.drop
    assert not news.rows
    assert [step.id for step in later] == [news.id + 1, news.id + 2]


def test_an_abort_of_another_attempt_is_ignored():
    world = Everything()
    port = world.shell.add_instance(served())
    port.submit(replace(request(max_tokens=30), attempt=2))
    port.abort("r", 1)
    assert port.outlook().queued_tokens == 10
    port.abort("r", 2)
    assert world.shell.statistics().kv_active_bytes == 0


def test_an_instance_of_a_draining_node_is_reluctant():
    world = Everything()
    port = world.shell.add_instance(served())
    port.open = False
    assert port.outlook() == Outlook(0, reluctant=True)
    port.submit(request())
    assert port.outlook().queued_tokens == 10
    world.shell.remove_instance("a")
    assert not port.outlook().open
