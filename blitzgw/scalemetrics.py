"""How scale operations go, as metrics of the node that owns them.

Phases, each in seconds from the decision: `connect` until all edges are up, `first_layer` until
some target has a layer, `transfer` until all have all blobs, `ready` until all serve. Before it,
`decide` is the time from what was decided upon, on the node that it happened at, to the decision.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from blitzgw.core.operation import OperationFacts
from blitzgw.core.scale import DecisionFacts

BOUNDS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""From a small model on one machine to a large one from a disk."""


class ScaleMetrics:
    """Counts operations that have ended."""

    def __init__(self) -> None:
        self._ended = Counter(
            "blitzgw_scale_events",
            "Scale operations that have ended.",
            ["model", "direction", "reason", "outcome"],
            registry=None,
        )
        self._phases = Histogram(
            "blitzgw_scale_phase_seconds",
            "Seconds from the decision to the end of a phase.",
            ["phase"],
            buckets=BOUNDS_S,
            registry=None,
        )

    def register(self, registry: CollectorRegistry) -> None:
        """Show the figures among those of a registry."""
        registry.register(self._ended)
        registry.register(self._phases)

    def decided(self, decision: DecisionFacts, after_s: float | None) -> None:
        """Take a decision, so long after what it answers had happened; None: not known."""
        if after_s is not None:
            self._phases.labels("decide").observe(after_s)
        if not decision.acted:
            direction = "up" if decision.wanted > decision.present else "down"
            self._ended.labels(decision.model, direction, decision.action, "advised").inc()

    def ended(self, facts: OperationFacts, reason: str) -> None:
        """Take an operation that has ended; `reason` is the action of the decision behind it."""
        direction = "up" if facts.instances_wanted > facts.instances_before else "down"
        self._ended.labels(facts.model, direction, reason, facts.state).inc()
        if facts.state != "done" or direction == "down":
            return
        for phase, at_s in phases(facts).items():
            self._phases.labels(phase).observe(at_s)


def phases(facts: OperationFacts) -> dict[str, float]:
    """Return when each phase of a scale-up was over, in seconds, as far as that is known."""
    connected = [event.at_s for event in facts.events if event.what == "connected"]
    arrived = [target.arrived_s for target in facts.targets if target.state == "ready"]
    layers = [at_s for times in arrived for at_s in times[1:-1] if at_s >= 0]
    blobs = [at_s for times in arrived for at_s in times]
    ready = [target.ready_s for target in facts.targets if target.ready_s >= 0]
    found = {
        "connect": max(connected, default=-1.0),
        "first_layer": min(layers, default=-1.0),
        "transfer": max(blobs, default=-1.0),
        "ready": max(ready, default=-1.0),
    }
    return {phase: at_s for phase, at_s in found.items() if at_s >= 0}
