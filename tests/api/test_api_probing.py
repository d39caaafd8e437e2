"""Probes over HTTP: bodies, answers, and who may."""

import json

import aiohttp
import pytest

from blitzgw.core.probe import ProbeFacts, ProbeWish
from blitzgw.core.transfer import MAX_PROBE_BYTES, TrafficClass
from blitzgw.errors import Overloaded, Unavailable
from blitzgw.probeends import MAX_SECONDS
from tests.support.probing import FakeProbing
from tests.support.scalenode import ADMIN_KEY, scale_node
from tests.support.scaling import FakeScaling

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
WAY = {"source": "a/p0", "target": "b/p0"}


@pytest.fixture
def probing():
    return FakeProbing()


@pytest.fixture
async def call(probing):
    async with (
        scale_node(FakeScaling(), probing=probing, api_keys=["api"]) as port,
        aiohttp.ClientSession() as session,
    ):

        async def ask(body, headers=ADMIN):
            url = f"http://127.0.0.1:{port}/admin/v1/probe"
            async with session.post(url, json=body, headers=headers) as response:
                return response.status, json.loads(await response.read())

        yield ask


async def test_a_probe_is_answered_with_what_was_measured(call, probing):
    body = WAY | {"size_bytes": 5, "class": "kv", "seconds": 3, "network": "fast"}
    status, found = await call(body | {"rate_bytes_per_s": 1e6, "encrypt": True})
    assert status == 200
    assert found == {
        "bytes_per_s": 5e7,
        "payload_bytes": 100_000_000,
        "seconds": 2.0,
        "network": "fast",
        "yielded_s": 0.5,
        "delayed_s": 0.0,
    }
    assert probing.asked == [
        ProbeWish("a/p0", "b/p0", 5, 3.0, TrafficClass.KV, "fast", 1e6, encrypt=True)
    ]


async def test_what_is_not_said_has_a_default(call, probing):
    probing.answer = ProbeFacts("", 1, 0.0)
    assert (await call(WAY))[1]["bytes_per_s"] is None
    await call(WAY | {"seconds": 2.5})
    await call(WAY | {"network": ""})
    assert probing.asked == [
        ProbeWish("a/p0", "b/p0", 256 << 20, MAX_SECONDS),
        ProbeWish("a/p0", "b/p0", MAX_PROBE_BYTES, 2.5),
        ProbeWish("a/p0", "b/p0", 256 << 20, MAX_SECONDS, network=""),
    ]


WRONG = {
    "source": ({"target": "b/p0"}, "source"),
    "target": ({"source": "a/p0", "target": ""}, "target"),
    "class": (WAY | {"class": "gossip"}, "class"),
    "nothing": (WAY | {"size_bytes": 0}, "size_bytes"),
    "too much": (WAY | {"size_bytes": MAX_PROBE_BYTES + 1}, "size_bytes"),
    "no time": (WAY | {"seconds": 0}, "seconds"),
    "too long": (WAY | {"seconds": 61}, "seconds"),
    "rate": (WAY | {"rate_bytes_per_s": -1}, "rate_bytes_per_s"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_mistakes_are_told_by_field(call, probing, what):
    body, param = WRONG[what]
    status, answer = await call(body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert not probing.asked


async def test_a_misspelt_field_is_refused(call, probing):
    assert (await call(WAY | {"size": 5}))[0] == 400
    assert not probing.asked


async def test_refusals_are_passed_on(call, probing):
    probing.refusal = Unavailable("the probe has failed: b/p0 has died")
    assert (await call(WAY))[0] == 503
    probing.refusal = Overloaded("4 probes are under way here")
    assert (await call(WAY))[0] == 429


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer api"}])
async def test_only_the_admin_key_opens_it(call, probing, headers):
    assert (await call(WAY, headers))[0] in (401, 403)
    assert not probing.asked


async def test_without_the_port_there_is_nothing():
    async with scale_node(FakeScaling()) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/admin/v1/probe"
        async with session.post(url, json=WAY, headers=ADMIN) as response:
            assert response.status == 404
