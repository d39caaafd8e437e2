"""Scale operations, measured: how long they took by their owner's clock, and what went over wires.

A round asks for more instances, waits until that has ended, and asks for the former number again.
Seconds count from the decision. What interfaces have received and sent is counted outside of the
nodes, by the kernel; it includes acknowledgements, gossip and retransmissions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tests.support.netns import Counters

SCALE_PATH = "/admin/v1/models/bench/scale"
OPERATION_PATH = "/cluster/operations/{id}"
INSTANCES_PATH = "/cluster/instances"

POLL_S = 0.1
"""Between two looks at an operation: each takes its node some processor time, and the result does
not depend on it."""

SETTLE_S = 0.5
"""After an operation, so that gossip and goodbyes are not counted for the next."""

PATIENCE_FACTOR, PATIENCE_S = 6.0, 60.0
"""An operation may take so many times the ideal time for each target, and so long besides."""


class Cluster(Protocol):
    """What is measured: the nodes' HTTP, and the counters of their interfaces by node."""

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and body."""

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body."""

    def counters(self) -> Mapping[str, Counters]:
        """Return bytes by node."""

    def check(self) -> None:
        """Raise if a node has ended by itself."""


class OperationFailed(Exception):
    """A scale was refused, failed, or did not end in time; says why."""


