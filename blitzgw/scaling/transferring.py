"""An operation whose targets get bytes: its plans, epoch by epoch.

Any trouble (a death, a lost edge, a damaged blob, a refusal) makes the next plan a moment later,
from what every target still lacks and who has it now.
"""

from __future__ import annotations

from abc import abstractmethod

from blitzgw.core.live import LivePolicy, StagePlan
from blitzgw.core.operation import RENEW_S, OperationFacts, Renew
from blitzgw.core.plan import node_of
from blitzgw.scaling.execution import Execution
from blitzgw.scaling.operation import Operation, Surroundings
from blitzgw.scaling.orders import Unreachable
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.scaling.targets import CLAIMING, FAILED, READY, EdgeBook, Target

SETTLE_S = 0.02
"""From trouble to the next plan: a death is told by several, and one plan answers all of them."""

FREE_EPOCHS = 3
"""After which the settling delay doubles each time, up to `MAX_SETTLE_S`: trouble that is not over
by then is waited out, a death that is not known yet among it."""

MAX_SETTLE_S = 1.0
"""With it the last of MAX_EPOCHS plans is made some ten seconds after the first."""

MAX_EPOCHS = 16
"""Plans of one operation: more trouble than that does not end by planning."""


HELP_EPOCHS = MAX_EPOCHS // 2
"""Plans after which none is made for the sake of helpers alone: they can do without a home, and an
operation must not fail because homes come and go."""

HELPING_LOOK_S = 0.01
"""Between two looks at which targets help: blobs of hundreds of them come more often than that."""


