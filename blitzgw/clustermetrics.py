"""The cluster's figures under `blitzgw_`, gathered when somebody asks a node for its metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from blitzgw.core.view import ClusterView
from blitzgw.gossip.linkports import LinkStatistics
from blitzgw.gossip.terms import GossipStatistics
from blitzgw.network import Network
from blitzgw.router.router import Router
from blitzgw.router.statistics import RouterStatistics
from blitzgw.scaleview import scale_facts

GATHER_S = 2.0
"""How long the event loop may take to give the figures; a scraper waits longer than that."""


@dataclass(frozen=True, slots=True)
class _Figures:
    view: ClusterView
    links: LinkStatistics
    router: RouterStatistics
    gossip: GossipStatistics | None
    handoff_bytes: int


class ClusterCollector(Collector):
    """Made on the node's event loop; collects in the thread that renders metrics."""

    def __init__(
        self,
        view: Callable[[], ClusterView],
        network: Network,
        router: Router,
        handoff_bytes: Callable[[], int],
    ) -> None:
        self._view, self._network, self._router = view, network, router
        self._handoff_bytes = handoff_bytes
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterator[Metric]:
        """Yield all figures, of one moment."""
        future = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)
        figures = future.result(GATHER_S)
        yield from _of_view(figures.view)
        counts = {(what,): count for what, count in asdict(figures.router.counts).items()}
        yield _counter("blitzgw_router_requests", "Requests and their ways.", ["event"], counts)
        yield from _of_splits(figures)
        links = figures.links
        yield _gauge("blitzgw_peer_links", "Peer links that are up.", [], {(): links.up})
        yield _counter("blitzgw_peer_links_lost", "Peer links that broke.", [], {(): links.lost})
        if figures.gossip is not None:
            yield from _of_gossip(figures.gossip)

    def describe(self) -> list[Metric]:
        """Return nothing: registering must not wait for the event loop."""
        return []

    async def _gather(self) -> _Figures:
        return _Figures(
            self._view(),
            self._network.links.statistics(),
            self._router.statistics(),
            self._network.statistics(),
            self._handoff_bytes(),
        )


def _of_view(view: ClusterView) -> Iterator[Metric]:
    others = Counter(
        (node.status.name.lower(),) for node in view.nodes.values() if node.boot != view.local
    )
    yield _gauge("blitzgw_peers", "Other nodes by status.", ["state"], others)
    facts = [facts for node in view.living() for facts in node.instances.values()]
    instances = Counter((each.model, each.state.value) for each in facts)
    text = "Instances in the whole cluster."
    yield _gauge("blitzgw_instances", text, ["model", "state"], instances)
    scaling = scale_facts(view)
    wanted = {(name,): facts.wanted for name, facts in scaling.items()}
    text = "Instances that a model's owner wants it to have."
    yield _gauge("blitzgw_scale_wanted_instances", text, ["model"], wanted)
    pressure = {(name,): facts.pressure for name, facts in scaling.items()}
    text = "Predicted P90 time to first token over its target."
    yield _gauge("blitzgw_scale_pressure", text, ["model"], pressure)
    layers = {(each.model, each.id): each.layers_resident for each in facts}
    text = "Decoder layers that an instance has."
    yield _gauge("blitzgw_layers_resident", text, ["model", "instance"], layers)


def _of_splits(figures: _Figures) -> Iterator[Metric]:
    splits = {(model,): count for model, count in figures.router.splits.items()}
    text = "Requests whose layers were split between instances."
    yield _counter("blitzgw_split_requests", text, ["model"], splits)
    text = "Requests that went to another instance, with their KV or to compute it again."
    migrations = figures.router.migrations
    yield _counter("blitzgw_request_migrations", text, ["model", "type"], migrations)
    sent = {(): figures.handoff_bytes}
    yield _counter("blitzgw_handoff_bytes", "KV and hidden states sent for requests.", [], sent)


def _of_gossip(gossip: GossipStatistics) -> Iterator[Metric]:
    sizes = {("in",): gossip.bytes_in, ("out",): gossip.bytes_out}
    yield _counter("blitzgw_gossip_bytes", "Bytes of datagrams.", ["direction"], sizes)
    rejected = {(reason,): count for reason, count in gossip.rejected.items()}
    yield _counter("blitzgw_gossip_rejected", "Datagrams ignored.", ["reason"], rejected)
    syncs = {("done",): gossip.syncs_done, ("failed",): gossip.syncs_failed}
    yield _counter("blitzgw_gossip_syncs", "Exchanges of everything.", ["outcome"], syncs)


def _gauge(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([*key], value)
    return family


def _counter(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric([*key], value)
    return family
