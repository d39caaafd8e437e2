"""What owners tell of their models' scaling, as a node sees it."""

from __future__ import annotations

from datetime import UTC, datetime

from blitzgw.core.view import ClusterView, ScaleFacts


def wall_time() -> float:
    """Return Unix time in seconds."""
    return datetime.now(UTC).timestamp()


def scale_facts(view: ClusterView) -> dict[str, ScaleFacts]:
    """Return what is told of the scaling of each model: of two owners by the later one."""
    found: dict[str, ScaleFacts] = {}
    for node in view.living():
        for name, facts in node.scaling.items():
            known = found.get(name)
            if known is None or known.since_s < facts.since_s:
                found[name] = facts
    return found


def eta_s(facts: ScaleFacts | None, now: float) -> float | None:
    """Return in how many seconds an instance is expected; None: none is on its way. `now`: Unix."""
    if facts is None or not facts.ready_s:
        return None
    return max(0.0, facts.ready_s - now)
