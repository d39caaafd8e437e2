"""What is seen of a cell's nodes from outside while requests are replayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from blitzgw.sim.evaluation.record import Look
from scripts.evaluation.configuration import Nodes

LOOK_S = 0.25
"""Between two looks at which instances there are, undilated."""

ASK_LOOKS = 60
"""Between two collections of operations, of which nodes remember some hundreds."""

MISTAKES = ("Traceback", "effect_failed", "autoscaler_failed")
MISTAKE_LINES = 40
"""What nodes' logs have of an exception that nobody expected, and how much of it is kept."""

SETTLED_LOOKS = 20
"""Alike and with nothing under way: what follows in an empty window is more of that."""


@dataclass(slots=True)
class Watch:
    """What is seen of nodes from outside, in undilated seconds since the window's start."""

    made: Nodes
    dilation: float
    kept_is_free: bool = False
    """Whether kept instances may stay to the end without being paid for."""
    zero: float = 0.0
    """The window's start in Unix time, which operations and decisions are told in."""
    looks: list[Look] = field(default_factory=list)
    operations: dict[str, dict[str, Any]] = field(default_factory=dict)
    decisions: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)

    def look(self, now_s: float) -> None:
        """Ask a node for the instances of all. Raises ClusterFailed if a node has ended."""
        self.made.check()
        if not self.looks:
            self.zero = datetime.now(UTC).timestamp() - now_s * self.dilation
        status, told = self.made.get("/cluster/instances")
        if status == 200:
            states: dict[str, int] = {}
            for one in told["instances"]:
                states[one["state"]] = states.get(one["state"], 0) + 1
            self.looks.append(Look(now_s, states))
        if len(self.looks) % ASK_LOOKS == 0:
            self.ask()

    def ask(self) -> None:
        """Collect operations that have ended, and decisions."""
        status, told = self.made.get("/cluster/operations")
        for one in told.get("operations", []) if status == 200 else []:
            if one["id"] not in self.operations:
                status, whole = self.made.get(f"/cluster/operations/{one['id']}")
                if status == 200 and whole.get("ended"):
                    self.operations[one["id"]] = {**whole, "at_s": self._since(whole["started"])}
        status, told = self.made.get("/cluster/decisions")
        for one in told.get("decisions", []) if status == 200 else []:
            key = (one["owner"], one["at"], one["wanted"], one["action"])
            self.decisions[key] = {**one, "at_s": self._since(one["at"])}

    def settled(self, least: int) -> bool:
        """Whether there are as few instances as may be, and nothing has changed for a while."""
        last = [one.states for one in self.looks[-SETTLED_LOOKS:]]
        quiet = {"serving", "kept"} if self.kept_is_free else {"serving"}
        return (
            len(last) == SETTLED_LOOKS
            and all(one == last[0] and quiet.issuperset(one) for one in last)
            and last[0].get("serving") == least
        )

    def _since(self, unix_s: float) -> float:
        return (unix_s - self.zero) / self.dilation


def copies(made: Nodes) -> int:
    """Return how many nodes have a copy of the model in their memory."""
    status, told = made.get("/cluster/nodes")
    nodes = told["nodes"] if status == 200 else []
    return sum(any(map(_lasts, node["copies"])) for node in nodes)


def _lasts(copy: dict[str, Any]) -> bool:
    """Whether a copy is there to stay, not only for a while after an instance."""
    return bool(copy["complete"]) and not copy["cached"]


def under_way(made: Nodes) -> bool:
    """Whether any operation has not ended."""
    status, told = made.get("/cluster/operations")
    return status != 200 or any(not one["ended"] for one in told["operations"])


def errors(made: Nodes) -> str:
    """Return what logs say of mistakes of the program; empty: nothing."""
    for node in made.nodes:
        lines = made.bed.log(node).read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            if any(word in line for word in MISTAKES):
                text = "\n".join(lines[number : number + MISTAKE_LINES])
                return f"{made.name(node)} says: {line}\n{text}"
    return ""
