"""Why a model has as many instances as it has, and leaving that to its owner, over HTTP."""

import json
from dataclasses import replace

import aiohttp
import pytest

from blitzgw.api.why import MAX_LISTED
from blitzgw.core.scale import AUTOMATIC
from blitzgw.core.view import ScaleTerms
from blitzgw.errors import Unavailable
from tests.api.why_kit import INPUTS, QUANTILES, ExplainingScaling, decision, why
from tests.support.scalenode import ADMIN_KEY, scale_node
from tests.support.scaling import STARTED_S

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
SCALE = "/admin/v1/models/m/scale"


@pytest.fixture
def scaling():
    return ExplainingScaling(told={"m": why(past=[decision(operation="op-1")])})


@pytest.fixture
async def call(scaling):
    """Ask the node: `await call(method, path, body)` → status, headers, JSON."""
    async with scale_node(scaling) as port, aiohttp.ClientSession() as session:
        yield caller(session, port)


def caller(session, port):
    async def ask(method, path, body=None, headers=ADMIN):
        url = aiohttp.client.URL(f"http://127.0.0.1:{port}{path}", encoded=True)
        async with session.request(method, url, json=body, headers=headers) as response:
            return response.status, response.headers, json.loads(await response.read() or b"null")

    return ask


async def test_why_has_stable_keys_and_null_for_what_does_not_apply(call, scaling):
    status, _, body = await call("GET", "/cluster/models/m/why")
    assert status == 200
    assert list(body) == [
        "model", "owner", "mode", "wish", "terms", "now", "quantiles", "past",
    ]  # fmt: skip
    assert (body["mode"], body["wish"], body["quantiles"]) == ("auto", "auto", QUANTILES)
    assert body["terms"]["max_instances"] == 8
    assert body["now"]["action"] == "hold"
    assert body["past"] == [
        {
            "model": "m", "owner": "node-2", "at": STARTED_S, "action": "grow", "present": 1,
            "wanted": 3, "acted": True,
            "reason": "18400 prompt tokens are queued, 8.1 s of one instance",
            "formula": "backlog_tokens / (rate × 0.5 s)", "inputs": INPUTS, "operation": "op-1",
        }
    ]  # fmt: skip
    terms = ScaleTerms("manual", max_instances=0, idle_to_zero_s=0.0)
    bare = replace(decision(), reason="", formula="", inputs={"x_s": float("inf")})
    scaling.told["m"] = why(
        terms=terms, wish=None, now=bare, quantiles={"ttft_p50_s": float("nan")}
    )
    _, _, body = await call("GET", "/cluster/models/m/why")
    assert (body["wish"], body["past"]) == (None, [])
    assert (body["terms"]["max_instances"], body["terms"]["idle_to_zero_s"]) == (None, None)
    assert (body["now"]["reason"], body["now"]["formula"], body["now"]["operation"]) == (None,) * 3
    assert body["now"]["inputs"] == {"x_s": None}
    assert body["quantiles"] == {"ttft_p50_s": None}


@pytest.mark.parametrize(
    ("name", "model"), [("alias", "m"), ("org%2FModel-1B", "org/Model-1B"), ("org/x/scale",) * 2]
)
async def test_names_may_have_slashes_and_be_aliases(call, scaling, name, model):
    scaling.told[model] = why(model)
    status, _, body = await call("GET", f"/cluster/models/{name}/why")
    assert (status, body["model"]) == (200, model)


@pytest.mark.parametrize("name", ["nope", "*", "", "%ff%00", "..%2Fm"])
async def test_a_model_that_is_none_is_not_found(call, name):
    status, headers, _ = await call("GET", f"/cluster/models/{name}/why")
    assert status == 404
    assert headers["x-blitzgw-error-code"] in ("model_not_found", "not_found")


async def test_an_owner_that_does_not_answer_is_told(call, scaling):
    scaling.silent = True
    status, headers, body = await call("GET", "/cluster/models/m/why")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert "does not answer" in body["error"]["message"]
    assert (await call("GET", "/cluster/why"))[2] == {"models": []}
    assert (await call("GET", "/cluster/decisions"))[2] == {"decisions": [], "truncated": False}


