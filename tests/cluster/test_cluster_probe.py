"""Probes between real workers: what they tell, what they leave, and what plans make of them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from tests.cluster.scale_kit import admin, ready, scale, small_model, source
from tests.support.clusters import Cluster, spare
from tests.support.nodes import until

RATE = 'rate = "400Mbit"'
"""What the ports are said to carry: of a loopback nothing is known."""

KV_RATE = 30e6
MIB = 1 << 20


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Nodes a and b have the model and serve it; c is free."""
    path = small_model(tmp_path_factory.mktemp("checkpoint"))
    nodes = Cluster(tmp_path_factory.mktemp("three"))
    try:
        for name in "ab":
            nodes.add(name, source(path), transfer=RATE)
        nodes.add("c", spare(0.0), transfer=RATE)
        nodes.settle(2)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


def probe(nodes, asked, source, target, **more):
    body = {"source": f"{source}/p0", "target": f"{target}/p0", **more}
    return nodes.nodes[asked].post("/admin/v1/probe", body, **admin(nodes))


def serving(nodes, asked, name):
    """What a node is said to send for requests."""
    node = next(n for n in nodes.get(asked, "nodes") if n["name"] == name)
    return sum(network["serving_tx_bytes_per_s"] for network in node["host"]["networks"])


@contextlib.contextmanager
def kv(nodes, source, target, seconds):
    """KV from one node to another, at a rate; the answer is in the list when it is over."""
    answers = []

    def run():
        more = {"seconds": seconds, "class": "kv", "rate_bytes_per_s": KV_RATE}
        answers.append(probe(nodes, target, source, target, **more))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answers
    finally:
        thread.join(60.0)


@pytest.mark.parametrize("asked", ["a", "b", "c"])
def test_any_node_measures_a_link_between_two_others_or_itself(three, asked):
    reply = probe(three, asked, "a", "c", size_bytes=70 * MIB + 5)
    assert reply.status == 200, reply.body
    found = reply.json
    assert found["payload_bytes"] == 70 * MIB + 5
    assert found["bytes_per_s"] == pytest.approx(found["payload_bytes"] / found["seconds"])
    assert found["bytes_per_s"] > 10e6
    assert found["network"] is None
    assert (found["yielded_s"], found["delayed_s"]) == (0.0, 0.0)


@pytest.mark.parametrize("encrypt", [False, True])
def test_a_rate_and_a_time_are_kept(three, encrypt):
    more = {"rate_bytes_per_s": 20e6, "seconds": 1.0, "class": "activations", "encrypt": encrypt}
    found = probe(three, "b", "c", "a", **more).json
    assert 0.9 < found["seconds"] < 2.0
    assert 10e6 < found["bytes_per_s"] < 25e6


def test_plans_take_another_source_while_one_sends_kv(three):
    """Which is known within a second or two, and forgotten as soon."""

    def planned():
        facts = scale(three, "b", 3, dry_run=True)
        assert facts["state"] == "planned", facts
        return {edge["source"].partition("/")[0] for edge in facts["edges"]}

    (first,) = planned()
    (other,) = {"a", "b"} - {first}
    with kv(three, first, "c", 6.0) as answers:
        began = time.monotonic()
        until(lambda: serving(three, "c", first) > KV_RATE / 4, "the traffic to be known")
        assert time.monotonic() - began < 4.0
        until(lambda: planned() == {other}, "a plan that spares the busy source")
        assert not answers, "it has ended before anybody knew"
    (answer,) = answers
    assert answer.status == 200, answer.body
    assert answer.json["bytes_per_s"] == pytest.approx(KV_RATE, rel=0.25)
    until(lambda: serving(three, "c", first) == 0.0, "the end of the traffic to be known")
    assert planned() == {first}


def test_an_unknown_worker_is_answered_with_those_there_are(three):
    reply = probe(three, "a", "a", "nowhere")
    assert reply.status == 400
    assert "a/p0, b/p0, c/p0" in reply.json["error"]["message"]
    reply = probe(three, "a", "a", "a")
    assert (reply.status, reply.json["error"]["param"]) == (400, "target")
    reply = probe(three, "a", "a", "b", network="fast")
    assert (reply.status, reply.json["error"]["param"]) == (400, "network")


def test_more_than_a_few_at_a_time_are_refused(three):
    with ThreadPoolExecutor(6) as pool:
        more = {"seconds": 2.0, "rate_bytes_per_s": 2e6}
        replies = list(pool.map(lambda asked: probe(three, asked, "a", "b", **more), "abcabc"))
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 503}, [reply.body for reply in replies]
    assert statuses.count(200) <= 4
    refused = next(reply for reply in replies if reply.status == 503)
    assert "4 probes are under way there" in refused.json["error"]["message"]
    assert probe(three, "c", "a", "b", size_bytes=MIB).status == 200


def test_who_leaves_ends_the_probe(three):
    body = {"source": "b/p0", "target": "c/p0", "seconds": 50.0, "rate_bytes_per_s": 5e6}
    body["class"] = "kv"
    headers = {"Content-Type": "application/json", **admin(three)}
    with contextlib.closing(HTTPConnection("127.0.0.1", three.nodes["a"].port)) as connection:
        connection.request("POST", "/admin/v1/probe", json.dumps(body), headers)
        until(lambda: serving(three, "c", "b") > 0, "traffic")
    until(lambda: serving(three, "a", "b") == 0.0, "the end of the traffic")
    assert probe(three, "a", "b", "c", size_bytes=MIB).status == 200


def test_a_worker_that_dies_ends_the_probe(three):
    with kv(three, "a", "c", 50.0) as answers:
        until(lambda: serving(three, "b", "a") > 0, "traffic")
        three.nodes["c"].kill_worker()
        until(lambda: answers, "an answer")
    (answer,) = answers
    assert answer.status == 503
    assert "c/p0 has died" in answer.json["error"]["message"]
    until(lambda: probe(three, "b", "a", "c", size_bytes=MIB).status == 200, "c to be back")
