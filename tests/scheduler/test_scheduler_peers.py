"""An id that a peer sends is somebody else's here: nobody is left without an answer."""

from __future__ import annotations

import pytest

from blitzgw.core.peer import Declined, PlainTokens, Submit, Tokens
from blitzgw.core.request import FinishReason, GenerationRequest, SamplingParams
from blitzgw.core.step import LastRows, Step, StepResult
from blitzgw.errors import InvalidRequest
from blitzgw.gossip.serving import Serving
from blitzgw.router.router import Router
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.scheduler.shell import SchedulerShell
from tests.scheduler.world import served


class Node:
    """A node without network or worker: its router, its instance, and what its peers are sent."""

    def __init__(self):
        self.steps: list[Step] = []
        self.last = LastRows()
        self.sent: list[tuple[str, object]] = []
        self.pushed: list[int] = []
        self.finish: FinishReason | None = None
        self.errors: list[Exception] = []
        self.router = Router(self, max_attempts=3, hold_timeout_s=10.0, max_held=4)
        self.serving = Serving(self, self.router, self)
        self.shell = SchedulerShell(Scheduler(10_000), self, self, self.serving, self)
        self.port = self.shell.add_instance(served())
        self.router.instance_up(self.port)
        self.serving.host(self.port, 1)

    def now(self):
        return 1.0

    def post(self, step):
        self.steps.append(self.last.in_full(step))

    def send(self, boot, _address, message):
        self.sent.append((boot, message))

    def push(self, event):
        self.pushed += event.tokens
        self.finish = event.finish

    def push_token(self, token, now):
        self.pushed.append(token)

    def fail(self, error):
        self.errors.append(error)

    def run(self, limit=1000):
        for _ in range(limit):
            if not self.steps:
                return
            step = self.steps.pop(0)
            tokens = (5,) * sum(row.sample for row in step.rows)
            self.shell.on_result(StepResult(step.id, step.instance, tokens, 0.01))


def request(attempt=0, max_tokens=4):
    return GenerationRequest(
        "r", "toy", (1, 2, 3), 3, SamplingParams(max_tokens, ignore_eos=True), attempt=attempt
    )


def test_a_peer_cannot_end_a_request_of_this_node():
    node = Node()
    node.router.generate(request(), node)
    for attempt in (0, 1, 7):
        node.serving.on_submit("peer", Submit("a", 1, request(attempt)))
    node.run()
    assert (node.pushed, node.finish) == ([5] * 4, FinishReason.LENGTH)
    assert node.errors == []
    assert [(type(m), m.attempt) for _, m in node.sent] == [(Declined, n) for n in (0, 1, 7)]
    assert node.serving.requests() == []


def test_a_request_of_this_node_does_not_end_that_of_a_peer():
    node = Node()
    node.serving.on_submit("peer", Submit("a", 1, request()))
    with pytest.raises(InvalidRequest, match="already"):
        node.router.generate(request(), node)
    node.run()
    assert sum(len(e.tokens) for _, m in node.sent for e in m.events) == 4
    assert all(isinstance(message, PlainTokens | Tokens) for _, message in node.sent)


def test_a_peer_may_send_its_own_request_again():
    node = Node()
    for attempt in (0, 1):
        node.serving.on_submit("peer", Submit("a", 1, request(attempt)))
    node.run()
    events = [event for _, message in node.sent for event in message.events]
    assert [event.attempt for event in events] == [1] * 4
    assert events[-1].finish is FinishReason.LENGTH
