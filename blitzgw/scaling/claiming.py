"""More instances: which devices they are for, until somebody's own node has granted each.

    looking ──► claiming ──► transferring
       └── too few devices, or nobody with the weights, within VIEW_PATIENCE_S: what there is, or
           failed

Devices on which the model drains or is kept come first, and bring their weights along: where no
target lacks anything there is nothing to plan. Claims go out all at once. A refused one is asked
again at the claim that the device is at, if it has moved on unseen, a little later where what its
node lacks is on its way, or replaced by another free device; whoever has not answered in time is
left out, and what is granted later is given back.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import islice

from blitzgw.core.operation import Claim, Claimed, Retire
from blitzgw.scaling.events import NOT_YET
from blitzgw.scaling.freedevices import FreeDevice, free_devices
from blitzgw.scaling.reception import Reception
from blitzgw.scaling.scarcity import shortage
from blitzgw.scaling.survey import COUNTED, instances_of
from blitzgw.scaling.targets import CLAIMED, CLAIMING, FAILED, Target

CLAIM_PATIENCE_S = 2.0
"""For all claims together: a link takes a few round trips to open, and whoever is slower than that
had better not hold up the rest."""

VIEW_PATIENCE_S = 1.0
"""For facts to arrive: gossip tells of a node, a device or a model within so long. Longer would
hold up whoever asks for more than there is."""

LOOK_S = 0.05
"""To the second look: gossip's shortest interval. Each later one takes twice as long."""

MAX_ASKED = 3
"""Of one device: its claim moves on while we ask only if others use it."""


