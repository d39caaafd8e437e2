"""One simulated process: the production deciders of scaling, joined as the node's shell joins them.

links ──► Operations, Steward, Autoscaler (`hear`) ──► links, devices, view
view ──► ViewChanged, NodeDied          devices, clients ──► Demand ──► the model's owner
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any

from blitzgw.core import operation as op
from blitzgw.core.scale import Cede, Demand
from blitzgw.core.view import LoadFacts, ScaleFacts, ScaleWish
from blitzgw.scaling import autoevents as au
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.scaling.operation import Surroundings
from blitzgw.scaling.operations import Operations
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.steward import Steward
from blitzgw.sim.scalingdemand import Demands
from blitzgw.sim.scalingdevice import SimInstance
from blitzgw.sim.scalingpicture import Picture
from blitzgw.sim.scalingpremises import SimPremises
from blitzgw.sim.scalingrequests import Ingress, Submit, heard

if TYPE_CHECKING:
    from blitzgw.sim.scalingworld import ScalingWorld

TO_STEWARD = (op.Claim, op.Engage, op.Renew, op.Conclude, op.Abandon, op.Retire)
"""What owners of operations say; all else is said to owners."""

REFRESH_S = 0.05
"""Between two times that a node publishes what has changed of it."""

FOLLOW_S = 0.1
"""Between two times that the autoscaler is told that the view has changed."""

ORIGINS_S = 1e5
"""Monotonic clocks begin somewhere in this range: no node may compare its own with another's."""


Decider = Operations | Steward | Autoscaler


