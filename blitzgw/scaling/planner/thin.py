"""Fewer sources than there are, where there are many more than a plan has a use for."""

from __future__ import annotations

from dataclasses import replace

from blitzgw.core.plan import Links, Task, node_of
from blitzgw.scaling.planner.rates import BUSY_SHARE, usable_tx

PAIRS = 1024
"""Sources times targets that strategies look at: each asks for the rate of every pair, at some
microseconds. With 128 targets that leaves eight sources, and chains of 16, whose last target waits
for 15 pieces more than the first."""


def thinned(task: Task, links: Links) -> Task:
    """Return the task without the least useful of very many holders; itself where there are few.

    Targets, what is on their machines, and as many whole copies elsewhere as `PAIRS` allows stay:
    those first whose ports are free of requests, resident before read, then the fastest.
    """
    targets = set(task.targets)
    room = max(1, PAIRS // max(1, len(targets)))
    if len(task.holders) <= room:
        return task
    places = {node_of(target) for target in targets}
    whole: dict[str, tuple[bool, bool, float, str]] = {}
    ports: dict[str, tuple[bool, float]] = {}
    for (node, _), port in sorted(links.ports.items()):
        serves = port.serving_tx_bytes_per_s > BUSY_SHARE * port.tx_bytes_per_s
        ports[node] = min(ports.get(node, (True, 0.0)), (serves, -usable_tx(port)))
    for holder in task.holders:
        node = node_of(holder.worker)
        if len(holder.blobs) == len(task.blob_bytes) and node in ports and node not in places:
            serves, rate = ports[node]
            rank = (serves, holder.tier is not None, rate, holder.worker)
            whole[holder.worker] = min(whole.get(holder.worker, rank), rank)
    if not whole:
        return task
    kept = set(sorted(whole, key=whole.__getitem__)[:room])
    return replace(
        task,
        holders=tuple(h for h in task.holders if h.worker in kept or node_of(h.worker) in places),
    )