@dataclass(frozen=True, slots=True)
class Round:
    """One operation. Lists are by target, in the order of their names; -1: not known."""

    strategy: str
    seconds: float
    arrived_seconds: float
    predicted_seconds: float
    first_blob_seconds: float
    coverage_seconds: float
    predicted_coverage_seconds: float
    size_bytes: int
    targets: tuple[str, ...]
    received_bytes: tuple[int, ...]
    sent_bytes: Mapping[str, int] = field(default_factory=dict)
    """By node, sources included."""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What rows have in common."""

    rate_mbit: float
    mtu: int = 1500
    rounds: int = 5
    progress: Callable[[str], None] = lambda _text: None


def measure(
    cluster: Cluster, setting: Setting, strategy: str, sources: int, targets: int
) -> dict[str, Any]:
    """Run the rounds of one row; the cluster has `sources` instances before and after."""
    rounds = []
    for number in range(setting.rounds):
        rounds.append(one_round(cluster, setting, strategy, sources, targets))
        text = f"{strategy} to {targets}, round {number + 1}: {rounds[-1].seconds:.3f} s"
        setting.progress(text)
    return row(setting, strategy, rounds)


def one_round(
    cluster: Cluster, setting: Setting, strategy: str, sources: int, targets: int
) -> Round:
    """Scale up, note what that took, and scale down again. Raises OperationFailed."""
    before = cluster.counters()
    facts = scale(cluster, setting, sources + targets, strategy)
    after = cluster.counters()
    made = read_round(facts, before, after)
    scale_down(cluster, setting, sources)
    if len(made.targets) != targets:
        raise OperationFailed(f"{len(made.targets)} targets instead of {targets}: {made.targets}")
    return made


def scale(cluster: Cluster, setting: Setting, instances: int, strategy: str = "") -> dict[str, Any]:
    """Have so many instances; return the operation when it is done. Raises OperationFailed."""
    return await_end(cluster, setting, begin(cluster, instances, strategy))


def begin(cluster: Cluster, instances: int, strategy: str = "", policy: str = "") -> dict[str, Any]:
    """Ask for so many instances; return the operation. Raises OperationFailed."""
    body = {"instances": instances} | ({"strategy": strategy} if strategy else {})
    body |= {"policy": policy} if policy else {}
    status, facts = cluster.post(SCALE_PATH, body)
    if status not in {200, 202}:
        raise OperationFailed(
            f"{instances} instances by {strategy or 'any plan'}: {status} {facts}"
        )
    return dict(facts)


def look(cluster: Cluster, operation: str) -> dict[str, Any]:
    """Return what is known of an operation. Raises OperationFailed."""
    status, facts = cluster.get(OPERATION_PATH.format(id=operation))
    if status != 200:
        raise OperationFailed(f"operation {operation}: {status} {facts}")
    return dict(facts)


def await_end(cluster: Cluster, setting: Setting, facts: dict[str, Any]) -> dict[str, Any]:
    """Wait until an operation has ended well, and return it. Raises OperationFailed."""
    deadline_s = time.monotonic() + _patience_s(setting, facts)
    while not facts["ended"]:
        if time.monotonic() > deadline_s:
            raise OperationFailed(f"operation {facts['id']} is still {facts['state']}: {facts}")
        time.sleep(POLL_S)
        cluster.check()
        facts = look(cluster, facts["id"])
    if facts["state"] != "done":
        raise OperationFailed(f"operation {facts['id']}: {facts['state']}: {facts['reason']}")
    return facts


def scale_down(cluster: Cluster, setting: Setting, instances: int) -> None:
    """Go back to so many instances, and wait until that is what the nodes tell."""
    scale(cluster, setting, instances)
    deadline_s = time.monotonic() + PATIENCE_S
    while (left := there(cluster)) != instances:
        if time.monotonic() > deadline_s:
            raise OperationFailed(f"{left} instances are left instead of {instances}")
        time.sleep(POLL_S)
        cluster.check()
    time.sleep(SETTLE_S)


def there(cluster: Cluster) -> int:
    """How many instances the nodes tell of."""
    status, told = cluster.get(INSTANCES_PATH)
    if status != 200:
        return -1
    return sum(one["model"] == "bench" and one["state"] != "gone" for one in told["instances"])


def read_round(
    facts: Mapping[str, Any], before: Mapping[str, Counters], after: Mapping[str, Counters]
) -> Round:
    """Turn an operation that is done into figures."""
    targets = sorted((one for one in facts["targets"] if is_ready(one)), key=_worker)
    nodes = tuple(node_of(one["worker"]) for one in targets)
    ready = [one["ready_s"] for one in targets]
    by_target = [known(one["arrived_s"]) for one in targets]
    predicted = facts.get("predicted_s") or {}
    return Round(
        strategy=facts["strategy"] or "",
        seconds=max(ready, default=-1.0),
        arrived_seconds=max((max(times, default=-1.0) for times in by_target), default=-1.0),
        predicted_seconds=_number(predicted.get("complete")),
        first_blob_seconds=min((min(times) for times in by_target if times), default=-1.0),
        coverage_seconds=coverage_s(targets),
        predicted_coverage_seconds=_number(predicted.get("coverage")),
        size_bytes=facts["size_bytes"],
        targets=nodes,
        received_bytes=tuple(after[n].received - before[n].received for n in nodes),
        sent_bytes={n: after[n].sent - before[n].sent for n in sorted(after) if n in before},
        epoch=facts["epoch"],
    )


def coverage_s(targets: Sequence[Mapping[str, Any]]) -> float:
    """When the targets together had every blob; -1: they never had."""
    columns = zip(*(one["arrived_s"] for one in targets), strict=True)
    firsts = [min(known(column), default=None) for column in columns]
    if not firsts or None in firsts:
        return -1.0
    return max(first for first in firsts if first is not None)


def is_ready(target: Mapping[str, Any]) -> bool:
    return target["state"] == "ready" and target["ready_s"] is not None


def node_of(worker: str) -> str:
    return worker.partition("/")[0]


def known(times: Sequence[float | None]) -> list[float]:
    return [one for one in times if one is not None]


def row(setting: Setting, strategy: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Return the row of some rounds: that of the median one, with all of them beside it."""
    middle = sorted(rounds, key=lambda one: one.seconds)[(len(rounds) - 1) // 2]
    return {
        "strategy": strategy,
        "targets": len(middle.targets),
        "size_bytes": middle.size_bytes,
        "rate_mbit": setting.rate_mbit,
        "seconds": statistics.median(one.seconds for one in rounds),
        "ideal_seconds": ideal_s(middle.size_bytes, setting.rate_mbit),
        "predicted_seconds": statistics.median(one.predicted_seconds for one in rounds),
        "first_blob_seconds": statistics.median(one.first_blob_seconds for one in rounds),
        "coverage_seconds": statistics.median(one.coverage_seconds for one in rounds),
        "received_bytes": list(middle.received_bytes),
        "sent_bytes": dict(middle.sent_bytes),
        "arrived_seconds": statistics.median(one.arrived_seconds for one in rounds),
        "predicted_coverage_seconds": middle.predicted_coverage_seconds,
        "used": middle.strategy,
        "mtu": setting.mtu,
        "rounds": [asdict(one) for one in rounds],
    }


def ideal_s(size_bytes: int, rate_mbit: float) -> float:
    """What one copy takes over one link that carries nothing but the model's bytes."""
    return size_bytes * 8 / (rate_mbit * 1e6)


def _patience_s(setting: Setting, facts: Mapping[str, Any]) -> float:
    ideal = ideal_s(facts["size_bytes"], setting.rate_mbit) if setting.rate_mbit else 0.0
    return PATIENCE_S + PATIENCE_FACTOR * ideal * max(1, len(facts["targets"]))


def _worker(target: Mapping[str, Any]) -> str:
    return str(target["worker"])


def _number(value: float | None) -> float:
    return -1.0 if value is None else float(value)
