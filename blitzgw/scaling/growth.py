"""More instances of a model: devices are claimed, a plan is made, bytes flow, until targets serve.

    claims: claiming.py
    plans:  transferring.py
    news:   reception.py
    end:    all targets are ready or given up; with none ready all is undone

Nothing is waited for without a bound: facts have VIEW_PATIENCE_S, claims CLAIM_PATIENCE_S, plans
MAX_EPOCHS, a target's bytes HANG_S (stalls.py), and whatever else STALL_S.
"""

from __future__ import annotations

from collections.abc import Collection

from blitzgw.core.instance import InstanceState
from blitzgw.core.operation import RENEW_S, Abandon, Conclude, EdgeOrder, OperationMessage, Renew
from blitzgw.core.view import InstanceFacts, mask_of
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.claiming import Claiming
from blitzgw.scaling.due import due_s
from blitzgw.scaling.effects import OperationEffect
from blitzgw.scaling.hindsight import Outcome
from blitzgw.scaling.stalls import HANG_S, hangs_at, hung
from blitzgw.scaling.targets import FAILED, LOADING, READY, RELEASED, Target
from blitzgw.scaling.transferring import MAX_EPOCHS

STALL_S = 120.0
"""Without a byte, a blob or a target that gets ready: longer than the warm-up of a large model
after its last blob, or than reading one of its blobs from a slow disk, both of which tell nothing
meanwhile. Targets that wait for bytes of others are given up sooner (stalls.py)."""


