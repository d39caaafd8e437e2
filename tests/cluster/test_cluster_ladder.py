"""The systems that are compared, on real nodes: each brings instances up as it says.

Three nodes have the checkpoint on a slow disk and a device each. Loading at half a memory's speed
and at a disk's is told apart by the clock, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from blitzgw.sim.evaluation.ladder import SYSTEMS
from tests.cluster.scale_kit import LONG, MODEL, ended, scale, serves, small_model, tokens
from tests.support.clusters import Cluster
from tests.support.nodes import until

CACHE_S = 2.0
HOST_S, DISK_S = 0.4, 1.0
"""What loading takes by its rate alone."""

NODE = """
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "256MiB"
[[models]]
name = "{name}"
path = "{path}"
max_model_len = 512
load_at_start = {load}
{settings}
"""

ON_EACH = [
    "stop+star",
    "stop+chain",
    "pipeline",
    "live-best-effort",
    "live-zigzag",
    "live",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("checkpoint"))


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


@contextmanager
def running(folder: Path, path: Path, system: str, loaded: str = "a", **more: Any) -> Iterator[Any]:
    """Nodes a, b and c by a system of the ladder; those `loaded` have an instance at the start."""
    nodes, size = Cluster(folder), size_of(path)
    settings = {"keep_s": 0.0, **SYSTEMS[system].settings, **more}
    lines = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in settings.items()]
    transfer = f"max_disk_rate = {size / DISK_S:.0f}\nmax_host_rate = {size / HOST_S:.0f}"
    try:
        for name in "abc":
            values = {"name": MODEL, "path": path, "load": str(name in loaded).lower()}
            text = NODE.format(settings="\n".join(lines), **values)
            nodes.add(name, text, transfer=transfer)
        nodes.settle(len(loaded))
        until(lambda: all(known(nodes, name) for name in "abc"), "all to know of all")
        yield nodes
        for node in nodes.nodes.values():
            assert "effect_failed" not in node.log()
        nodes.stop()
    finally:
        nodes.end()


def known(nodes: Cluster, asked: str) -> bool:
    """Whether a node knows all workers, and that all have the model on disk."""
    [model] = nodes.get(asked, "models")
    devices = [d for node in nodes.get(asked, "nodes") for d in node["devices"] if d["data_ports"]]
    return len(devices) == len(model["disks"]) == len(nodes.nodes)


def reach(nodes: Cluster, instances: int) -> dict[str, Any]:
    """Order so many; the operation at its end."""
    done = ended(nodes, "a", scale(nodes, "a", instances)["id"])
    assert (done["state"], done["reason"]) == ("done", None), done
    return done


def copies(nodes: Cluster, *, cached: bool) -> set[str]:
    """The nodes that have a whole host copy of that kind, as node a sees it."""
    return {
        node["name"]
        for node in nodes.get("a", "nodes")
        for copy in node["copies"]
        if copy["complete"] and copy["cached"] is cached
    }


def tiers(done: dict[str, Any]) -> dict[str, str]:
    """Who reads by itself, and from where."""
    return {read["worker"][0]: read["tier"] for read in done["reads"]}


def came_s(done: dict[str, Any]) -> float:
    """From the claims to the last instance's readiness."""
    claimed = min(event["at_s"] for event in done["events"] if event["what"] == "claimed")
    return max(target["ready_s"] for target in done["targets"]) - claimed


def test_from_disk_and_for_a_while_from_what_was_there(tmp_path: Path, path: Path) -> None:
    with running(tmp_path, path, "stop+disk", host_cache_s=CACHE_S) as nodes:
        first = reach(nodes, 2)
        [taken] = tiers(first)
        assert (first["strategy"], tiers(first), first["edges"]) == ("disk", {taken: "disk"}, [])
        assert came_s(first) >= 0.9 * DISK_S
        expected = tokens(nodes, "a")
        until(lambda: copies(nodes, cached=True) >= {taken}, "what will be left behind")
        reach(nodes, 1)
        until(lambda: len(nodes.serving("a")) == 1, "one to have gone")
        [gone] = {"a", taken} - nodes.serving("a")
        again = reach(nodes, 2)
        assert (tiers(again), again["edges"]) == ({gone: "host"}, [])
        assert 0.9 * HOST_S <= came_s(again) < came_s(first)
        arrived = [at for at in again["targets"][0]["arrived_s"] if at is not None]
        assert max(arrived) - min(arrived) > 0.5 * HOST_S, "blob by blob"
        assert tokens(nodes, gone) == expected
        assert copies(nodes, cached=False) == set(), "nothing that the cluster counts on"
        reach(nodes, 1)
        until(lambda: len(copies(nodes, cached=True)) == 1, "the end of what is left behind")
        late = reach(nodes, 2)
        assert set(tiers(late).values()) == {"disk"}


@LONG
def test_from_memory_where_all_have_a_copy(tmp_path: Path, path: Path) -> None:
    with running(tmp_path, path, "stop+host") as nodes:
        until(lambda: copies(nodes, cached=False) == set("abc"), "a copy on each node")
        [model] = nodes.get("a", "models")
        assert (model["host_copies"], model["host_cached"]) == (3, 0)
        done = reach(nodes, 3)
        assert (done["strategy"], done["edges"]) == ("host", [])
        assert tiers(done) == {"b": "host", "c": "host"}
        assert 0.9 * HOST_S <= came_s(done) < 0.9 * DISK_S
        assert done["predicted_s"]["complete"] == pytest.approx(HOST_S, rel=0.5)
        assert tokens(nodes, "b") == tokens(nodes, "a")


@LONG
def test_with_nothing_to_load(tmp_path: Path, path: Path) -> None:
    with running(tmp_path, path, "oracle", "abc") as nodes:
        reach(nodes, 1)
        states = lambda: sorted(i["state"] for i in nodes.get("a", "instances"))  # noqa: E731
        until(lambda: states() == ["kept", "kept", "serving"], "two kept")
        [left] = nodes.serving("a")
        done = reach(nodes, 3)
        assert (done["edges"], done["reads"]) == ([], [])
        assert came_s(done) < 0.2
        assert left in nodes.serving("a")


@LONG
@pytest.mark.parametrize("system", ON_EACH)
def test_over_the_network(tmp_path: Path, path: Path, system: str) -> None:
    settings = SYSTEMS[system].settings
    with running(tmp_path, path, system) as nodes:
        until(lambda: len(copies(nodes, cached=False)) == 1, "the one host copy")
        [holder] = copies(nodes, cached=False)
        assert holder != "a", "beside an instance it would be of less use"
        done = reach(nodes, 3)
        assert tiers(done) == {holder: "host"}
        assert {edge["target"][0] for edge in done["edges"]} == set("bc") - {holder}
        assert done["policy"] == (settings["live"] if settings["live"] != "auto" else "zigzag")
        if settings["strategy"] != "auto":
            assert done["strategy"] == settings["strategy"]
        serves(nodes, "a", set("abc"))
        assert len({tuple(tokens(nodes, name)) for name in "abc"}) == 1
