"""Fewer sources than there are, where there are many more than a plan has a use for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from blitzgw.core.plan import Holder, Links, Task, node_of
from blitzgw.scaling.planner.rates import is_busy, read_rate, weights_tx

PAIRS = 1024
"""Sources times targets that strategies look at: each asks for the rate of every pair, at some
microseconds. With 128 targets that leaves eight sources, and chains of 16, whose last target waits
for 15 pieces more than the first."""


def thinned(task: Task, links: Links) -> Task:
    """Return the task without the least useful of very many holders; itself where there are few.

    Targets, what is on their machines, and as many whole copies elsewhere as `PAIRS` allows stay:
    those first whose ports are free of requests, resident before read, then the fastest, and of
    these last what is yet to come.
    """
    room, total = max(1, PAIRS // max(1, len(task.targets))), len(task.holders) + task.others
    task = _unlike(task, links)
    if total <= room:
        return task
    places = {node_of(target) for target in task.targets}
    whole: dict[str, tuple[bool, bool, float, float, str]] = {}
    for holder in task.holders:
        node = node_of(holder.worker)
        ports = [*_ports(node, links)] if _is_whole(holder, task) and node not in places else ()
        if ports:
            serves, rate = min((serves, -rate) for _, rate, serves in ports)
            due_s = max(holder.due_s, default=0.0)
            rank = (serves, holder.tier is not None, rate, due_s, holder.worker)
            whole[holder.worker] = min(whole.get(holder.worker, rank), rank)
    if not whole:
        return task
    kept = set(sorted(whole, key=whole.__getitem__)[:room])
    return replace(
        task,
        holders=tuple(h for h in task.holders if h.worker in kept or node_of(h.worker) in places),
    )


def _unlike(task: Task, links: Links) -> Task:
    """Return the task with only as many whole copies of a kind elsewhere as there are targets.

    Those of a kind differ in their workers' names alone, of which strategies take the first ones:
    no more than there are targets.
    """
    most = max(1, len(task.targets))
    if len(task.holders) <= most:
        return task
    places = {node_of(target) for target in task.targets}
    times = Counter(holder.worker for holder in task.holders)
    kinds: dict[object, list[str]] = {}
    for holder in task.holders:
        node, tier = node_of(holder.worker), holder.tier
        if _is_whole(holder, task) and times[holder.worker] == 1 and node not in places:
            reads = read_rate(links, node, tier) if tier is not None else 0.0
            kind = (tier, reads, holder.due_s, links.zones.get(node, ""), *_ports(node, links))
            kinds.setdefault(kind, []).append(holder.worker)
    spare = {worker for alike in kinds.values() for worker in sorted(alike)[most:]}
    if not spare:
        return task
    return replace(task, holders=tuple(h for h in task.holders if h.worker not in spare))


def _is_whole(holder: Holder, task: Task) -> bool:
    return len(holder.blobs) == len(task.blob_bytes)


def _ports(node: str, links: Links) -> Iterator[tuple[str, float, bool]]:
    """Yield what counts of a node's ports: the network, its rate, whether requests use it."""
    for network in links.networks:
        port = links.ports.get((node, network))
        if port is not None:
            yield network, weights_tx(port), is_busy(port)
