"""Bytes on a testbed's links by class, what else nodes count, and how busy the machine was."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from scripts.evaluation.configuration import Nodes
from tests.support.live_receivers import processors, used
from tests.support.netns import Counters

HANDOFFS = re.compile(r"^blitzgw_handoff_bytes_total (\S+)$", re.MULTILINE)
DECIDE = re.compile(
    r'^blitzgw_scale_phase_seconds_(sum|count)\{phase="decide"\} (\S+)$', re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Meters:
    """By node: what its interface has carried, and what of this were handoffs that it has sent."""

    links: Mapping[str, Counters]
    handoffs: Mapping[str, float]

    @staticmethod
    def of(made: Nodes) -> Meters:
        """Read them all."""
        handoffs = {}
        for node in made.nodes:
            if told := HANDOFFS.search(_page(made, node)):
                handoffs[made.name(node)] = float(told[1])
        return Meters(made.counters(), handoffs)


SLICE_LOOKS = 4
"""Readings of processors that make a slice: long enough for their ticks, 10 ms, to tell shares."""


@dataclass(slots=True)
class Busy:
    """How much of the processors' time was used: all in all, and in the busiest slice."""

    readings: list[tuple[int, int]] = field(default_factory=list)

    def look(self) -> None:
        """Read."""
        self.readings.append(processors())

    def told(self) -> dict[str, float]:
        """Return shares by name; none before there are two readings."""
        if len(self.readings) < 2:
            return {}
        whole = used(self.readings[0], self.readings[-1])
        slices = [used(*pair) for pair in pairwise(self.readings[::SLICE_LOOKS])]
        return {"busy": round(whole, 3), "busy_max": round(max([whole, *slices]), 3)}


def bytes_by_link(
    before: Meters, after: Meters, operations: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Return bytes between two readings, by link and class.

    Weights are told by operations of the run; the rest are requests, tokens, gossip, the headers
    of everything, and handoffs that are received.
    """
    out, into = _weights(operations)
    links: dict[str, dict[str, float]] = {}
    for name, now in after.links.items():
        sent = now.sent - before.links[name].sent
        received = now.received - before.links[name].received
        weights = out.get(name, 0.0)
        handoffs = after.handoffs.get(name, 0.0) - before.handoffs.get(name, 0.0)
        rest = max(0.0, sent - weights - handoffs)
        links[f"{name} tx"] = {"weights": weights, "handoffs": handoffs, "rest": rest}
        weights = into.get(name, 0.0)
        links[f"{name} rx"] = {"weights": weights, "rest": max(0.0, received - weights)}
    return links


def decide_s(made: Nodes) -> float:
    """Return how long decisions to grow took, on average; -1: there were none."""
    total, count = 0.0, 0.0
    for node in made.nodes:
        figures = dict(DECIDE.findall(_page(made, node)))
        total += float(figures.get("sum", 0.0))
        count += float(figures.get("count", 0.0))
    return total / count if count else -1.0


def _weights(
    operations: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the bytes of weights that nodes have sent and received, by node."""
    out: dict[str, float] = {}
    into: dict[str, float] = {}
    edges = (edge for one in operations if one["at_s"] >= 0 for edge in one.get("edges", ()))
    for edge in edges:
        for end, found in (("source", out), ("target", into)):
            name = edge[end].rpartition("/")[0]
            found[name] = found.get(name, 0.0) + float(edge["received_bytes"] or 0)
    return out, into


def _page(made: Nodes, node: int) -> str:
    status, told = made.get("/metrics", node)
    return str(told) if status == 200 else ""