async def test_decisions_of_all_models_are_listed_newest_first_and_bounded(call, scaling):
    scaling.told["m"] = why(past=[decision(at_s=5.0), decision(at_s=1.0)])
    scaling.told["a"] = why("a", past=[decision("a", 5.0), decision("a", 3.0)])
    _, _, body = await call("GET", "/cluster/decisions")
    told = [(each["model"], each["at"] - STARTED_S) for each in body["decisions"]]
    assert told == [("a", 5.0), ("m", 5.0), ("a", 3.0), ("m", 1.0)]
    assert body["truncated"] is False
    assert [each["model"] for each in (await call("GET", "/cluster/why"))[2]["models"]] == [
        "a", "m",
    ]  # fmt: skip
    scaling.told["m"] = why(past=[decision(at_s=float(i)) for i in range(300)])
    _, _, body = await call("GET", "/cluster/decisions")
    assert (len(body["decisions"]), body["truncated"]) == (MAX_LISTED, True)


@pytest.mark.parametrize("automatic", [True, False])
async def test_a_model_is_left_to_its_owner(call, scaling, automatic):
    scaling.automatic = automatic
    status, headers, body = await call("POST", SCALE, {"instances": "auto"})
    assert (status, scaling.asked) == (200, [("m", AUTOMATIC, False, "")])
    assert "Location" not in headers
    assert (body["model"], body["instances"]) == ("m", "auto")
    assert body["why"]["now"]["action"] == "hold"


async def test_an_owner_that_has_nothing_to_say_yet_is_no_failure(call, scaling, monkeypatch):
    scaling.silent = True
    _, _, body = await call("POST", SCALE, {"instances": "auto"})
    assert body == {"model": "m", "instances": "auto", "why": None}

    async def refuse(_model):
        raise Unavailable("not now")

    monkeypatch.setattr(scaling, "why", refuse)
    status, _, body = await call("POST", SCALE, {"instances": "auto", "dry_run": False})
    assert (status, body["why"]) == (200, None)
    scaling.refusal = Unavailable("no owner", retry_after_s=2.0)
    status, headers, _ = await call("POST", SCALE, {"instances": "auto"})
    assert (status, headers["Retry-After"]) == (503, "2")


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"instances": "automatic"}, "instances", '0 to 4096, or "auto"'),
        ({"instances": ""}, "instances", '"auto"'),
        ({"instances": -1}, "instances", '"auto"'),
        ({"instances": "auto", "dry_run": True}, "dry_run", "/why"),
        ({"instances": "auto", "strategy": "chain"}, "strategy", "goes with a number"),
        ({"instances": "auto", "policy": "stop"}, "policy", "goes with a number"),
    ],
)
async def test_what_cannot_be_meant_is_refused_and_says_what_would_be(
    call, scaling, body, param, says
):
    status, _, answer = await call("POST", SCALE, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert says in answer["error"]["message"]
    assert scaling.asked == []


async def test_reasons_are_for_reading_only(call):
    for path in ("/cluster/why", "/cluster/decisions", "/cluster/models/m/why"):
        status, headers, _ = await call("POST", path, {})
        assert (status, headers["Allow"]) == (405, "GET")
    for path in ("/cluster/models/m", "/cluster/models/why", "/cluster/models//why"):
        status, headers, _ = await call("GET", path)
        assert (status, headers["x-blitzgw-error-code"]) == (404, "not_found")


async def test_either_key_reads_reasons_and_only_the_admin_key_leaves_a_model_alone(scaling):
    async with (
        scale_node(scaling, api_keys=["api-key"]) as port,
        aiohttp.ClientSession() as session,
    ):
        ask = caller(session, port)
        for path in ("/cluster/why", "/cluster/decisions", "/cluster/models/m/why"):
            assert (await ask("GET", path, headers={}))[0] == 401
            for headers in (ADMIN, {"Authorization": "Bearer api-key"}):
                assert (await ask("GET", path, headers=headers))[0] == 200
        status, _, _ = await ask(
            "POST", SCALE, {"instances": "auto"}, {"Authorization": "Bearer api-key"}
        )
        assert (status, scaling.asked) == (401, [])


async def test_without_operations_nobody_says_why():
    async with scale_node(None) as port, aiohttp.ClientSession() as session:
        for path in ("/cluster/why", "/cluster/decisions", "/cluster/models/m/why"):
            assert (await caller(session, port)("GET", path))[0] == 404
