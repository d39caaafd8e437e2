"""What the page shows of the cluster: parts for a board, from the views that `/cluster/…` tells.

    here            of the node that is asked, one item: {"node", "version", "accepting", "reason",
                    "missing"}, the last the parts that it could not learn of
    nodes           by boot id
    instances       by boot id and id; `resident` are the layers that are there, as [from, to)
    models          by name: the definitions that hold; `ready` is when the next instance serves
    measured        by model: what its owner measures and has decided last
    operations      by id, with targets and edges as long as they run

What is not known is null. Instead of ages and of times to wait there is Unix time: those would
change all the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from blitzgw.api.board import Parts
from blitzgw.api.definitions import definitions
from blitzgw.api.operations import newest_first, whole
from blitzgw.api.status import NodeStatus
from blitzgw.api.why import decision
from blitzgw.core.instance import InstanceState
from blitzgw.core.operation import OperationFacts
from blitzgw.core.scale import WhyFacts
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    InstanceFacts,
    LoadFacts,
    NodeView,
    blobs_in,
)

MAX_OPERATIONS = 12
"""Of those that have ended, the newest tell how the last ones went; nobody scrolls on a page."""

EPOCH_S = 0.0
"""As seen from there, the time to wait for something is the time at which it comes."""

FIGURES = 3
"""Significant ones of what is measured: more would be noise, and a change each time."""

_MODEL = ("name", "aliases", "layers", "nodes", "host_copies", "conflict", "terms", "wish")
_OPERATION = (
    "id", "kind", "model", "owner", "state", "ended", "reason", "started", "elapsed_s",
    "instances_before", "instances_wanted", "strategy", "policy", "predicted_s", "size_bytes",
)  # fmt: skip
_TARGET = ("worker", "state", "reason", "ready_s", "resident_bytes", "blobs", "arrived")
_EDGE = ("source", "target", "network", "state", "size_bytes", "received_bytes", "rate_bytes_per_s")


class Sight:
    """Forms what is seen of nodes; of those that are as they were, not again."""

    def __init__(self) -> None:
        self._view: ClusterView | None = None
        self._parts: dict[str, dict[str, Any]] = {}
        self._formed: dict[str, tuple[NodeView, dict[str, Any], dict[str, Any]]] = {}

    def parts(self, view: ClusterView) -> dict[str, dict[str, Any]]:
        """Return nodes, instances and models."""
        if view is not self._view:
            self._view, self._parts = view, self._form(view)
        return self._parts

    def _form(self, view: ClusterView) -> dict[str, dict[str, Any]]:
        self._formed = {boot: self._of(node) for boot, node in view.nodes.items()}
        nodes = {boot: formed[1] for boot, formed in self._formed.items()}
        for twins in view.namesakes().values():
            for twin in twins:
                nodes[twin.boot] = nodes[twin.boot] | {"conflict": True}
        instances: dict[str, Any] = {}
        for _, _, own in self._formed.values():
            instances.update(own)
        held = (model for model in definitions(view, EPOCH_S) if model["prevails"])
        return {
            "nodes": nodes,
            "instances": instances,
            "models": {model["name"]: _model(model) for model in held},
        }

    def _of(self, node: NodeView) -> tuple[NodeView, dict[str, Any], dict[str, Any]]:
        known = self._formed.get(node.boot)
        if known is not None and known[0] is node:
            return known
        there = node.instances.values() if node.living else ()
        instances = {
            f"{node.boot} {facts.id}": _instance(node, facts)
            for facts in there
            if facts.state != InstanceState.GONE
        }
        return node, _node(node), instances


def passing(parts: Parts) -> frozenset[str]:
    """Return the instances that come or go: where these change, an operation begins or ends."""
    states = (InstanceState.LOADING, InstanceState.DRAINING)
    return frozenset(key for key, item in parts["instances"].items() if item["state"] in states)


def here(node: str, version: str, status: NodeStatus, missing: Sequence[str]) -> dict[str, Any]:
    """Return what is told of the node that is asked."""
    return {
        "node": node,
        "version": version,
        "accepting": status.accepting,
        "reason": None if status.accepting else status.reason or "not accepting requests",
        "missing": list(missing),
    }


def measured(whys: Iterable[WhyFacts]) -> dict[str, Any]:
    """Return what owners tell of their models."""
    return {
        why.model: {
            "quantiles": {name: _rounded(s) for name, s in why.quantiles.items()},
            "last": decision(why.past[0]) if why.past else None,
        }
        for why in whys
    }


def operations(
    found: Iterable[OperationFacts], running: Mapping[str, OperationFacts]
) -> dict[str, Any]:
    """Return the newest operations and those that run, of which `running` has the parts, by id."""
    listed = newest_first([*found, *running.values()])
    items: dict[str, Any] = {}
    for facts in listed:
        if facts.id in running or len(items) < MAX_OPERATIONS:
            items[facts.id] = _operation(facts, running.get(facts.id))
    return items


def _operation(facts: OperationFacts, parts: OperationFacts | None) -> dict[str, Any]:
    item = whole(parts or facts)
    return _only(item, _OPERATION) | {
        "targets": [_only(target, _TARGET) for target in item["targets"]] if parts else [],
        "edges": [_only(edge, _EDGE) for edge in item["edges"]] if parts else [],
        "pairs": item["pairs"] if parts else [],
    }


def _model(item: Mapping[str, Any]) -> dict[str, Any]:
    scaling = dict(item["scaling"] or {})
    return _only(item, _MODEL) | {"ready": scaling.pop("eta_s", None), "scaling": scaling or None}


def _only(item: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: item[key] for key in keys}


def _node(node: NodeView) -> dict[str, Any]:
    facts, host = node.facts, node.host_facts
    return {
        "name": node.name,
        "status": node.status.name.lower(),
        "http": facts.http if facts else None,
        "draining": facts.draining if facts else None,
        "devices": [
            {"id": d.id, "kind": d.kind, "name": d.name, "memory_bytes": d.memory_bytes}
            for _, d in sorted(node.devices.items())
        ],
        "copies": [_copy(c) for _, c in sorted(node.copies.items())] if node.living else [],
        "free_bytes": host.free_bytes if host else None,
        "started": node.started_s,
        "conflict": False,
    }


def _copy(copy: CopyFacts) -> dict[str, Any]:
    return {
        "model": copy.model,
        "size_bytes": copy.size_bytes,
        "complete": copy.complete,
        "cached": copy.cached,
    }


def _instance(node: NodeView, facts: InstanceFacts) -> dict[str, Any]:
    return {
        "id": facts.id,
        "model": facts.model,
        "node": node.name,
        "device": facts.device,
        "state": facts.state,
        "layers_resident": facts.layers_resident,
        "layers_total": facts.layers_total,
        "resident": [list(run) for run in _resident(facts)],
        "helps": facts.helps or None,
        "stage": None if facts.stage is None else [facts.stage.start, facts.stage.stop],
        **_load(node.loads.get(facts.id)),
    }


def _resident(facts: InstanceFacts) -> Iterator[tuple[int, int]]:
    """Yield the runs of layers that are there, as far as it is told which they are.

    Blob 0 is the embedding, blob i + 1 layer i. What an instance has loaded by itself it need not
    be able to give to others: then its layers count from the first.
    """
    total = facts.layers_total
    if facts.layers_resident >= total > 0:
        yield 0, total
        return
    layers = sorted(blob - 1 for blob in blobs_in(facts.blobs) if 1 <= blob <= total)
    if len(layers) < facts.layers_resident:
        layers = list(range(min(facts.layers_resident, total)))
    start = stop = -1
    for layer in layers:
        if layer != stop:
            if stop > start:
                yield start, stop
            start = layer
        stop = layer + 1
    if stop > start:
        yield start, stop


def _load(load: LoadFacts | None) -> dict[str, Any]:
    counts = ("running", "waiting", "queued_tokens")
    rates = ("kv_usage", "prefill_tokens_per_s", "decode_step_s")
    return {name: None if load is None else getattr(load, name) for name in counts} | {
        name: None if load is None else _rounded(getattr(load, name)) for name in rates
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{FIGURES}g}")
