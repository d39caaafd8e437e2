"""Scale operations as JSON, for scripts.

An operation, always with all of these keys; null is what is not known or does not apply. Seconds
are counted from `started`, which is Unix time; sizes and rates are bytes and bytes per second.

    id, kind                        kind: scale; copy where it is weights into a host's memory,
                                    which the cluster orders by itself
    model, digest, weights          what it is about (the latter two name definition and weights)
    owner                           the node that decides
    state                           planned, claiming, transferring, draining, done, failed,
                                    cancelled; `ended` tells whether that is the last one
    reason                          why it failed or was cancelled
    started, elapsed_s              when, and for how long (until its end, once it has ended)
    instances_before, instances_wanted
    strategy, epoch                 of the present plan; each new plan raises the epoch
    predicted_s                     when all targets are complete: {"complete", "first_blob",
                                    "coverage"}, the last when the targets together have the model
    policy                          what targets do while they load: stop, best-effort, zigzag,
                                    pipeline
    policies                        [{"policy", "predicted_mean_s"}], where they were compared:
                                    the mean completion of what waits at those that are helped
    pairs                           [{"worker", "home"}]: which instance each target helps
    pipelines                       [[{"worker", "layers"}]]: targets that serve together while they
                                    load, each with its layers, [from, to)
    alternatives                    [{"strategy", "predicted_s"}], the quickest first
    size_bytes                      of the model
    targets                         by worker (NODE/DEVICE): {"worker", "instance", "state",
                                    "reason", "ready_s", "resident_bytes", "blobs", "arrived",
                                    "predicted_s", "arrived_s"}; `arrived` of `blobs` blobs are
                                    there, and the lists say when, by blob
    edges                           in the plan's order: {"source", "target", "network", "state",
                                    "blobs", "size_bytes", "received_bytes", "rate_bytes_per_s",
                                    "yielded_s", "delayed_s"}
    reads                           {"worker", "tier", "blobs"}, tier host or disk
    events                          the oldest first: {"at_s", "what", "about", "detail"}

In a list of operations, targets, edges, reads, pairs, pipelines and events are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from blitzgw.core.operation import POLICY, EdgeFacts, OperationFacts, TargetFacts

ENDED = frozenset({"planned", "done", "failed", "cancelled"})
"""States that no other one follows."""


def newest_first(operations: Iterable[OperationFacts]) -> list[OperationFacts]:
    """Return operations in the order in which they are listed, each once."""
    found: dict[str, OperationFacts] = {}
    for facts in operations:
        known = found.get(facts.id)
        if known is None or known.elapsed_s < facts.elapsed_s:
            found[facts.id] = facts
    return sorted(found.values(), key=lambda facts: (-facts.started_s, facts.id))


def summary(facts: OperationFacts) -> dict[str, Any]:
    """Return an operation without its parts."""
    predicted = sorted(facts.alternatives.items(), key=lambda item: (item[1], item[0]))
    strategies = [(name, s) for name, s in predicted if not name.startswith(POLICY)]
    policies = [(name.removeprefix(POLICY), s) for name, s in predicted if name.startswith(POLICY)]
    return {
        "id": facts.id,
        "kind": _kind(facts),
        "model": facts.model,
        "digest": facts.digest or None,
        "weights": facts.weights or None,
        "owner": facts.owner,
        "state": facts.state,
        "ended": facts.state in ENDED,
        "reason": facts.reason or None,
        "started": facts.started_s,
        "elapsed_s": facts.elapsed_s,
        "instances_before": facts.instances_before,
        "instances_wanted": facts.instances_wanted,
        "strategy": facts.strategy or None,
        "policy": facts.policy or None,
        "epoch": facts.epoch,
        "predicted_s": {
            "complete": _time(facts.predicted_s),
            "first_blob": _time(facts.first_blob_s),
            "coverage": _time(facts.coverage_s),
        },
        "alternatives": [{"strategy": name, "predicted_s": _time(s)} for name, s in strategies],
        "policies": [{"policy": name, "predicted_mean_s": _time(s)} for name, s in policies],
        "size_bytes": facts.size_bytes,
    }


def whole(facts: OperationFacts) -> dict[str, Any]:
    """Return an operation with all its parts."""
    return summary(facts) | {
        "targets": [
            _target(target, facts) for target in sorted(facts.targets, key=lambda t: t.worker)
        ],
        "edges": [_edge(edge) for edge in facts.edges],
        "reads": [
            {"worker": read.worker, "tier": read.tier, "blobs": read.blobs} for read in facts.reads
        ],
        "pairs": [{"worker": pair.worker, "home": pair.home} for pair in facts.pairs],
        "pipelines": [
            [{"worker": s.worker, "layers": [s.span.start, s.span.stop]} for s in stages]
            for stages in facts.pipelines
        ],
        "events": [
            {
                "at_s": event.at_s,
                "what": event.what,
                "about": event.about or None,
                "detail": event.detail or None,
            }
            for event in sorted(facts.events, key=lambda event: event.at_s)
        ],
    }


def _kind(facts: OperationFacts) -> str:
    """Return what an operation is for: one with targets that changes no number makes a copy."""
    same = facts.instances_before == facts.instances_wanted
    return "copy" if same and facts.targets else "scale"


def _time(seconds: float) -> float | None:
    """Return a time, None where there is none."""
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _times(by_blob: Sequence[float]) -> list[float | None]:
    return [_time(seconds) for seconds in by_blob]


def _target(target: TargetFacts, facts: OperationFacts) -> dict[str, Any]:
    arrived = _times(target.arrived_s)
    return {
        "worker": target.worker,
        "instance": target.instance or None,
        "state": target.state,
        "reason": target.reason or None,
        "ready_s": _time(target.ready_s),
        "resident_bytes": _resident_bytes(target, facts),
        "blobs": max(len(target.arrived_s), len(target.predicted_s)),
        "arrived": sum(seconds is not None for seconds in arrived),
        "predicted_s": _times(target.predicted_s),
        "arrived_s": arrived,
    }


def _resident_bytes(target: TargetFacts, facts: OperationFacts) -> int:
    """Return about how many bytes a target has: all but what its edges and reads still owe it.

    Of reads it is known only which blobs have arrived, so that each counts as an average one.
    """
    if target.state == "ready":
        return facts.size_bytes
    total, there = len(target.arrived_s), [s >= 0 for s in target.arrived_s]
    edges = [edge for edge in facts.edges if edge.target == target.worker]
    reads = [i for read in facts.reads if read.worker == target.worker for i in read.blobs]
    if not edges and not reads:
        return facts.size_bytes * sum(there) // max(1, total)
    owed = sum(max(0, edge.size_bytes - edge.received_bytes) for edge in edges)
    unread = sum(not (i < total and there[i]) for i in reads)
    owed += facts.size_bytes * unread // max(1, total, len(reads))
    return max(0, facts.size_bytes - owed)


def _edge(edge: EdgeFacts) -> dict[str, Any]:
    return {
        "source": edge.source,
        "target": edge.target,
        "network": edge.network or None,
        "state": edge.state,
        "blobs": edge.blobs,
        "size_bytes": edge.size_bytes,
        "received_bytes": edge.received_bytes,
        "rate_bytes_per_s": edge.rate_bytes_per_s or None,
        "yielded_s": edge.yielded_s,
        "delayed_s": edge.delayed_s,
    }
