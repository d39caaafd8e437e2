"""Fewer instances of a model: some are told to finish or move what they have, and then go.

    told to go ──► draining ──► released                      (gone, by its node's word or death)
                            └─► failed: not there at that claim, or its worker was lost meanwhile

Whoever was to go and was not there may be there again at another claim, so the instances are
counted anew before the end, and others are told to go while there are too many. Done means that the
number is right. A drain that has begun goes on whatever becomes of the operation: it is the
instance's own node that carries it out.
"""

from __future__ import annotations

from collections.abc import Iterable

from blitzgw.core.instance import InstanceState
from blitzgw.core.operation import OperationFacts, OperationMessage, Retire, Retired, TargetFacts
from blitzgw.scaling.departures import DRAINING, FAILED, RELEASED, Departures, victims
from blitzgw.scaling.effects import OperationEffect
from blitzgw.scaling.hindsight import Outcome
from blitzgw.scaling.operation import Operation, Surroundings
from blitzgw.scaling.survey import ModelDefinition, PlacedInstance, instances_of

RETIRE_PATIENCE_S = 180.0
"""For an instance to drain: longer than nodes let a drain take, after which they cut it short."""

LOOK_S = 0.05
"""Between two looks at the view for the right number: gossip's shortest interval."""

ROLL_CALL_S = 1.0
"""Between two looks for those that drain at nodes which had died before they were told to go."""

COUNT_PATIENCE_S = 10.0
"""For the view to show the right number: a worker that restarts is away for seconds, and until it
is back its instance is neither there nor gone."""

MAX_ROUNDS = 8
"""Of choosing who goes: workers that restart faster than they can be told to go are not waited
out."""


class Retreat(Operation):
    """Takes instances away; with none to take it is done at once."""

    def __init__(
        self,
        name: str,
        definition: ModelDefinition,
        wanted: int,
        before: int,
        leaving: Iterable[PlacedInstance],
        around: Surroundings,
        now: float,
        *,
        dry: bool = False,
    ) -> None:
        super().__init__(name, definition, wanted, before, around, now)
        self._dry, self._rounds = dry, 0
        self._leaving = Departures()
        self._first = list(leaving)
        self._look_at: float | None = None
        self._count_by: float | None = None
        self._call_at = now + ROLL_CALL_S

    def begin(self, now: float) -> list[OperationEffect]:
        """Tell the instances to go, all at once."""
        detail = f"{self._before} → {self.wanted} instances"
        self._note(now, "decided", self.definition.name, detail)
        if self._dry:
            for placed in self._first:
                self._leaving.begin(placed)
            self.state = "planned"
            self._ended_at = now
            return self._flush()
        self.state = "draining"
        if self._first:
            self._tell(self._first, now)
        else:
            self._end("done", f"there are {self._before} instances already", now)
        return self._flush()

    def cancel(self, reason: str, now: float) -> list[OperationEffect]:
        """Wait no longer; what drains already goes on draining."""
        if not self.ended:
            left = len(self._leaving.waiting())
            self._end("cancelled", f"{reason}; {left} instances are draining already", now)
        return self._flush()

    def on_message(self, boot: str, message: OperationMessage, now: float) -> list[OperationEffect]:
        """Note that an instance is gone, or was not there as it was known."""
        if isinstance(message, Retired) and self._leaving.drains(message.instance, boot):
            state = FAILED if message.reason else RELEASED
            self._gone(message.instance, state, message.reason, now)
        return self._flush()

    def on_node_died(self, boot: str, now: float) -> list[OperationEffect]:
        """Note that the instances of a node are gone with it."""
        self._bury(boot, now)
        return self._flush()

    def facts(self, now: float) -> OperationFacts:
        """Return what there is to tell of it."""
        targets = tuple(
            TargetFacts(each.placed.worker, name, each.state, reason=each.reason)
            for name, each in self._leaving.items()
        )
        return self._facts(now, targets=targets)

    def outcomes(self) -> list[Outcome]:
        """Return who is gone, and who drains yet."""
        states = {RELEASED: InstanceState.GONE, DRAINING: InstanceState.DRAINING}
        return self._leaving.outcomes(states)

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert self.state != "done" or not self._leaving.waiting(), "done while some are draining"
        assert self._rounds <= MAX_ROUNDS

    def _tell(self, leaving: Iterable[PlacedInstance], now: float) -> None:
        self._rounds += 1
        self._look_at = self._count_by = None
        for placed in leaving:
            self._leaving.begin(placed)
            self._note(now, "draining", placed.facts.id)
            self._send(placed.boot, Retire(self.id, placed.facts.id, placed.facts.claim))

    def _bury(self, boot: str, now: float) -> None:
        for placed in self._leaving.waiting():
            if placed.boot == boot:
                self._gone(placed.facts.id, RELEASED, "its node has died", now)

    def _call_roll(self, now: float) -> None:
        """Find out about deaths that were told before this operation could hear of them."""
        self._call_at = now + ROLL_CALL_S
        view = self._around.view()
        for boot in sorted({placed.boot for placed in self._leaving.waiting()}):
            node = view.nodes.get(boot)
            if node is None or not node.living:
                self._bury(boot, now)

    def _gone(self, name: str, state: str, reason: str, now: float) -> None:
        self._leaving.end(name, state, reason)
        if not self.ended:
            self._note(now, state, name, reason)
            if not self._leaving.waiting():
                self._count_by = now + COUNT_PATIENCE_S
                self._count(now)

    # The number.

    def _count(self, now: float) -> None:
        """End with the right number; tell others to go while there are too many; or look again."""
        shown = instances_of(self.definition.name, self._around.view())
        present = [placed for placed in shown if not self._leaving.released(placed)]
        too_many = len(present) - self.wanted
        if not too_many:
            self._end("done", "", now)
        elif self._count_by is not None and now >= self._count_by:
            self._end("failed", self._why(len(present)), now)
        elif too_many > 0 and not any(map(self._leaving.doubtful, present)):
            if self._rounds >= MAX_ROUNDS:
                self._end("failed", self._why(len(present)), now)
            else:
                self._tell(victims(present, too_many), now)
        else:
            self._look_at = now + LOOK_S

    def _why(self, n_present: int) -> str:
        reasons = "; ".join(self._leaving.reasons()) or "some have gone by themselves"
        return f"there are {n_present} instances, not {self.wanted}: {reasons}"

    # Time.

    def _deadlines(self) -> list[float]:
        times = [self._started + RETIRE_PATIENCE_S, self._call_at]
        return times if self._look_at is None else [*times, self._look_at]

    def _do_due(self, now: float) -> None:
        if now >= self._started + RETIRE_PATIENCE_S:
            names = ", ".join(placed.facts.id for placed in self._leaving.waiting())
            self._end("failed", f"not gone after {RETIRE_PATIENCE_S:.0f} s: {names}", now)
            return
        if now >= self._call_at:
            self._call_roll(now)
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            self._count(now)

    def _say_again(self, boot: str) -> None:
        for placed in self._leaving.waiting():
            if placed.boot == boot:
                self._send(boot, Retire(self.id, placed.facts.id, placed.facts.claim))
