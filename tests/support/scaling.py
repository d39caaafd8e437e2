"""A cluster's scale operations without a cluster: behind the same port as the real ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blitzgw.core.operation import (
    EdgeFacts,
    OperationEvent,
    OperationFacts,
    ReadOrder,
    TargetFacts,
)
from blitzgw.core.plan import Tier
from blitzgw.errors import InvalidRequest, RequestError, UnknownModel

SIZE_BYTES = 257 << 20
BLOBS = 4
RATE_BYTES_PER_S = 50e6
HOP_S = 0.02
STARTED_S = 1_700_000_000.0


def chain(
    model: str = "m",
    before: int = 1,
    wanted: int = 4,
    *,
    at_s: float = 0.0,
    state: str = "",
    number: int = 1,
) -> OperationFacts:
    """Return an operation that brings up instances one behind the other, as it is after `at_s`."""
    workers = [f"node-{i + 2}/cpu0" for i in range(max(0, wanted - before))]
    whole_s = SIZE_BYTES / RATE_BYTES_PER_S
    times = [
        tuple(whole_s * (b + 1) / BLOBS + HOP_S * i for b in range(BLOBS))
        for i in range(len(workers))
    ]
    done_s = max((t[-1] for t in times), default=0.0)
    ended = at_s >= done_s
    return OperationFacts(
        id=f"op-{number}",
        model=model,
        digest="d1",
        weights="w1",
        owner="node-1",
        state=state or ("done" if ended else "transferring"),
        started_s=STARTED_S + number,
        instances_before=before,
        instances_wanted=wanted,
        strategy="chain" if workers else "",
        predicted_s=done_s if workers else -1.0,
        first_blob_s=times[0][0] if workers else -1.0,
        coverage_s=times[0][-1] if workers else -1.0,
        elapsed_s=min(at_s, done_s),
        size_bytes=SIZE_BYTES,
        epoch=1,
        targets=tuple(_target(w, t, at_s) for w, t in zip(workers, times, strict=True)),
        edges=tuple(_edges(workers, at_s)),
        alternatives={"star": 3 * whole_s, "binomial": 2 * whole_s} if workers else {},
        events=tuple(sorted(_events(workers, times, at_s), key=lambda e: e.at_s)),
    )


def from_disk(facts: OperationFacts) -> OperationFacts:
    """Return an operation of which the first target reads by itself instead of over an edge."""
    first = facts.edges[0]
    read = ReadOrder(first.target, Tier.DISK, tuple(range(BLOBS)))
    return replace(facts, edges=facts.edges[1:], reads=(read,))


def _target(worker: str, times: tuple[float, ...], at_s: float) -> TargetFacts:
    arrived = tuple(t if t <= at_s else -1.0 for t in times)
    ready = at_s >= times[-1]
    state = "ready" if ready else "loading" if at_s else "claiming"
    instance = f"{worker}/m/1"
    return TargetFacts(worker, instance, state, times, arrived, times[-1] if ready else -1.0)


def _edges(workers: list[str], at_s: float) -> list[EdgeFacts]:
    edges = []
    for i, worker in enumerate(workers):
        source = workers[i - 1] if i else "node-1/cpu0"
        came = min(SIZE_BYTES, int(max(0.0, at_s - HOP_S * i) * RATE_BYTES_PER_S))
        state = "done" if came == SIZE_BYTES else "flowing" if came else "opening"
        rate = RATE_BYTES_PER_S if came else 0.0
        edges.append(EdgeFacts(source, worker, "fast", BLOBS, SIZE_BYTES, came, rate, state))
    return edges


def _events(
    workers: list[str], times: list[tuple[float, ...]], at_s: float
) -> list[OperationEvent]:
    events = [OperationEvent(0.0, "decided", "", "by hand"), OperationEvent(0.01, "planned")]
    for i, (worker, blobs) in enumerate(zip(workers, times, strict=True)):
        events.append(OperationEvent(0.1, "claimed", worker))
        events.append(OperationEvent(0.3, "connected", worker))
        events.append(OperationEvent(0.5 + HOP_S * i, "first_byte", worker))
        events += [OperationEvent(t, "blob", worker, str(b)) for b, t in enumerate(blobs)]
        events.append(OperationEvent(blobs[-1], "ready", worker))
    return [event for event in events if event.at_s <= at_s]


@dataclass
class FakeScaling:
    """A `ScalePort`: knows the model `m`, has one instance of it, remembers what was asked.

    `refusal` is raised instead of an answer. Operations stay as they are until a test changes them.
    """

    instances: int = 1
    known: dict[str, OperationFacts] = field(default_factory=dict)
    asked: list[tuple[str, int, bool, str]] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    refusal: RequestError | None = None

    async def scale(
        self, model: str, instances: int, *, dry_run: bool, strategy: str, policy: str
    ) -> OperationFacts:
        """Begin, plan or find nothing to do."""
        self.asked.append((model, instances, dry_run, strategy))
        self.policies.append(policy)
        if self.refusal is not None:
            raise self.refusal
        number = len(self.known) + 1
        facts = chain(model, self.instances, instances, number=number)
        if strategy not in ("", "chain"):
            raise InvalidRequest(f"there is no strategy {strategy}; known: chain", param="strategy")
        if dry_run:
            return replace(facts, id="", state="planned")
        if instances == self.instances:
            return replace(facts, state="done")
        self.known[facts.id] = facts
        return facts

    async def operations(self) -> tuple[OperationFacts, ...]:
        """Return all, the oldest first."""
        return tuple(self.known.values())

    async def operation(self, operation: str) -> OperationFacts | None:
        """Return one."""
        return self.known.get(operation)

    async def cancel(self, operation: str) -> OperationFacts:
        """Give up one that has not ended."""
        if operation not in self.known:
            raise UnknownModel("no such operation")
        facts = self.known[operation]
        if facts.state in ("claiming", "transferring"):
            facts = replace(facts, state="cancelled", reason="cancelled by hand")
            self.known[operation] = facts
        return facts
