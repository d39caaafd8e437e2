"""One simulated process: the production deciders of scaling, joined as the node's shell joins them.

links ──► Operations, Steward, Autoscaler (`hear`) ──► links, premises, view
clients ──► Ingress ──► Serving, here or elsewhere     both ──► Demands ──► the model's owner

A node that owns no model has no `Operations` and no `Autoscaler`: it begins them when it does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any

from blitzgw.core import operation as op
from blitzgw.core.scale import Cede, Demand
from blitzgw.core.view import ClusterView, LoadFacts, ScaleFacts, ScaleWish
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.steward import Steward
from blitzgw.sim.cluster.demands import Demands
from blitzgw.sim.cluster.ingress import Ingress
from blitzgw.sim.cluster.owner import Owner
from blitzgw.sim.cluster.premises import SimPremises
from blitzgw.sim.cluster.serving import Serving
from blitzgw.sim.cluster.view import Portrait

if TYPE_CHECKING:
    from blitzgw.sim.cluster.world import ClusterWorld

TO_STEWARD = (op.Claim, op.Engage, op.Renew, op.Conclude, op.Abandon, op.Retire)
"""What owners of operations say; all else is said to owners."""

FROM_OPERATIONS = (
    op.Claimed, op.Engaged, op.BlobNews, op.EdgeNews, op.TargetReady, op.TargetFailed, op.Retired,
)  # fmt: skip
"""What is said to owners of operations."""


class SimNode:
    """A process at a host. Once ended it does nothing any more, whatever it is told."""

    def __init__(self, world: ClusterWorld, index: int, boot: str) -> None:
        self.world, self.index, self.boot = world, index, boot
        self.name, self.running = f"n{index}", True
        self.rng = random.Random(f"{boot} secrets")  # noqa: S311  a simulation is to repeat
        self.wishes: dict[str, ScaleWish] = {}
        self.scaling: dict[str, ScaleFacts] = {}
        self._timer_s = inf
        self.premises = SimPremises(self, world.setup.devices_per_node)
        self.steward = Steward(self.name, boot, self.premises)
        self.demands = Demands(self)
        self.portrait = Portrait(self)
        self._serving: Serving | None = None
        self.ingress: Ingress | None = None
        self.owner: Owner | None = None
        self._performers: dict[type, Callable[[Any], None]] = {
            **self.premises.performers,
            eff.Send: self._send,
        }

    @property
    def serving(self) -> Serving:
        """What computes here."""
        if self._serving is None:
            self._serving = Serving(self)
        return self._serving

    def view(self) -> ClusterView:
        """Return the present picture as seen from here."""
        picture = self.world.sights.shown  # not kept: thousands of nodes would keep as many
        return ClusterView(self.boot, picture.nodes, picture)

    def own(self) -> Owner:
        """Have what an owner of models has."""
        if self.owner is None:
            self.owner = Owner(self)
        return self.owner

    def end(self) -> None:
        """Crash."""
        self.running = False
        self.premises.close()
        if self._serving is not None:
            self._serving.close()
        if self.ingress is not None:
            self.ingress.close()

    # What it hears.

    def hear(self, boot: str, message: Any) -> None:
        """Take what a process says, this one perhaps."""
        if not self.running:
            return
        match message:
            case Demand() | Cede():
                self.own().said(boot, message)
            case _ if isinstance(message, TO_STEWARD):
                self.tell_steward(ev.MessageCame(boot, message))
            case _ if isinstance(message, FROM_OPERATIONS):
                self.own().tell_operations(ev.MessageCame(boot, message))
            case op.ScaleAnswer():
                pass
            case _:
                self._hear_of_requests(boot, message)

    def _hear_of_requests(self, boot: str, message: Any) -> None:
        if self._serving is not None and self._serving.hear(boot, message):
            return
        if self.ingress is not None:
            self.ingress.hear(boot, message)

    def link_lost(self, boot: str) -> None:
        """Take the news that messages from and to a process may be lost."""
        if not self.running:
            return
        self._lose(boot)
        if self.owner is not None:
            self.owner.tell_operations(ev.LinkLost(boot))
        self.tell_steward(ev.LinkLost(boot))

    def node_died(self, boot: str) -> None:
        """Believe that a process is dead."""
        if not self.running:
            return
        self._lose(boot)
        if self.owner is not None:
            self.owner.node_died(boot)
        self.tell_steward(ev.NodeDied(boot))

    def _lose(self, boot: str) -> None:
        """End what requests have at a process, or of it."""
        if self._serving is not None:
            self._serving.link_lost(boot)
        if self.ingress is not None:
            self.ingress.lost(boot)

    # What it says.

    def say(self, boot: str, message: Any) -> None:
        """Send a message to a process, perhaps this one."""
        self.world.deliver(self, boot, message, self.world.latencies.message_s)

    def changed(self, *, structural: bool = True) -> None:
        """Publish soon what has changed here."""
        self.world.sights.changed(self, structural=structural)

    def touched(self, model: str, *, urgent: bool = True) -> None:
        """Note that a load here, or what its clients ask for, has changed.

        What is not `urgent` is progress: there is less to do.
        """
        self.demands.touched(model, urgent=urgent)

    def loads(self, model: str = "") -> tuple[LoadFacts, ...]:
        """Return how busy the instances here are, of a model or of all."""
        if self._serving is None:
            return ()
        if model:
            return self._serving.loads(model)
        models = [there.model.name for there in self.premises.instances()]
        return tuple(load for name in models for load in self._serving.loads(name))

    # The steward.

    def tell_steward(self, event: ev.StewardEvent) -> None:
        """Let the steward handle an event."""
        if self.running:
            self._perform(self.steward.handle(event, self.world.heap.now))

    def _perform(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            self._performers[type(effect)](effect)
        due = self.steward.deadline()
        if due is not None and due < self._timer_s:
            self._timer_s = due
            self.world.heap.at(due, self._due, due)

    def _due(self, armed_s: float) -> None:
        if self.running and armed_s == self._timer_s:
            self._timer_s = inf
            due = self.steward.deadline()
            if due is not None and due <= self.world.heap.now:
                self.tell_steward(ev.TimePassed())
            else:
                self._perform(())

    def _send(self, effect: eff.Send) -> None:
        """Send what the steward says; an answer to a claim comes when the device is ready."""
        took, delay_s = self.world.latencies, self.world.latencies.message_s
        if isinstance(effect.message, op.Claimed):
            delay_s = max(delay_s, took.claim_s - delay_s)
        self.world.deliver(self, effect.boot, effect.message, delay_s)
