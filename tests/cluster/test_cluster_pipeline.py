"""Receivers that together have all layers serve whole requests before any of them is complete."""

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
    SLOW,
    TOKEN_US,
    Burst,
    check_stages,
    stages,
    token_ids,
)
from tests.support.clusters import Cluster
from tests.support.nodes import Reply, until

SIZE = 40
"""Requests: what two homes compute in more than the time that the weights take."""

RECEIVERS = {"c", "d"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@contextmanager
def four(folder: Path, path: Path, spares: str = "cd") -> Iterator[Cluster]:
    """Nodes a and b with the model, slow to give it away, and others whose devices are free."""
    nodes = Cluster(folder)
    try:
        has = DEVICE.format(models="", token_us=TOKEN_US) + HAS_IT.format(path=path)
        for name in "ab":
            nodes.add(name, has, transfer=SLOW)
        for name in spares:
            nodes.add(name, DEVICE.format(models="models = []", token_us=TOKEN_US), transfer=SLOW)
        nodes.settle(2)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, path: Path) -> list[list[int]]:
    """What complete instances answer."""
    with four(tmp_path_factory.mktemp("alone"), path, spares="") as nodes:
        return [token_ids(reply) for reply in Burst(nodes, size=SIZE).answers()]


def by_receivers(replies: list[Reply]) -> list[Reply]:
    """The requests that the two new instances have served between them."""
    found = []
    for reply in replies:
        nodes = [name.partition("@")[2].partition("/")[0] for name, _, _ in stages(reply)]
        if len(nodes) == 2 and set(nodes) == RECEIVERS:
            found.append(reply)
    return found


def pipeline(nodes: Cluster, asked: str, name: str) -> list[dict[str, Any]]:
    """The stages of the one pipeline of an operation."""
    (found,) = operation(nodes, asked, name)["pipelines"]
    assert [stage["layers"] for stage in found] == [[0, LAYERS // 2], [LAYERS // 2, LAYERS]]
    assert {stage["worker"].partition("/")[0] for stage in found} == RECEIVERS
    return list(found)


def joined(nodes: Cluster) -> bool:
    """Whether the stages have been joined."""
    return any("purpose=stage" in nodes.nodes[name].log() for name in RECEIVERS)


def test_receivers_serve_requests_by_themselves_before_any_is_complete(
    tmp_path: Path, path: Path, alone: list[list[int]]
) -> None:
    with four(tmp_path, path) as nodes:
        burst = Burst(nodes, "c", size=SIZE)
        begun = scale(nodes, "a", 4, policy="pipeline")
        replies = burst.answers()
        done = ended(nodes, "a", begun["id"])
        assert done["state"] == "done", done
        stages_of = pipeline(nodes, "a", begun["id"])
        assert [token_ids(reply) for reply in replies] == alone
        assert check_stages(replies) > 0
        told = by_receivers(replies)
        assert told, "no request was served by receivers alone"
        lead = f"small@{stages_of[0]['worker']}"
        assert {stages(reply)[0][0] for reply in told} == {lead}
        again = Burst(nodes, "d", size=SIZE).answers()
        assert [token_ids(reply) for reply in again] == alone


@pytest.mark.parametrize("whose", ["c", pytest.param("d", marks=LONG)])
def test_a_stage_that_dies_alters_no_token(
    tmp_path: Path, path: Path, alone: list[list[int]], whose: str
) -> None:
    with four(tmp_path, path) as nodes:
        burst = Burst(nodes, size=SIZE)
        begun = scale(nodes, "a", 4, policy="pipeline")
        until(lambda: joined(nodes), "the stages to be joined")
        time.sleep(2.6)  # the pipeline serves, and nobody is complete
        os.kill(nodes.nodes[whose].worker(), signal.SIGKILL)
        assert [token_ids(reply) for reply in burst.answers()] == alone
        ended(nodes, "a", begun["id"])
