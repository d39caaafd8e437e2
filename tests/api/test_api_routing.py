"""What the router gets from the API besides the prompt, and its late refusals as statuses."""

import hashlib
from dataclasses import replace

import pytest

from blitzgw.errors import InvalidRequest, Overloaded, Unavailable

TEXT = {"model": "m", "prompt": "Hello"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
PATHS = [("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)]


@pytest.mark.parametrize(
    ("given", "session"),
    [
        ("abc", "/abc"),
        ("with blanks: [1]", "/with blanks: [1]"),
        ("x" * 256, "/" + "x" * 256),
        ("x" * 257, ""),
        ("", ""),
        ("späte", ""),
        (None, ""),
    ],
)
@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_a_session_is_taken_over(world, tools, path, body, given, session):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    headers = {} if given is None else {"X-Session-ID": given}
    status, _, _ = await world.post(path, body, headers=headers)
    assert status == 200
    assert world.generator.last[0].session == session


async def test_all_choices_are_of_one_session_and_tenants_share_none(make_world, tools):
    world = await make_world(api_keys=["sk-a", "sk-b"])
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    sessions = []
    for key in ("sk-a", "sk-b"):
        headers = {"Authorization": f"Bearer {key}", "x-session-id": "s"}
        await world.post("/v1/completions", TEXT | {"n": 3, "user": "u"}, headers=headers)
        of_key = {request.session for request, _ in list(world.generator.requests.values())[-3:]}
        assert of_key == {f"{hashlib.sha256(key.encode()).hexdigest()[:16]}/s"}
        sessions += of_key
    assert len(set(sessions)) == 2


async def test_requests_name_the_definition_that_they_were_tokenised_for(world, tools):
    table = world.services.models
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    for digest in ("", "d1", "d2"):
        table.replace([replace(entry, digest=digest) for entry in table.entries])
        for path, body in PATHS:
            await world.post(path, body | {"n": 2})
            requests = [request for request, _ in list(world.generator.requests.values())[-2:]]
            assert [request.digest for request in requests] == [digest, digest]


async def test_a_user_is_no_session(world, tools):
    world.generator.script = lambda r: tools.events(r, world.ids("Hi"))
    await world.post("/v1/completions", TEXT | {"user": "u"})
    assert world.generator.last[0].session == ""


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (Overloaded("full", retry_after_s=7.2), 429, "8"),
        (Overloaded("full"), 429, "1"),
        (Unavailable("none", retry_after_s=0.0), 503, "1"),
        (Unavailable("none", retry_after_s=1e9), 503, "120"),
        (InvalidRequest("too long", param="prompt"), 400, None),
    ],
)
async def test_a_refusal_that_comes_late_is_a_status(
    world, path, body, streamed, error, status, retry_after
):
    """Another node declines after the router has taken the request: nothing has been sent yet."""
    world.generator.script = lambda r: [error]
    world.generator.tick_s = 0.002
    got, headers, answer = await world.post(path, body | {"stream": streamed, "n": 2})
    assert (got, headers.get("Retry-After")) == (status, retry_after)
    assert headers["Content-Type"] == "application/json"
    assert headers["x-blitzgw-error-code"] == error.code
    assert (answer["error"]["message"], answer["error"]["param"]) == (error.message, error.param)
    assert len(world.generator.aborted) == 1  # the other choice
    assert world.server.active == 0
    rejections = world.services.metrics.model("m", 4096).rejections
    assert rejections == {error.code: 1}
