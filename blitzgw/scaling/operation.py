"""One scale operation, as its owner decides it: what all kinds of them have in common.

    Growth (growth.py):   claiming ──► transferring ──► done | failed | cancelled
    Retreat (retreat.py): draining ──────────────────► done | failed | cancelled

An ended operation listens for as long as a lease lasts: who has lost its last word is told again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blitzgw.core.operation import (
    LEASE_S,
    EdgeFacts,
    OperationFacts,
    OperationMessage,
    ReadOrder,
    TargetFacts,
)
from blitzgw.core.plan import Links, Task
from blitzgw.core.view import ClusterView
from blitzgw.scaling.effects import OperationEffect, OperationEnded, Record, Send
from blitzgw.scaling.hindsight import Outcome
from blitzgw.scaling.links import Promises
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.scaling.waterfall import Waterfall

if TYPE_CHECKING:
    from blitzgw.scaling.planner.choose import Choice

RESEND_S = 0.25
"""From a lost link to saying again what may have been lost on it: a new link is there by then."""

ENDED = frozenset({"planned", "done", "failed", "cancelled"})
"""States in which nothing happens any more."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an owner knows and has: everything that is not a message.

    `boot` and `node` are its own. `secret` returns 32 fresh random bytes, `wall_s` Unix time;
    `choose` is the planner (planner/choose.py) and raises PlanError or ValueError. `due_s` says by
    worker and blob in how many seconds operations that have begun before bring the same weights,
    `promised` what all others of this owner have been promised of ports (links.py).
    """

    boot: str
    node: str
    view: Callable[[], ClusterView]
    secret: Callable[[], bytes]
    wall_s: Callable[[], float]
    choose: Callable[[Task, Links, str], Choice]
    due_s: Callable[[], Mapping[str, tuple[float, ...]]] = dict
    promised: Callable[[], Promises] = dict


class Operation(ABC):
    """The part that is the same in every direction: facts, phases, lost links, the end."""

    copy = False
    """Whether it makes a host copy, which is the node's own affair."""
    automatic = False
    """Whether the model's owner has ordered it, and not an operator."""

    def __init__(
        self,
        name: str,
        definition: ModelDefinition,
        wanted: int,
        before: int,
        around: Surroundings,
        now: float,
    ) -> None:
        self.id, self.definition, self.wanted = name, definition, wanted
        self.state, self.reason = "claiming", ""
        self._before, self._around = before, around
        self._started, self._started_s = now, around.wall_s()
        self._ended_at: float | None = None
        self._waterfall = Waterfall(now)
        self._effects: list[OperationEffect] = []
        self._farewells: dict[str, OperationMessage] = {}
        self._resend: set[str] = set()
        self._resend_at: float | None = None
        self._handlers: dict[type, Callable[[Any, float], None]] = {}

    @property
    def ended(self) -> bool:
        """Whether nothing of it happens any more."""
        return self.state in ENDED

    @abstractmethod
    def begin(self, now: float) -> list[OperationEffect]:
        """Start; called once."""

    @abstractmethod
    def cancel(self, reason: str, now: float) -> list[OperationEffect]:
        """Give up, for a reason."""

    def cut_short(self, reason: str, now: float) -> list[OperationEffect]:
        """Give up what is not done yet, for a reason."""
        return self.cancel(reason, now)

    @abstractmethod
    def on_message(self, boot: str, message: OperationMessage, now: float) -> list[OperationEffect]:
        """Take a message of this operation from a node."""

    @abstractmethod
    def on_node_died(self, boot: str, now: float) -> list[OperationEffect]:
        """Go on without a node."""

    def on_link_lost(self, boot: str, now: float) -> list[OperationEffect]:
        """Note that messages to and from a node may be lost: they are said again a moment later."""
        if not self.forgettable(now):
            self._resend.add(boot)
            if self._resend_at is None:
                self._resend_at = now + RESEND_S
        return []

    def on_time(self, now: float) -> list[OperationEffect]:
        """Do what is due."""
        if self._resend_at is not None and self._resend_at <= now:
            lost, self._resend, self._resend_at = sorted(self._resend), set(), None
            for boot in lost:
                if not self.ended:
                    self._say_again(boot)
                elif boot in self._farewells and not self.forgettable(now):
                    self._send(boot, self._farewells[boot])
        if not self.ended:
            self._do_due(now)
        return self._flush()

    def deadline(self) -> float | None:
        """Return when `on_time` is due; None: never."""
        times = [] if self.ended else self._deadlines()
        if self._resend_at is not None:
            times.append(self._resend_at)
        return min(times, default=None)

    def forgettable(self, now: float) -> bool:
        """Whether an ended operation need not be told of lost links any more."""
        return self._ended_at is not None and now > self._ended_at + LEASE_S

    @abstractmethod
    def _deadlines(self) -> list[float]: ...

    @abstractmethod
    def _do_due(self, now: float) -> None: ...

    @abstractmethod
    def _say_again(self, boot: str) -> None: ...

    # For the kinds.

    def _send(self, boot: str, message: OperationMessage) -> None:
        self._effects.append(Send(boot, message))

    def _flush(self) -> list[OperationEffect]:
        effects, self._effects = self._effects, []
        return effects

    def _note(self, now: float, what: str, about: str = "", detail: str = "") -> None:
        event = self._waterfall.note(now, what, about, detail)
        self._effects.append(Record(self.id, self.definition.name, event))

    def _end(self, state: str, reason: str, now: float) -> None:
        self.state, self.reason, self._ended_at = state, reason, now
        self._note(now, state, "", reason)
        self._effects.append(
            OperationEnded(
                self.id, self.definition.name, self.definition.weights, state, reason, self.copy
            )
        )

    def _facts(
        self,
        now: float,
        *,
        plan: Choice | None = None,
        figures: Mapping[str, float] | None = None,
        epoch: int = 0,
        targets: tuple[TargetFacts, ...] = (),
        edges: tuple[EdgeFacts, ...] = (),
        reads: tuple[ReadOrder, ...] = (),
    ) -> OperationFacts:
        until = now if self._ended_at is None else self._ended_at
        return OperationFacts(
            id=self.id,
            model=self.definition.name,
            digest=self.definition.digest,
            weights=self.definition.weights,
            owner=self._around.node,
            state=self.state,
            started_s=self._started_s,
            instances_before=self._before,
            instances_wanted=self.wanted,
            strategy=plan.plan.strategy if plan is not None else "",
            elapsed_s=max(0.0, until - self._started),
            size_bytes=self.definition.size_bytes,
            epoch=epoch,
            reason=self.reason,
            targets=targets,
            edges=edges,
            reads=reads,
            policy=plan.plan.policy if plan is not None and not self.copy else "",
            pairs=plan.plan.pairs if plan is not None else (),
            pipelines=plan.plan.pipelines if plan is not None else (),
            alternatives=dict(plan.alternatives) if plan is not None else {},
            events=self._waterfall.events(),
            **(figures or {}),
        )

    @abstractmethod
    def facts(self, now: float) -> OperationFacts:
        """Return what there is to tell of it."""

    @abstractmethod
    def outcomes(self) -> list[Outcome]:
        """Return what has become of instances by it, once it has ended."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
