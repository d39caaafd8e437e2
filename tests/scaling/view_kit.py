"""Views of a cluster, made by hand."""

from __future__ import annotations

from dataclasses import replace

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.rumours import Status
from blitzgw.core.view import (
    ClusterView,
    DeviceFacts,
    HostFacts,
    InstanceFacts,
    ModelFacts,
    NetworkFacts,
    NodeFacts,
    NodeView,
)
from blitzgw.scaling.holders import holders_of
from blitzgw.scaling.survey import ModelDefinition

W = "w" * 64
MODEL = ModelDefinition("m", "d" * 64, W, (10, 20, 20, 10))
SOFTWARE = {"layout": "1"}


def device(name, **changes):
    made = DeviceFacts(name, DeviceKind.CPU, "x", 1000, 3, SOFTWARE, {"net": 77})
    return replace(made, **changes)


def instance(where, blobs="f", state=InstanceState.SERVING, weights=W, model="m"):
    return InstanceFacts(
        f"{model}@{where}", model, "d", where, 3, state, 2, 2, weights=weights, blobs=blobs
    )


def node(name, *, devices=1, instances=(), copies=(), disk=False, net=None, zone="", **changes):
    found = devices
    if isinstance(devices, int):
        found = {f"g{i}": device(f"g{i}") for i in range(devices)}
    made = NodeView(
        boot=f"boot-{name}",
        name=name,
        host="h",
        port=1,
        status=Status.ALIVE,
        started_s=0,
        facts=NodeFacts(name, ""),
        devices=found,
        models={"m": ModelFacts("m", "d", 2, 0, weights=W, disk=disk)},
        instances={i.id: i for i in instances},
        copies={c.device: c for c in copies},
        host_facts=HostFacts(100, zone=zone, networks=(net or NetworkFacts("net", "h", 100.0),)),
    )
    return replace(made, **changes)


def view(*nodes):
    return ClusterView(nodes[0].boot if nodes else "", {n.boot: n for n in nodes})


def holders(definition, view, targets=()):
    """Return all who can give blobs of a model."""
    return holders_of(definition, view, targets)[0]