class Transfer(Operation):
    """Plans and engages nodes. Their news: `Reception`. Targets and the end: `Growth`."""

    def __init__(
        self,
        name: str,
        definition: ModelDefinition,
        wanted: int,
        before: int,
        around: Surroundings,
        now: float,
        *,
        strategy: str = "",
        policy: str = "",
        dry: bool = False,
        copy_worker: str = "",
    ) -> None:
        super().__init__(name, definition, wanted, before, around, now)
        self.strategy, self.policy, self.copy = strategy, policy, bool(copy_worker)
        self._execution = Execution(
            name, definition, around, strategy=strategy, copy=bool(copy_worker), policy=policy
        )
        self._policy_told = ""
        self._pipelines_told: set[tuple[StagePlan, ...]] = set()
        self._helping: set[str] = set()
        self._helping_at = now
        self._dry, self._copy_worker = dry, copy_worker
        self._targets: dict[str, Target] = {}
        self._planned_s = 0.0
        self._replan_at: float | None = None
        self._renew_at, self._progress_at = now + RENEW_S, now
        self._first_blob_s = self._coverage_s = -1.0
        self._covered: set[int] = set()
        self._dead: set[str] = set()
        """Processes that have died meanwhile, which the view may show later."""

    @abstractmethod
    def _check_end(self, now: float) -> None: ...

    @abstractmethod
    def _give_up_rest(self, reason: str, now: float) -> None: ...

    # Plans.

    def _transfer(self, now: float) -> None:
        self.state, self._progress_at = "transferring", now
        self._renew_at = now + RENEW_S
        self._engage(now)

    def _lacking(self) -> list[str]:
        n_blobs = len(self.definition.blob_bytes)
        return [
            worker
            for worker, target in self._targets.items()
            if (target.held or target.state == CLAIMING)
            and len(target.arrived) < n_blobs
            and not self._suspected(target)
        ]

    def _holdings(self) -> tuple[list[str], dict[str, frozenset[int]], list[str]]:
        """Return who lacks something, what each target has, and who is a target no more."""
        gone = [w for w, target in self._targets.items() if target.gone or self._suspected(target)]
        held = {w: frozenset(t.arrived) for w, t in self._targets.items() if w not in gone}
        return self._lacking(), held, gone

    def _foresee(self, now: float) -> str:
        """Plan from facts alone; return why there is no plan, or nothing."""
        try:
            self._execution.choose(*self._holdings())
        except (PlanError, ValueError) as error:
            return f"it cannot be planned: {error}"
        self._note_plan("planned", now)
        return ""

    def _engage(self, now: float) -> None:
        """Plan anew and tell every node that takes part, or took part until now."""
        self._replan_at = None
        execution = self._execution
        if not self._lacking():
            execution.sourcing.suspects.clear()  # nobody else is held up by trying
        if not self._lacking():
            return
        if execution.epoch >= MAX_EPOCHS:
            self._give_up_rest(f"it was planned {MAX_EPOCHS} times in vain", now)
            return
        boots = {node_of(t.worker): t.boot for t in self._targets.values() if not t.gone}
        holding = self._renewed() if execution.epoch else set()
        try:
            orders = execution.order(*self._holdings(), boots)
        except (PlanError, ValueError) as error:
            self._give_up_rest(f"it cannot be planned: {error}", now)
            return
        except Unreachable as error:
            execution.sourcing.gone(error.worker)
            if error.worker in self._targets:
                self._lose_target(self._targets[error.worker], str(error), now)
            self._trouble(now)
            self._check_end(now)
            return
        self._wait_anew(now)
        self._wait_for_others(now)
        for boot, order in orders:
            if boot in holding:
                self._send(boot, Renew(self.id))  # says so if it has let go
            self._send(boot, order)
        if execution.epoch > 1:
            self._note_plan("replanned", now)

    def _wait_anew(self, now: float) -> None:
        """Give all targets their time again: with a new plan bytes come from elsewhere."""
        for target in self._targets.values():
            target.moved_s = now

    def _wait_for_others(self, now: float) -> None:
        """Give targets as much time as their sources need to get the blobs themselves."""
        choice = self._execution.choice if self._execution.borrows else None
        for worker, target in self._targets.items():
            due_s = choice.prediction.arrivals.get(worker, ()) if choice is not None else ()
            target.due_s = tuple(now + at_s for at_s in due_s)

    def _note_plan(self, what: str, now: float) -> None:
        choice = self._execution.choice
        assert choice is not None
        self._planned_s = self._waterfall.since(now)
        for target in self._targets.values():
            arrivals = choice.prediction.arrivals.get(target.worker)
            if arrivals is not None and not target.gone:
                target.predicted = tuple(self._planned_s + at for at in arrivals)
        self._note(now, what, "", f"{choice.plan.strategy}, {choice.prediction.complete_s:.3f} s")
        self._note_policy(now)

    def _note_policy(self, now: float) -> None:
        told = self._execution.pairing.decision.text()
        if not self.copy and told != self._policy_told:
            self._policy_told = told
            self._note(now, "policy", "", told)
        for pipeline in self._execution.pairing.pipelines:
            if pipeline.stages not in self._pipelines_told:
                self._pipelines_told.add(pipeline.stages)
                ready_s = self._planned_s + pipeline.ready_s
                about = pipeline.stages[0].worker
                self._note(now, "pipeline", about, f"{pipeline}, predicted {ready_s:.3f} s")

    def _mind_helpers(self, now: float) -> None:
        """Plan anew where a home has gone: its helpers need another."""
        self._note_helping(now)
        execution = self._execution
        if execution.epoch >= HELP_EPOCHS or not self._lacking():
            return
        if execution.pairing.outlived(self._around.view()):
            self._trouble(now)

    def _note_helping(self, now: float) -> None:
        """Note which targets have begun to help, by their own nodes' facts."""
        policy, pairs, _ = self._execution.help()
        lacking = pairs and len(self._helping) < len(self._targets)
        if lacking and policy is not LivePolicy.STOP and now >= self._helping_at:
            self._helping_at = now + HELPING_LOOK_S
            nodes = self._around.view().nodes
            for target in self._targets.values():
                node = nodes.get(target.boot)
                facts = node.instances.get(target.instance) if node is not None else None
                if facts is not None and facts.helps and target.worker not in self._helping:
                    self._helping.add(target.worker)
                    self._note(now, "helping", target.worker, facts.helps)

    def _trouble(self, now: float) -> None:
        if self._replan_at is None and self.state == "transferring":
            times = max(0, self._execution.epoch - FREE_EPOCHS)
            self._replan_at = now + min(SETTLE_S * 2**times, MAX_SETTLE_S)

    def _suspected(self, target: Target) -> bool:
        return node_of(target.worker) in self._execution.sourcing.suspects

    def _suspect(self, book: EdgeBook, boot: str) -> None:
        """Suspect the other end of an edge that `boot` has lost: plan without it until it speaks.

        A node that lives tells of the same loss itself, or answers that it lets go.
        """
        ends = {node_of(book.order.source), node_of(book.order.target)}
        self._execution.sourcing.suspects |= ends - {self._name_of(boot), self._around.node}

    def _trust(self, boot: str, now: float) -> None:
        """Plan with a node again that has said something."""
        node = self._name_of(boot)
        if node in self._execution.sourcing.suspects:
            self._execution.sourcing.suspects.discard(node)
            self._trouble(now)

    def _fail(self, target: Target, reason: str, now: float) -> None:
        target.state, target.reason = FAILED, reason
        self._note(now, "failed", target.worker, reason)

    def _lose_target(self, target: Target, reason: str, now: float) -> None:
        """Give a target up; whoever was served by it needs another source."""
        if target.gone:
            return
        self._fail(target, reason, now)
        self._execution.lose_worker(target.worker)
        self._trouble(now)

    def _lose_node(self, boot: str, now: float) -> None:
        node = self._name_of(boot)
        self._execution.sourcing.died(node)
        lost = self._execution.lose_node(boot, node)
        for book in lost:
            order = book.order
            self._note(now, "lost", f"{order.source} → {order.target}", f"{node} has died")
        unhelped = self._execution.pairing.died(boot) and self._execution.epoch < HELP_EPOCHS
        if lost or unhelped:
            self._trouble(now)

    def _name_of(self, boot: str) -> str:
        for target in self._targets.values():
            if target.boot == boot:
                return node_of(target.worker)
        node = self._around.view().nodes.get(boot)
        return node.name if node is not None else ""

    def _parties(self) -> set[str]:
        """Return the nodes that hold or remember anything of the operation, or may."""
        return set(self._execution.engaged) | {t.boot for t in self._targets.values()}

    def _renewed(self) -> set[str]:
        """Return the nodes that have something on lease, as far as they have said."""
        return set(self._execution.engaged) | {
            t.boot for t in self._targets.values() if t.held or t.state == READY
        }

    # Facts.

    def facts(self, now: float) -> OperationFacts:
        """Return what there is to tell of it."""
        n_blobs = len(self.definition.blob_bytes)
        figures = {"first_blob_s": self._first_blob_s, "coverage_s": self._coverage_s}
        execution = self._execution
        if execution.choice is not None:
            prediction = execution.choice.prediction
            figures["predicted_s"] = self._planned_s + prediction.complete_s
            if self.state == "planned":
                figures["first_blob_s"] = prediction.first_blob_s
                figures["coverage_s"] = prediction.coverage_s
        return self._facts(
            now,
            plan=execution.choice,
            figures=figures,
            epoch=execution.epoch,
            targets=tuple(target.facts(n_blobs) for target in self._targets.values()),
            edges=execution.foreseen_edges() if self._dry else execution.edge_facts(),
            reads=execution.foreseen_reads() if self._dry else execution.reads,
        )
