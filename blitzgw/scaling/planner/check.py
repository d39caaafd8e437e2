"""What is wrong with a plan: asked by tests, and by an operation before it acts on one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from blitzgw.core.plan import Links, Plan, Read, Task, Tier, node_of


def faults(plan: Plan, task: Task, links: Links | None = None) -> list[str]:
    """Return all that is wrong with a plan, in words; an empty list: it does what the task asks.

    Complete: every target gets every blob that it lacks exactly once. Causal: every edge's source
    has, reads or receives what it sends, no blob waits for itself, and the orders of the edges do
    not wait for each other. With `links` also: edges join only nodes that share that network.
    """
    found = [*_shape(plan, task), *_counts(plan, task)]
    if links is not None:
        found.extend(_unjoined(plan, links))
    if not found:
        for worker, blob in undelivered(plan, task):
            found.append(f"{worker} never gets blob {blob}: it waits for itself")
    return found


def resident_blobs(task: Task) -> dict[str, set[int]]:
    """Return what each worker has without reading anything, or is brought by other operations."""
    resident: dict[str, set[int]] = {}
    for holder in task.holders:
        if holder.tier is None:
            resident.setdefault(holder.worker, set()).update(holder.blobs)
    return resident


def undelivered(plan: Plan, task: Task) -> list[tuple[str, int]]:
    """Return the blobs that never arrive when edges are followed in their order, without time."""
    has = resident_blobs(task)
    for read in plan.reads:
        has.setdefault(read.worker, set()).update(read.blobs)
    next_blob = [0] * len(plan.edges)
    waiting: dict[tuple[str, int], list[int]] = {}
    ready = deque(range(len(plan.edges)))
    while ready:
        index = ready.popleft()
        edge = plan.edges[index]
        at_source = has.setdefault(edge.source, set())
        at_target = has.setdefault(edge.target, set())
        while next_blob[index] < len(edge.blobs):
            blob = edge.blobs[next_blob[index]]
            if blob not in at_source:
                waiting.setdefault((edge.source, blob), []).append(index)
                break
            next_blob[index] += 1
            at_target.add(blob)
            ready.extend(waiting.pop((edge.target, blob), ()))
    return [
        (edge.target, blob)
        for edge, done in zip(plan.edges, next_blob, strict=True)
        for blob in edge.blobs[done:]
    ]


def _shape(plan: Plan, task: Task) -> Iterator[str]:
    blobs = range(len(task.blob_bytes))
    if set(plan.targets) != set(task.targets):
        yield "the plan is for other targets than the task"
    pairs: set[tuple[str, str, str]] = set()
    for edge in plan.edges:
        if edge.source == edge.target:
            yield f"an edge from {edge.source} to itself"
        if not edge.blobs:
            yield f"an edge without blobs from {edge.source} to {edge.target}"
        if (pair := (edge.source, edge.target, edge.network)) in pairs:
            yield f"two edges from {edge.source} to {edge.target} over one network"
        pairs.add(pair)
        yield from (
            f"blob {blob} from {edge.source} does not exist"
            for blob in edge.blobs
            if blob not in blobs
        )
    for read in plan.reads:
        yield from _readable(read, task)


def _readable(read: Read, task: Task) -> Iterator[str]:
    if not read.blobs:
        yield f"{read.worker} reads nothing from {read.tier}"
    there: set[int] = set()
    for holder in task.holders:
        if holder.tier is read.tier and node_of(holder.worker) == node_of(read.worker):
            there |= holder.blobs
    yield from (
        f"{read.worker} has no blob {blob} on its {_place(read.tier)}"
        for blob in read.blobs
        if blob not in there
    )


def _place(tier: Tier) -> str:
    return "host" if tier is Tier.HOST else "disk"


def _counts(plan: Plan, task: Task) -> Iterator[str]:
    """What arrives nowhere, twice, or where it is already; what is sent by one without it."""
    resident = resident_blobs(task)
    ways = Counter((edge.target, blob) for edge in plan.edges for blob in edge.blobs)
    ways.update((read.worker, blob) for read in plan.reads for blob in read.blobs)

    def held(worker: str, blob: int) -> bool:
        return blob in resident.get(worker, ())

    for (worker, blob), count in ways.items():
        if held(worker, blob):
            yield f"{worker} has blob {blob} already"
        elif count > 1:
            yield f"{worker} gets blob {blob} {count} times"
    for target in dict.fromkeys(task.targets):
        for blob in range(len(task.blob_bytes)):
            if not held(target, blob) and (target, blob) not in ways:
                yield f"{target} does not get blob {blob}"
    yield from (
        f"{edge.source} sends blob {blob} and never has it"
        for edge in plan.edges
        for blob in edge.blobs
        if not held(edge.source, blob) and (edge.source, blob) not in ways
    )


def _unjoined(plan: Plan, links: Links) -> Iterator[str]:
    for edge in plan.edges:
        source, target = node_of(edge.source), node_of(edge.target)
        if source == target:
            if edge.network:
                yield f"{edge.source} and {edge.target} are on one node: no network is needed"
        elif any((node, edge.network) not in links.ports for node in (source, target)):
            yield f"{edge.source} and {edge.target} do not share network {edge.network!r}"
