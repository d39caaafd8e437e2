"""Who reads a checkpoint for others, gathered by what a plan could tell apart.

In a large cluster all nodes may have all checkpoints. Most of them differ in their names alone, and
a plan takes the first of these: they are kept as crowds, so that whoever plans does not look at all
nodes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from blitzgw.core.instance import DeviceKind
from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.picture import FIGURES, MEMBERS, Derived, Picture
from blitzgw.core.plan import node_of
from blitzgw.core.view import ClusterView, NetworkFacts, NodeView
from blitzgw.scaling.possession import NONE, checkpoints
from blitzgw.scaling.survey import speaks


def readers_of(
    weights: str, view: ClusterView, known: Collection[str], most: int | None
) -> tuple[list[str], int]:
    """Return workers that would read the checkpoint of weights, on nodes that are not `known`.

    Of those that differ in their names alone only the first `most` (None: all of them); and how
    many more there are.
    """
    there = view.picture.recall(_CROWDS)
    elsewhere = Counter(there.known[name][0] for name in known if name in there.known)
    found: list[str] = []
    total = 0
    for kind, workers in there.crowds.items():
        if weights in kind.disk:
            others = (worker for worker in workers if node_of(worker) not in known)
            found += islice(others, most)
            total += len(workers) - elsewhere[kind]
    return sorted(found), total - len(found)


def reader_on(node: NodeView) -> str:
    """Return the worker that reads a checkpoint in order to send it: one without a model first.

    Where a worker of the node has all or some of it already, that one sends.
    """
    used = {facts.device for facts in node.instances.values()}
    able = [device for device in node.devices.values() if speaks(device)]
    able.sort(key=lambda device: (device.kind is not DeviceKind.HOST, device.id in used, device.id))
    return f"{node.name}/{able[0].id}" if able else ""


class _Kind(NamedTuple):
    """What nodes of a crowd have in common: checkpoints, their zone, disk and ports."""

    disk: frozenset[str]
    zone: str
    disk_bytes_per_s: float
    ports: tuple[tuple[str, float, float, float, float], ...]


@dataclass(slots=True)
class _Crowds:
    """Workers that read, by kind and sorted; and of each member its kind and its worker."""

    named: Mapping[str, str]
    crowds: dict[_Kind, list[str]] = field(default_factory=dict)
    known: dict[str, tuple[_Kind, str]] = field(default_factory=dict)


def _crowds(picture: Picture, former: _Crowds | None, stale: frozenset[str]) -> _Crowds:
    named, view = picture.recall(MEMBERSHIP).named, ClusterView("", picture.nodes, picture)
    if former is None or former.named is not named:
        made, whole = _Crowds(named), _Crowds(named)
        news = [picture.nodes[boot] for boot in named.values()]
    else:
        made, whole = _Crowds(named, {**former.crowds}, {**former.known}), former
        news = [picture.nodes[boot] for boot in stale if boot in picture.nodes]
    for node in news:
        if named.get(node.name) == node.boot:
            _move(made, whole, node.name, _reads(node, view))
    return made


def _move(made: _Crowds, former: _Crowds, name: str, after: tuple[_Kind, str] | None) -> None:
    """Put a node's worker where it belongs by now; `former` stays as it is."""
    before = made.known.pop(name, None)
    if after is not None:
        made.known[name] = after
    if before == after:
        return
    for each in (before, after):
        if each is not None and made.crowds.get(each[0]) is former.crowds.get(each[0]):
            made.crowds[each[0]] = [*made.crowds.get(each[0], ())]
    if before is not None:
        crowd = made.crowds[before[0]]
        del crowd[bisect_left(crowd, before[1])]
        if not crowd:
            del made.crowds[before[0]]
    if after is not None:
        insort(made.crowds.setdefault(after[0], []), after[1])


def _reads(node: NodeView, view: ClusterView) -> tuple[_Kind, str] | None:
    """Return of which kind a node is, and who reads there; None: nobody does."""
    disk = checkpoints(view).get(node.boot, NONE)
    worker = reader_on(node) if disk else ""
    if not worker:
        return None
    host = node.host_facts
    if host is None:
        return _Kind(disk, "", 0.0, ()), worker
    ports = tuple(sorted(map(_port, host.networks)))
    return _Kind(disk, host.zone, host.disk_bytes_per_s, ports), worker


def _port(network: NetworkFacts) -> tuple[str, float, float, float, float]:
    return (
        network.name,
        network.rate_bytes_per_s,
        network.reserved_tx_bytes_per_s,
        network.serving_tx_bytes_per_s,
        network.weights_tx_bytes_per_s,
    )


_CROWDS = Derived(MEMBERS | FIGURES, _crowds)
