"""Streams of an instance that is scaled away go on elsewhere, with their KV: real nodes, roads."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.scale_kit import MODEL, admin, ended, ready, scale, serves, small_model
from tests.support.clusters import Cluster
from tests.support.nodes import until

DEVICE = """
{models}
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "256MiB"
cost = {{ fixed_us = 2500.0, token_us = 100.0, kv_bytes = 64, hidden_bytes = 128 }}
"""
HAS_IT = """
[[models]]
name = "small"
path = "{path}"
max_batched_tokens = 256
max_model_len = 512
"""

STREAMS = 8
PROMPT_TOKENS = 100
APART_S = 0.1
"""So that the load of an instance is known when the next stream is placed."""

NEW_TOKENS = 300
"""At some 20 ms each: six seconds, within which an instance goes."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@dataclass
class Heard:
    """What a stream has brought, and when."""

    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    finish: str | None = None
    error: object = None

    @property
    def longest_pause_s(self) -> float:
        return max(b - a for a, b in zip(self.at_s, self.at_s[1:], strict=False))


def listen(nodes: Cluster, number: int, heard: Heard) -> None:
    """Stream one answer to its end; prompts differ from their first token on."""
    prompt = [(7 * number + i) % 97 for i in range(PROMPT_TOKENS)]
    body = {"model": MODEL, "prompt": prompt, "max_tokens": NEW_TOKENS, "ignore_eos": True}
    body |= {"return_token_ids": True, "temperature": 0.8, "seed": number, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", nodes.nodes["a"].port, timeout=60)
    head = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), head)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        text = line.decode().strip().removeprefix("data: ")
        if not text or text == "[DONE]":
            continue
        chunk = json.loads(text)
        heard.error = chunk.get("error") or heard.error
        for choice in chunk.get("choices", ()):
            heard.tokens += choice.get("token_ids") or []
            heard.at_s.append(time.monotonic())
            heard.finish = choice["finish_reason"] or heard.finish
    connection.close()


class Streams:
    """Some streams, one soon after the other, in threads."""

    def __init__(self, nodes: Cluster) -> None:
        self.heard = [Heard() for _ in range(STREAMS)]
        self._pool = ThreadPoolExecutor(STREAMS)
        self._asked = []
        for i, heard in enumerate(self.heard):
            self._asked.append(self._pool.submit(listen, nodes, i, heard))
            time.sleep(APART_S)

    def end(self) -> list[Heard]:
        with self._pool:
            for asked in self._asked:
                asked.result()
        return self.heard


def moves(nodes: Cluster) -> dict[str, int]:
    """How many requests have moved, by how."""
    page = nodes.nodes["a"].get("/metrics", **admin(nodes)).body.decode()
    found = {}
    for kind in ("kv", "recompute"):
        lines = [line for line in page.splitlines() if f'type="{kind}"' in line]
        counts = [line for line in lines if line.startswith("blitzgw_request_migrations_total")]
        found[kind] = sum(int(float(line.rpartition(" ")[2])) for line in counts)
    return found


def test_streams_of_an_instance_that_goes_move_with_their_kv(tmp_path: Path, path: Path) -> None:
    nodes = Cluster(tmp_path)
    try:
        nodes.add("a", DEVICE.format(models="") + HAS_IT.format(path=path))
        nodes.add("b", DEVICE.format(models="models = []"))
        nodes.settle(1)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        assert ended(nodes, "a", scale(nodes, "a", 2)["id"])["state"] == "done"
        serves(nodes, "a", {"a", "b"})
        streams = Streams(nodes)
        until(lambda: all(len(heard.tokens) > 10 for heard in streams.heard), "all to speak")
        before = moves(nodes)
        done = ended(nodes, "a", scale(nodes, "a", 1)["id"])
        heard = streams.end()
        assert done["state"] == "done", done
        assert not [one.error for one in heard if one.error]
        assert {one.finish for one in heard} == {"length"}
        after = moves(nodes)
        kept = after["kv"] - before["kv"]
        alone = Streams(nodes).end()
        print(
            f"moved {kept} of {STREAMS}; longest pause {max(o.longest_pause_s for o in heard):.3f}"
            f" s, alone {max(o.longest_pause_s for o in alone):.3f} s"
        )
        assert kept > 0
        assert after["recompute"] == before["recompute"]
        assert [one.tokens for one in heard] == [one.tokens for one in alone]
        nodes.stop()
    finally:
        nodes.end()
