"""Too little memory, too many requests, clients that leave, prompts that begin the same."""

import asyncio
import time

import pytest

from tests.support.nodes import (
    Answer,
    client,
    completion,
    cpu,
    paced,
    running,
    stream,
    stream_all,
    until,
)

BLOCK_BYTES = 16 * 2 * 30 * 3 * 64 * 2
"""16 tokens of K and V in SmolLM2's 30 layers, 3 heads of 64, two bytes each."""

DROPPED = 200


def bodies(count, max_tokens):
    return [
        completion(f"Story {i}: " + "once upon a time " * (i % 7), max_tokens, ignore_eos=True,
                   temperature=0.8 if i % 2 else 0, seed=i)
        for i in range(count)
    ]  # fmt: skip


async def one_by_one(node, asked):
    return [(await stream_all(node.url, [body]))[0] for body in asked]


def check_same(answers, alone):
    for answer, undisturbed in zip(answers, alone, strict=True):
        assert answer.error is None
        assert answer.text == undisturbed.text
        assert answer.usage["completion_tokens"] == undisturbed.usage["completion_tokens"]


async def test_preemption_changes_no_token(tmp_path):
    tight = paced(fixed_us=0.0, kv=20 * BLOCK_BYTES).replace("= 2048", "= 256")
    with running(tmp_path, tight) as node:
        asked = bodies(24, 80)
        alone = await one_by_one(node, asked)
        assert node.metric("vllm:num_preemptions_total") == 0
        check_same(await stream_all(node.url, asked), alone)
        assert node.metric("vllm:num_preemptions_total") > 0
        assert node.load() == (0, 0)


async def test_preemption_changes_no_token_on_a_cpu(tmp_path):
    tight = cpu(kv=4 * 2 * BLOCK_BYTES).replace("= 2048", "= 64")
    with running(tmp_path, tight) as node:
        asked = bodies(4, 32)
        alone = await one_by_one(node, asked)
        check_same(await stream_all(node.url, asked), alone)
        assert node.metric("vllm:num_preemptions_total") > 0


def test_a_prompt_longer_than_the_memory_is_told(tmp_path):
    with running(tmp_path, paced().replace("= 2048", "= 64")) as node:
        reply = node.post("/v1/completions", completion([5] * 64))
        assert (reply.status, reply.error["param"]) == (400, "prompt")
        assert node.complete([5] * 63, 1)["usage"]["completion_tokens"] == 1


# Reuse.

LONG = "It was a dark and stormy night. " * 15


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize("config", [paced, cpu])
def test_a_prefix_is_reused_and_changes_nothing(tmp_path, config):
    with running(tmp_path, config()) as node:
        first, second = node.complete(LONG, 12), node.complete(LONG, 12)
        longer = node.complete(LONG + "And then", 12)
        assert cached(first) == 0
        assert cached(second) > 0
        assert 0 < cached(longer) <= longer["usage"]["prompt_tokens"]
        assert second["choices"][0]["text"] == first["choices"][0]["text"]
        node.kill_worker()  # with it goes what it knew
        third = node.complete(LONG + "And then", 12)
        assert cached(third) == 0
        assert third["choices"][0]["text"] == longer["choices"][0]["text"]


def test_reuse_can_be_switched_off(tmp_path):
    with running(tmp_path, paced(model="prefix_caching = false")) as node:
        assert [cached(node.complete(LONG)) for _ in range(2)] == [0, 0]


def test_reuse_does_not_cross_keys(tmp_path):
    with running(tmp_path, paced(http='api_keys = ["first", "second"]')) as node:

        def ask(key):
            reply = node.post("/v1/completions", completion(LONG), Authorization=f"Bearer {key}")
            assert reply.status == 200
            return cached(reply.json)

        assert ask("first") == 0
        assert ask("first") > 0
        assert ask("second") == 0
        assert ask("second") > 0