class SimNode:
    """A process at a host. Once ended it does nothing any more, whatever it is told."""

    def __init__(self, world: ScalingWorld, index: int, boot: str) -> None:
        self.world, self.index, self.boot = world, index, boot
        self.name, self.running = f"n{index:02d}", True
        self._rng = random.Random(f"{boot} secrets")  # noqa: S311  a simulation is to repeat
        self._origin_s = world.rng.uniform(0, ORIGINS_S)
        self.wishes: dict[str, ScaleWish] = {}
        self.scaling: dict[str, ScaleFacts] = {}
        self.loads: dict[str, LoadFacts] = {}
        self._publishing = self._structural = self._following = self._telling = False
        self._concerns_all = False
        self._news: deque[au.AutoEvent] = deque()
        self._timer_s = inf
        self.premises = SimPremises(self, world.devices_of(index))
        self.steward = Steward(self.name, boot, self.premises)
        self._picture = Picture(self)
        self.sight = world.sights.make(self._picture.take())
        around = Surroundings(
            boot, self.name, self.sight.view, lambda: self._rng.randbytes(32), world.unix_s, choose
        )
        self.operations = Operations(around, world.define)
        self.autoscaler = world.make(
            boot, self.name, self.sight.view, world.define, self.operations.underway, world.unix_s
        )
        deciders: tuple[Decider, ...] = (self.operations, self.steward, self.autoscaler)
        self._deadlines = dict.fromkeys(deciders, inf)
        self.demands = Demands(self)
        self.ingress = Ingress(self, world.ledger, self.demands.touched)
        self._performers = self._make_performers()

    @property
    def now(self) -> float:
        """The present on this process's own clock."""
        return self.world.heap.now + self._origin_s

    @property
    def alone(self) -> bool:
        """Whether it does not know the others yet."""
        return not self.sight.joined

    def end(self) -> None:
        """Crash."""
        self.running = False
        self.premises.close()
        self.ingress.close()

    # What it hears.

    def hear(self, boot: str, message: Any) -> None:
        """Take what a process says, this one perhaps."""
        match message:
            case Submit():
                self.premises.submitted(message)
            case _ if heard(self.ingress, message):
                pass
            case Demand():
                self.tell_autoscaler(au.DemandCame(boot, message))
            case Cede():
                self.tell_autoscaler(au.CedeAsked(boot, message))
            case au.WishGiven():
                self.tell_autoscaler(message)
            case op.ScaleAnswer():
                pass
            case _ if isinstance(message, TO_STEWARD):
                self.tell_steward(ev.MessageCame(boot, message))
            case _:
                self.tell_operations(ev.MessageCame(boot, message))

    def link_lost(self, boot: str) -> None:
        """Take the news that messages from and to a process may be lost."""
        self.ingress.lost(boot)
        self.demands.lost(boot)
        self.tell_operations(ev.LinkLost(boot))
        self.tell_steward(ev.LinkLost(boot))

    def node_died(self, boot: str) -> None:
        """Believe that a process is dead."""
        if not self.running or not self.sight.bury(boot):
            return
        self.ingress.lost(boot)
        self.tell_operations(ev.NodeDied(boot))
        self.tell_steward(ev.NodeDied(boot))
        self.tell_autoscaler(ev.NodeDied(boot))
        self.members_changed()

    def node_back(self, boot: str) -> None:
        """Believe that a process lives that was believed dead, or is new."""
        latest = self.world.sights.latest.get(boot)
        if self.running and latest is not None and self.sight.revive(boot, latest):
            self.members_changed()

    def members_changed(self) -> None:
        """Draw the consequences of who there is."""
        self.demands.owners_changed()
        self.follow()

    def follow(self) -> None:
        """Tell the autoscaler of a changed view, when the change has got here."""
        if not self._following:
            self._following = True
            self.world.heap.after(self.sight.lag_s, self._follow)

    def _follow(self) -> None:
        self._following = False
        if not self.running or self.alone:
            return
        self.sight.catch_up()
        self.tell_autoscaler(au.ViewChanged())
        if self.sight.behind_s is not None and self.boot in self.world.owners:
            self._following = True
            self.world.heap.after(max(FOLLOW_S, self.sight.lag_s), self._follow)

    # Deciders.

    def tell_operations(self, event: ev.OperationsEvent) -> None:
        """Let `Operations` handle an event."""
        if self.running:
            self._perform(self._ask(self.operations, event, self.now))

    def tell_steward(self, event: ev.StewardEvent) -> None:
        """Let the steward handle an event."""
        if self.running:
            self._perform(self._ask(self.steward, event, self.now))

    def tell_autoscaler(self, event: au.AutoEvent) -> None:
        """Let the autoscaler handle an event, as soon as it has been done what it asked for."""
        self._news.append(event)
        if self._telling or not self.running or self.alone:
            return
        self._telling = True
        while self._news:
            self._perform(self._ask(self.autoscaler, self._news.popleft(), self.now))
        self._telling = False

    def _ask(self, decider: Decider, event: Any, now: float) -> Iterable[Any]:
        """Let a decider handle an event; note its new deadline, which changes in no other way."""
        effects: Iterable[Any] = decider.handle(event, now)
        self._deadlines[decider] = inf if (due := decider.deadline()) is None else due
        return effects

    def _perform(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            self._performers[type(effect)](effect)
        self._arm()

    def _arm(self) -> None:
        """Have a timer at the earliest deadline; one that comes too early finds nothing to do."""
        first = min(self._deadlines.values())
        if first < self._timer_s:
            self._timer_s = first
            self.world.heap.at(first - self._origin_s, self._due, first)

    def _due(self, armed_s: float) -> None:
        if not self.running or armed_s != self._timer_s:
            return
        self._timer_s = inf
        now = max(self.now, armed_s)
        for decider in self._deadlines:
            if self._deadlines[decider] <= now:
                self._perform(self._ask(decider, ev.TimePassed(), now))
        self._arm()

    def check(self) -> None:
        """Raise AssertionError if a decider's books contradict themselves."""
        self.operations.check_integrity()
        self.steward.check_integrity()
        self.autoscaler.check_integrity()

    # Effects.

    def _make_performers(self) -> dict[type, Callable[[Any], None]]:
        return {
            **self.premises.performers,
            eff.Send: lambda effect: self.world.links.send(self, effect.boot, effect.message),
            eff.Record: lambda _: None,
            eff.OperationEnded: self._operation_ended,
            au.OrderInstances: self._order,
            au.CancelOperation: lambda effect: self.tell_operations(
                ev.CancelAsked(effect.operation, effect.reason, rest=True)
            ),
            au.PublishWish: self._publish_wish,
            au.PublishScale: self._publish_scale,
            au.Decided: lambda effect: self.world.decided(self, effect.decision),
            au.SendCede: lambda effect: self.world.links.send(self, effect.boot, effect.cede),
        }

    def _order(self, effect: au.OrderInstances) -> None:
        """Let `Operations` begin what a decision asks for, and tell what has become of it."""
        order = op.ScaleOrder(effect.decision, effect.model, effect.instances, automatic=True)
        answers: list[op.ScaleAnswer] = []
        for each in self._ask(self.operations, ev.OrderGiven(self.boot, order), self.now):
            if isinstance(each, eff.Send) and isinstance(each.message, op.ScaleAnswer):
                answers.append(each.message)
            else:
                self._performers[type(each)](each)
        found = answers[0].operation if answers else None
        if found is not None:
            self.tell_autoscaler(au.OrderTaken(effect.model, effect.decision, found.id))
        else:
            why = answers[0].message if answers else "it was not answered"
            self.tell_autoscaler(au.OperationOver(effect.model, "", "failed", why))

    def _operation_ended(self, effect: eff.OperationEnded) -> None:
        self.world.operation_ended(self, effect)
        if not effect.copy:
            over = au.OperationOver(effect.model, effect.operation, effect.state, effect.reason)
            self.tell_autoscaler(over)

    def _publish_wish(self, effect: au.PublishWish) -> None:
        self.wishes = {**self.wishes, effect.wish.model: effect.wish}
        self._concerns_all = True
        self.changed()

    def _publish_scale(self, effect: au.PublishScale) -> None:
        self.scaling = {**self.scaling}
        if effect.facts is None:
            self.scaling.pop(effect.model, None)
        else:
            self.scaling[effect.model] = effect.facts
        self.world.published_scale(self, effect)
        self.changed(structural=False)

    # What it publishes.

    def changed(self, *, structural: bool = True) -> None:
        """Publish soon what has changed."""
        self._structural |= structural
        if not self._publishing:
            self._publishing = True
            self.world.heap.after(REFRESH_S, self._publish)

    def touched(self, model: str) -> None:
        """Note that the load of an instance of a model has changed."""
        self.demands.touched(model)

    def report_loads(self) -> None:
        """Publish the loads of this node's instances, if there are any."""
        loads = {i.id: i.load() for i in self.instances()}
        if loads or self.loads:
            self.loads = loads
            self.changed(structural=False)

    def instances(self) -> list[SimInstance]:
        """Return the instances that are here, in whatever state."""
        return [d.instance for d in self.premises.devices.values() if d.instance is not None]

    def _publish(self) -> None:
        self._publishing = False
        if not self.running:
            return
        picture = self._picture.take()
        self.sight.put(picture)
        told = self.world.follow_owners if self._structural else None
        if self._concerns_all:
            told = self.world.follow_all
        self._structural = self._concerns_all = False
        self.world.sights.publish(picture, self.index, told)
