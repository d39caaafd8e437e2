"""Which devices of a view could take a model, the best first.

What makes one better than another is in placement.py. Of those that are alike every model has an
order of its own: else the owners of all that grow at the same time would ask for the same devices,
and all but one of them would be refused.

    place(i) = (start + i · stride) mod n        start, stride from a hash of the model's name
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import ClusterView, NodeView
from blitzgw.scaling.links import RATE_BYTES_PER_S, told_rate
from blitzgw.scaling.ownership import draining, unit_hash
from blitzgw.scaling.placement import Candidate, Distance, Revival, ranked
from blitzgw.scaling.possession import in_memory_of, on_disk
from blitzgw.scaling.residents import residents
from blitzgw.scaling.survey import COUNTED, ModelDefinition, in_memory, is_member, members, speaks
from blitzgw.scaling.vacancies import Likeness, crowds, free_on


@dataclass(frozen=True, slots=True)
class FreeDevice:
    """A device that could take a model. `worker` is `node/device`.

    `revives`: an instance of it drains or is kept there, with all its weights.
    """

    worker: str
    boot: str
    device: str
    claim: int
    revives: bool = False


def free_devices(definition: ModelDefinition, view: ClusterView) -> Iterator[FreeDevice]:
    """Yield the devices that could take a model, the best first (placement.py).

    Those on which it drains or is kept are among them.
    """
    nodes, weights = members(view), definition.weights
    boots = {*in_memory_of(weights, view), *residents(definition.name, view)}
    known = {node.name: node for boot in boots if is_member(node := view.nodes[boot], nodes)}
    zones = {zone for node in known.values() if in_memory(node, weights) and (zone := _zone(node))}
    candidates = [
        candidate
        for node in known.values()
        if not draining(node)
        for candidate in _candidates(node, definition, zones, view)
    ]
    crowded = (
        _crowd(definition, likeness, places, known, near=likeness.zone in zones)
        for likeness, places in crowds(view).items()
    )
    for chosen in ranked(candidates, crowded):
        node, device = nodes[chosen.node], chosen.worker.partition("/")[2]
        revives = chosen.revival is not Revival.NOTHING
        yield FreeDevice(chosen.worker, node.boot, device, node.devices[device].claim, revives)


def _crowd(
    definition: ModelDefinition,
    likeness: Likeness,
    places: Sequence[str],
    known: Container[str],
    *,
    near: bool,
) -> Iterator[list[Candidate]]:
    """Yield the candidates of each node of a crowd in turn, but for those that know the model."""
    size_bytes = definition.size_bytes
    on_disk = definition.weights in likeness.disk
    fit = [vacancy for vacancy in likeness.vacancies if vacancy.memory_bytes >= size_bytes]
    for turn, place in enumerate(in_turn(places, definition.name) if fit else ()):
        if (name := place[:-1]) not in known:
            yield [
                Candidate(
                    worker=f"{place}{vacancy.device}",
                    node=name,
                    distance=Distance.DISK if on_disk else Distance.ELSEWHERE,
                    near=near,
                    displaces=vacancy.displaces,
                    rate_bytes_per_s=likeness.rate_bytes_per_s,
                    free_bytes=vacancy.memory_bytes - size_bytes,
                    host_bytes=likeness.host_bytes,
                    turn=turn,
                )
                for vacancy in fit
            ]


def in_turn(places: Sequence[str], model: str) -> Iterator[str]:
    """Yield all places in a model's own order; only those asked for are looked at."""
    count = len(places)
    start, stride = (int(count * unit_hash(model, part)) for part in ("start", "stride"))
    while gcd(stride, count) > 1:
        stride += 1
    return (places[(start + i * stride) % count] for i in range(count))


def _candidates(
    node: NodeView, definition: ModelDefinition, zones: Container[str], view: ClusterView
) -> Iterator[Candidate]:
    """Yield the candidates of a node that knows the model."""
    size_bytes = definition.size_bytes
    revivals = _revivals(node, definition) if node.instances else {}
    free = {device.id: device for device in free_on(node, size_bytes)}
    free |= {name: node.devices[name] for name in revivals}
    distance = _distance(node, definition.weights, view)
    for device in free.values():
        free_bytes = max(0, device.memory_bytes - size_bytes)
        where = _Where(node, device.id, distance, _zone(node) in zones, free_bytes)
        yield _candidate(definition.name, where, revivals.get(device.id, Revival.NOTHING))


def _distance(node: NodeView, weights: str, view: ClusterView) -> Distance:
    """Return where weights are, as seen from a node."""
    if in_memory(node, weights):
        return Distance.MEMORY
    return Distance.DISK if on_disk(node, weights, view) else Distance.ELSEWHERE


class _Where(NamedTuple):
    """A device, how far from the weights it is, and what it has beyond their size."""

    node: NodeView
    device: str
    distance: Distance
    near: bool
    free_bytes: int


def _candidate(model: str, where: _Where, revival: Revival) -> Candidate:
    node, device = where.node, where.device
    there = [facts for facts in node.instances.values() if facts.state is not InstanceState.GONE]
    host = node.host_facts
    rates = [network.rate_bytes_per_s for network in host.networks] if host is not None else []
    return Candidate(
        worker=f"{node.name}/{device}",
        node=node.name,
        revival=revival,
        distance=where.distance,
        near=where.near,
        displaces=revival is Revival.NOTHING and any(f.device == device for f in there),
        rate_bytes_per_s=max((told_rate(rate, RATE_BYTES_PER_S) for rate in rates), default=0.0),
        free_bytes=where.free_bytes,
        host_bytes=max(0, host.free_bytes) if host is not None else 0,
        instances_here=sum(facts.model == model and facts.state in COUNTED for facts in there),
    )


def _revivals(node: NodeView, definition: ModelDefinition) -> dict[str, Revival]:
    """Return the devices of a node on which an instance of this definition drains or is kept."""
    kinds = {InstanceState.DRAINING: Revival.DRAINING, InstanceState.KEPT: Revival.KEPT}
    return {
        facts.device: kinds[facts.state]
        for facts in node.instances.values()
        if facts.state in kinds
        and (facts.model, facts.digest) == (definition.name, definition.digest)
        and facts.weights == definition.weights
        and facts.device in node.devices
        and speaks(node.devices[facts.device])
    }


def _zone(node: NodeView) -> str:
    return node.host_facts.zone if node.host_facts is not None else ""
