"""The routes behind `blitzgw inspect`: shapes, order, what is not known, what nodes dispute."""

import pytest

from blitzgw.api.definitions import definitions
from blitzgw.api.why import terms as told_terms
from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.rumours import Status
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    DeviceFacts,
    HostFacts,
    LoadFacts,
    ModelFacts,
    NetworkFacts,
    NodeFacts,
    NodeView,
    RequestFacts,
    RequestList,
    ScaleFacts,
    ScaleTerms,
    ScaleWish,
)
from tests.api.view_kit import FakeCluster, instance, node

ROUTES = ("/cluster/nodes", "/cluster/instances", "/cluster/models", "/cluster/requests")
DEVICE = DeviceFacts("cpu0", DeviceKind.CPU, "Xeon", 1 << 30, 2, data_ports={"fast": 40001})
HOST = HostFacts(
    8 << 30,
    "rack-1",
    (
        NetworkFacts("fast", "10.1.0.1", 1e9, 5e8, weights_tx_bytes_per_s=2e8),
        NetworkFacts("", "10.0.0.1"),
    ),
)


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
async def world(make_world, cluster):
    return await make_world(cluster=cluster)


async def get(world, path):
    status, _, body = await world.get(path)
    assert status == 200
    return body


async def test_a_cluster_of_none_answers_empty_lists(world):
    for path in ROUTES:
        name = path.rpartition("/")[2]
        assert (await get(world, path))[name] == []


async def test_without_a_cluster_there_are_no_such_routes(make_world):
    world = await make_world()
    for path in ROUTES:
        assert (await world.get(path))[0] == 404


async def test_routes_are_for_reading_only(world):
    for path in ROUTES:
        status, headers, _ = await world.post(path, {})
        assert (status, headers["Allow"]) == (405, "GET")
        async with world.http.head(world.url(path)) as response:
            assert response.status == 200


async def test_keys_are_needed_where_there_are_any(make_world, cluster):
    world = await make_world(cluster=cluster, api_keys=["secret"])
    for path in ROUTES:
        assert (await world.get(path))[0] == 401
        headers = {"Authorization": "Bearer secret"}
        assert (await world.get(path, headers=headers))[0] == 200


async def test_nodes_are_told_with_all_that_is_known(world, cluster):
    now = world.services.clock.now()
    full = node(
        "b1",
        "east",
        facts=NodeFacts("east", "http://10.0.0.1:8000", True, {"blitzgw": "0.1.0"}),
        devices=[DEVICE],
        models=[ModelFacts("z", "d2", 3, 5), ModelFacts("m", "d1", 30, 5)],
        instances=[instance("i1"), instance("i2", InstanceState.GONE)],
        copies=[CopyFacts("w1", "m", "cpu0", 100, "b")],
        host_facts=HOST,
        heard_s=now - 3.0,
    )
    cluster.show(node("me", "self"), full, node("b2", "a", Status.SUSPECT))
    [a, east, own] = (await get(world, "/cluster/nodes"))["nodes"]
    age_s = east.pop("state_age_s")
    assert 3.0 <= age_s < 30.0
    assert east == {
        "name": "east",
        "boot": "b1",
        "status": "alive",
        "http": "http://10.0.0.1:8000",
        "address": "10.0.0.1:7946",
        "draining": True,
        "devices": [
            {
                "id": "cpu0",
                "kind": "cpu",
                "name": "Xeon",
                "memory_bytes": 1 << 30,
                "claim": 2,
                "software": {},
                "data_ports": {"fast": 40001},
            }
        ],
        "host": {
            "free_bytes": 8 << 30,
            "zone": "rack-1",
            "networks": [
                {
                    "name": name,
                    "host": host,
                    "rate_bytes_per_s": rate,
                    "reserved_tx_bytes_per_s": reserved,
                    "reserved_rx_bytes_per_s": 0.0,
                    "serving_tx_bytes_per_s": 0.0,
                    "weights_tx_bytes_per_s": most,
                }
                for name, host, rate, reserved, most in (
                    ("", "10.0.0.1", None, 0.0, None),
                    ("fast", "10.1.0.1", 1e9, 5e8, 2e8),
                )
            ],
        },
        "copies": [
            {
                "model": "m",
                "weights": "w1",
                "device": "cpu0",
                "size_bytes": 100,
                "blobs": [0, 1, 3],
                "complete": False,
                "cached": False,
            }
        ],
        "models": ["m", "z"],
        "instances": 1,
        "started": 1_700_000_000,
        "software": {"blitzgw": "0.1.0"},
        "conflict": False,
    }
    assert (own["host"], own["copies"]) == (None, [])
    assert (a["name"], a["status"], a["http"], a["draining"]) == ("a", "suspect", None, None)
    assert (own["name"], own["state_age_s"]) == ("self", 0.0)


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [("::1", 1, "[::1]:1"), ("10.0.0.1", 1, "10.0.0.1:1"), ("", 0, None)],
)
async def test_addresses_are_told_as_they_can_be_joined(world, cluster, host, port, address):
    cluster.show(NodeView("me", "self", host, port, Status.ALIVE, 0))
    assert (await get(world, "/cluster/nodes"))["nodes"][0]["address"] == address


