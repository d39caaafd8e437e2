"""Instances come up from peers and go again: real nodes, real workers, real bytes."""

from __future__ import annotations

import time

import pytest

from tests.cluster.scale_kit import (
    LAYERS,
    LONG,
    cancel,
    ended,
    operation,
    scale,
    scaled,
    serves,
    small_model,
    tokens,
)
from tests.support.nodes import is_gone, until

SLOW = 'max_weight_rate = "4MB"'
"""The source takes five seconds or so: time to disturb it."""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def four(tmp_path_factory, path):
    with scaled(tmp_path_factory.mktemp("four"), path) as nodes:
        yield nodes


@pytest.mark.parametrize("strategy", ["chain", "star", "binomial", ""])
def test_instances_come_up_with_the_weights_of_a_peer_and_go_again(four, strategy):
    alone = tokens(four, "a")
    begun = scale(four, "b", 4, strategy=strategy)
    done = ended(four, "c", begun["id"])
    assert done["state"] == "done", done
    assert {t["worker"]: t["state"] for t in done["targets"]} == {
        f"{name}/p0": "ready" for name in "bcd"
    }, done
    assert all(t["arrived"] == LAYERS + 2 for t in done["targets"])
    serves(four, "d", set("abcd"))
    up = "instance_ready instance=small@a/p0"
    n_up = four.nodes["a"].log().count(up)
    four.nodes["a"].kill_worker()  # whoever answers now has got its weights from a peer
    assert tokens(four, "a") == alone
    until(lambda: four.nodes["a"].log().count(up) > n_up, "the instance to be back")
    for name in "abcd":
        serves(four, name, set("abcd"))
    done = ended(four, "b", scale(four, "c", 1)["id"])
    assert done["state"] == "done", done
    serves(four, "d", {"a"})
    assert tokens(four, "d") == alone


def test_a_dry_run_plans_and_does_nothing(four):
    planned = scale(four, "b", 3, dry_run=True)
    assert planned["state"] == "planned"
    assert planned["predicted_s"]["complete"] > 0
    assert len(planned["targets"]) == 2
    serves(four, "b", {"a"})


def test_more_than_there_are_devices_is_answered_with_a_reason(four):
    found = scale(four, "a", 9)
    if "id" in found:
        found = ended(four, "a", found["id"])
        serves(four, "a", set("abcd"))
        ended(four, "a", scale(four, "a", 1)["id"])
        serves(four, "a", {"a"})
    assert "3" in str(found.get("reason") or found["error"]["message"])


def test_a_cancelled_operation_leaves_everything_as_it_was(tmp_path, path):
    with scaled(tmp_path, path, a=SLOW) as nodes:
        begun = scale(nodes, "a", 4)
        until(lambda: operation(nodes, "b", begun["id"])["state"] == "transferring", "a transfer")
        time.sleep(1.0)
        gone = cancel(nodes, "c", begun["id"])
        assert gone["state"] == "cancelled", gone
        serves(nodes, "d", {"a"})
        again = scale(nodes, "b", 2, dry_run=True)
        assert again["state"] == "planned", "the devices are free again"
        tokens(nodes, "b")


@pytest.mark.parametrize("victim", [pytest.param("relay", marks=LONG), "worker"])
def test_the_rest_completes_when_a_relay_dies(tmp_path, path, victim):
    with scaled(tmp_path, path, a=SLOW) as nodes:
        alone = tokens(nodes, "a")
        begun = scale(nodes, "a", 4, strategy="chain")

        def half_way():
            found = operation(nodes, "a", begun["id"])
            arrived = [t["arrived"] for t in found["targets"]]
            return found if arrived and min(arrived) >= 3 else None

        found = until(half_way, "the middle of the transfer")
        sources = {edge["source"] for edge in found["edges"]}
        relays = [
            edge["target"].partition("/")[0] for edge in found["edges"] if edge["target"] in sources
        ]
        relay = next((name for name in relays if name != found["owner"]), "")
        assert relay, (found["owner"], found["epoch"], found["edges"], found["events"])
        asked = next(name for name in "abcd" if name != relay)
        if victim == "relay":
            nodes.kill(relay)
        else:
            pid = nodes.nodes[relay].worker()
            nodes.nodes[relay].kill_worker()
            until(lambda: is_gone(pid), "the worker's end")
        done = ended(nodes, asked, begun["id"])
        assert done["state"] == "done", done
        ready = {t["worker"] for t in done["targets"] if t["state"] == "ready"}
        assert ready >= {f"{name}/p0" for name in "bcd" if name != relay}, done
        for name in set("abcd") - {relay}:
            assert tokens(nodes, name) == alone


def test_an_owner_that_dies_leaves_no_device_claimed(tmp_path, path):
    with scaled(tmp_path, path, a=SLOW) as nodes:
        begun = scale(nodes, "a", 4)
        owner = begun["owner"]
        until(lambda: operation(nodes, owner, begun["id"])["state"] == "transferring", "a transfer")
        if owner == "a":
            pytest.skip("the owner has the only copy here: another test kills that one")
        nodes.kill(owner)
        asked, left = "a", set("abcd") - {owner}
        until(lambda: all(owner not in nodes.alive(name) for name in left), "its death to be known")
        serves(nodes, asked, {"a"})
        again = scale(nodes, asked, 3)
        assert ended(nodes, asked, again["id"])["state"] == "done"