class Growth(Claiming):
    """Brings up instances, or one host copy (`copy_worker`), for which nothing is claimed."""

    # What it is told.

    def begin(self, now: float) -> list[OperationEffect]:
        """Plan from facts, then claim devices."""
        what = f"{self._before} → {self.wanted} instances" if not self.copy else "a host copy"
        self._note(now, "decided", self.definition.name, what)
        self._begin_looking(now)
        return self._flush()

    def cancel(self, reason: str, now: float) -> list[OperationEffect]:
        """Undo everything."""
        if not self.ended:
            self._give_up("cancelled", reason, now)
        return self._flush()

    def cut_short(self, reason: str, now: float) -> list[OperationEffect]:
        """Undo what is not ready; it is done, and falls short, if anything is."""
        ready = any(target.state == READY for target in self._targets.values())
        if self.state != "transferring" or not ready:
            return self.cancel(reason, now)
        self._give_up_rest(reason, now)
        return self._flush()

    def on_message(self, boot: str, message: OperationMessage, now: float) -> list[OperationEffect]:
        """Take a message of a node about this operation."""
        self._hear(boot, message, now)
        return self._flush()

    def on_node_died(self, boot: str, now: float) -> list[OperationEffect]:
        """Go on without a node."""
        self._farewells.pop(boot, None)
        self._dead.add(boot)
        if not self.ended:
            self._lose_node(boot, now)
            for target in list(self._targets.values()):
                if target.boot == boot:
                    self._lose_target(target, "its node has died", now)
            self._check_claims(now)
            self._check_end(now)
        return self._flush()

    # Ends.

    def _check_end(self, now: float) -> None:
        if self.state != "transferring":
            return
        states = [target.state for target in self._targets.values()]
        if any(target.held for target in self._targets.values()):
            return
        if READY not in states:
            self._give_up("failed", self._reasons(), now)
            return
        self._say_farewell(Conclude(self.id))
        self._end("done", self._shortfall(), now)

    def _give_up_rest(self, reason: str, now: float) -> None:
        """What is ready stays, the rest is given up."""
        if self.state == "claiming" or not any(t.state == READY for t in self._targets.values()):
            self._give_up("failed", reason, now)
            return
        for target in self._targets.values():
            if target.held:
                self._fail(target, reason, now)
        self._check_end(now)  # and with it nodes drop what is not ready

    def _give_up(self, state: str, reason: str, now: float) -> None:
        """Undo everything."""
        if self._claim_by is not None or self.state == "transferring":
            self._say_farewell(Abandon(self.id, reason))
        for target in self._targets.values():
            if target.state != FAILED:
                target.state = RELEASED
        self._end(state, reason, now)

    def _say_farewell(self, message: OperationMessage) -> None:
        for boot in sorted(self._parties()):
            self._farewells[boot] = message
            self._send(boot, message)

    def _reasons(self) -> str:
        found = dict.fromkeys(t.reason for t in self._targets.values() if t.reason)
        return "; ".join(list(found)[:8]) or "no device is free that could take it"

    def _shortfall(self) -> str:
        n_ready = sum(target.state == READY for target in self._targets.values())
        n_wanted = self._n_wanted()
        if n_ready >= n_wanted:
            return ""
        failed = any(target.state == FAILED for target in self._targets.values())
        why = [self._lacking_devices] if self._lacking_devices else []
        why += [self._reasons()] if failed or not why else []
        return f"{n_ready} of {n_wanted} instances: {'; '.join(why)}"

    # Time.

    def _deadlines(self) -> list[float]:
        times = [self._renew_at, self._look_at, self._claim_by, self._replan_at]
        times += self._asking_again()
        if self.state == "transferring":
            times.append(self._stalls_at())
            times.append(hangs_at(self._targets, self._execution.open_edges(), self._readers()))
        return [time for time in times if time is not None]

    def _do_due(self, now: float) -> None:
        self._claims_due(now)
        if not self.ended and now >= self._renew_at:
            self._renew_at = now + RENEW_S
            for boot in sorted(self._renewed()):
                self._send(boot, Renew(self.id))
            self._mind_helpers(now)
        if self.state == "transferring" and now >= self._stalls_at():
            self._give_up_rest(f"nothing has moved for {STALL_S:.0f} s", now)
        if self.state == "transferring":
            self._unhang(now)
        if self.state == "transferring" and self._replan_at is not None and now >= self._replan_at:
            self._engage(now)

    def _stalls_at(self) -> float:
        """Return when nothing has moved for too long, or for so long after it was due to."""
        held = [target.quiet_s for target in self._targets.values() if target.held]
        due_s = min(held, default=0.0) if self._execution.borrows else 0.0
        return max(self._progress_at, due_s) + STALL_S

    def _readers(self) -> set[str]:
        return {order.worker for order in self._execution.reads}

    def _unhang(self, now: float) -> None:
        """Plan without the sources of targets that get nothing; next time without the targets."""
        found = hung(self._targets, self._execution.open_edges(), self._readers(), now)
        if found:
            self._wait_anew(now)
        for target, sources in found:
            dry = [s for s in sorted(sources) if self._execution.sourcing.dried_up(s)]
            if target.starved or not dry:
                self._lose_target(target, f"no byte has come for {HANG_S:.0f} s", now)
                continue
            target.starved = True
            for source in dry:
                self._note(now, "lost", f"{source} → {target.worker}", "no byte has come")
            self._trouble(now)
        if found:
            self._check_end(now)

    def _say_again(self, boot: str) -> None:
        looking = self.state == "claiming" and self._claim_by is None
        for target in self._targets.values():
            if target.boot == boot and not (target.answered or self.copy or looking):
                self._send_claim(target)
        if boot in self._renewed():
            self._send(boot, Renew(self.id))
        order = self._execution.unconfirmed(boot)
        if order is not None:
            self._send(boot, order)

    def claimed(self) -> list[Outcome]:
        """Return the instances that it brings up, or asks for: nobody else is to count on them."""
        if self.copy or self.ended or (self.state == "claiming" and self._claim_by is None):
            return []
        return [self._claimed(t) for t in self._targets.values() if not t.gone]

    def _claimed(self, target: Target) -> Outcome:
        if target.state == READY:
            return Outcome(target.boot, self._there(target, InstanceState.SERVING))
        arrived = target.arrived if target.instance else ()
        return Outcome(target.boot, self._there(target, InstanceState.LOADING, arrived))

    def due_s(self, now: float) -> dict[str, tuple[float, ...]]:
        """Return in how many seconds targets that get blobs have each of them (due.py).

        Of those to which something has come already: their nodes are ready to send from there.
        """
        if self.copy or self.state != "transferring":
            return {}
        since_s = self._waterfall.since(now)
        return {
            worker: due_s(target.predicted, target.arrived, since_s)
            for worker, target in self._targets.items()
            if target.state in (LOADING, READY) and target.predicted and not target.starved
        }

    def edges(self) -> list[EdgeOrder]:
        """Return the edges that are open."""
        return self._execution.open_orders()

    def coming(self, now: float) -> tuple[Coming, ...]:
        """Return the instances that are claimed and do not serve yet, by the view at least."""
        if self.copy or self.ended:
            return ()
        nodes = self._around.view().nodes
        found: list[Coming] = []
        for target in self._targets.values():
            node = nodes.get(target.boot)
            shown = node.instances.get(target.instance) if node is not None else None
            serves = shown is not None and shown.state is InstanceState.SERVING
            if target.held or (target.state == READY and not serves):
                found.append(self._coming(target, shown, now))
        return tuple(found)

    def _coming(self, target: Target, shown: InstanceFacts | None, now: float) -> Coming:
        sizes = self.definition.blob_bytes
        here = sum(sizes[index] for index in target.arrived)
        fraction = here / max(1, self.definition.size_bytes)
        return Coming(
            instance=target.instance,
            fraction=fraction,
            left_s=self._left_s(target, fraction, now),
            computes=shown is not None and bool(shown.helps or shown.stage),
        )

    def _left_s(self, target: Target, fraction: float, now: float) -> float:
        """Return when a target is complete: as predicted; what is overdue goes on as it has."""
        if target.state == READY or target.revived:
            return 0.0
        since_s = self._waterfall.since(now)
        left_s = max(target.predicted, default=0.0) - since_s
        if left_s > 0:
            return left_s
        return since_s * (1 - fraction) / fraction if fraction > 0 else -1.0

    def outcomes(self) -> list[Outcome]:
        """Return which instances are there by it, and which are not (any more)."""
        if self.copy:
            return []
        return [self._outcome(t) for t in self._targets.values() if t.instance]

    def _there(
        self, target: Target, state: InstanceState, blobs: Collection[int] | None = None
    ) -> InstanceFacts:
        """Return a target's instance, in a state and with these blobs, with all by default."""
        n_blobs = len(self.definition.blob_bytes)
        blobs = range(n_blobs) if blobs is None else blobs
        return InstanceFacts(
            id=target.instance or f"{self.definition.name}@{target.worker}",
            model=self.definition.name,
            digest=self.definition.digest,
            device=target.device,
            claim=target.claim,
            state=state,
            layers_resident=max(0, n_blobs - 2),
            layers_total=max(0, n_blobs - 2),
            weights=self.definition.weights,
            blobs=mask_of(blobs) if blobs else "0",
        )

    def _outcome(self, target: Target) -> Outcome:
        if target.state == READY:
            return Outcome(target.boot, self._there(target, InstanceState.SERVING))
        drains = target.state == RELEASED and (target.ready_s >= 0 or target.revived)
        state = InstanceState.DRAINING if drains else InstanceState.GONE
        return Outcome(target.boot, self._there(target, state, ()))

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        states = {target.state for target in self._targets.values()}
        if self.state == "done":
            ready = READY in states or not states  # none: it was found that nothing is lacking
            assert ready, "done without a target that is ready"
            assert states <= {READY, FAILED}, f"done with targets {states}"
        if self.state in ("failed", "cancelled"):
            assert states <= {FAILED, RELEASED}, f"{self.state} with targets {states}"
        for target in self._targets.values():
            if target.state == READY:
                assert len(target.arrived) == len(self.definition.blob_bytes), "ready with holes"
        assert self._execution.epoch <= MAX_EPOCHS
