"""What a simulated process has that owns models: the deciders of numbers and of operations.

Demand, Cede ──► Autoscaler ──► OrderInstances ──► Operations ──► messages to nodes
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any

from blitzgw.core import operation as op
from blitzgw.core.scale import Cede, Demand
from blitzgw.core.view import ClusterView
from blitzgw.scaling import autoevents as au
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.scaling.operation import Surroundings
from blitzgw.scaling.operations import Operations
from blitzgw.scaling.planner.choose import choose

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode

OPERATIONS_S = 0.005
"""Between two questions for the deadline of operations, which look through all of their targets;
what these do by the clock (settling, renewing leases) has times of 20 ms and more."""


class _Timer:
    """Has a decider told that time has passed, at its deadline.

    The deadline is asked for at most every `pause_s`: where that is dear it is met so much later.
    """

    def __init__(
        self, node: SimNode, decider: Any, tell: Callable[[Any], None], pause_s: float = 0.0
    ) -> None:
        self._node, self._heap = node, node.world.heap
        self._decider, self._tell, self._pause_s = decider, tell, pause_s
        self._armed_s, self._asked_s = inf, -inf
        self._to_ask = False

    def arm(self) -> None:
        """Have an event at the deadline; one that comes too early finds nothing to do."""
        if self._heap.now < self._asked_s + self._pause_s:
            if not self._to_ask:
                self._to_ask = True
                self._heap.at(self._asked_s + self._pause_s, self._ask)
            return
        self._asked_s = self._heap.now
        due = self._decider.deadline()
        if due is not None and due < self._armed_s:
            self._armed_s = due
            self._heap.at(due, self._fire, due)

    def _ask(self) -> None:
        self._to_ask = False
        if self._node.running:
            self.arm()

    def _fire(self, armed_s: float) -> None:
        if not self._node.running or armed_s != self._armed_s:
            return
        self._armed_s = inf
        due = self._decider.deadline()
        if due is not None and due <= self._heap.now:
            self._tell(ev.TimePassed())
        else:
            self.arm()


class Owner:
    """The deciders of a process for the models that it owns."""

    def __init__(self, node: SimNode) -> None:
        self._node, self._world = node, node.world
        world = node.world
        around = Surroundings(
            node.boot,
            node.name,
            node.view,
            lambda: node.rng.randbytes(32),
            world.unix_s,
            choose,
        )
        self.operations = Operations(around, world.define)
        self._seen = node.view()
        self.autoscaler = Autoscaler(
            node.boot, node.name, self._view, world.define, self.operations.underway, world.unix_s
        )
        self._news: deque[au.AutoEvent] = deque()
        self._telling = False
        self._operations_timer = _Timer(node, self.operations, self.tell_operations, OPERATIONS_S)
        self._autoscaler_timer = _Timer(node, self.autoscaler, self.tell_autoscaler)
        self._performers: dict[type, Callable[[Any], None]] = {
            eff.Send: self._send,
            eff.Record: lambda _: None,
            eff.OperationEnded: self._operation_ended,
            au.OrderInstances: self._order,
            au.CancelOperation: self._cancel,
            au.PublishWish: self._publish_wish,
            au.PublishScale: self._publish_scale,
            au.Decided: lambda effect: world.record.decided(effect.decision),
            au.SendCede: lambda effect: node.say(effect.boot, effect.cede),
        }

    def _view(self) -> ClusterView:
        """Return the present picture, which is asked for at each event and seldom another."""
        if self._seen.picture is not self._world.sights.shown:
            self._seen = self._node.view()
        return self._seen

    def said(self, boot: str, message: Demand | Cede) -> None:
        """Take what a node says of a model, this one perhaps."""
        if isinstance(message, Demand):
            self.tell_autoscaler(au.DemandCame(boot, message))
        else:
            self.tell_autoscaler(au.CedeAsked(boot, message))

    def node_died(self, boot: str) -> None:
        """Believe that a process is dead."""
        self.tell_operations(ev.NodeDied(boot))
        self.tell_autoscaler(ev.NodeDied(boot))

    # Deciders.

    def tell_operations(self, event: ev.OperationsEvent) -> None:
        """Let `Operations` handle an event."""
        if self._node.running:
            self._perform(self.operations.handle(event, self._world.heap.now))
            self._operations_timer.arm()

    def tell_autoscaler(self, event: au.AutoEvent) -> None:
        """Let the autoscaler handle an event, as soon as it has been done what it asked for."""
        self._news.append(event)
        if self._telling or not self._node.running:
            return
        self._telling = True
        while self._news:
            news = self._news.popleft()
            self._perform(self.autoscaler.handle(news, self._world.heap.now))
        self._telling = False
        self._autoscaler_timer.arm()

    def _perform(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            self._performers[type(effect)](effect)

    # Effects.

    def _send(self, effect: eff.Send) -> None:
        """Send what an operation says; a claim is sent when there is a plan."""
        took, delay_s = self._world.latencies, self._world.latencies.message_s
        if isinstance(effect.message, op.Claim):
            delay_s += took.plan_s
        self._world.deliver(self._node, effect.boot, effect.message, delay_s)

    def _order(self, effect: au.OrderInstances) -> None:
        """Let `Operations` begin what a decision asks for, and tell what has become of it."""
        order = op.ScaleOrder(effect.decision, effect.model, effect.instances, automatic=True)
        answers: list[op.ScaleAnswer] = []
        event = ev.OrderGiven(self._node.boot, order)
        for each in self.operations.handle(event, self._world.heap.now):
            if isinstance(each, eff.Send) and isinstance(each.message, op.ScaleAnswer):
                answers.append(each.message)
            else:
                self._performers[type(each)](each)
        self._operations_timer.arm()
        found = answers[0].operation if answers else None
        if found is not None:
            self.tell_autoscaler(au.OrderTaken(effect.model, effect.decision, found.id))
        else:
            why = answers[0].message if answers else "it was not answered"
            self.tell_autoscaler(au.OperationOver(effect.model, "", "failed", why))

    def _cancel(self, effect: au.CancelOperation) -> None:
        self.tell_operations(ev.CancelAsked(effect.operation, effect.reason, rest=True))

    def _operation_ended(self, effect: eff.OperationEnded) -> None:
        facts = self.operations.facts_of(effect.operation, self._world.heap.now)
        if facts is not None:
            self._world.record.operation(facts)
        if not effect.copy:
            over = au.OperationOver(effect.model, effect.operation, effect.state, effect.reason)
            self.tell_autoscaler(over)

    def _publish_wish(self, effect: au.PublishWish) -> None:
        self._node.wishes = {**self._node.wishes, effect.wish.model: effect.wish}
        self._node.changed()

    def _publish_scale(self, effect: au.PublishScale) -> None:
        node = self._node
        node.scaling = {name: told for name, told in node.scaling.items() if name != effect.model}
        if effect.facts is not None:
            node.scaling[effect.model] = effect.facts
        node.changed(structural=False)