@pytest.mark.parametrize("stream", [False, True])
def test_choices_share_their_prompt(tmp_path, stream):
    """Each token of a prompt takes a millisecond, and four choices take little longer than one."""
    slow = paced(model="max_batched_tokens = 64").replace("fixed_us = 100.0", "token_us = 33.3")
    with running(tmp_path, slow) as node:
        node.complete([7] * 32)  # it has been measured from here on

        def seconds(first, n):
            prompt, start = [first, *range(100, 400)], time.monotonic()
            reply = node.post("/v1/completions", completion(prompt, 1, n=n, stream=stream))
            assert reply.status == 200
            return time.monotonic() - start

        alone_s = seconds(1, 1)
        assert alone_s > 0.25
        assert seconds(2, 4) < 2 * alone_s


# Clients.


async def test_dropped_streams_free_everything(tmp_path):
    with running(tmp_path, paced(fixed_us=200.0)) as node:
        body = completion("Hello", 2000, ignore_eos=True)
        async with client() as session:
            answers = [Answer() for _ in range(DROPPED)]
            tasks = [
                asyncio.ensure_future(stream(session, node.url, body, answer=answer))
                for answer in answers
            ]
            while sum(bool(answer.texts) for answer in answers) < 64:
                await asyncio.sleep(0.01)
            running_now, waiting = await asyncio.to_thread(node.load)
            assert running_now + waiting == DROPPED
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        dropped = time.monotonic()
        await asyncio.to_thread(until, lambda: node.load() == (0, 0))
        assert time.monotonic() - dropped < 3  # about 0.1; other work may share the machine
        assert node.metric("vllm:kv_cache_usage_perc") == 0


async def test_dropped_requests_that_were_not_streamed(tmp_path):
    with running(tmp_path, paced(fixed_us=1000.0)) as node:
        body = completion("Hello", 2000, ignore_eos=True)
        async with client() as session:
            tasks = [
                asyncio.ensure_future(session.post(f"{node.url}/v1/completions", json=body))
                for _ in range(20)
            ]
            await asyncio.to_thread(until, lambda: sum(node.load()) == 20)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(until, lambda: node.load() == (0, 0))


async def test_clients_that_leave_while_they_are_held(tmp_path):
    with running(tmp_path, paced()) as node:
        node.kill_worker()
        async with client() as session:
            body = completion("Hello", 2000)
            post = session.post(f"{node.url}/v1/completions", json=body)
            task = asyncio.ensure_future(post)
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(until, lambda: node.load() == (0, 0))
        await asyncio.to_thread(node.ready)
        assert node.load() == (0, 0)


async def ask(node, session, asked, *, load):
    """Stream all, and wait until so many run and wait."""
    tasks = [asyncio.ensure_future(stream(session, node.url, body)) for body in asked]
    await asyncio.to_thread(until, lambda: node.load() == load)
    return tasks


async def test_a_full_queue_refuses(tmp_path):
    small = paced(fixed_us=500.0, http="max_queue = 5", model="max_num_seqs = 4")
    with running(tmp_path, small) as node:
        async with client() as session:
            asked = bodies(10, 80)
            tasks = await ask(node, session, asked[:4], load=(4, 0))
            tasks += await ask(node, session, asked[4:9], load=(4, 5))
            reply = await asyncio.to_thread(node.post, "/v1/completions", asked[9])
            answers = await asyncio.gather(*tasks)
        assert reply.status == 429
        assert reply.headers["x-blitzgw-error-code"] == "overloaded"
        assert 1 <= int(reply.headers["Retry-After"]) <= 120
        assert [answer.status for answer in answers] == [200] * 9
        assert node.metric("vllm:admission_rejections_total") == 1


async def test_requests_of_a_killed_worker_return_to_a_full_queue(tmp_path):
    """They were admitted once: no refusal, although the queue takes none of them as new."""
    small = paced(fixed_us=300.0, http="max_queue = 6", model="max_num_seqs = 4")
    with running(tmp_path, small) as node:
        async with client() as session:
            asked = bodies(10, 50)
            tasks = await ask(node, session, asked[:4], load=(4, 0))
            tasks += await ask(node, session, asked[4:], load=(4, 6))
            await asyncio.to_thread(node.kill_worker)
            answers = await asyncio.gather(*tasks)
        check_same(answers[::3], await one_by_one(node, asked[::3]))
