"""Ways between two workers: which network they share, and where one reaches the other."""

from __future__ import annotations

import secrets

from blitzgw.core.live import Road
from blitzgw.core.parcels import PARCELS
from blitzgw.core.plan import node_of
from blitzgw.core.transfer import EdgeTerms, TrafficClass
from blitzgw.core.view import ClusterView, NodeView
from blitzgw.scaling.links import dial_address
from blitzgw.scaling.survey import members


def rates(node: NodeView) -> dict[str, float]:
    """Return the rates of a node's networks by name, in bytes per second; 0: not known."""
    facts = node.host_facts
    return {} if facts is None else {n.name: n.rate_bytes_per_s for n in facts.networks}


def fastest_network(source: NodeView, target: NodeView) -> str | None:
    """Return the fastest network that two nodes share; None where there is none."""
    from_rates, to_rates = rates(source), rates(target)
    common = sorted(from_rates.keys() & to_rates.keys())
    if not common:
        return None
    return max(common, key=lambda name: min(from_rates[name], to_rates[name]))


def rate_between(view: ClusterView, source: str, target: str) -> float:
    """Return how fast a road from one worker to another is at most, in bytes per second.

    0 where that is not known.
    """
    nodes = members(view)
    ends = nodes.get(node_of(source)), nodes.get(node_of(target))
    if ends[0] is None or ends[1] is None:
        return 0.0
    network = fastest_network(ends[0], ends[1])
    return 0.0 if network is None else min(rates(end)[network] for end in ends if end is not None)


def make_road(
    view: ClusterView, source: str, target: str, name: str, *, encrypt: bool
) -> Road | None:
    """Return a road from one worker to another, with a key of its own; None where none can be.

    Workers are named `node/device`. Between workers of one machine nothing is encrypted.
    """
    nodes = members(view)
    ends = nodes.get(node_of(source)), nodes.get(node_of(target))
    if ends[0] is None or ends[1] is None:
        return None
    network = fastest_network(ends[0], ends[1])
    address = None if network is None else dial_address(view, source, network)
    if network is None or address is None:
        return None
    terms = EdgeTerms(
        id=name,
        operation=PARCELS,
        weights=PARCELS,
        blobs=(),
        key=secrets.token_bytes(32),
        seed=secrets.randbits(63),
        network=network,
        lane=TrafficClass.KV,
        encrypt=encrypt and ends[0] is not ends[1],
    )
    return Road(terms, *address)
