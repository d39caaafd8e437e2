"""Nodes that scale a model by themselves: real processes, paced devices, loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.scale_kit import LONG, MODEL, ready, scale, small_model, source
from tests.support.clusters import Cluster, spare
from tests.support.nodes import Reply, until

COST = "fixed_us = 200.0, token_us = 300.0"
"""Some 70 prompt tokens take an eighth of a second: eight such prompts a second fill a device."""

AUTO = """
scaling = "auto"
scale_down_after_s = 0.5
keep_s = 1.0
"""
ZERO = """
scaling = "auto"
scale_down_after_s = 0.5
keep_s = 0.5
load_at_start = false
min_instances = 0
idle_to_zero_s = 1.5
"""
PACE = 'max_weight_rate = "20MB"'
"""An instance takes a second: time for its owner to die."""

PROMPT = "Once upon a time " * 14


def paced(text: str) -> str:
    """Devices that compute as slowly as COST says; the tests' own scaling, and no other."""
    text = text.replace("keep_s = 0.0\n", "")
    if "cost" in text:
        return text.replace("fixed_us = 0.0", COST)
    return text.replace('kv_bytes = "256MiB"', f'kv_bytes = "256MiB"\ncost = {{ {COST} }}')


@contextmanager
def scaling(
    path: Path, model: str, *, definers: str = "a", others: str = "bcd", transfer: str = ""
) -> Iterator[Cluster]:
    """Nodes that define the model, the first of which serves it if it is to, and nodes without.

    `path` is the model's.
    """
    nodes = Cluster(path.parent / f"nodes-{time.monotonic_ns()}")
    try:
        for name in definers:
            more = model if name == definers[0] else f"{model}\nload_at_start = false"
            nodes.add(name, paced(source(path, model=more)), transfer=transfer)
        for name in others:
            nodes.add(name, paced(spare(0.0)), transfer=transfer)
        nodes.settle()
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("auto"))


@pytest.fixture(scope="module")
def crowd(model: Path) -> Iterator[Cluster]:
    with scaling(model, AUTO, definers="ab", others="cd", transfer=PACE) as nodes:
        until(lambda: settled(nodes, "c", 1), "the first instance, and no other")
        yield nodes


def serving(nodes: Cluster, asked: str = "b") -> int:
    found = nodes.get(asked, "instances")
    return sum(each["state"] == "serving" for each in found)


def present(nodes: Cluster, asked: str = "b") -> int:
    found = nodes.get(asked, "instances")
    return sum(each["state"] in ("serving", "loading") for each in found)


def states(nodes: Cluster, asked: str) -> list[str]:
    return [each["state"] for each in nodes.get(asked, "instances")]


def settled(nodes: Cluster, asked: str, count: int) -> bool:
    """Whether a model has so many instances, in no other state, and nothing is under way."""
    running = [each for each in nodes.get(asked, "operations") if not each["ended"]]
    return states(nodes, asked) == ["serving"] * count and not running


def why(nodes: Cluster, asked: str = "b") -> dict[str, Any]:
    return nodes.nodes[asked].get(f"/cluster/models/{MODEL}/why").json


def state(nodes: Cluster, asked: str = "b") -> dict[str, Any]:
    found = nodes.nodes[asked].get("/v1/models").json["data"]
    return next(item["blitzgw"] for item in found if item["id"] == MODEL)


def ask(nodes: Cluster, asked: str, prompt: str = PROMPT) -> Reply:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "ignore_eos": True}
    return nodes.nodes[asked].post("/v1/completions", body)


@contextmanager
def burst(nodes: Cluster, asked: str, count: int = 48) -> Iterator[list[Future[Reply]]]:
    """Ask so many at once of these nodes; all are answered at the end."""
    with ThreadPoolExecutor(count) as pool:
        prompts = (f"{time.monotonic_ns()} {PROMPT}" for _ in range(count))  # cached nowhere
        futures = [
            pool.submit(ask, nodes, asked[i % len(asked)], prompt)
            for i, prompt in enumerate(prompts)
        ]
        yield futures
        assert [future.result().status for future in futures] == [200] * count


def decisions(nodes: Cluster, asked: str = "b") -> list[dict[str, Any]]:
    return nodes.get(asked, "decisions")


def test_a_burst_brings_instances_which_go_again(crowd: Cluster) -> None:
    with burst(crowd, "abc"):
        until(lambda: serving(crowd) >= 3, "more instances")
        assert state(crowd)["wanted"] >= 3
    until(lambda: serving(crowd) == 1, "one instance again")
    made = [each for each in decisions(crowd) if each["acted"]]
    grown = [each for each in made if each["action"] == "grow"]
    assert 1 <= len(grown) <= 3, "a burst is answered once, or in few steps"
    assert all(each["operation"] and each["reason"] and each["inputs"] for each in grown)
    assert any(each["action"] == "shrink" for each in made)
    told = why(crowd)
    assert (told["mode"], told["now"]["action"]) == ("auto", "hold")
    assert told["quantiles"]["ttft_p90_s"] > 0


