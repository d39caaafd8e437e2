"""Two models and too few devices: who has the higher priority takes one, and gives it back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.scale_kit import LONG, small_model
from tests.support.clusters import Cluster
from tests.support.nodes import Reply, until

DEVICE = """
{models}
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "256MiB"
cost = {{ fixed_us = 200.0, token_us = 300.0 }}
"""
"""A prompt takes an eighth of a second."""

HAS_IT = """
[[models]]
name = "{name}"
path = "{path}"
prefix_caching = false
load_at_start = {load}
scaling = "auto"
scale_down_after_s = 0.5
keep_s = 0.0
host_copies = 0
priority = {priority}
"""
HIGH, LOW = "high", "low"
PROMPT_TOKENS = 70
BURST = 60


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


def counts(nodes: Cluster, asked: str = "a") -> dict[str, int]:
    """How many instances of each model serve."""
    found = [each["model"] for each in nodes.get(asked, "instances") if each["state"] == "serving"]
    return {name: found.count(name) for name in (HIGH, LOW)}


@contextmanager
def three(folder: Path, path: Path) -> Iterator[Cluster]:
    """One device with each of two models, and a free one; the first two nodes define both."""
    nodes = Cluster(folder)
    try:
        for name, first in (("a", HIGH), ("b", LOW)):
            models = [
                HAS_IT.format(name=model, path=path, priority=priority, load=_toml(model == first))
                for model, priority in ((HIGH, 5), (LOW, 0))
            ]
            nodes.add(name, DEVICE.format(models="") + "".join(models))
        nodes.add("c", DEVICE.format(models="models = []"))
        nodes.settle(2)
        until(lambda: counts(nodes, "c") == {HIGH: 1, LOW: 1}, "one of each")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


def _toml(value: bool) -> str:
    return str(value).lower()


def ask(nodes: Cluster, model: str, number: int) -> Reply:
    prompt = [(7 * number + i) % 97 for i in range(PROMPT_TOKENS)]
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "ignore_eos": True}
    return nodes.nodes["abc"[number % 3]].post("/v1/completions", body)


@LONG
def test_a_device_goes_to_the_higher_priority_and_comes_back(tmp_path: Path, path: Path) -> None:
    least = {HIGH: 1, LOW: 1}
    with three(tmp_path, path) as nodes, ThreadPoolExecutor(4 * BURST) as pool:

        def seen() -> dict[str, int]:
            found = counts(nodes)
            for model in least:
                least[model] = min(least[model], found[model])
            return found

        lows = [pool.submit(ask, nodes, LOW, i) for i in range(2 * BURST)]
        until(lambda: seen()[LOW] == 2, "the free device to go to the one that asks first")
        began = time.monotonic()
        highs = [pool.submit(ask, nodes, HIGH, i) for i in range(BURST)]
        until(lambda: seen() == {HIGH: 2, LOW: 1}, "the device to go to the higher priority")
        print(f"taken after {time.monotonic() - began:.2f} s")
        assert [each.result().status for each in highs] == [200] * len(highs)
        lows += [pool.submit(ask, nodes, LOW, i) for i in range(2 * BURST)]
        began = time.monotonic()
        until(lambda: seen() == {HIGH: 1, LOW: 2}, "the device to come back")
        print(f"given back after {time.monotonic() - began:.2f} s")
        assert [each.result().status for each in lows] == [200] * len(lows)
        until(lambda: seen() == {HIGH: 1, LOW: 1}, "one of each again")
        assert least == {HIGH: 1, LOW: 1}, "below its least"
        decided = [each for each in nodes.get("c", "decisions") if each["acted"]]
        assert any(each["action"] == "cede" and each["model"] == LOW for each in decided), decided
