"""Scaling over HTTP: bodies, names, answers, and who may."""

import asyncio
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from blitzgw.api.admin import AdminGuard, admin_guard
from blitzgw.api.bodies import ScaleBody
from blitzgw.api.decode import decode
from blitzgw.api.operations import whole
from blitzgw.config import ClusterConfig, Config, HttpConfig
from blitzgw.core.live import Pair, StagePlan
from blitzgw.core.span import Span
from blitzgw.errors import InvalidRequest, RequestError, Unavailable
from tests.support.scalenode import ADMIN_KEY, scale_node
from tests.support.scaling import BLOBS, SIZE_BYTES, FakeScaling, chain, from_disk

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


@pytest.fixture
def scaling():
    return FakeScaling()


@pytest.fixture
async def call(scaling):
    """Ask the node: `await call(method, path, body, headers)` → status, headers, JSON."""
    async with scale_node(scaling) as port, aiohttp.ClientSession() as session:
        yield caller(session, port)


def caller(session, port):
    async def ask(method, path, body=None, headers=ADMIN, json_type=True):
        data = body if isinstance(body, bytes | io.BytesIO | None) else json.dumps(body).encode()
        more = {"Content-Type": "application/json"} if json_type and data is not None else {}
        url = aiohttp.client.URL(f"http://127.0.0.1:{port}{path}", encoded=True)
        async with session.request(method, url, data=data, headers={**headers, **more}) as response:
            return response.status, response.headers, json.loads(await response.read() or b"null")

    return ask


SCALE = "/admin/v1/models/m/scale"


async def test_a_scale_begins_an_operation_and_tells_where_it_is(call, scaling):
    status, headers, body = await call("POST", SCALE, {"instances": 4})
    assert status == 202
    assert scaling.asked == [("m", 4, False, "")]
    assert headers["Location"] == f"/cluster/operations/{body['id']}"
    assert (body["model"], body["instances_before"], body["instances_wanted"]) == ("m", 1, 4)
    status, _, again = await call("GET", headers["Location"])
    assert (status, again) == (200, body)


async def test_a_dry_run_and_nothing_to_do_are_no_beginnings(call, scaling):
    status, headers, body = await call(
        "POST", SCALE, {"instances": 2, "dry_run": True, "strategy": "chain"}
    )
    assert (status, body["state"], body["ended"]) == (200, "planned", True)
    assert "Location" not in headers
    assert scaling.asked == [("m", 2, True, "chain")]
    status, _, body = await call("POST", SCALE, {"instances": 1, "dry_run": None, "strategy": None})
    assert (status, body["state"], body["targets"]) == (200, "done", [])
    assert (body["predicted_s"]["complete"], body["strategy"]) == (None, None)


@pytest.mark.parametrize("policy", ["auto", "stop", "best-effort", "zigzag", "pipeline", "", None])
async def test_a_live_policy_is_passed_on(call, scaling, policy):
    assert (await call("POST", SCALE, {"instances": 4, "policy": policy}))[0] == 202
    assert scaling.policies == [policy or ""]


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/admin/v1/models/org/Model-1B/scale", "org/Model-1B"),
        ("/admin/v1/models/org%2FModel-1B/scale", "org/Model-1B"),
        ("/admin/v1/models/org%2fx%2Fscale/scale", "org/x/scale"),
        ("/admin/v1/models/alias/scale", "m"),
    ],
)
async def test_names_may_have_slashes_and_be_aliases(call, scaling, path, model):
    assert (await call("POST", path, {"instances": 2}))[0] == 202
    assert scaling.asked == [(model, 2, False, "")]


