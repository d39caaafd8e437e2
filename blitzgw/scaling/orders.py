"""From a plan to what nodes are told: names, addresses, one-time keys and rates of its edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from blitzgw.core.operation import EdgeOrder, ReadOrder
from blitzgw.core.plan import Edge, Links, Plan, node_of
from blitzgw.core.view import ClusterView
from blitzgw.scaling.links import dial_address


class Unreachable(Exception):
    """A worker cannot be dialled; `worker` says which."""

    def __init__(self, worker: str) -> None:
        super().__init__(f"nobody knows where {worker} listens")
        self.worker = worker


def edge_orders(
    plan: Plan,
    links: Links,
    view: ClusterView,
    *,
    name: str,
    secret: Callable[[], bytes],
    unpromised: Collection[str],
    former: Iterable[EdgeOrder],
    held: Mapping[str, Collection[int]],
) -> tuple[EdgeOrder, ...]:
    """Return the edges of a plan as orders: `name.0`, `name.1` and so on.

    `name` is OPERATION.EPOCH: nodes read the epoch that an edge began in from its name.

    An edge of `former` that still has exactly a new one's blobs to bring goes on as it is: same
    name, same key. `held` are the blobs that targets have. Nodes in `unpromised` have refused to
    reserve: edges there are promised nothing. Raises Unreachable.
    """
    going_on = {_what_is_left(edge, held): edge for edge in former}
    rates = _rates(plan, links, unpromised)
    orders = []
    for number, edge in enumerate(plan.edges):
        same = going_on.get(_what_is_left(edge, held))
        if same is not None:
            orders.append(same)
            continue
        address = dial_address(view, edge.source, edge.network)
        if address is None:
            raise Unreachable(edge.source)
        order = EdgeOrder(
            id=f"{name}.{number}",
            source=edge.source,
            target=edge.target,
            network=edge.network,
            host=address[0],
            port=address[1],
            blobs=edge.blobs,
            key=secret(),
            rate_bytes_per_s=rates[number],
        )
        orders.append(order)
    return tuple(orders)


def read_orders(plan: Plan) -> tuple[ReadOrder, ...]:
    """Return the reads of a plan as orders."""
    return tuple(ReadOrder(read.worker, read.tier, read.blobs) for read in plan.reads)


def promised(edges: Iterable[EdgeOrder]) -> dict[tuple[str, str], tuple[float, float]]:
    """Return what edges have been promised, (tx, rx) by (node, network)."""
    totals: dict[tuple[str, str], tuple[float, float]] = {}
    for edge in edges:
        source, target = node_of(edge.source), node_of(edge.target)
        if source == target:
            continue
        for node, tx, rx in (
            (source, edge.rate_bytes_per_s, 0.0),
            (target, 0.0, edge.rate_bytes_per_s),
        ):
            had = totals.get((node, edge.network), (0.0, 0.0))
            totals[node, edge.network] = (had[0] + tx, had[1] + rx)
    return totals


def _what_is_left(
    edge: Edge | EdgeOrder, held: Mapping[str, Collection[int]]
) -> tuple[str, str, str, tuple[int, ...]]:
    have = held.get(edge.target, ())
    left = tuple(index for index in edge.blobs if index not in have)
    return edge.source, edge.target, edge.network, left


def _rates(plan: Plan, links: Links, unpromised: Collection[str]) -> list[float]:
    """Share each port, and what a worker may send, among the edges that use it.

    An edge is promised the least of these.
    """
    ends = [
        ((node_of(edge.source), edge.network), (node_of(edge.target), edge.network))
        for edge in plan.edges
    ]
    crossing = [(tx, rx) for tx, rx in ends if tx[0] != rx[0]]
    sending = Counter(tx for tx, _ in crossing)
    sources = Counter(e.source for e in plan.edges if node_of(e.source) != node_of(e.target))
    receiving = Counter(rx for _, rx in crossing)
    rates = []
    for edge, (tx, rx) in zip(plan.edges, ends, strict=True):
        known = tx in links.ports and rx in links.ports and tx[0] != rx[0]
        if not known or tx[0] in unpromised or rx[0] in unpromised:
            rates.append(0.0)
            continue
        port = links.ports[tx]
        rates.append(
            min(
                port.tx_bytes_per_s / sending[tx],
                port.worker_tx_bytes_per_s / sources[edge.source],
                links.ports[rx].rx_bytes_per_s / receiving[rx],
            )
        )
    return rates
