"""Workers and nodes killed under load: clients of other nodes see a pause, nothing else."""

import asyncio
import os
import signal
import threading
import time

import pytest

from tests.support.clusters import NOTHING, cluster, cpu, paced, within
from tests.support.nodes import client, completion, stream, stream_all, until

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):",
    "The three largest planets are",
    "A recipe for bread: take",
    "Dear Sir or Madam,",
    "In the beginning",
    "Water boils at",
]
WAYS = [
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.95, "seed": 11},
    {"temperature": 0.7, "seed": 3, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 0, "repetition_penalty": 1.1},
]
N_STREAMS = len(PROMPTS) * len(WAYS)


def bodies(max_tokens):
    return [
        completion(prompt, max_tokens, ignore_eos=True, **way) for prompt in PROMPTS for way in WAYS
    ]


def disturb_after(chunks, action):
    """Return an `on_text` that acts once, in a thread, when so many chunks have come."""
    seen = [0]

    def on_text():
        seen[0] += 1
        if seen[0] == chunks:
            threading.Thread(target=action).start()

    return on_text


def check_same(answers, undisturbed, max_tokens):
    assert len(answers) == N_STREAMS
    for answer, whole in zip(answers, undisturbed, strict=True):
        assert (answer.status, answer.error) == (200, None)
        assert answer.text == whole.text
        assert (answer.finish, answer.done) == ("length", True)
        assert answer.usage["completion_tokens"] == max_tokens
        assert answer.usage["prompt_tokens"] == whole.usage["prompt_tokens"]


def busy(made, name):
    """How many requests run on a node's instances, as the node itself says."""
    found = made.get(name, "instances")
    return sum(each["running"] or 0 for each in found if each["node"] == name)


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """An ingress without an instance, and two nodes with one each; a step takes 6 ms."""
    folder = tmp_path_factory.mktemp("trio")
    with cluster(folder, front=NOTHING, left=paced(200.0), right=paced(200.0)) as made:
        yield made.settle(2)


TOKENS = 80


@pytest.fixture(scope="module")
def undisturbed(trio):
    return asyncio.run(stream_all(trio.nodes["front"].url, bodies(TOKENS)))


def test_the_load_goes_to_both(trio, undisturbed):
    shares = []

    def look():
        shares.append((busy(trio, "left"), busy(trio, "right")))

    url = trio.nodes["front"].url
    answers = asyncio.run(stream_all(url, bodies(TOKENS), disturb_after(300, look)))
    check_same(answers, undisturbed, TOKENS)
    until(lambda: shares)
    assert min(shares[0]) > 0, shares


def test_a_killed_worker_is_a_pause(trio, undisturbed):
    left = trio.nodes["left"]
    before = left.worker()
    url = trio.nodes["front"].url
    kill = disturb_after(400, lambda: os.kill(before, signal.SIGKILL))
    answers = asyncio.run(stream_all(url, bodies(TOKENS), kill))
    check_same(answers, undisturbed, TOKENS)
    assert "request_lost" in trio.nodes["front"].log()
    until(lambda: trio.serving("front") == {"left", "right"}, "the restarted worker's instance")
    assert left.worker() != before


def test_a_client_that_leaves_is_forgotten_everywhere(trio):
    front = trio.nodes["front"]
    long = [body | {"max_tokens": 1500} for body in bodies(TOKENS)]

    async def leave():
        task = asyncio.get_running_loop().create_task(stream_all(front.url, long))
        while busy(trio, "left") + busy(trio, "right") < N_STREAMS:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    within(5.0, lambda: busy(trio, "left") + busy(trio, "right") == 0, "end of abandoned work")
    nothing = {"requests": [], "unanswered": [], "truncated": False}
    assert front.get("/cluster/requests").json == nothing


def test_a_node_that_freezes_is_left_and_comes_back(trio, undisturbed):
    right = trio.nodes["right"]
    url = trio.nodes["front"].url
    freeze = disturb_after(400, lambda: right.signal(signal.SIGSTOP))
    try:
        answers = asyncio.run(stream_all(url, bodies(TOKENS), freeze))
    finally:
        right.signal(signal.SIGCONT)
    check_same(answers, undisturbed, TOKENS)
    until(lambda: trio.alive("front") == {"front", "left", "right"}, "the return of the frozen")
    until(lambda: trio.serving("front") == {"left", "right"}, "its instance")
    check_same(asyncio.run(stream_all(url, bodies(TOKENS))), undisturbed, TOKENS)


def test_a_node_that_is_told_to_stop_hands_over(trio, undisturbed):
    """The last with this cluster but one: `left` goes in order, in the middle of everything."""
    left = trio.nodes["left"]
    left.workers()
    url = trio.nodes["front"].url
    stop = disturb_after(400, lambda: left.signal(signal.SIGTERM))
    answers = asyncio.run(stream_all(url, bodies(TOKENS), stop))
    check_same(answers, undisturbed, TOKENS)
    assert left.end() == 0
    within(3.0, lambda: trio.alive("front") == {"front", "right"}, "news of the departure")
    assert "request_lost" not in left.log()


def test_a_killed_node_is_a_pause(tmp_path, undisturbed):
    with cluster(tmp_path, front=NOTHING, left=paced(200.0), right=paced(200.0)) as made:
        made.settle(2)
        url = made.nodes["front"].url
        kill = disturb_after(400, lambda: made.kill("right"))
        answers = asyncio.run(stream_all(url, bodies(TOKENS), kill))
        check_same(answers, undisturbed, TOKENS)
        within(6.0, lambda: "right" not in made.alive("front"), "news of the death")


def test_the_only_worker_is_waited_for_by_requests_that_arrive_elsewhere(tmp_path):
    """Some of them before the ingress has heard that the worker is gone."""
    with cluster(tmp_path, front=NOTHING, only=paced(200.0)) as made:
        made.settle(1)
        front, only = made.nodes["front"], made.nodes["only"]
        body = completion(PROMPTS[0], 4, ignore_eos=True, temperature=0)

        async def ask(session, delay_s):
            await asyncio.sleep(delay_s)
            return await stream(session, front.url, body)

        async def kill_and_ask():
            os.kill(only.worker(), signal.SIGKILL)
            async with client() as session:
                return await asyncio.gather(*(ask(session, 0.01 * i) for i in range(60)))

        for _ in range(2):
            answers = asyncio.run(kill_and_ask())
            assert {(answer.status, answer.error) for answer in answers} == {(200, None)}
            assert {answer.finish for answer in answers} == {"length"}


def test_the_real_model_goes_on_with_the_same_tokens(tmp_path):
    """fp32, three nodes: the worker of one is killed, then another node."""
    tokens = 16
    with cluster(tmp_path, front=NOTHING, left=cpu(), right=cpu()) as made:
        made.settle(2)
        url = made.nodes["front"].url
        whole = asyncio.run(stream_all(url, bodies(tokens)))
        worker = made.nodes["left"].worker()
        kill = disturb_after(100, lambda: os.kill(worker, signal.SIGKILL))
        check_same(asyncio.run(stream_all(url, bodies(tokens), kill)), whole, tokens)
        until(lambda: len(made.serving("front")) == 2, "the restarted worker's instance")
        time.sleep(0.1)
        kill = disturb_after(100, lambda: made.kill("right"))
        check_same(asyncio.run(stream_all(url, bodies(tokens), kill)), whole, tokens)