@pytest.mark.parametrize(
    "path",
    ["/admin/v1/models/nope/scale", "/admin/v1/models//scale", "/admin/v1/models/*/scale",
     "/admin/v1/models/..%2F..%2Fm/scale", "/admin/v1/models/%ff%00/scale"],
)  # fmt: skip
async def test_an_unknown_model_is_not_found_whatever_answers_to_every_name(call, scaling, path):
    status, headers, body = await call("POST", path, {"instances": 2})
    assert (status, scaling.asked) == (404, [])
    assert body["error"]["code"] == 404
    assert headers["x-blitzgw-error-code"] in ("model_not_found", "not_found")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "instances"),
        ({"instances": None}, "instances"),
        ({"instances": -1}, "instances"),
        ({"instances": 4097}, "instances"),
        ({"instances": 10**30}, None),
        ({"instances": "4"}, "instances"),
        ({"instances": 1.5}, "instances"),
        ({"instances": True}, "instances"),
        ({"instances": 4, "dryrun": True}, None),
        ({"instances": 4, "dry_run": "yes"}, "dry_run"),
        ({"instances": 4, "strategy": "../chain"}, "strategy"),
        ({"instances": 4, "strategy": "x" * 65}, "strategy"),
        ({"instances": 4, "strategy": 3}, "strategy"),
        ({"instances": 4, "strategy": "spiral"}, "strategy"),
        ({"instances": 4, "policy": "zagzig"}, "policy"),
        ({"instances": 4, "policy": "ZIGZAG"}, "policy"),
        ({"instances": 4, "policy": 1}, "policy"),
        ([4], None),
        (b"{", None),
        (b"", None),
        (b"\xff", None),
        (b'{"instances": NaN}', None),
        (b"[" * 100_000, None),
    ],
)
async def test_bodies_that_cannot_be_meant_are_refused(call, scaling, body, param):
    status, _, answer = await call("POST", SCALE, body)
    assert status == 400
    if param is not None:
        assert answer["error"]["param"] == param
    assert scaling.known == {}


async def test_only_json_is_taken_and_only_so_much(call, scaling):
    status, _, _ = await call("POST", SCALE, b'{"instances": 4}', json_type=False)
    assert status == 415
    status, _, _ = await call("POST", SCALE, io.BytesIO(b" " * (17 << 20)))
    assert status == 413
    assert scaling.asked == []


async def test_the_bounds_themselves_are_right(call, scaling):
    scaling.instances = 2000
    assert (await call("POST", SCALE, {"instances": 0, "dry_run": True}))[0] == 200
    assert (await call("POST", SCALE, {"instances": 4096, "dry_run": True}))[0] == 200


async def test_what_the_node_refuses_is_told(call, scaling):
    scaling.refusal = Unavailable("no device is free for m", retry_after_s=7.2)
    status, headers, body = await call("POST", SCALE, {"instances": 4})
    assert (status, headers["Retry-After"]) == (503, "8")
    assert body["error"]["message"] == "no device is free for m"


async def test_operations_are_listed_newest_first_each_once_and_bounded(call, scaling):
    assert (await call("GET", "/cluster/operations"))[2] == {"operations": [], "truncated": False}
    for number in (3, 1, 2):
        scaling.known[f"op-{number}"] = chain(at_s=1.0, number=number)
    scaling.known["copy"] = chain(at_s=0.5, number=3)  # the same, as another node knew it before
    _, _, body = await call("GET", "/cluster/operations")
    assert [item["id"] for item in body["operations"]] == ["op-3", "op-2", "op-1"]
    assert body["operations"][0]["elapsed_s"] == 1.0
    assert "events" not in body["operations"][0]
    for number in range(300):
        scaling.known[f"op-{number}"] = chain(wanted=1, number=number)
    _, _, body = await call("GET", "/cluster/operations")
    assert (len(body["operations"]), body["truncated"]) == (256, True)


async def test_ids_may_have_any_form(call, scaling):
    scaling.known["node-1/3 ä"] = replace(chain(), id="node-1/3 ä")
    assert (await call("GET", "/cluster/operations/node-1%2F3%20%C3%A4"))[0] == 200
    status, headers, body = await call("GET", "/cluster/operations/node-1")
    assert (status, headers["x-blitzgw-error-code"]) == (404, "operation_not_found")
    assert "no living node knows" in body["error"]["message"]
    status, _, body = await call("POST", "/admin/v1/operations/node-1%2F3%20%C3%A4/cancel")
    assert (status, body["state"]) == (200, "cancelled")