async def test_instances_are_sorted_and_have_loads_where_these_are_known(world, cluster):
    shared = instance("i2", weights="w1", blobs="6")
    load = LoadFacts("i2", 3, 4, 500, 0.25, 2000.0, 0.02)
    cluster.show(
        node("me", "b", instances=[shared, instance("i1")], loads=[load]),
        node("b1", "a", instances=[instance("i4", InstanceState.LOADING, resident=12)]),
        node("b2", "c", instances=[instance("i0", model="a")]),
        node("b3", "dead", Status.DEAD, instances=[instance("i5")]),
        node("b4", "left", Status.LEFT, instances=[instance("i6")]),
    )
    instances = (await get(world, "/cluster/instances"))["instances"]
    assert [item["id"] for item in instances] == ["i0", "i4", "i1", "i2"]
    assert instances[3] == {
        "id": "i2",
        "model": "m",
        "digest": "d1",
        "node": "b",
        "device": "cpu0",
        "role": "both",
        "state": "serving",
        "layers_resident": 30,
        "layers_total": 30,
        "weights": "w1",
        "blobs": [1, 2],
        "helps": None,
        "stage": None,
        "running": 3,
        "waiting": 4,
        "queued_tokens": 500,
        "kv_usage": 0.25,
        "prefill_tokens_per_s": 2000.0,
        "decode_step_s": 0.02,
        "load_age_s": 0.0,
    }
    loading = instances[1]
    assert (loading["state"], loading["layers_resident"]) == ("loading", 12)
    assert (loading["running"], loading["kv_usage"], loading["load_age_s"]) == (None, None, None)


async def test_models_are_counted_over_nodes(world, cluster):
    cluster.show(
        node(
            "me",
            "b",
            models=[ModelFacts("m", "d1", 30, 7, ("x",), "w1", disk=True, host_copies=1)],
            instances=[instance("i1"), instance("i2", InstanceState.LOADING)],
            copies=[CopyFacts("w1", "m", "cpu0", 100, complete=True)],
        ),
        node("b1", "a", models=[ModelFacts("m", "d1", 30, 6, ("w", "x"), "w1", host_copies=2)],
             copies=[CopyFacts("w1", "m", "cpu0", 100, "3")]),
        node("b2", "c", instances=[instance("i3")],
             copies=[CopyFacts("w1", "m", "cpu0", 100, complete=True),
                     CopyFacts("w2", "m", "cpu0", 100, complete=True)]),
        node("b3", "d", Status.DEAD, models=[ModelFacts("m", "d1", 30, 1)],
             instances=[instance("i4")], copies=[CopyFacts("w1", "m", "cpu0", 1, complete=True)]),
        node("b4", "e", copies=[CopyFacts("w1", "m", "cpu0", 1, complete=True, cached=True)]),
    )  # fmt: skip
    [model] = (await get(world, "/cluster/models"))["models"]
    assert model == {
        "name": "m",
        "aliases": ["w", "x"],
        "digest": "d1",
        "layers": 30,
        "since": 6,
        "nodes": ["a", "b"],
        "instances": {"loading": 1, "serving": 2},
        "weights": "w1",
        "host_copies": 2,
        "host_copies_wanted": 2,
        "host_cached": 1,
        "disks": ["b"],
        "conflict": False,
        "prevails": True,
        "terms": told_terms(ScaleTerms()),
        "wish": None,
        "scaling": None,
    }


