"""The cluster as this node sees it, for scripts and for `blitzgw inspect`: read-only.

Every answer is an object with one list, in an order that does not change from one answer to the
next. What is not known is null. Instances and models are those of nodes that are believed to live;
nodes are told of for as long as they are remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from blitzgw.api.definitions import definitions, in_order
from blitzgw.api.exchange import Exchange
from blitzgw.api.respond import json_bytes, json_response
from blitzgw.api.status import ClusterPort
from blitzgw.configfile.cluster import join_address
from blitzgw.core.clock import Clock
from blitzgw.core.instance import InstanceState
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    HostFacts,
    InstanceFacts,
    LoadFacts,
    NodeView,
    RequestFacts,
    RequestList,
    blobs_in,
)


def unix_time() -> float:
    """Return the wall clock in seconds of the Unix epoch, by which nodes say when to expect."""
    return datetime.now(UTC).timestamp()


class ClusterInfo:
    """Handlers that tell about the cluster."""

    def __init__(
        self, cluster: ClusterPort, clock: Clock, unix_time: Callable[[], float] = unix_time
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._unix_time = unix_time
        self._rendered: tuple[RequestList, bytes] | None = None

    async def nodes(self, exchange: Exchange) -> web.StreamResponse:
        """Answer all nodes, the dead and those that have left too."""
        view, now = self._cluster.view(), self._clock.now()
        shared = {node.boot for nodes in view.namesakes().values() for node in nodes}
        nodes = [
            _node(node, _age_s(node, view, now)) | {"conflict": node.boot in shared}
            for node in in_order(view.nodes.values())
        ]
        return json_response({"nodes": nodes}, exchange.headers)

    async def instances(self, exchange: Exchange) -> web.StreamResponse:
        """Answer all instances and their loads."""
        view, now = self._cluster.view(), self._clock.now()
        items = [
            _instance(node, facts, _age_s(node, view, now))
            for node in in_order(view.living())
            for facts in node.instances.values()
        ]
        items.sort(key=lambda item: (item["model"], item["node"], item["id"]))
        return json_response({"instances": items}, exchange.headers)

    async def models(self, exchange: Exchange) -> web.StreamResponse:
        """Answer all definitions of models: several of one name where nodes do not agree."""
        items = list(definitions(self._cluster.view(), self._unix_time()))
        return json_response({"models": items}, exchange.headers)

    async def requests(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the requests under way, the oldest first, and which nodes did not tell theirs."""
        found = await self._cluster.requests()  # bounded by the port
        if self._rendered is None or self._rendered[0] is not found:
            names = {boot: node.name for boot, node in self._cluster.view().nodes.items()}
            # thousands of requests take longer than streams can wait
            self._rendered = found, await asyncio.to_thread(_requests, found, names)
        return json_bytes(self._rendered[1], exchange.headers)


def _requests(found: RequestList, names: Mapping[str, str]) -> bytes:
    items = [_request(facts, names) for facts in found.requests]
    return orjson.dumps(
        {"requests": items, "unanswered": found.unanswered, "truncated": found.truncated}
    )


def _request(facts: RequestFacts, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": facts.id,
        "model": facts.model,
        "ingress": names.get(facts.ingress, facts.ingress),
        "instance": facts.instance or None,
        "attempt": facts.attempt,
        "prompt_tokens": facts.prompt_tokens,
        "output_tokens": facts.output_tokens,
        "max_tokens": facts.max_tokens,
        "age_s": facts.age_s,
    }


def _age_s(node: NodeView, view: ClusterView, now: float) -> float:
    """Return how old what is known of a node is; of itself a node always knows the latest."""
    return 0.0 if node.boot == view.local else round(max(0.0, now - node.heard_s), 3)


def _node(node: NodeView, age_s: float) -> dict[str, Any]:
    facts = node.facts
    there = [i for i in node.instances.values() if i.state != InstanceState.GONE]
    return {
        "name": node.name,
        "boot": node.boot,
        "status": node.status.name.lower(),
        "http": facts.http if facts else None,
        "address": _address(node),
        "draining": facts.draining if facts else None,
        "devices": [asdict(device) for _, device in sorted(node.devices.items())],
        "host": None if node.host_facts is None else _host(node.host_facts),
        "copies": [_copy(copy) for _, copy in sorted(node.copies.items())] if node.living else [],
        "models": sorted(model.name for model in node.models.values()),
        "instances": len(there) if node.living else 0,
        "state_age_s": age_s,
        "started": node.started_s,
        "software": facts.software if facts else {},
    }


def _host(facts: HostFacts) -> dict[str, Any]:
    """Return what is known of a machine; rates that are not known, and limits of none, are null."""
    networks = [asdict(network) for network in sorted(facts.networks, key=lambda n: n.name)]
    for network in networks:
        for key in ("rate_bytes_per_s", "weights_tx_bytes_per_s"):
            network[key] = network[key] or None
    return {
        "free_bytes": facts.free_bytes,
        "zone": facts.zone or None,
        "networks": networks,
    }


def _copy(copy: CopyFacts) -> dict[str, Any]:
    return {
        "model": copy.model,
        "weights": copy.weights,
        "device": copy.device,
        "size_bytes": copy.size_bytes,
        "blobs": sorted(blobs_in(copy.blobs)),
        "complete": copy.complete,
        "cached": copy.cached,
    }


def _address(node: NodeView) -> str | None:
    """Return where its peers find a node; None where it has no port, as in a cluster of one."""
    if not node.port:
        return None
    return join_address(node.host, node.port)


def _instance(node: NodeView, facts: InstanceFacts, age_s: float) -> dict[str, Any]:
    load = node.loads.get(facts.id)
    return {
        "id": facts.id,
        "model": facts.model,
        "digest": facts.digest,
        "node": node.name,
        "device": facts.device,
        "role": facts.role,
        "state": facts.state,
        "layers_resident": facts.layers_resident,
        "layers_total": facts.layers_total,
        "weights": facts.weights or None,
        "blobs": sorted(blobs_in(facts.blobs)),
        "helps": facts.helps or None,
        "stage": None if facts.stage is None else [facts.stage.start, facts.stage.stop],
        **_load(load),
        "load_age_s": None if load is None else age_s,
    }


def _load(load: LoadFacts | None) -> dict[str, Any]:
    names = (
        "running",
        "waiting",
        "queued_tokens",
        "kv_usage",
        "prefill_tokens_per_s",
        "decode_step_s",
    )
    return {name: None if load is None else getattr(load, name) for name in names}
