"""What decides on the numbers of instances at a node, joined: demand, the autoscaler, orders.

router, devices ──► Demands ──► owners ──► Autoscaling ──► OrderDesk ──► Operations
                              operators' orders ───────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blitzgw.autoscaling import Autoscaling
from blitzgw.core import operation as op
from blitzgw.core.clock import Clock
from blitzgw.core.rumours import Rumour
from blitzgw.core.scale import Cede, Demand
from blitzgw.core.view import ClusterView
from blitzgw.definitions import Definitions
from blitzgw.demands import Demands
from blitzgw.device import DeviceRunner
from blitzgw.orderdesk import OrderDesk
from blitzgw.reporting import loads_by_model
from blitzgw.router.router import Router
from blitzgw.scalemetrics import ScaleMetrics
from blitzgw.scaleview import eta_s, scale_facts, wall_time
from blitzgw.scaling import autoevents as auto
from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.scaling.operations import Operations
from blitzgw.scaling.survey import ModelDefinition


@dataclass(frozen=True, slots=True)
class Hands:
    """What the node does for what decides here.

    `perform` carries effects of `Operations` out; `cancel` gives an operation of this node up, for
    a reason; `say` sends a message to a node, perhaps this one; `on_change` is told that what is
    published has changed, `arm` that a deadline may have.
    """

    perform: Callable[[Sequence[Any]], None]
    cancel: Callable[[str, str], None]
    say: Callable[[str, Any], None]
    on_change: Callable[[], None]
    arm: Callable[[], None]


class SelfScaling:
    """The part of `Scaler` that decides how many; `Operations` decides how, for whoever asks."""

    def __init__(
        self,
        me: Rumour,
        view: Callable[[], ClusterView],
        devices: Mapping[str, DeviceRunner],
        definitions: Definitions,
        define: Callable[[str], ModelDefinition | None],
        operations: Operations,
        router: Router,
        hands: Hands,
        *,
        metrics: ScaleMetrics,
        clock: Clock,
        dilation: float,
    ) -> None:
        self._view, self._boot, say = view, me.boot, hands.say
        self.desk = OrderDesk(
            me.boot,
            operations,
            lambda: definitions.settled,
            hands.perform,
            say,
            clock,
            metrics,
        )
        self.autoscaling = Autoscaling(
            Autoscaler(me.boot, me.name, view, define, operations.underway, wall_time),
            clock,
            metrics,
            self.desk.give,
            hands.cancel,
            say,
            hands.on_change,
            hands.arm,
        )
        self.desk.join(self.autoscaling)
        self.demands = Demands(
            me.boot,
            router,
            lambda: loads_by_model(devices.values()),
            lambda: definitions.settled,
            say,
            clock,
            dilation,
            published=self._number_of,
        )
        router.watch(self.demands.stirred, self._eta_s)

    def view_changed(self, view: ClusterView) -> None:
        """Take the news that members, models, devices, instances or wishes have changed."""
        self.demands.follow(view)
        self.autoscaling.tell(auto.ViewChanged())

    def said(self, boot: str, message: Demand | Cede | op.ScaleOrder | op.CancelOrder) -> None:
        """Take what a node says of the number of instances, this one perhaps."""
        match message:
            case Demand() | Cede():
                self.autoscaling.said(boot, message)
            case op.ScaleOrder():
                self.desk.order(boot, message)
            case op.CancelOrder():
                self.desk.cancel(boot, message)

    def _number_of(self, instance: str) -> int:
        """Return the number under which this node has last told of an instance's load."""
        me = self._view().nodes.get(self._boot)
        load = me.loads.get(instance) if me is not None else None
        return load.number if load is not None else 0

    def _eta_s(self, model: str) -> float | None:
        return eta_s(scale_facts(self._view()).get(model), wall_time())
