"""Growths side by side get blobs from each other: real nodes, real workers, real bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any

import pytest

from tests.cluster.scale_kit import (
    LAYERS,
    LONG,
    cancel,
    ended,
    operation,
    ready,
    scale,
    serves,
    small_model,
    source,
    tokens,
)
from tests.support.clusters import Cluster, spare
from tests.support.nodes import until

TWO = """
scaling = "auto"
min_instances = 2
max_instances = 2
"""
"""What the owner brings up by itself, as soon as no operator wants another number."""

SLOW = 'max_weight_rate = "4MB"'
"""The source takes five seconds or so: time for another growth to begin."""

NAMES = "abcde"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Node a has the model and sends slowly, the others have a free device each."""
    folder = tmp_path_factory.mktemp("beside")
    made = Cluster(folder / "nodes")
    try:
        made.add(NAMES[0], source(small_model(folder), model=TWO), transfer=SLOW)
        for name in NAMES[1:]:
            made.add(name, spare(0.0))
        made.settle(1)
        until(lambda: all(ready(made, name) for name in NAMES), "all to know of all")
        yield made
        made.stop()
    finally:
        made.end()


@contextmanager
def two_growths(nodes: Cluster) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Have the owner begin a growth to two, and as it gets on an operator one to four besides.

    Yields both as they are told of when the second one has its edges. Whoever asks for tokens
    meanwhile, and at the end, gets those that there are without any of it.
    """
    until(lambda: all(idle(nodes, name) for name in living(nodes)), "all to see that all idle")
    ended(nodes, "a", scale(nodes, "a", 1)["id"])
    serves(nodes, "a", {"a"})
    until(lambda: all(at_rest(nodes, name) for name in living(nodes)), "all to see free ports")
    alone = tokens(nodes, "a")
    scale(nodes, "b", "auto")
    first = until(lambda: bringing(nodes), "blobs of the owner's growth")
    assert first["predicted_s"]["complete"] > 1.0, "plans know how slowly the source sends"
    begun = scale(nodes, "c", 4)
    assert begun["id"] != first["id"], begun
    second = until(lambda: with_edges(nodes, begun["id"]), "the second one's edges")
    with asking(nodes) as found:
        yield first, second
    assert [each for each in found if each != alone] == []
    for name in living(nodes):
        assert tokens(nodes, name) == alone


def idle(nodes: Cluster, asked: str) -> bool:
    """Whether a node sees no request anywhere: of instances that idle the one on node a stays."""
    counts = ("running", "waiting", "queued_tokens")
    return not any(each[count] for each in nodes.get(asked, "instances") for count in counts)


def at_rest(nodes: Cluster, asked: str) -> bool:
    """Whether a node sees no port promised: who sends for an operation leaves others no choice."""
    networks = [each for node in nodes.get(asked, "nodes") for each in node["host"]["networks"]]
    reserved = ("reserved_tx_bytes_per_s", "reserved_rx_bytes_per_s")
    return not any(each[name] for each in networks for name in reserved)


def bringing(nodes: Cluster) -> dict[str, Any] | None:
    """Return the operation that runs once something has come by it."""
    for each in nodes.get("b", "operations"):
        found = {} if each["ended"] else operation(nodes, "b", each["id"])
        if any(target["arrived"] for target in found.get("targets", ())):
            return found
    return None


def with_edges(nodes: Cluster, name: str) -> dict[str, Any] | None:
    found = operation(nodes, "c", name)
    return found if found["edges"] else None


@contextmanager
def asking(nodes: Cluster) -> Iterator[list[list[int]]]:
    """Ask the living nodes for tokens in turn; what they have answered."""
    found: list[list[int]] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            for name in living(nodes):
                with suppress(OSError, HTTPException):  # it may be killed meanwhile
                    found.append(tokens(nodes, name))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            yield found
        finally:
            over.set()
        asked.result()
    assert found


def living(nodes: Cluster) -> list[str]:
    return [name for name in NAMES if nodes.nodes[name].process.poll() is None]


def lenders(first: dict[str, Any], second: dict[str, Any]) -> set[str]:
    """Return who sends by the second operation what it gets by the first one."""
    loading = {t["worker"] for t in first["targets"] if t["arrived"] < LAYERS + 2}
    return {edge["source"] for edge in second["edges"]} & loading


def at_s(told: dict[str, Any], what: str) -> float:
    """Return when something has first happened to an operation, in Unix time."""
    return float(told["started"] + next(e["at_s"] for e in told["events"] if e["what"] == what))


def workers(told: dict[str, Any], state: str = "ready") -> set[str]:
    return {target["worker"] for target in told["targets"] if target["state"] == state}


def test_blobs_come_from_an_instance_that_is_loading(nodes: Cluster) -> None:
    with two_growths(nodes) as (first, second):
        (lender,) = lenders(first, second)
        first, second = (ended(nodes, "d", each["id"]) for each in (first, second))
    assert (first["state"], first["reason"]) == ("done", None)
    assert (second["state"], second["reason"]) == ("done", None)
    assert at_s(second, "first_byte") < at_s(first, "complete"), "it had not all of it yet"
    assert workers(first) == {lender}
    assert len(workers(second)) == 2
    names = {worker.partition("/")[0] for worker in workers(first) | workers(second)}
    serves(nodes, "e", names | {"a"})


def test_who_borrowed_goes_on_when_the_other_growth_is_cancelled(nodes: Cluster) -> None:
    with two_growths(nodes) as (first, second):
        (lender,) = lenders(first, second)
        assert cancel(nodes, "d", first["id"])["state"] == "cancelled"
        second = ended(nodes, "d", second["id"])
    assert second["state"] == "done", second["reason"]
    assert len(workers(second)) == 2
    assert lender not in {edge["source"] for edge in second["edges"]}
    names = {worker.partition("/")[0] for worker in workers(second)}
    serves(nodes, "e", names | {"a"})


@pytest.mark.parametrize("victim", ["worker", pytest.param("node", marks=LONG)])
def test_who_borrowed_goes_on_when_the_lender_dies(nodes: Cluster, victim: str) -> None:
    """The last one with this cluster, which may lack a node thereafter."""
    with two_growths(nodes) as (first, second):
        (lender,) = lenders(first, second)
        name = lender.partition("/")[0]
        if victim == "worker":
            nodes.nodes[name].kill_worker()
        elif name == second["owner"]:
            pytest.skip("both growths go with their owner")
        else:
            nodes.kill(name)
        second = ended(nodes, "a", second["id"])
    assert second["state"] == "done", second["reason"]
    assert len(workers(second)) == 2
    assert lender not in {edge["source"] for edge in second["edges"]}