async def test_how_a_models_number_is_decided_is_told_by_its_latest_owner(world, cluster):
    older = ModelFacts("m", "d1", 30, 5, scaling=ScaleTerms("auto", ttft_s=0.5, max_instances=8))
    first = ScaleFacts("m", "auto", 1, 1, since_s=100.0)
    second = ScaleFacts("m", "auto", 2, 3, 1.4, 4e9, 200.0, "more than it can serve")
    cluster.show(
        node("b1", "a", models=[ModelFacts("m", "d1", 30, 7)], scaling=[first],
             wishes=[ScaleWish("m", 4, 1, "b1")]),
        node("b2", "b", models=[older], scaling=[second], wishes=[ScaleWish("m", -1, 2, "b2")]),
        node("b3", "c", Status.DEAD, scaling=[ScaleFacts("m", "auto", 9, 9, since_s=300.0)],
             wishes=[ScaleWish("m", 9, 3, "b3")]),
    )  # fmt: skip
    [model] = (await get(world, "/cluster/models"))["models"]
    assert model["terms"]["ttft_s"] == 0.5, "those of the oldest definition"
    assert (model["terms"]["max_instances"], model["terms"]["idle_to_zero_s"]) == (8, None)
    assert model["wish"] == "auto"
    eta_s = model["scaling"].pop("eta_s")
    assert model["scaling"] == {
        "owner": "b", "mode": "auto", "present": 2, "wanted": 3, "pressure": 1.4,
        "reason": "more than it can serve",
    }  # fmt: skip
    assert 1e9 < eta_s < 4e9


def test_an_instance_is_expected_by_the_wall_clock():
    view = ClusterView("b1", {"b1": node("b1", "a", models=[ModelFacts("m", "d1", 30, 7)],
                                         scaling=[ScaleFacts("m", "auto", 1, 2, ready_s=105.5)],
                                         wishes=[ScaleWish("m", 0, 1, "b1")])})  # fmt: skip
    for now_s, eta_s in ((100.0, 5.5), (106.0, 0.0)):
        [model] = definitions(view, now_s)
        assert model["scaling"]["eta_s"] == eta_s
    assert model["wish"] == 0


async def test_a_name_that_nodes_define_differently_is_told_as_such(world, cluster):
    cluster.show(
        node("me", "a", models=[ModelFacts("m", "d2", 30, 7), ModelFacts("n", "d5", 1, 0)],
             instances=[instance("i1", digest="d2")]),
        node("b1", "b", models=[ModelFacts("m", "d3", 30, 5)]),
        node("b2", "c", models=[ModelFacts("m", "d1", 30, 7)]),
    )  # fmt: skip
    models = (await get(world, "/cluster/models"))["models"]
    told = [(m["name"], m["digest"], m["nodes"], m["conflict"], m["prevails"]) for m in models]
    assert told == [
        ("m", "d3", ["b"], True, True),
        ("m", "d1", ["c"], True, False),
        ("m", "d2", ["a"], True, False),
        ("n", "d5", ["a"], False, True),
    ]
    assert [m["instances"] for m in models] == [{}, {}, {"serving": 1}, {}]


async def test_requests_are_told_oldest_first_and_who_did_not_answer(world, cluster):
    cluster.show(node("me", "a"))
    cluster.found = RequestList(
        (
            RequestFacts("r2", "m", "b9", "", 2, 10, 0, 16, 1.5),
            RequestFacts("r1", "m", "me", "i1", 1, 10, 2, 16, 0.5),
        ),
        ("c", "z"),
    )
    body = await get(world, "/cluster/requests")
    assert [(r["id"], r["ingress"], r["instance"]) for r in body["requests"]] == [
        ("r2", "b9", None),
        ("r1", "a", "i1"),
    ]
    assert body["requests"][1] == {
        "id": "r1",
        "model": "m",
        "ingress": "a",
        "instance": "i1",
        "attempt": 1,
        "prompt_tokens": 10,
        "output_tokens": 2,
        "max_tokens": 16,
        "age_s": 0.5,
    }
    assert (body["unanswered"], body["truncated"]) == (["c", "z"], False)
    cluster.found = RequestList(cluster.found.requests[:1], (), truncated=True)
    body = await get(world, "/cluster/requests")
    assert (len(body["requests"]), body["truncated"]) == (1, True)


async def test_nodes_that_share_a_name_are_marked(world, cluster):
    twin = NodeView("b1", "a", "10.0.0.2", 7946, Status.ALIVE, 0)
    gone = NodeView("b3", "a", "10.0.0.3", 7946, Status.DEAD, 0)
    cluster.show(node("me", "a"), twin, node("b2", "b"), gone)
    nodes = (await get(world, "/cluster/nodes"))["nodes"]
    assert {n["boot"] for n in nodes if n["conflict"]} == {"me", "b1"}
