"""A worker that is killed in the middle of everything: clients see a pause and the same text."""

import asyncio
import threading
import time

import pytest

from tests.support.nodes import completion, cpu, paced, running, stream_all

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):",
    "The three largest planets are",
    "A recipe for bread: take",
    "Dear Sir or Madam,",
]
WAYS = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 11},
    "penalised": {"temperature": 0.7, "seed": 3, "presence_penalty": 0.7, "frequency_penalty": 0.4},
}
PACED_TOKENS, CPU_TOKENS = 120, 20


def bodies(max_tokens, **more):
    return [
        completion(prompt, max_tokens, ignore_eos=True, **ways | more)
        for prompt in PROMPTS
        for ways in WAYS.values()
    ]


def kill_after(node, chunks, times=1):
    """Return an `on_text` that kills the worker whenever so many more chunks have come."""
    seen = [0, 0]

    def on_text():
        seen[0] += 1
        if seen[0] >= chunks * (seen[1] + 1) and seen[1] < times:
            seen[1] += 1
            threading.Thread(target=node.kill_worker).start()

    return on_text


def check_same(answers, undisturbed, max_tokens):
    for answer, whole in zip(answers, undisturbed, strict=True):
        assert answer.error is None
        assert answer.text == whole.text
        assert (answer.finish, answer.done) == ("length", True)
        assert answer.usage["completion_tokens"] == max_tokens
        assert answer.usage["prompt_tokens"] == whole.usage["prompt_tokens"]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """One whose clock runs fast, so that waits before restarts are short; steps take 3 ms."""
    folder = tmp_path_factory.mktemp("failover")
    fast = paced(node="dilation = 0.2", fixed_us=500.0, cluster="max_attempts = 4")
    with running(folder, fast) as node:
        yield node


@pytest.fixture(scope="module")
def undisturbed(node):
    return asyncio.run(stream_all(node.url, bodies(PACED_TOKENS)))


@pytest.mark.parametrize("kills", [1, 3])
async def test_a_killed_worker_is_a_pause(node, undisturbed, kills):
    lost = node.log().count("worker_lost")
    on_text = kill_after(node, chunks=400, times=kills)
    answers = await stream_all(node.url, bodies(PACED_TOKENS), on_text)
    check_same(answers, undisturbed, PACED_TOKENS)
    assert node.log().count("worker_lost") == lost + kills


async def test_a_worker_killed_during_prefill(node, undisturbed):
    """Long prompts, killed before the first token of most of them."""
    long = [completion(p * 150, 8, ignore_eos=True) for p in PROMPTS]
    whole = await stream_all(node.url, long)
    check_same(await stream_all(node.url, long, kill_after(node, chunks=1)), whole, 8)


async def test_answers_that_are_not_streamed_wait(node, undisturbed):
    body = completion(PROMPTS[0], PACED_TOKENS, ignore_eos=True)
    pending = asyncio.ensure_future(asyncio.to_thread(node.post, "/v1/completions", body))
    await asyncio.sleep(0.15)
    await asyncio.to_thread(node.kill_worker)
    reply = await pending
    assert reply.status == 200
    assert reply.json["choices"][0]["text"] == undisturbed[0].text
    assert reply.json["usage"]["completion_tokens"] == PACED_TOKENS


def test_new_requests_are_held_while_a_worker_restarts(node, undisturbed):
    node.kill_worker()
    reply = node.get("/ready")
    if reply.status == 503:
        assert "loading" in reply.json["reason"]
        assert reply.json["models"]["smollm2-135m"]["state"] == "loading"
    again = node.complete(PROMPTS[0], PACED_TOKENS, ignore_eos=True)
    assert again["choices"][0]["text"] == undisturbed[0].text
    assert node.get("/ready").status == 200
    assert node.load() == (0, 0)


def test_a_stop_string_across_the_gap(node, undisturbed):
    """What was held back as the beginning of a stop string is not lost with the worker."""
    text = undisturbed[0].text
    stop = text[len(text) // 2 :][:12]
    expected = text[: text.index(stop)]
    body = [completion(PROMPTS[0], PACED_TOKENS, ignore_eos=True, stop=[stop])]
    (answer,) = asyncio.run(stream_all(node.url, body, kill_after(node, chunks=20)))
    assert (answer.text, answer.finish) == (expected, "stop")


def keep_killing(node, until_done):
    """Kill each worker once it has given everybody a few tokens."""
    while not until_done.is_set():
        node.ready()
        before = node.metric("vllm:generation_tokens_total")
        while not until_done.is_set():
            if node.metric("vllm:generation_tokens_total") > before + 10:
                node.kill_worker()
                break
            time.sleep(0.01)


def test_attempts_are_bounded(tmp_path):
    slow = paced(fixed_us=1000.0, cluster="max_attempts = 2")
    with running(tmp_path, slow) as node:
        done = threading.Event()
        killer = threading.Thread(target=keep_killing, args=(node, done))
        killer.start()
        replies = []
        body = completion("Hello", 1500, ignore_eos=True)
        waiter = threading.Thread(target=lambda: replies.append(node.post("/v1/completions", body)))
        waiter.start()
        try:
            (answer,) = asyncio.run(stream_all(node.url, [body]))
            waiter.join()
        finally:
            done.set()
            killer.join()
        assert answer.status == 200
        assert answer.texts
        assert answer.error["code"] == 500
        assert "2 times" in answer.error["message"]
        assert answer.finish is None
        assert replies[0].status == 500
        assert replies[0].error["type"] == "InternalServerError"
        assert replies[0].headers["x-blitzgw-error-code"] == "generation_failed"
        node.ready()
        assert node.complete("Hello", 4)["usage"]["completion_tokens"] <= 4
        assert node.load() == (0, 0)


async def test_nobody_waits_for_ever(tmp_path):
    """A request that finds no instance is told so after hold_timeout_s."""
    with running(tmp_path, paced(cluster="hold_timeout_s = 0.3")) as node:
        for _ in range(3):  # until the wait before a restart is longer than that
            node.kill_worker()
        begin = time.monotonic()
        reply = node.post("/v1/completions", completion("Hello", 4))
        if reply.status == 503:
            assert 0 < int(reply.headers["Retry-After"]) <= 120
            assert time.monotonic() - begin < 10
        else:
            assert reply.status == 200


async def test_a_killed_worker_is_a_pause_on_a_cpu(tmp_path):
    with running(tmp_path, cpu()) as node:
        asked = bodies(CPU_TOKENS)[::4]
        whole = await stream_all(node.url, asked)
        answers = await stream_all(node.url, asked, kill_after(node, chunks=50))
        check_same(answers, whole, CPU_TOKENS)
        assert "worker_lost" in node.log()
