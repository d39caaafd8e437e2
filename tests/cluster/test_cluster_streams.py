"""Instances come and go under load, and no stream is cut: real nodes, paced devices, counted."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.scale_kit import MODEL, admin, ready, small_model
from tests.support.clusters import Cluster
from tests.support.nodes import client, until

LONG = bool(os.environ.get("BLITZGW_LONG"))

DEVICE = """
{models}
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "256MiB"
cost = {{ fixed_us = 1500.0, token_us = 200.0, kv_bytes = 64, hidden_bytes = 128 }}
"""
"""A step of some 10 ms; a prompt takes an eighth of a second: eight of them a second fill a
device."""

HAS_IT = """
[[models]]
name = "small"
path = "{path}"
max_batched_tokens = 128
max_model_len = 512
prefix_caching = false
scaling = "auto"
scale_down_after_s = 0.3
keep_s = {keep_s}
"""
DRAIN = "drain_timeout_s = {drain_s}"

PROMPT_TOKENS = 100
SHORT, LONG_TOKENS = 6, 240
"""The long ones take two to three seconds: instances go meanwhile."""

KINDS = 40
"""Different prompts: so many answers of one instance are known."""

WAVE, PAUSE_S = 48, 2.0
"""Streams of a wave, and some time to the next: instances go meanwhile, and long streams run on."""

LEAVERS, SLOW = 0.05, 0.15
"""Shares of clients that hang up early (not counted; they hurt nobody), and that read slowly."""


@dataclass
class Heard:
    """What a stream has brought."""

    number: int
    status: int = 0
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    error: object = None
    done: bool = False
    left: bool = False

    def verdict(self, expected: list[list[int]]) -> str:
        """Return what became of it, in a word."""
        if self.status != 200:
            return f"refused with {self.status}: {self.error}"
        if self.error:
            return f"failed: {self.error}"
        if not self.done or self.finish != "length":
            return f"cut after {len(self.tokens)} tokens, finish {self.finish}, done {self.done}"
        return "whole" if self.tokens == expected[self.number] else "other tokens"


def length(number: int) -> int:
    """Every fourth of the prompts has a long answer."""
    return LONG_TOKENS if number % 4 == 0 else SHORT


async def listen(
    session: aiohttp.ClientSession, url: str, number: int, *, slow: bool = False, leave: int = 0
) -> Heard:
    """Stream one answer to its end, or to so many tokens."""
    heard = Heard(number)
    prompt = [(7 * number + i) % 97 for i in range(PROMPT_TOKENS)]
    body = {"model": MODEL, "prompt": prompt, "max_tokens": length(number), "ignore_eos": True}
    body |= {"return_token_ids": True, "temperature": 0, "stream": True}
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            heard.status = response.status
            if response.status != 200:
                heard.error = await response.text()
                return heard
            async for line in response.content:
                _take(heard, line.decode().strip().removeprefix("data: "))
                if leave and len(heard.tokens) >= leave:
                    heard.left = True
                    return heard
                if slow:
                    await asyncio.sleep(0.01)
    except (aiohttp.ClientError, OSError) as error:
        heard.error = heard.error or repr(error)
    return heard


def _take(heard: Heard, text: str) -> None:
    if text == "[DONE]":
        heard.done = True
    elif text:
        chunk = json.loads(text)
        heard.error = chunk.get("error") or heard.error
        for choice in chunk.get("choices", ()):
            heard.tokens += choice.get("token_ids") or []
            heard.finish = choice["finish_reason"] or heard.finish


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@contextmanager
def crowd(
    folder: Path, path: Path, others: str = "bcd", keep_s: float = 0.0, drain_s: float = 0.2
) -> Iterator[Cluster]:
    """Node a with the model, and others whose devices are free."""
    nodes = Cluster(folder)
    node = DRAIN.format(drain_s=drain_s)
    try:
        has = DEVICE.format(models="") + HAS_IT.format(path=path, keep_s=keep_s)
        nodes.add("a", has, node=node)
        for name in others:
            nodes.add(name, DEVICE.format(models="models = []"), node=node)
        nodes.settle(1)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, path: Path) -> list[list[int]]:
    """What one instance answers to each of the prompts."""

    async def ask(url: str) -> list[Heard]:
        async with client() as session:
            return await asyncio.gather(*(listen(session, url, i) for i in range(KINDS)))

    with crowd(tmp_path_factory.mktemp("alone"), path, others="") as nodes:
        heard = asyncio.run(ask(nodes.nodes["a"].url))
    assert [(one.error, len(one.tokens)) for one in heard] == [
        (None, length(i)) for i in range(KINDS)
    ]
    return [one.tokens for one in heard]


async def waves(urls: list[str], count: int, seed: int) -> list[Heard]:
    """Send so many waves to nodes in turn; return what came of each stream."""
    chance, tasks = random.Random(seed), []
    async with client() as session, asyncio.TaskGroup() as group:
        for wave in range(count):
            for i in range(WAVE):
                leave = chance.randint(1, 5) if chance.random() < LEAVERS else 0
                number, slow = chance.randrange(KINDS), chance.random() < SLOW
                url = urls[(wave + i) % len(urls)]
                sent = listen(session, url, number, slow=slow, leave=leave)
                tasks.append(group.create_task(sent))
            await asyncio.sleep(chance.uniform(0.7, 1.5) * PAUSE_S)
    return [task.result() for task in tasks]


def moved(nodes: Cluster) -> Counter[str]:
    """How many requests have gone on elsewhere, by how."""
    found: Counter[str] = Counter()
    for node in nodes.nodes.values():
        page = node.get("/metrics", **admin(nodes)).body.decode()
        for line in page.splitlines():
            if line.startswith("blitzgw_request_migrations_total"):
                kind = line.partition('type="')[2].partition('"')[0]
                found[kind] += int(float(line.rpartition(" ")[2]))
    return found


@pytest.mark.parametrize("keep_s", [0.0, 2.0] if LONG else [0.0])
def test_no_stream_is_cut_while_instances_come_and_go(
    tmp_path: Path, path: Path, expected: list[list[int]], keep_s: float
) -> None:
    count = 25 if LONG else 2
    with crowd(tmp_path, path, keep_s=keep_s) as nodes:
        urls = [node.url for node in nodes.nodes.values()]
        heard = asyncio.run(waves(urls, count, seed=int(keep_s)))
        until(lambda: len(nodes.serving("b")) == 1, "one instance again")
        made = [each for each in nodes.get("b", "decisions") if each["acted"]]
        operations = [each for each in nodes.get("b", "operations") if each["ended"]]
        moves = moved(nodes)
    counted = [one for one in heard if not one.left]
    verdicts = Counter(one.verdict(expected) for one in counted)
    actions = Counter(each["action"] for each in made)
    ends = Counter(each["state"] for each in operations)
    print(f"keep_s={keep_s}: {dict(verdicts)}; {dict(actions)}; {dict(ends)}; moved {dict(moves)}")
    assert dict(verdicts) == {"whole": len(counted)}
    assert actions["grow"], "nothing came"
    assert actions["shrink"], "nothing went"