def test_an_operators_number_holds_until_it_is_taken_back(crowd: Cluster) -> None:
    assert scale(crowd, "c", 2)["instances_wanted"] == 2
    until(lambda: serving(crowd) == 2, "two instances")
    time.sleep(1.5)  # three times the patience with a load for which one would do
    assert serving(crowd) == 2
    assert why(crowd)["wish"] == 2
    answer = scale(crowd, "c", "auto")  # type: ignore[arg-type]
    assert answer["instances"] == "auto"
    until(lambda: serving(crowd) == 1, "one instance again")
    assert why(crowd)["wish"] == "auto"


def test_what_is_scaled_is_told_by_metrics(crowd: Cluster) -> None:
    owner = why(crowd)["owner"]

    def metrics() -> str:
        return crowd.nodes[owner].get("/metrics").body.decode()

    one = f'blitzgw_scale_wanted_instances{{model="{MODEL}"}} 1.0'
    until(lambda: one in metrics(), "the owner's wish among the metrics")
    text = metrics()
    assert f'blitzgw_scale_pressure{{model="{MODEL}"}}' in text
    counted = [line for line in text.splitlines() if line.startswith("blitzgw_scale_events_total")]
    assert any('direction="up"' in line and 'reason="grow"' in line for line in counted)
    assert any('direction="up"' in line and 'reason="order"' in line for line in counted)
    assert 'blitzgw_scale_phase_seconds_count{phase="decide"}' in text


def test_an_owner_that_dies_while_a_model_grows_is_replaced(crowd: Cluster) -> None:
    """The last one with this cluster, which lacks a node thereafter."""
    until(lambda: settled(crowd, "c", 1), "one instance, and nothing that comes back at once")
    owner = why(crowd, "c")["owner"]
    left = [name for name in crowd.nodes if name != owner]
    with burst(crowd, "".join(left), 60):
        until(lambda: "loading" in states(crowd, left[0]), "a growth")
        crowd.kill(owner)
        until(lambda: serving(crowd, left[0]) >= 2, "the growth under another owner")
    assert why(crowd, left[0])["owner"] in left
    until(lambda: settled(crowd, left[0], 1), "one instance, and nothing begun and not ended")


@LONG
@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1, 0.4, 0.8, 1.0, 1.2])
def test_whenever_an_owner_dies_its_growth_is_completed_or_undone(
    model: Path, delay_s: float
) -> None:
    """From right after the claims until just before the new instances are ready."""
    with scaling(model, AUTO, definers="ab", others="cd", transfer=PACE) as nodes:
        until(lambda: settled(nodes, "c", 1), "the first instance, and no other")
        owner = why(nodes, "c")["owner"]
        left = [name for name in nodes.nodes if name != owner]
        with burst(nodes, "".join(left), 60):
            until(lambda: grows(nodes, owner), "a decision to grow")
            time.sleep(delay_s)
            nodes.kill(owner)
            until(lambda: serving(nodes, left[0]) >= 2, "the growth, under whatever owner")
        assert why(nodes, left[0])["owner"] in left
        until(lambda: settled(nodes, left[0], 1), "one instance, and nothing begun and not ended")


@LONG
def test_an_operators_number_outlives_the_owner(model: Path) -> None:
    with scaling(model, AUTO, definers="ab", others="cd", transfer=PACE) as nodes:
        until(lambda: settled(nodes, "c", 1), "the first instance, and no other")
        owner = why(nodes, "c")["owner"]
        left = next(name for name in nodes.nodes if name != owner)
        scale(nodes, left, 2)
        time.sleep(0.5)  # what gossip takes to tell the heirs
        nodes.kill(owner)
        until(lambda: why(nodes, left).get("owner", owner) != owner, "another owner")
        until(lambda: settled(nodes, left, 2), "two instances")
        time.sleep(1.5)  # three times the patience with a load for which one would do
        assert settled(nodes, left, 2)
        assert why(nodes, left)["wish"] == 2
        scale(nodes, left, "auto")  # type: ignore[arg-type]
        until(lambda: settled(nodes, left, 1), "one instance again")


def grows(nodes: Cluster, owner: str) -> bool:
    return any(each["acted"] and each["action"] == "grow" for each in decisions(nodes, owner))


def test_a_held_request_wakes_a_model_which_goes_to_zero_again(model: Path) -> None:
    with scaling(model, ZERO, others="bc") as nodes:
        for name in nodes.nodes:
            assert nodes.nodes[name].get("/ready").status == 200, "it wakes, or forwards"
        assert (state(nodes)["state"], state(nodes)["instances"]) == ("scaled_to_zero", 0)
        assert ask(nodes, "c").status == 200
        assert state(nodes)["state"] == "serving"
        assert decisions(nodes)[-1]["action"] == "wake"
        until(lambda: present(nodes) == 0, "nothing again")
        asked = len(decisions(nodes))
        time.sleep(1.0)
        assert len(decisions(nodes)) == asked, "and it stays there"
        with burst(nodes, "bc", 16):
            pass
        until(lambda: present(nodes) == 0, "nothing again")
        asked = len(decisions(nodes))
        time.sleep(1.0)
        assert len(decisions(nodes)) == asked, "though there was much to do a moment ago"
        assert nodes.nodes["b"].get("/ready").status == 200
