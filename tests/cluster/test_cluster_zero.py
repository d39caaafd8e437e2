"""From zero: instances that load serve together what is held, before any of them is complete."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.scale_kit import LAYERS, LONG, ended, operation, ready, scale, small_model
from tests.cluster.test_cluster_live import (
    DEVICE,
    HAS_IT,
    TOKEN_US,
    Burst,
    check_stages,
    stages,
    token_ids,
)
from tests.support.clusters import Cluster
from tests.support.nodes import Reply, until

SLOW = 'rate = "4MB"\nmax_weight_rate = "4MB"'
"""The weights take more than five seconds, as planned."""

SIZE = 4
"""Requests that are held: what the two compute together in less time than the rest takes."""

RECEIVERS = {"c", "d"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@contextmanager
def zero(folder: Path, path: Path) -> Iterator[Cluster]:
    """Nodes a and b have the checkpoint on disk and no device; those of the others are free."""
    nodes = Cluster(folder)
    try:
        for name in "ab":
            nodes.add(name, "devices = []" + HAS_IT.format(path=path), transfer=SLOW)
        for name in sorted(RECEIVERS):
            nodes.add(name, DEVICE.format(models="models = []", token_us=TOKEN_US), transfer=SLOW)
        nodes.settle(0)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, path: Path) -> list[list[int]]:
    """What a complete instance answers."""
    nodes = Cluster(tmp_path_factory.mktemp("alone"))
    try:
        has = DEVICE.format(models="", token_us=TOKEN_US) + HAS_IT.format(path=path)
        nodes.add("a", has)
        nodes.settle(1)
        answers = [token_ids(reply) for reply in Burst(nodes, size=SIZE).answers()]
        nodes.stop()
        return answers
    finally:
        nodes.end()


def held(nodes: Cluster, asked: str) -> bool:
    """Whether all requests of a burst wait for an instance."""
    found = nodes.get(asked, "requests")
    return len(found) == SIZE and not any(each.get("instance") for each in found)


def pipeline(nodes: Cluster, asked: str, name: str) -> list[dict[str, Any]]:
    """The stages of the one pipeline of an operation."""
    (found,) = operation(nodes, asked, name)["pipelines"]
    assert [stage["layers"] for stage in found] == [[0, LAYERS // 2], [LAYERS // 2, LAYERS]]
    return list(found)


def served_together(replies: list[Reply], lead: str) -> int:
    """How many requests the two have served between them."""
    routes = [stages(reply) for reply in replies]
    split = [route for route in routes if len(route) == 2]
    assert all(route[0][0] == f"small@{lead}" for route in split)
    return len(split)


def complete(nodes: Cluster, asked: str) -> int:
    found = nodes.get(asked, "instances")
    return sum(each["state"] == "serving" for each in found)


@pytest.mark.parametrize("asked", [pytest.param("a", marks=LONG), "c"])
def test_what_is_held_is_served_before_anybody_is_complete(
    tmp_path: Path, path: Path, alone: list[list[int]], asked: str
) -> None:
    with zero(tmp_path, path) as nodes:
        burst = Burst(nodes, asked, size=SIZE)
        until(lambda: held(nodes, asked), "requests to be held")
        begun = scale(nodes, "a", 2)
        replies = burst.answers()
        assert complete(nodes, asked) == 0, "the first answers come from those that load"
        assert [token_ids(reply) for reply in replies] == alone
        lead, _ = pipeline(nodes, "a", begun["id"])
        assert served_together(replies, lead["worker"]) == SIZE
        assert check_stages(replies) == SIZE
        done = ended(nodes, "a", begun["id"])
        assert (done["state"], done["policy"]) == ("done", "pipeline"), done
        again = [token_ids(reply) for reply in Burst(nodes, "b", size=SIZE).answers()]
        assert again == alone


@LONG
@pytest.mark.parametrize("whose", [0, 1])
def test_a_stage_that_dies_from_zero_alters_no_token(
    tmp_path: Path, path: Path, alone: list[list[int]], whose: int
) -> None:
    with zero(tmp_path, path) as nodes:
        burst = Burst(nodes, "a", size=SIZE)
        until(lambda: held(nodes, "a"), "requests to be held")
        begun = scale(nodes, "a", 2)
        until(lambda: not held(nodes, "a"), "requests to be taken")
        name = pipeline(nodes, "a", begun["id"])[whose]["worker"].partition("/")[0]
        time.sleep(0.1)
        os.kill(nodes.nodes[name].worker(), signal.SIGKILL)
        assert [token_ids(reply) for reply in burst.answers()] == alone
        ended(nodes, "a", begun["id"])


def test_no_more_requests_are_held_than_may_wait(tmp_path: Path, path: Path) -> None:
    """Those beyond are told at once when to come again; those held are answered."""
    nodes = Cluster(tmp_path)
    try:
        has = "devices = []" + HAS_IT.format(path=path)
        nodes.add("a", has, http=f"max_queue = {SIZE}")
        nodes.add("c", DEVICE.format(models="models = []", token_us=TOKEN_US))
        nodes.settle(0)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        burst = Burst(nodes, "a", size=SIZE)
        until(lambda: held(nodes, "a"), "requests to be held")
        began_s = time.monotonic()
        further = Burst(nodes, "a", size=3 * SIZE).answers()
        assert time.monotonic() - began_s < 2.0
        assert [reply.status for reply in further] == [503] * (3 * SIZE)
        waits = [int(reply.headers["Retry-After"]) for reply in further]
        assert all(1 <= wait_s <= 120 for wait_s in waits)
        assert held(nodes, "a"), "the others wait on"
        scale(nodes, "a", 1)
        assert all(token_ids(reply) for reply in burst.answers())
        nodes.stop()
    finally:
        nodes.end()
