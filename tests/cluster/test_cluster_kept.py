"""Instances that go stay loaded for a while and come back at once: real nodes, workers, streams."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.scale_kit import MODEL, admin, cancel, ended, ready, small_model, tokens
from tests.cluster.test_cluster_move import DEVICE, Streams
from tests.support.clusters import Cluster
from tests.support.nodes import until

HAS_IT = """
[[models]]
name = "{name}"
path = "{path}"
max_batched_tokens = 256
max_model_len = 512
host_copies = 0
keep_s = {keep_s}
"""
REVIVED_S = 1.0
"""Tenfold what it takes on an idle machine: there is no way to load an instance in that time here,
where a worker sends 12 MB/s of weights and the model has 21."""

OTHER = "other"
"""A model with the same weights, whose instances are kept for a second only."""

SLOW = 'max_weight_rate = "12MB"'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, path: Path) -> Iterator[Cluster]:
    """Node a with the models, one instance of each, and others without."""
    made = Cluster(tmp_path_factory.mktemp("nodes"))
    try:
        text = HAS_IT.format(name=MODEL, path=path, keep_s=60.0)
        text += HAS_IT.format(name=OTHER, path=path, keep_s=1.0)
        made.add("a", DEVICE.format(models="") + text, transfer=SLOW)
        for name in "bc":
            made.add(name, DEVICE.format(models="models = []"), transfer=SLOW)
        made.settle(1)
        until(lambda: all(ready(made, name) for name in made.nodes), "all to know of all")
        yield made
        for node in made.nodes.values():
            assert "illegal_transition" not in node.log()
            assert "effect_failed" not in node.log()
        made.stop()
    finally:
        made.end()


@pytest.fixture(scope="module")
def expected(nodes: Cluster) -> list[list[int]]:
    """What streams bring that nothing disturbs."""
    return [one.tokens for one in Streams(nodes).end()]


def states(nodes: Cluster, asked: str = "a", model: str = MODEL) -> dict[str, str]:
    found = nodes.get(asked, "instances")
    return {i["node"]: i["state"] for i in found if i["model"] == model}


def serve(nodes: Cluster, names: str, asked: str = "a", model: str = MODEL) -> None:
    """Wait until exactly these nodes serve a model, and none keeps it."""
    right = dict.fromkeys(names, "serving")
    until(lambda: states(nodes, asked, model) == right, f"{model} on {names}, and not elsewhere")


def order(nodes: Cluster, instances: int, model: str = MODEL) -> dict[str, Any]:
    """Order so many; the operation as it began."""
    path = f"/admin/v1/models/{model}/scale"
    reply = nodes.nodes["a"].post(path, {"instances": instances}, **admin(nodes))
    assert reply.status < 300, reply.body
    return reply.json


def reach(nodes: Cluster, instances: int, model: str = MODEL) -> dict[str, Any]:
    done = ended(nodes, "a", order(nodes, instances, model)["id"])
    assert (done["state"], done["reason"]) == ("done", None), done
    return done


def test_what_is_kept_comes_back_at_once_and_no_stream_is_cut(
    nodes: Cluster, expected: list[list[int]]
) -> None:
    reach(nodes, 3)
    serve(nodes, "abc")
    streams = Streams(nodes)
    until(lambda: all(len(heard.tokens) > 5 for heard in streams.heard), "all to speak")
    reach(nodes, 1)
    until(lambda: sorted(states(nodes).values()) == ["kept", "kept", "serving"], "two kept")
    until(lambda: states(nodes, "b") == states(nodes, "c") == states(nodes), "all to know it")
    began = time.monotonic()
    done = reach(nodes, 3)
    took_s = time.monotonic() - began
    print(f"revived in {done['elapsed_s']:.3f} s, {took_s:.3f} s for who asked")
    assert done["elapsed_s"] < REVIVED_S
    assert done["edges"] == []
    serve(nodes, "abc", "b")
    heard = streams.end()
    assert not [one.error for one in heard if one.error]
    assert {one.finish for one in heard} == {"length"}
    assert [one.tokens for one in heard] == expected
    logs = [node.log().count("instance_revived") for node in nodes.nodes.values()]
    assert sum(logs) == 2
    assert len({tuple(tokens(nodes, name)) for name in "abc"}) == 1


def test_one_that_drains_comes_back_with_its_streams(
    nodes: Cluster, expected: list[list[int]]
) -> None:
    serve(nodes, "abc")
    streams = Streams(nodes)
    until(lambda: all(len(heard.tokens) > 5 for heard in streams.heard), "all to speak")
    cancel(nodes, "a", order(nodes, 1)["id"])
    done = reach(nodes, 3)
    assert done["elapsed_s"] < REVIVED_S
    assert done["edges"] == []
    serve(nodes, "abc")
    heard = streams.end()
    assert not [one.error for one in heard if one.error]
    assert {one.finish for one in heard} == {"length"}
    assert [one.tokens for one in heard] == expected
    serve(nodes, "abc")


def test_another_model_takes_the_device(nodes: Cluster) -> None:
    alone = tokens(nodes, "b")
    reach(nodes, 1)
    until(lambda: sorted(states(nodes).values()) == ["kept", "kept", "serving"], "two kept")
    (serving,) = (name for name, state in states(nodes).items() if state == "serving")
    reach(nodes, 2, OTHER)
    until(lambda: sorted(states(nodes).values()) == ["kept", "serving"], "a kept one to be gone")
    (taken,) = set("abc") - set(states(nodes))
    until(lambda: states(nodes, model=OTHER).get(taken) == "serving", "the other model there")
    assert states(nodes)[serving] == "serving"
    assert tokens(nodes, "b") == alone
    assert f"its device is claimed for {OTHER}" in nodes.nodes[taken].log()


def test_after_its_time_it_is_gone_and_comes_back_over_the_network(nodes: Cluster) -> None:
    begun = order(nodes, 1, OTHER)
    assert ended(nodes, "a", begun["id"])["state"] == "done"
    until(lambda: "kept" in states(nodes, model=OTHER).values(), "one to be kept")
    until(lambda: list(states(nodes, model=OTHER).values()) == ["serving"], "its end")
    again = reach(nodes, 2, OTHER)
    assert again["edges"] or again["reads"]
    until(lambda: list(states(nodes, model=OTHER).values()) == ["serving"] * 2, "two again")