@pytest.mark.parametrize("body", [None, b"", {}])
async def test_an_operation_is_cancelled_with_or_without_a_body(call, scaling, body):
    scaling.known["op-1"] = chain()
    status, _, answer = await call("POST", "/admin/v1/operations/op-1/cancel", body)
    assert (status, answer["state"], answer["ended"]) == (200, "cancelled", True)
    assert answer["reason"] == "cancelled by hand"


async def test_a_cancel_with_something_to_say_is_refused(call, scaling):
    scaling.known["op-1"] = chain()
    path = "/admin/v1/operations/op-1/cancel"
    assert (await call("POST", path, {"force": True}))[0] == 400
    assert (await call("POST", path, b"x", json_type=False))[0] == 415
    assert (await call("POST", "/admin/v1/operations/op-2/cancel"))[0] == 404
    assert scaling.known["op-1"].state == "transferring"


async def test_other_methods_and_paths_are_none(call):
    assert (await call("GET", SCALE))[0] == 405
    assert (await call("POST", "/cluster/operations", {}))[0] == 405
    assert (await call("DELETE", "/cluster/operations/op-1"))[0] == 405
    for path in ("/admin", "/admin/", "/admin/v1/models/m", "/admin/v2/models/m/scale"):
        assert (await call("POST", path, {}))[0] == 404


async def test_without_operations_there_are_no_such_routes():
    async with scale_node(None) as port, aiohttp.ClientSession() as session:
        ask = caller(session, port)
        assert (await ask("POST", SCALE, {"instances": 2}))[0] == 404
        assert (await ask("GET", "/cluster/operations"))[0] == 404


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {ADMIN_KEY}", ADMIN_KEY,
     f"Bearer {ADMIN_KEY}x", f"Bearer {ADMIN_KEY[:-1]}", "Bearer api-key", "Bearer schl\u00fcssel"],
)  # fmt: skip
async def test_without_the_admin_key_nothing_changes(scaling, authorization):
    async with (
        scale_node(scaling, api_keys=["api-key"]) as port,
        aiohttp.ClientSession() as session,
    ):
        ask = caller(session, port)
        headers = {} if authorization is None else {"Authorization": authorization}
        scaling.known["op-1"] = chain()
        for path in (
            SCALE,
            "/admin/v1/operations/op-1/cancel",
            "/admin/anything",
            "/%61dmin/v1/models/m/scale",
        ):
            status, answer, body = await ask("POST", path, {"instances": 2}, headers)
            assert (status, answer["WWW-Authenticate"]) == (401, "Bearer")
            assert body["error"]["type"] == "AuthenticationError"
            assert "http.admin_key_file" in body["error"]["message"]
            assert ADMIN_KEY not in body["error"]["message"]
        assert scaling.asked == []
        assert scaling.known["op-1"].state == "transferring"


async def test_the_admin_key_reads_operations_and_nothing_else(scaling):
    async with (
        scale_node(scaling, api_keys=["api-key"]) as port,
        aiohttp.ClientSession() as session,
    ):
        ask = caller(session, port)
        scaling.known["op-1"] = chain()
        for headers in (ADMIN, {"Authorization": "Bearer api-key"}):
            assert (await ask("GET", "/cluster/operations", headers=headers))[0] == 200
            assert (await ask("GET", "/cluster/operations/op-1", headers=headers))[0] == 200
        assert (await ask("GET", "/cluster/operations", headers={}))[0] == 401
        assert (await ask("GET", "/v1/models"))[0] == 401
        assert (await ask("POST", SCALE, {"instances": 2}))[0] == 202


async def test_either_of_two_keys_is_the_admin_key(scaling):
    keys = ["b" * 32, "c" * 32]
    async with (
        scale_node(scaling, admin_keys=keys) as port,
        aiohttp.ClientSession() as session,
    ):
        ask = caller(session, port)
        for key in keys:
            headers = {"Authorization": f"bearer  {key} "}
            assert (await ask("POST", SCALE, {"instances": 2}, headers))[0] == 202


