"""Snapshots of a small cluster as `blitzgw top` gets them, and a node that tells one."""

from __future__ import annotations

import orjson

from blitzgw.api.operations import summary
from blitzgw.api.why import why as told_why
from blitzgw.cli.snapshot import Snapshot
from tests.api.why_kit import decision, why
from tests.cli.inspect_kit import instance, model, node
from tests.support.scaling import STARTED_S, chain

URL = "http://127.0.0.1:8000"


def json_of(value):
    return orjson.loads(orjson.dumps(value))


def explained(name="m", **more):
    past = [decision(name, 0.99, operation="op-1")]
    return json_of(told_why(why(name, past=past, **more)))


def scaling(**more):
    return {
        "owner": "node-2", "mode": "auto", "present": 1, "wanted": 3, "pressure": 1.64,
        "eta_s": 1.3, "reason": None,
    } | more  # fmt: skip


def loading(i, **more):
    return instance(
        id=f"m@node-{i}/cpu0", model="m", node=f"node-{i}", state="loading",
        layers_resident=7 * i - 4, helps="m@node-1/cpu0", running=0, waiting=0, kv_usage=0.0,
        decode_step_s=None, **more,
    )  # fmt: skip


def snapshot(**more):
    terms = explained()["terms"]
    calm = scaling(present=2, wanted=2, pressure=0.2, eta_s=None)
    facts = {
        "nodes": (node(), node("node-2"), node("node-3"), node("node-4", "dead", instances=0)),
        "instances": (
            instance(id="m@node-1/cpu0", model="m"),
            loading(2),
            loading(3, stage=[0, 12]),
            instance(id="other", model="smollm2-135m", node="node-3", running=0, waiting=0),
        ),
        "models": (
            model(name="m", terms=terms, wish=None, scaling=scaling()),
            model(terms=terms, wish=2, scaling=calm),
        ),
        "why": (explained(),),
        "operations": (json_of(summary(chain(at_s=2.0))),),
    }
    return Snapshot(URL, STARTED_S + 3, **{**facts, **more})


def answers(shown=None):
    """Return what a node answers: `answer(path, headers)`, as `inspect_kit.serving` wants it."""
    told = shown or snapshot()
    bodies = {
        "/cluster/nodes": {"nodes": told.nodes},
        "/cluster/instances": {"instances": told.instances},
        "/cluster/models": {"models": told.models},
        "/cluster/why": {"models": told.why},
        "/cluster/operations": {"operations": told.operations, "truncated": False},
    }
    return lambda path, headers: (200, bodies[path]) if path in bodies else (404, {})