class Claiming(Reception):
    """Finds targets and claims them."""

    _claim_by: float | None = None
    _look_by: float = 0.0
    _look_at: float | None = None
    _pause_s: float = LOOK_S
    _lacking_devices: str = ""

    @abstractmethod
    def _give_up(self, state: str, reason: str, now: float) -> None: ...

    @abstractmethod
    def _reasons(self) -> str: ...

    # Looking.

    def _begin_looking(self, now: float) -> None:
        self._look_by = now if self.copy else now + VIEW_PATIENCE_S
        self._look(now)

    def _look(self, now: float) -> None:
        """Go on with what there is, unless there is too little and more may be known soon."""
        self._look_at = None
        self._choose_targets()
        n_wanted = self._n_wanted()
        if n_wanted <= 0:
            self._end_as_it_is(now)
            return
        enough = len(self._targets) >= n_wanted and self._execution.sourced(*self._holdings())
        if not enough and now < self._look_by:
            self._look_later(now)
            return
        reason = self._foresee(now) if self._lacking() else ""
        if reason or not self._targets:
            self._give_up("failed", reason or f"no device is free: {self._lacking_devices}", now)
        else:
            self._begin_claims(now)

    def _look_later(self, now: float) -> None:
        self._look_at = min(now + self._pause_s, self._look_by)
        self._pause_s *= 2

    def _end_as_it_is(self, now: float) -> None:
        """End because facts have arrived by which nothing is lacking."""
        self._targets.clear()
        text = f"there are {self._before} instances already"
        right = self._before == self.wanted or self.automatic  # others count, and go on
        self._end("done" if right else "failed", text, now)

    def _n_wanted(self) -> int:
        return 1 if self.copy else self.wanted - self._before

    def _choose_targets(self) -> None:
        view = self._around.view()
        if self.copy:
            node, _, device = self._copy_worker.partition("/")
            target = Target(self._copy_worker, self._around.boot, device, 0, CLAIMED)
            if node == self._around.node:
                self._targets[self._copy_worker] = target
            return
        self._before = len(instances_of(self.definition.name, view))
        n_wanted = self._n_wanted()
        free = [*islice(free_devices(self.definition, view), max(0, n_wanted))]
        self._targets = {each.worker: self._target(each) for each in free}
        self._lacking_devices = ""
        if len(free) < n_wanted:
            self._lacking_devices = shortage(self.definition, n_wanted, len(free), view)

    # Claims.

    def _begin_claims(self, now: float) -> None:
        self.reason = self._lacking_devices
        if self._dry:
            self.state, self._ended_at = "planned", now
        elif self.copy:
            self._transfer(now)
        else:
            self._claim_by = now + CLAIM_PATIENCE_S
            for target in self._targets.values():
                self._send_claim(target)

    def _send_claim(self, target: Target) -> None:
        definition = self.definition
        message = Claim(self.id, target.device, target.claim, definition.name, definition.digest)
        self._send(target.boot, message)

    def _on_claimed(self, boot: str, message: Claimed, now: float) -> None:
        target = self._find(boot, message.device)
        granted = bool(message.instance)
        if self.ended:
            if granted and boot in self._farewells:
                self._send(boot, self._farewells[boot])
        elif target is None or target.state != CLAIMING:
            if target is not None and target.state == FAILED and not target.answered and granted:
                target.answered = True  # too late: it is given back
                self._send(boot, Retire(self.id, message.instance, message.claim))
        elif granted:
            target.state, target.answered, target.reason = CLAIMED, True, ""
            target.instance, target.claim = message.instance, message.claim
            self._note(now, "claimed", target.worker)
            self._take_what_is_there(target, message, now)
            self._check_claims(now)
        else:
            self._on_claim_refused(target, message, now)

    def _take_what_is_there(self, target: Target, message: Claimed, now: float) -> None:
        """Note whether a target has all its weights already: its node knows better than a view."""
        target.revived = message.revived
        if message.revived:
            target.fill(len(self.definition.blob_bytes))
            self._note(now, "revived", target.worker, target.instance)
        else:
            target.arrived.clear()

    def _on_claim_refused(self, target: Target, message: Claimed, now: float) -> None:
        newer = message.claim > target.claim and target.asked < MAX_ASKED
        if newer and not self._is_spoken_for(target, message.claim):
            target.claim, target.asked = message.claim, target.asked + 1
            self._send_claim(target)  # it has moved on unseen, and may be free all the same
            return
        if message.reason.startswith(NOT_YET) and self._claim_by is not None:
            target.reason, target.ask_at = message.reason, now + LOOK_S
            return
        target.answered = True
        self._fail(target, message.reason, now)
        self._replace(now)
        self._check_claims(now)

    def _is_spoken_for(self, target: Target, claim: int) -> bool:
        """Whether another operation of this node asks for a device at its newest claim."""
        node = self._around.view().nodes.get(target.boot)
        return node is not None and any(
            facts.device == target.device and facts.claim >= claim and facts.state in COUNTED
            for facts in node.instances.values()
        )

    def _lose_target(self, target: Target, reason: str, now: float) -> None:
        """Give a target up; while devices are being claimed, another is asked for instead."""
        known = not target.gone
        super()._lose_target(target, reason, now)
        if known:
            self._replace(now)

    def _replace(self, now: float) -> None:
        """Ask for another device in place of one that was refused, if there is one and time."""
        if self._claim_by is None or now >= self._claim_by:
            return
        for free in free_devices(self.definition, self._around.view()):
            if free.worker not in self._targets and free.boot not in self._dead:
                self._targets[free.worker] = target = self._target(free)
                self._send_claim(target)
                return

    def _check_claims(self, now: float) -> None:
        """Go on to the transfer once nobody's answer is waited for."""
        if self._claim_by is None or any(t.state == CLAIMING for t in self._targets.values()):
            return
        self._claim_by = None
        if any(target.held for target in self._targets.values()):
            self._transfer(now)
        else:
            self._give_up("failed", self._reasons(), now)

    def _claims_due(self, now: float) -> None:
        if self._look_at is not None and now >= self._look_at:
            self._look(now)
        if self._claim_by is None:
            return
        for target in self._targets.values():
            if target.state == CLAIMING and now >= self._claim_by:
                self._fail(target, target.reason or "no answer to the claim", now)
            elif target.ask_at is not None and now >= target.ask_at:
                target.ask_at = None
                self._send_claim(target)
        if now >= self._claim_by:
            self._check_claims(now)

    def _asking_again(self) -> list[float | None]:
        """Return when devices are asked again whose nodes lack something for now."""
        if self._claim_by is None:
            return []
        return [target.ask_at for target in self._targets.values() if target.state == CLAIMING]

    def _find(self, boot: str, device: str) -> Target | None:
        for target in self._targets.values():
            if target.boot == boot and target.device == device:
                return target
        return None

    def _target(self, free: FreeDevice) -> Target:
        target = Target(free.worker, free.boot, free.device, free.claim)
        if free.revives:
            target.fill(len(self.definition.blob_bytes))
        return target
