"""What a simulated node serves: its devices' runners, joined to others by the production shells.

steward ──► Serving ──► Runner: scheduler, worker          Submit, Abort ──► gate ──► Runner
                  └──► helping ──► pairings ──► other nodes        ◄── tokens ──

The gate is gossip/serving.py's: it knows which peer has asked for what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from blitzgw.core.live import LiveMessage, LivePolicy
from blitzgw.core.peer import Abort, Submit
from blitzgw.core.span import Span
from blitzgw.core.view import LoadFacts
from blitzgw.device import DeviceRunner
from blitzgw.gossip.links import Links
from blitzgw.gossip.serving import Serving as Gate
from blitzgw.helping import Helping
from blitzgw.pairings import Pairings
from blitzgw.sim.cluster.instances import SimInstance
from blitzgw.sim.cluster.loop import VirtualClock
from blitzgw.sim.cluster.runner import Runner
from blitzgw.sim.cluster.wire import Here, Wire

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode

POLL_S = 0.05
"""How often a draining instance is looked at (instancing.py)."""

EVERYTHING = 1 << 20
"""Sequences that move from an instance that drains: more than there are anywhere."""

LIVE_MESSAGES: tuple[type, ...] = LiveMessage.__args__
"""What is said between instances that are joined."""


class Serving:
    """The serving part of a node. Once closed it does nothing any more."""

    def __init__(self, node: SimNode) -> None:
        self.node, self.clock = node, VirtualClock(node.world.heap)
        self.wire = Wire(node)
        self.gate = Gate(cast(Links, self.wire), Here(node, self.wire), self.clock)
        self.runners: dict[str, Runner] = {}
        devices = cast(dict[str, DeviceRunner], self.runners)
        self.helping = Helping(node.view, devices)
        self.pairings = Pairings(
            node.boot, node.name, node.view, devices, node.say, self.helping.ended, encrypt=False
        )
        self.helping.join(self.pairings)
        self._generation = 0
        self._numbers = 0
        self._drains: dict[str, int] = {}
        """Instances that drain, by the number of that draining."""

    # What the steward decides.

    def bring_up(self, there: SimInstance) -> None:
        """Set a device aside for an instance whose weights will arrive."""
        former = self.runners.get(there.device)
        if former is not None:
            former.stop()
        self._generation += 1
        self.runners[there.device] = Runner(self, there, self._generation)

    def blob_resident(self, there: SimInstance, _index: int) -> None:
        """Note a blob that is in place."""
        runner = self.runner_of(there.id)
        if runner is not None:
            runner.blob_resident()

    def ready(self, there: SimInstance) -> None:
        """Put an instance into service that is complete."""
        runner = self.runner_of(there.id)
        if runner is not None:
            runner.claim = there.claim
            runner.ready()

    def has_run(self, there: SimInstance) -> bool:
        """Whether an instance has computed anything yet."""
        runner = self.runner_of(there.id)
        return runner is not None and runner.worker.carried_out > 0

    def completed(self, there: SimInstance) -> None:
        """Note that an instance is complete: it asks nobody for work any more."""
        self.helping.completed(there.id)

    def retire(self, there: SimInstance) -> None:
        """Let an instance drain: what it has moves to others, or comes to its end."""
        runner = self.runner_of(there.id)
        if runner is None:
            return
        if runner.port is not None:
            runner.port.open = False
        self._numbers += 1
        self._drains[there.id] = self._numbers
        if runner.busy:
            self.helping.move_out(there.device, there.id, EVERYTHING, queued=True)
        deadline_s = self.clock.now() + self.node.world.setup.drain_timeout_s
        self._look(there, self._numbers, deadline_s)

    def _look(self, there: SimInstance, number: int, deadline_s: float) -> None:
        """Say that an instance has drained, or look again later."""
        if self._drains.get(there.id) != number:
            return
        runner = self.runner_of(there.id)
        if runner is not None and runner.busy and self.clock.now() < deadline_s:
            self.node.world.heap.after(POLL_S, self._look, there, number, deadline_s)
            return
        del self._drains[there.id]
        if runner is not None:
            runner.tell_all()
        self.gate.give_away("it is to go", there.id)
        if runner is not None:
            self.node.premises.drained(there)

    def keep(self, there: SimInstance) -> None:
        """Let an instance that has drained do nothing, and stay loaded."""
        self._drains.pop(there.id, None)
        self._stop(there, "it is kept", planned=True)

    def revive(self, there: SimInstance) -> None:
        """Let an instance serve again that drains, or is kept."""
        self._drains.pop(there.id, None)
        self.helping.stay(there.id)
        runner = self.runner_of(there.id)
        if runner is not None:
            runner.claim = there.claim
            runner.into_service()

    def drop(self, there: SimInstance, reason: str, *, planned: bool) -> None:
        """End an instance, whatever it does."""
        self._drains.pop(there.id, None)
        self._stop(there, reason, planned=planned)
        runner = self.runner_of(there.id)
        if runner is not None:
            runner.stop()
            del self.runners[there.device]

    def _stop(self, there: SimInstance, reason: str, *, planned: bool) -> None:
        """Have nobody come to an instance any more, and its scheduler forget it."""
        runner = self.runner_of(there.id)
        if runner is None:
            return
        runner.tell_all()
        self.gate.unhost(there.id)
        if self.node.ingress is not None:
            self.node.ingress.local_down(there.id, reason, planned=planned)
        self.helping.settled(there.id)
        self.pairings.instance_gone(there.id)
        runner.out_of_service()

    def local_up(self, runner: Runner) -> None:
        """Let peers and this node's clients come to an instance."""
        there, port = runner.there, runner.port
        assert port is not None
        digest = there.model.definition.digest
        self.gate.host(port, runner.claim, digest)
        if self.node.ingress is not None:
            self.node.ingress.local_up(port, digest)

    # What instances do while they load.

    def pair(self, there: SimInstance, home: str, policy: LivePolicy) -> None:
        """Have an instance help another one while it loads."""
        self.helping.pair(there.device, there.id, home, policy)

    def unpair(self, there: SimInstance) -> None:
        """Have it help nobody."""
        self.helping.unpair(there.id)

    def stage(self, there: SimInstance, span: Span, behind: str) -> None:
        """Have it be a stage of a pipeline, joined to the one behind it, if any."""
        self.helping.stage(there.device, there.id, span, behind)

    def unstage(self, there: SimInstance) -> None:
        """Have it be no stage."""
        self.helping.unstage(there.device, there.id)

    # What other processes say.

    def hear(self, boot: str, message: Any) -> bool:
        """Take what a process says; return whether it concerned requests or pairings."""
        if isinstance(message, Submit):
            self.gate.on_submit(boot, message)
        elif isinstance(message, Abort):
            self.gate.on_abort(boot, message)
        elif isinstance(message, LIVE_MESSAGES):
            self.pairings.said(boot, message)
        else:
            return False
        return True

    def link_lost(self, boot: str) -> None:
        """End what a process had a part in that cannot be reached."""
        self.pairings.link_lost(boot)
        self.gate.link_lost(boot)

    # Figures.

    def runner_of(self, instance: str) -> Runner | None:
        """Return the runner that has an instance."""
        for runner in self.runners.values():
            if runner.there.id == instance:
                return runner
        return None

    def loads(self, model: str) -> tuple[LoadFacts, ...]:
        """Return how busy this node's instances of a model are."""
        self._numbers += 1
        loads = [
            runner.load(self._numbers)
            for runner in self.runners.values()
            if runner.there.model.name == model
        ]
        return tuple([load for load in loads if load is not None])

    def close(self) -> None:
        """End with the process: nothing more is computed or told."""
        for runner in self.runners.values():
            runner.stop()
        self._drains.clear()
        self.helping.close()
        self.pairings.close()