async def test_a_node_without_an_admin_key_changes_nothing(scaling):
    async with scale_node(scaling, admin_keys=()) as port, aiohttp.ClientSession() as session:
        ask = caller(session, port)
        status, _, body = await ask("POST", SCALE, {"instances": 2})
        assert (status, body["error"]["message"]) == (403, "this node has no admin key")
        assert (await ask("GET", "/cluster/operations"))[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 202),
        ("10.0.0.5", 202),
        ("[::1]:8000", 202),
        ("localhost:8000", 202),
        ("LOCALHOST", 202),
        ("a.localhost:1", 202),
        ("gw.example.com", 202),
        ("GW.example.com.:8000", 202),
        ("evil.example.com", 403),
        ("gw.example.com.evil.com", 403),
        ("localhost.evil.com", 403),
        ("evil-localhost", 403),
        ("127.0.0.1.evil.com", 403),
        ("127.0.0.1@evil.com", 403),
        ("", 403),
        ("[evil]", 403),
        ("0x7f000001", 403),
    ],
)
async def test_names_that_are_not_the_nodes_are_refused(scaling, host, status):
    async with (
        scale_node(scaling, hosts=["gw.example.com", "", "0.0.0.0"]) as port,
        aiohttp.ClientSession() as session,
    ):
        ask = caller(session, port)
        answer, headers, body = await ask("POST", SCALE, {"instances": 2}, {**ADMIN, "Host": host})
        assert answer == status
        if status == 403:
            assert headers["x-blitzgw-error-code"] == "foreign_host"
            assert "http.host" in body["error"]["message"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 202),
        ("https://LOCALHOST:8000", 202),
        ("http://localhost", 403),
        ("http://localhost:9000", 403),
        ("http://evil.example.com", 403),
        ("http://localhost:8000.evil.com", 403),
        ("http://x@localhost:8000", 403),
        ("file://localhost:8000", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
async def test_pages_of_other_sites_are_refused(scaling, origin, status):
    async with scale_node(scaling) as port, aiohttp.ClientSession() as session:
        ask = caller(session, port)
        headers = {**ADMIN, "Host": "localhost:8000", "Origin": origin}
        answer, told, body = await ask("POST", SCALE, {"instances": 2}, headers)
        assert answer == status
        if status == 403:
            assert told["x-blitzgw-error-code"] == "foreign_origin"
            assert body["error"]["type"] == "PermissionDeniedError"


def test_the_guard_of_a_node_makes_its_key_and_knows_the_nodes_names(tmp_path):
    path = tmp_path / "admin.key"
    config = Config(
        http=HttpConfig(host="api.example.com", admin_key_file=str(path)),
        cluster=ClusterConfig(advertise="gw.example.com"),
    )
    guard = admin_guard(config)
    key = path.read_text().strip()
    assert guard.knows(f"Bearer {key}")
    for host in ("api.example.com", "gw.example.com:80"):
        headers = CIMultiDict({"Authorization": f"Bearer {key}", "Host": host})
        guard.check(SimpleNamespace(headers=headers))
    assert admin_guard(config).knows(f"Bearer {key}")


# -- the form of an operation ----------------------------------------------------------------------


def test_an_operation_is_told_with_stable_keys_and_null_for_what_is_not_known():
    told = whole(chain(at_s=2.0))
    assert list(told) == [
        "id", "kind", "model", "digest", "weights", "owner", "state", "ended", "reason", "started",
        "elapsed_s", "instances_before", "instances_wanted", "strategy", "policy", "epoch",
        "predicted_s", "alternatives", "policies", "size_bytes", "targets", "edges", "reads",
        "pairs", "pipelines", "events",
    ]  # fmt: skip
    assert (told["reason"], told["ended"]) == (None, False)
    assert (told["policy"], told["policies"], told["pairs"]) == (None, [], [])
    assert [a["strategy"] for a in told["alternatives"]] == ["binomial", "star"]
    [first, *_] = told["targets"]
    assert (first["blobs"], first["arrived"], first["ready_s"]) == (BLOBS, 1, None)
    assert first["arrived_s"][1:] == [None] * (BLOBS - 1)
    assert first["resident_bytes"] == told["edges"][0]["received_bytes"]
    assert told["events"][0] == {
        "at_s": 0.0, "what": "decided", "about": None, "detail": "by hand",
    }  # fmt: skip


def test_a_live_policy_and_what_it_brings_stand_apart_from_strategies():
    facts = chain(at_s=1.0)
    means = {"policy zigzag": 1.4, "policy stop": 1.9}
    told = whole(
        replace(
            facts,
            policy="zigzag",
            pairs=(Pair("node-2/cpu0", "m@node-1/cpu0"),),
            pipelines=(
                (StagePlan("node-2/cpu0", Span(0, 9)), StagePlan("node-3/cpu0", Span(9, 30))),
            ),
            alternatives={**facts.alternatives, **means},
        )
    )
    assert [a["strategy"] for a in told["alternatives"]] == ["binomial", "star"]
    assert told["policies"] == [
        {"policy": "zigzag", "predicted_mean_s": 1.4},
        {"policy": "stop", "predicted_mean_s": 1.9},
    ]
    assert told["pairs"] == [{"worker": "node-2/cpu0", "home": "m@node-1/cpu0"}]
    assert told["pipelines"] == [
        [
            {"worker": "node-2/cpu0", "layers": [0, 9]},
            {"worker": "node-3/cpu0", "layers": [9, 30]},
        ]
    ]


def test_what_a_target_has_is_its_size_less_what_it_is_owed():
    assert [t["resident_bytes"] for t in whole(chain(at_s=9.0))["targets"]] == [SIZE_BYTES] * 3
    reading = whole(from_disk(chain(at_s=3.0)))["targets"][0]
    assert (reading["arrived"], reading["resident_bytes"]) == (2, SIZE_BYTES // 2)
    facts = chain(at_s=3.0)
    claimed = whole(replace(facts, edges=()))["targets"][0]
    assert claimed["resident_bytes"] == SIZE_BYTES // 2
    short = replace(facts, targets=(replace(facts.targets[0], arrived_s=(), predicted_s=()),))
    assert whole(replace(short, edges=()))["targets"][0]["resident_bytes"] == 0


def test_times_that_are_none_are_null():
    told = whole(replace(chain(), predicted_s=float("inf"), first_blob_s=float("nan")))
    assert told["predicted_s"]["complete"] is None
    assert told["predicted_s"]["first_blob"] is None


# -- as bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Host: localhost\r\n", 202),
        ("Host: localhost\r\nHost: evil.example.com\r\n", (400, 403)),
        ("Host: evil.example.com\r\nHost: localhost\r\n", (400, 403)),
        ("", (400, 403)),
        ("Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.com\r\n", (400, 403)),
    ],
)
async def test_heads_that_say_two_things_or_nothing_are_refused(scaling, head, status):
    body = b'{"instances": 2}'
    for version in ("1.0", "1.1"):
        async with scale_node(scaling) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"POST {SCALE} HTTP/{version}\r\n{head}Authorization: Bearer {ADMIN_KEY}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                f"Connection: close\r\n\r\n".encode()
                + body
            )
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            await writer.wait_closed()
        told = int(answer.split()[1])
        assert told in (status if isinstance(status, tuple) else (status,))


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_guard_refuses_whatever_is_made_up_and_never_fails(host, origin):
    guard = AdminGuard([ADMIN_KEY], ["gw.example.com"])
    headers = {**ADMIN, "Host": host, "Origin": origin}
    request = SimpleNamespace(headers=CIMultiDict(headers))
    try:
        guard.check(request)
        refused = None
    except RequestError as error:
        refused = error.status
    own = origin.partition("://")[2].lower() == host.lower()
    assert refused == 403 or (refused is None and own)


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_body_is_a_scale_or_a_mistake(data):
    try:
        body = decode(data, ScaleBody)
    except InvalidRequest:
        return
    assert set(json.loads(data)) <= {"instances", "dry_run", "strategy"}
    assert body.instances is None or isinstance(body.instances, int)
