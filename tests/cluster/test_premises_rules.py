"""Why a node refuses to have a model on one of its devices."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from blitzgw.config import Config
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import DeviceKind, DeviceSpec, InstanceState, PacedCost
from blitzgw.core.view import HostFacts
from blitzgw.definitions import Definitions
from blitzgw.placement import load_models
from blitzgw.premises import Premises, definition_for_scaling

NAME = "smollm2-135m"


@pytest.fixture(scope="module")
def loaded():
    return load_models(Config())


def definitions(loaded, pin=""):
    models = [replace(m, config=replace(m.config, digest=pin)) for m in loaded]
    made = Definitions(models, MonotonicClock(), None)
    made.open(lambda: None)
    return made


def runner(**changes):
    made = {
        "node": "n",
        "device": SimpleNamespace(kind=DeviceKind.PACED),
        "instances": {},
        "memory_bytes": 1 << 40,
        "up": True,
        "claim": 7,
    }
    return SimpleNamespace(**{**made, **changes})


def objection(known, digest="", *, draining=False, model=NAME, **changes):
    premises = Premises(
        {"g0": runner(**changes)}, known, {}, lambda: HostFacts(0), lambda: draining
    )
    return premises.objection("g0", model, digest or known.digest_of(NAME))


def test_a_free_device_takes_what_is_known(loaded):
    assert objection(definitions(loaded)) == ""


def test_what_a_token_weighs_on_a_link(loaded):
    known = definitions(loaded)
    of_cpu = definition_for_scaling(known, NAME, [DeviceSpec("cpu0", DeviceKind.CPU)])
    shape, dtype = loaded[0].spec.shape, loaded[0].spec.dtype
    assert of_cpu.hidden_bytes == shape.hidden * dtype.size_bytes
    assert of_cpu.kv_layer_bytes * shape.n_layers == shape.kv_bytes_per_token(dtype)
    cost = PacedCost(kv_bytes=96, hidden_bytes=48)
    paced = definition_for_scaling(known, NAME, [DeviceSpec("p", DeviceKind.PACED, cost=cost)])
    assert (paced.hidden_bytes, paced.kv_layer_bytes) == (48, 96)
    assert definition_for_scaling(known, "nobody's", []) is None


def test_the_configured_live_policy_is_published(loaded):
    stopping = [replace(m, config=replace(m.config, live="stop")) for m in loaded]
    made = Definitions(stopping, MonotonicClock(), None)
    made.open(lambda: None)
    assert [facts.live for facts in made.facts()] == ["stop"]
    assert [facts.live for facts in definitions(loaded).facts()] == ["auto"]


def test_what_is_in_the_way_is_said(loaded):
    known = definitions(loaded)
    there = SimpleNamespace(state=InstanceState.SERVING, served=SimpleNamespace(model="x"))
    assert "draining" in objection(known, draining=True)
    assert "has an instance of x" in objection(known, instances={"x@n/g0": there})
    assert "does not know this definition" in objection(known, "0" * 64)
    assert "does not know this definition" in objection(known, model="another")
    assert "needs" in objection(known, memory_bytes=1 << 20)
    assert "computes nothing" in objection(known, device=SimpleNamespace(kind=DeviceKind.HOST))
    gone = SimpleNamespace(state=InstanceState.GONE, served=SimpleNamespace(model="x"))
    assert objection(known, instances={"x@n/g0": gone}) == ""


def test_a_pinned_name_is_not_given_to_other_weights(loaded):
    own = definitions(loaded, loaded[0].spec.weights)
    assert objection(own) == ""
    pinned = definitions(loaded, "f" * 64)
    assert "with other weights only" in objection(pinned)
