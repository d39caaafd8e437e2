"""An instance serves while its weights arrive: real nodes, workers, roads; the tokens of one."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.scale_kit import LAYERS, LONG, MODEL, admin, ended, ready, scale, small_model
from tests.support.clusters import Cluster
from tests.support.nodes import Reply, until

DEVICE = """
{models}
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "256MiB"
cost = {{ fixed_us = 100.0, token_us = {token_us}, kv_bytes = 64, hidden_bytes = 128 }}
"""
HAS_IT = """
[[models]]
name = "small"
path = "{path}"
max_batched_tokens = 128
max_model_len = 512
"""
SLOW = 'max_weight_rate = "5MB"'
"""The weights take some four seconds."""

PROMPT_TOKENS = 100
TOKEN_US = 400.0
"""A prompt takes a quarter of a second: a layer of weights comes about as often as two of them."""

BURST = 24
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@contextmanager
def pair(folder: Path, path: Path, spares: str = "b") -> Iterator[Cluster]:
    """Node a with the model, slow to give it away, and others whose devices are free."""
    nodes = Cluster(folder)
    try:
        has = DEVICE.format(models="", token_us=TOKEN_US) + HAS_IT.format(path=path)
        nodes.add("a", has, transfer=SLOW)
        for name in spares:
            nodes.add(name, DEVICE.format(models="models = []", token_us=TOKEN_US), transfer=SLOW)
        nodes.settle(1)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


def ask(nodes: Cluster, asked: str, number: int, **fields: Any) -> Reply:
    """One request of a burst: prompts differ from their first token on."""
    prompt = [(7 * number + i) % 97 for i in range(PROMPT_TOKENS)]
    body = {"model": MODEL, "prompt": prompt, "max_tokens": NEW_TOKENS, "ignore_eos": True}
    body |= {"return_token_ids": True, "temperature": 0.8, "seed": number}
    return nodes.nodes[asked].post("/v1/completions", body | fields)


class Burst:
    """Many requests at once, in threads; `answers` waits for all."""

    def __init__(self, nodes: Cluster, asked: str = "a", size: int = BURST, **fields: Any) -> None:
        self._pool = ThreadPoolExecutor(size)
        self._asked = [self._pool.submit(ask, nodes, asked, i, **fields) for i in range(size)]

    def answers(self) -> list[Reply]:
        try:
            return [future.result() for future in self._asked]
        finally:
            self._pool.shutdown()


def token_ids(reply: Reply) -> list[int]:
    assert reply.status == 200, reply.body
    return list(reply.json["choices"][0]["token_ids"])


def stages(reply: Reply) -> list[tuple[str, int, int]]:
    """Who ran which layers, as the header says; empty where one instance ran them all."""
    split = reply.headers.get("x-blitzgw-split", "")
    parts = [part.rpartition(":") for part in split.split(",") if part]
    spans = [(name, *map(int, span.split("-"))) for name, _, span in parts]
    return [(name, start, stop) for name, start, stop in spans]


def check_stages(replies: list[Reply]) -> int:
    """Check that stages that are told cover the model; return how many requests were split."""
    split = [(reply, stages(reply)) for reply in replies if stages(reply)]
    for reply, route in split:
        assert len({name for name, _, _ in route}) == len(route) >= 2
        assert [start for _, start, _ in route] == [0, *(stop for _, _, stop in route[:-1])]
        assert route[-1][2] == LAYERS
        told = reply.json["usage"]["blitzgw_split"]
        assert [(s["instance"], *s["layers"]) for s in told] == route
    return len(split)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, path: Path) -> list[list[int]]:
    """What a single complete instance answers."""
    with pair(tmp_path_factory.mktemp("alone"), path, spares="") as nodes:
        return [token_ids(reply) for reply in Burst(nodes).answers()]


@pytest.mark.parametrize(
    "policy",
    [
        "zigzag",
        pytest.param("best-effort", marks=LONG),
        "pipeline",
        pytest.param("stop", marks=LONG),
    ],
)
def test_a_burst_during_a_scale_up_gets_the_tokens_of_one_instance(
    tmp_path: Path, path: Path, alone: list[list[int]], policy: str
) -> None:
    with pair(tmp_path, path) as nodes:
        burst = Burst(nodes)
        begun = scale(nodes, "a", 2, policy=policy)
        replies = burst.answers()
        done = ended(nodes, "a", begun["id"])
        assert done["state"] == "done", done
        assert [token_ids(reply) for reply in replies] == alone
        n_split = check_stages(replies)
        assert (n_split > 0) == (policy != "stop")
        again = Burst(nodes, "b").answers()
        assert [token_ids(reply) for reply in again] == alone


@pytest.mark.parametrize("whose", ["a", "b"])
def test_a_worker_that_dies_while_layers_are_split_alters_no_token(
    tmp_path: Path, path: Path, alone: list[list[int]], whose: str
) -> None:
    with pair(tmp_path, path) as nodes:
        burst = Burst(nodes, "b" if whose == "a" else "a")
        begun = scale(nodes, "a", 2, policy="zigzag")
        until(lambda: "pairing_open" in nodes.nodes["a"].log(), "the helper to be joined")
        time.sleep(1.5)  # layers arrive, and requests are under way at both ends
        os.kill(nodes.nodes[whose].worker(), signal.SIGKILL)
        assert [token_ids(reply) for reply in burst.answers()] == alone
        ended(nodes, "a", begun["id"])


def test_clients_that_leave_are_forgotten_at_both_ends(
    tmp_path: Path, path: Path, alone: list[list[int]]
) -> None:
    with pair(tmp_path, path) as nodes:
        stop = threading.Event()

        def leave(number: int) -> None:
            """Ask, and close the connection after a while."""
            node = nodes.nodes["a"]
            connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
            prompt = str([number] * PROMPT_TOKENS)
            connection.request(
                "POST",
                "/v1/completions",
                f'{{"model": "{MODEL}", "prompt": {prompt}, "max_tokens": 50}}',
                {"Content-Type": "application/json"},
            )
            stop.wait(0.4 + 0.1 * number)
            connection.close()

        with ThreadPoolExecutor(12) as pool:
            for number in range(12):
                pool.submit(leave, number)
            begun = scale(nodes, "a", 2, policy="zigzag")
            burst = Burst(nodes, size=8)
            replies = burst.answers()
        assert [token_ids(reply) for reply in replies] == alone[:8]
        assert ended(nodes, "a", begun["id"])["state"] == "done"
        until(lambda: not nodes.get("a", "requests"), "nothing to be under way")


def test_layers_and_helpers_are_shown_while_they_load(tmp_path: Path, path: Path) -> None:
    with pair(tmp_path, path) as nodes:
        burst = Burst(nodes, size=8)
        begun = scale(nodes, "a", 2, policy="zigzag")

        def helping() -> bool:
            found = [i for i in nodes.get("a", "instances") if i.get("helps")]
            return any(0 < i["layers_resident"] < LAYERS for i in found)

        until(helping, "a helper with some of its layers")
        for reply in burst.answers():
            token_ids(reply)
        ended(nodes, "a", begun["id"])
        page = nodes.nodes["a"].get("/metrics", **admin(nodes)).body.decode()
        assert f'blitzgw_split_requests_total{{model="{MODEL}"}}' in page
