"""Where weights come from besides instances: a checkpoint beside no device, copies in memory."""

from __future__ import annotations

import pytest

from tests.cluster.scale_kit import (
    LAYERS,
    ended,
    scale,
    serves,
    small_model,
    source,
    tokens,
)
from tests.support.clusters import Cluster, spare
from tests.support.nodes import until

ON_DISK = """
{devices}
[[models]]
name = "small"
path = "{path}"
host_copies = {copies}
load_at_start = false
{model}
"""
PACED = """
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "256MiB"
"""
COUNT = LAYERS + 2


def on_disk(path, copies=0, devices=PACED, model=""):
    """A node that could load the model and does not."""
    return ON_DISK.format(path=path, copies=copies, devices=devices, model=model)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def nodes(tmp_path):
    made = Cluster(tmp_path)
    try:
        yield made
        made.stop()
    finally:
        made.end()


def start(nodes, **rest):
    for name, text in rest.items():
        nodes.add(name, text)
    nodes.settle()
    until(lambda: all(are_up(nodes, name, rest) for name in rest), "all workers to be known")


def order(nodes, asked, instances):
    """Order so many, as soon as the model is known there; the operation at its end."""

    def begun():
        found = scale(nodes, asked, instances)
        return found if "id" in found else None

    return ended(nodes, asked, until(begun, "an operation")["id"])


def are_up(nodes, asked, names):
    """Whether a node knows that the devices of these are ready."""
    found = [node["devices"] for node in nodes.get(asked, "nodes") if node["name"] in names]
    return len(found) == len(names) and all(
        devices and all(device["data_ports"] for device in devices) for devices in found
    )


def holders(nodes, asked):
    """The nodes that have a whole copy of the model in memory."""
    found = [node for node in nodes.get(asked, "nodes") if node["status"] == "alive"]
    return {
        node["name"]: copy["device"]
        for node in found
        for copy in node["copies"]
        if copy["complete"]
    }


def test_a_node_with_only_the_checkpoint_is_a_source(nodes, path):
    start(nodes, a=on_disk(path, devices="devices = []"), b=spare(0.0), c=spare(0.0))
    done = order(nodes, "b", 2)
    assert done["state"] == "done", done
    assert {t["worker"]: t["arrived"] for t in done["targets"]} == {"b/p0": COUNT, "c/p0": COUNT}
    assert {edge["source"] for edge in done["edges"]} & {"a/host"}
    serves(nodes, "a", set("bc"))
    assert tokens(nodes, "a") == tokens(nodes, "b")
    until(lambda: holders(nodes, "b") == {}, "the store that was made to read it to be dropped")


def test_an_order_right_after_the_start_waits_for_facts(nodes, path):
    nodes.add("a", source(path))
    nodes.add("b", spare(0.0))
    nodes.add("c", spare(0.0))
    for node in nodes.nodes.values():
        node.listen()
    for name in nodes.nodes:  # what a node knows of itself is on its way to the others
        until(lambda n=name: are_up(nodes, n, {n}), f"the worker of {name}")
    done = order(nodes, "c", 3)
    assert done["state"] == "done", done
    assert done["reason"] in ("", None), done


def test_orders_in_quick_succession_count_what_is_there(nodes, path):
    start(nodes, a=source(path), b=spare(0.0), c=spare(0.0))
    until(lambda: len(nodes.serving("b")) == 1, "the first instance")
    for instances in (3, 1, 3, 2, 3, 1):
        done = order(nodes, "b", instances)
        assert done["state"] == "done", done
        assert done["instances_wanted"] == instances
        assert not done["reason"], done
        until(lambda n=instances: len(nodes.serving("c")) == n, f"{instances} instances")


def test_a_host_copy_is_kept_and_mapped(nodes, path):
    start(nodes, a=source(path, copies=1), b=on_disk(path, copies=1), c=spare(0.0))
    until(lambda: len(holders(nodes, "a")) == 1, "a copy")
    (first,) = holders(nodes, "a")
    nodes.kill(first)
    left = sorted(set("abc") - {first})

    def another():
        found = holders(nodes, left[0])
        return found if len(found) == 1 and first not in found else None

    (second,) = until(another, "a copy elsewhere")
    order(nodes, left[0], 0)
    done = order(nodes, left[0], 1)
    assert done["state"] == "done", done
    assert [t["worker"] for t in done["targets"]] == [f"{second}/p0"], "where the copy is"
    assert done["edges"] == [], "it is mapped, and nothing is sent"
    assert done["elapsed_s"] < 5.0
    tokens(nodes, left[0])
