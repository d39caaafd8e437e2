"""Two nodes with real compute in float32, and bursts that are compared with one instance alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.scale_kit import MODEL, ended, ready, scale
from tests.support.clusters import Cluster, cpu
from tests.support.engines import NEAR_TIE
from tests.support.nodes import Reply, until

LAYERS = 30
BURST = 8
PROMPT_CHARACTERS = 900
"""Some 200 tokens: a second and more of one thread, so that no request is done at once."""

NEW_TOKENS = 6
SETTINGS = f"""name = "{MODEL}"
max_batched_tokens = 288
keep_s = 0.0
prefix_caching = false"""
SPARE = """
models = []
[[devices]]
kind = "cpu"
threads = 1
kv_bytes = "512MiB"
"""
SLOW = 'max_weight_rate = "100MB"'
"""The weights are 538 MB."""


@contextlib.contextmanager
def pair(folder: Path) -> Iterator[Cluster]:
    """Node a with the model, and b whose device is free."""
    nodes = Cluster(folder)
    try:
        nodes.add("a", cpu(model=SETTINGS), transfer=SLOW)
        nodes.add("b", SPARE, transfer=SLOW)
        nodes.settle(1)
        everybody_ready(nodes)
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


def everybody_ready(nodes: Cluster) -> None:
    until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")


def home(nodes: Cluster) -> str:
    """Go to one instance, and say whose it is.

    It is ordered even where there is one: what an order of two had lost is being mended.
    """
    begun = scale(nodes, "a", 1)
    if "id" in begun:
        ended(nodes, "a", begun["id"])
    until(lambda: len(nodes.get("a", "instances")) == 1, "one instance")
    (name,) = until(lambda: nodes.serving("a"), "a serving instance")
    everybody_ready(nodes)
    return name


def ask(nodes: Cluster, asked: str, number: int) -> Reply:
    """One request of a burst, every other one sampled with a seed."""
    text = Path("LICENSE").read_text()
    start = 997 * number
    body = {"model": MODEL, "prompt": text[start : start + PROMPT_CHARACTERS + 20 * number]}
    body |= {"max_tokens": NEW_TOKENS, "ignore_eos": True, "return_token_ids": True, "logprobs": 2}
    if number % 2:
        body |= {"temperature": 0.8, "seed": number}
    else:
        body["temperature"] = 0
    return nodes.nodes[asked].post("/v1/completions", body)


class Burst:
    """Many requests at once, in threads; `answers` waits for all."""

    def __init__(self, nodes: Cluster, asked: str, numbers: Sequence[int] = range(BURST)) -> None:
        self._pool = ThreadPoolExecutor(len(numbers))
        self._asked = [self._pool.submit(ask, nodes, asked, number) for number in numbers]

    def answers(self) -> list[Reply]:
        """All 200, in order."""
        try:
            replies = [future.result() for future in self._asked]
        finally:
            self._pool.shutdown()
        for reply in replies:
            assert reply.status == 200, reply.body
        return replies


def token_ids(reply: Reply) -> list[int]:
    return list(reply.json["choices"][0]["token_ids"])


def gaps(reply: Reply) -> list[float]:
    """By how much the best logit exceeds the second, token by token."""
    found = []
    for top in reply.json["choices"][0]["logprobs"]["top_logprobs"]:
        best = sorted(top.values(), reverse=True)
        found.append(best[0] - best[1] if len(best) > 1 else 1.0)
    return found


def route(reply: Reply) -> list[tuple[str, int, int]]:
    """Who ran which layers; empty where one instance ran them all."""
    told: list[dict[str, Any]] = reply.json["usage"].get("blitzgw_split") or []
    stages = [(stage["instance"], *stage["layers"]) for stage in told]
    text = ",".join(f"{name}:{start}-{stop}" for name, start, stop in stages)
    assert reply.headers.get("x-blitzgw-split", "") == text
    if stages:
        assert len(stages) >= 2
        assert [start for _, start, _ in stages] == [0, *(stop for _, _, stop in stages[:-1])]
        assert stages[-1][2] == LAYERS
    return stages


@dataclass
class Verdict:
    """What a burst's tokens are, against those of one instance alone."""

    compared: int = 0
    near_ties: int = 0
    wrong: list[str] = field(default_factory=list)
    split: list[int] = field(default_factory=list)
    """Where requests were cut."""


def judge(replies: Sequence[Reply], alone: Sequence[Reply]) -> Verdict:
    """Compare token by token; a greedy near-tie ends the comparison of its sequence.

    Of a seeded request no difference is tolerated.
    """
    verdict = Verdict()
    for number, (reply, truth) in enumerate(zip(replies, alone, strict=True)):
        verdict.split += [stop for _, _, stop in route(reply)[:-1]]
        mine, others = token_ids(reply), token_ids(truth)
        assert len(mine) == len(others) == NEW_TOKENS
        for token, other, gap in zip(mine, others, gaps(truth), strict=True):
            verdict.compared += 1
            if token == other:
                continue
            if gap < NEAR_TIE and not number % 2:
                verdict.near_ties += 1
            else:
                verdict.wrong.append(f"{number}: {mine} for {others}, cut {route(reply)}")
            break
    return verdict
