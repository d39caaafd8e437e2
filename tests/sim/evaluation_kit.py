"""Records of a made-up run."""

from __future__ import annotations

from typing import Any

from blitzgw.sim.evaluation.record import Answer, Look, Record

ABOUT: dict[str, Any] = {
    "trace": "traces/some.csv", "window": [10, 20], "factor": 0.5, "nodes": 4,
    "load_over_compute": 6, "prefill_tokens_per_s": 10_000.0, "step_s": 0.01, "times": 5.0,
    "patience_s": 60.0,
}  # fmt: skip


def answer(at_s: float = 0.0, first_s: float = 0.1, **more: Any) -> Answer:
    """An answer of 11 tokens to a prompt of 900, which is due within 0.5 s and 50 ms a token."""
    about = {"outcome": "ok", "lag_s": 0.001, "last_s": first_s + 0.2, "tokens": 11, **more}
    return Answer(at_s, 900, 11, first_s=first_s, **about)


def growth(at_s: float = 2.0, **more: Any) -> dict[str, Any]:
    """A scale-up from one instance to two, as a node tells it."""
    target = {"worker": "n1/p0", "instance": "m@n1/p0", "state": "ready", "ready_s": 1.0}
    target["arrived_s"] = [0.1, 0.2, 0.3, 0.9]
    events = [("decided", 0.0), ("planned", 0.01), ("first_byte", 0.05), ("ready", 1.0)]
    return {
        "id": f"{at_s:g}", "kind": "scale", "at_s": at_s, "instances_before": 1,
        "instances_wanted": 2, "targets": [target],
        "events": [{"what": what, "at_s": at} for what, at in events],
    } | more  # fmt: skip


def record(system: str = "live-zigzag", seed: int = 1, slower: float = 1.0, **more: Any) -> Record:
    """A run of ten requests on one instance, later two."""
    answers = [answer(float(n), 0.1 * slower * (1 + n % 3)) for n in range(10)]
    made = Record(system, seed, virtual=False, about={**ABOUT, **more}, answers=answers)
    made.looks = [Look(-1.0, {"serving": 1}), Look(4.0, {"serving": 1, "loading": 1})]
    made.seconds, made.checked = 10.0, 10
    made.operations = [growth()]
    made.bytes_by_link = {"n0 tx": {"weights": 1e6, "rest": 2e3}, "n1 rx": {"weights": 1e6}}
    return made
