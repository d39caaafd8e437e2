"""How operations go, as metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from blitzgw.core.operation import OperationEvent, OperationFacts, TargetFacts
from blitzgw.scalemetrics import ScaleMetrics, phases


def facts(state: str = "done", wanted: int = 2, **more: object) -> OperationFacts:
    target = TargetFacts("b/gpu", "m@b/gpu", "ready", (), (0.2, 0.3, 0.5, 0.6), 0.7)
    found = {
        "targets": (target,),
        "events": (OperationEvent(0.0, "decided"), OperationEvent(0.1, "connected", "e")),
    }
    return OperationFacts("op", "m", "d", "w", "a", state, 0.0, 1, wanted, **(found | more))


def test_phases_are_told_by_what_has_happened() -> None:
    assert phases(facts()) == {"connect": 0.1, "first_layer": 0.3, "transfer": 0.6, "ready": 0.7}


def test_what_is_not_known_is_left_out() -> None:
    failed = TargetFacts("b/gpu", "m@b/gpu", "failed", (), (0.2, -1.0, -1.0, -1.0))
    assert phases(facts(targets=(failed,), events=())) == {}


def test_operations_are_counted_and_only_finished_scale_ups_timed() -> None:
    registry, metrics = CollectorRegistry(), ScaleMetrics()
    metrics.register(registry)
    for one in (facts(), facts("failed"), facts(wanted=0)):
        metrics.ended(one, "grow")

    def count(direction: str, outcome: str) -> float | None:
        labels = {"model": "m", "direction": direction, "reason": "grow", "outcome": outcome}
        return registry.get_sample_value("blitzgw_scale_events_total", labels)

    assert (count("up", "done"), count("up", "failed"), count("down", "done")) == (1, 1, 1)
    timed = {"phase": "ready"}
    assert registry.get_sample_value("blitzgw_scale_phase_seconds_count", timed) == 1
