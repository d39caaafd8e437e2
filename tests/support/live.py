"""A burst onto one instance while more are loading, measured; seconds are undilated, from the send.

A round sends all prompts and asks for more instances at one moment, waits for every answer and for
the operation, and goes back to one instance.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tests.support import multicast
from tests.support.gateways import Gateways, Terms
from tests.support.live_client import Answer, Client, completion
from tests.support.multicast import OperationFailed, Setting

ALONE = "alone"
"""In place of a policy: one instance, and no scaling."""

STRATEGY = "chain"
"""Weights come over links, though every node has the checkpoint on its disk."""

PERCENTILE = 0.95
MAX_LAG_S = 0.010
"""Of the sender: a round in which a request was sent later than this after its time is void."""


class Timing(Protocol):
    """How fast everything goes: seconds are undilated, and rates on the wall (live_setting.py)."""

    load_over_compute: float
    model_bytes: int
    prompt_tokens: int
    prompt_s: float
    layer_s: float
    load_s: float
    rate_mbit: float
    slowed: float

    def terms(self, *, traced: bool = False) -> Terms:
        """Return what nodes are told."""


@dataclass(frozen=True, slots=True)
class Round:
    """One burst. Lists are by request, in the order of sending; -1: it was not."""

    policy: str
    completions_s: tuple[float, ...]
    tokens: tuple[tuple[int, ...], ...]
    lag_s: float
    load_s: float = -1.0
    first_layer_s: float = -1.0
    half_s: float = -1.0
    """When half of the layers were resident at the first target that had them."""
    first_helped_s: float = -1.0
    splits: tuple[str, ...] = ()
    planned: str = ""
    """The policy that the operation tells."""
    layers_s: tuple[tuple[float, ...], ...] = ()
    """When layers were resident, by target."""
    began_s: float = 0.0
    """Of the monotonic clock, on the wall."""

    @property
    def mean_s(self) -> float:
        return statistics.fmean(self.completions_s)

    @property
    def p95_s(self) -> float:
        return percentile(self.completions_s, PERCENTILE)

    @property
    def helped(self) -> int:
        """How many requests were computed by more than one instance."""
        return sum(bool(split) for split in self.splits)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that so many of all do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Burst:
    """What is sent, and what is asked for at the same moment."""

    policy: str
    targets: int
    prompts: tuple[tuple[int, ...], ...]
    outputs: int = 1


def burst(made: Gateways, setting: Setting, pace: Timing, asked: Burst) -> Round:
    """Run one round. Raises OperationFailed if a request or the operation fails."""
    policy, outputs = asked.policy, asked.outputs
    bodies = {name_of(i): completion(ids, outputs) for i, ids in enumerate(asked.prompts)}
    volley = Client(made, 0, patience_s(pace, len(bodies))).prepare(bodies)
    try:
        began_s = volley.send()
        asked_s, facts = time.monotonic(), {}
        if policy != ALONE:
            begun = multicast.begin(made, 1 + asked.targets, STRATEGY, policy)
            facts = multicast.await_end(made, setting, begun)
        answers = volley.answers()
    finally:
        volley.close()
    return read(policy, answers, facts, pace, began_s, asked_s)


def read(
    policy: str,
    answers: Sequence[Answer],
    facts: Mapping[str, Any],
    pace: Timing,
    began_s: float,
    asked_s: float,
) -> Round:
    """Turn answers and an operation that is done into figures. Raises OperationFailed.

    The operation is taken to have been decided when it was asked for: that is one HTTP request
    over loopback earlier than it was, and `started` has whole seconds only.
    """
    bad = [one for one in answers if not one.good]
    if bad:
        first = f"{bad[0].name}: {bad[0].status} {bad[0].error}"
        raise OperationFailed(f"{policy}: {len(bad)} of {len(answers)} requests failed; {first}")
    d = pace.slowed
    common = {
        "policy": policy,
        "completions_s": tuple((one.ended_s - began_s) / d for one in answers),
        "tokens": tuple(tuple(one.tokens) for one in answers),
        "lag_s": max(one.sent_s for one in answers) - began_s,
        "splits": tuple(one.split for one in answers),
        "began_s": began_s,
        "first_helped_s": min(
            ((one.ended_s - began_s) / d for one in answers if one.split), default=-1.0
        ),
    }
    if not facts:
        return Round(**common)
    start_s = (asked_s - began_s) / d
    layers = tuple(
        usable_s(target["arrived_s"], start_s)
        for target in facts["targets"]
        if multicast.is_ready(target)
    )
    ready = [start_s + t["ready_s"] for t in facts["targets"] if multicast.is_ready(t)]
    if not ready:
        raise OperationFailed(f"{policy}: no target is ready: {facts['targets']}")
    half = [times[(len(times) - 1) // 2] for times in layers if times]
    return Round(
        **common,
        load_s=max(ready),
        first_layer_s=min((times[0] for times in layers if times), default=-1.0),
        half_s=min(half, default=-1.0),
        planned=facts.get("policy") or "",
        layers_s=layers,
    )


def usable_s(arrived: Sequence[float | None], start_s: float) -> tuple[float, ...]:
    """When each layer could run: with all before it, and the embedding. Empty: not all are known.

    `arrived` is by blob: the embedding, the layers, the head.
    """
    if len(arrived) < 3 or None in arrived[:-1]:
        return ()
    latest, found = -math.inf, []
    for at in arrived[:-1]:
        latest = max(latest, float(at or 0.0))
        found.append(start_s + latest)
    return tuple(found[1:])


def row(
    rounds: Sequence[Round], reference: Sequence[tuple[int, ...]], pace: Timing, targets: int
) -> dict[str, Any]:
    """Return the row of a policy: medians over its rounds."""
    median = statistics.median
    return {
        "policy": rounds[0].policy,
        "targets": targets,
        "load_over_compute": pace.load_over_compute,
        "mean_s": median(one.mean_s for one in rounds),
        "p95_s": median(one.p95_s for one in rounds),
        "load_s": median(one.load_s for one in rounds),
        "first_layer_s": median(one.first_layer_s for one in rounds),
        "first_helped_s": median(one.first_helped_s for one in rounds),
        "tokens_ok": all(one.tokens == tuple(reference) for one in rounds),
        "spread_s": max(one.mean_s for one in rounds) - min(one.mean_s for one in rounds),
        "helped": median(one.helped for one in rounds),
        "lag_s": max(one.lag_s for one in rounds),
        "rounds": [asdict(one) for one in rounds],
    }


def name_of(number: int) -> str:
    """What a request of a burst is called, also in traces."""
    return f"r{number:03d}"


def patience_s(pace: Timing, requests: int) -> float:
    """How long a client waits on the wall: several times what one instance alone takes."""
    return 60.0 + 4 * pace.slowed * (pace.prompt_s * requests + pace.load_s)
