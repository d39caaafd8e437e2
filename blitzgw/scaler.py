"""What a node does for scaling: joins the deciders of scaling/ with links, devices and definitions.

    links, API ──► Operations (those that this node owns) ──► messages to nodes
    links, workers ──► Steward (this node's devices and ports) ──► workers, messages to owners
    time, view ──► CopyKeeper (host copies) ──► workers, Operations

A message of this node to itself takes the same way as any other, without a link.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

from blitzgw import copydesk
from blitzgw.alarm import Alarm, Deadline
from blitzgw.config import Config
from blitzgw.copyshelf import CopyShelf, Deciders
from blitzgw.core import operation as op
from blitzgw.core.clock import Clock
from blitzgw.core.live import LiveMessage
from blitzgw.core.operation import OperationFacts
from blitzgw.core.probe import ProbeCancel, ProbeDone, ProbeOrder
from blitzgw.core.rumours import Rumour
from blitzgw.core.scale import Cede, Demand, WhyFacts
from blitzgw.core.transfer import TrafficReport
from blitzgw.core.view import ClusterView, Fact, HostFacts
from blitzgw.definitions import Definitions
from blitzgw.device import DeviceRunner
from blitzgw.helping import Helping
from blitzgw.instancing import Instancing
from blitzgw.machine import Machine
from blitzgw.network import Network
from blitzgw.operationlog import record
from blitzgw.pairings import Pairings
from blitzgw.premises import Premises, definition_for_scaling
from blitzgw.probes import Probes
from blitzgw.router.router import Router
from blitzgw.scalemetrics import ScaleMetrics
from blitzgw.scaleorders import ScaleOrders
from blitzgw.scaleview import wall_time
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.copies import CopyKeeper
from blitzgw.scaling.operation import Surroundings
from blitzgw.scaling.operations import Operations
from blitzgw.scaling.ownership import owner_of
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.steward import Steward
from blitzgw.selfscaling import Hands, SelfScaling
from blitzgw.weights.hostcache import HostCopies

log = logging.getLogger(__name__)

LIVE = get_args(LiveMessage)

TO_STEWARD = (op.Claim, op.Engage, op.Renew, op.Conclude, op.Abandon, op.Retire)
"""What owners say; all else is said to owners."""


class Scaler:
    """One node's part in scaling. Call it from the event loop; `join`, `attach`, then `open`."""

    def __init__(
        self,
        me: Rumour,
        view: Callable[[], ClusterView],
        machine: Machine,
        clock: Clock,
        config: Config,
        on_change: Callable[[], None],
    ) -> None:
        self._me, self._view, self._machine, self._clock = me, view, machine, clock
        self._config, self._on_change = config, on_change
        self._devices: dict[str, DeviceRunner] = {}
        self.metrics = ScaleMetrics()
        self._alarm = Alarm(clock, config.node.dilation, self._deadlines)
        self._closed = False

    def join(self, network: Network, definitions: Definitions, router: Router) -> None:
        """Work over this network, with these definitions, for the requests of this router."""
        self._network = network
        self.copies = CopyShelf(
            self._devices, definitions, Deciders(self._steward, self._keep), self._on_change
        )
        self.helping = Helping(self._view, self._devices)
        self.instancing = Instancing(
            self._devices,
            definitions,
            network,
            self._steward,
            self._clock,
            self._config.node.drain_timeout_s,
            self.helping,
        )
        self.premises = Premises(
            self._devices,
            definitions,
            self.copies.held,
            self._host,
            lambda: network.serving.draining,
        )
        local = self._me.boot
        self.steward = Steward(self._me.name, local, self.premises)
        around = Surroundings(
            local, self._me.name, self._view, lambda: secrets.token_bytes(32), wall_time, choose
        )
        define = partial(definition_for_scaling, definitions, devices=self._config.devices)
        self.operations = Operations(around, define)
        self.desk = copydesk.CopyDesk(
            self._devices,
            definitions,
            self.copies,
            CopyKeeper(self._view, define, self.steward.uses),
            copydesk.Surroundings(
                self._perform,
                self._fetch_copy,
                self.steward.uses,
                lambda: self._host().free_bytes,
            ),
            self._clock,
        )
        self.orders = ScaleOrders(
            local,
            self._view,
            self._own_facts,
            self._whys,
            lambda model: owner_of(model, self._view()),
            self._say,
            self._clock,
        )
        self.orders.join(network)
        self.numbers = SelfScaling(
            self._me,
            self._view,
            self._devices,
            definitions,
            define,
            self.operations,
            router,
            self._hands(),
            metrics=self.metrics,
            clock=self._clock,
            dilation=self._config.node.dilation,
        )
        self.probes = Probes(self._me.name, self._view, self._devices, self._say)
        self.pairings = Pairings(
            local,
            self._me.name,
            self._view,
            self._devices,
            self._say,
            self.helping.ended,
            encrypt=self._config.transfer.encrypt,
        )
        self.helping.join(self.pairings)
        self._performers = self._make_performers()

    def _hands(self) -> Hands:
        def cancel(operation: str, reason: str) -> None:
            self._operate(ev.CancelAsked(operation, reason, rest=True))

        return Hands(self._perform, cancel, self._say, self._on_change, self._alarm.arm)

    def attach(self, devices: Sequence[DeviceRunner], copies: HostCopies | None) -> None:
        """Have these devices, and host copies in that folder, which is this node's alone."""
        self._devices.update({runner.device.id: runner for runner in devices})
        self.copies.open(copies)

    def open(self, me: Rumour) -> None:
        """Begin: the address that peers find this node at is known."""
        self._me = me
        for device, runner in self._devices.items():
            if runner.up:
                self.worker_up(device)
        self._alarm.arm()
        self.numbers.demands.open()

    async def close(self) -> None:
        """End what is under way here; other nodes notice, or are told by gossip."""
        self._closed = True
        self.numbers.demands.close()
        self.probes.ends.close()
        self.helping.close()
        self.pairings.close()
        self._alarm.close()
        await self.instancing.close()

    def facts(self) -> list[Fact]:
        """Return what this node publishes of its machine, of weights there and of scaling."""
        scaling = self.numbers.autoscaling.facts()
        if not self._config.cluster_keys:
            return scaling
        return [self._host(), *self.copies.facts(), *scaling]

    def view_changed(self, view: ClusterView) -> None:
        """Take the news that members, models, devices, instances or wishes have changed."""
        self.numbers.view_changed(view)

    # What links tell: implements `gossip.switchboard.OperationsPort`.

    def said(self, boot: str, message: Any) -> None:
        """Take what a node says, this one perhaps."""
        match message:
            case op.ScaleAnswer():
                self.orders.answered(boot, message)
            case Demand() | Cede() | op.ScaleOrder() | op.CancelOrder():
                self.numbers.said(boot, message)
            case ProbeOrder() | ProbeDone() | ProbeCancel():
                self.probes.said(boot, message)
            case _ if isinstance(message, LIVE):
                self.pairings.said(boot, message)
            case _ if isinstance(message, TO_STEWARD):
                self._steward(ev.MessageCame(boot, message))
            case _:
                self._operate(ev.MessageCame(boot, message))

    def link_lost(self, boot: str, reason: str) -> None:  # noqa: ARG002
        """Have everybody know that messages may not have arrived."""
        self.orders.link_lost(boot)
        self.probes.link_lost(boot)
        self.pairings.link_lost(boot)
        self._operate(ev.LinkLost(boot))
        self._steward(ev.LinkLost(boot))

    def count(self, boot: str) -> int:
        """Return how many answers are awaited from a node.

        Operations need no link kept open for them: a renewal is sent every second.
        """
        return self.orders.count(boot) + self.probes.count(boot) + self.pairings.count(boot)

    def node_died(self, boot: str) -> None:
        """Take the news that a node is dead or has left."""
        self.probes.link_lost(boot)
        self.pairings.link_lost(boot)
        self._operate(ev.NodeDied(boot))
        self._steward(ev.NodeDied(boot))
        self.numbers.autoscaling.tell(ev.NodeDied(boot))

    # What devices tell.

    def instance_up(self, device: str, instance: str) -> None:
        """Take the news that an instance serves."""
        self.helping.completed(instance)
        self._steward(ev.InstanceServes(device, instance))

    def instance_down(self, instance: str) -> None:
        """Take the news that an instance is gone."""
        self.helping.settled(instance)
        self.pairings.instance_gone(instance)
        self.desk.left()

    def instance_failed(self, device: str, instance: str, reason: str) -> bool:
        """Take the news that an instance will not come; return whether it has been dropped."""
        dropped = self.instancing.failed(device, instance, reason)
        self.desk.left()
        return dropped

    def worker_up(self, device: str) -> None:
        """Take the news that a worker is warm, and has nothing yet."""
        self.desk.worker_up(device)

    def worker_lost(self, device: str, reason: str) -> None:
        """Take the news that a worker is gone with its stores and edges."""
        self.desk.worker_lost(device, reason)
        self.probes.ends.worker_lost(device)
        self.pairings.worker_lost(device)
        self._steward(ev.WorkerLost(device, reason))

    def told(self, device: str, message: Any) -> None:
        """Take what a worker tells of weights."""
        if isinstance(message, TrafficReport):
            self._on_change()
            return
        if self.probes.ends.told(device, message) or self.pairings.told(device, message):
            return
        self.copies.told(device, message)
        self._steward(ev.WorkerSaid(device, message))

    # Deciders.

    def _operate(self, event: ev.OperationsEvent) -> None:
        self._perform(self.operations.handle(event, self._clock.now()))

    def _steward(self, event: ev.StewardEvent) -> None:
        self._perform(self.steward.handle(event, self._clock.now()))

    def _keep(self, event: ev.KeeperEvent) -> None:
        self.desk.keep(event)

    def _perform(self, effects: Sequence[Any]) -> None:
        if self._closed:
            return
        for effect in effects:
            try:
                self._performers[type(effect)](effect)
            except Exception:  # the others must not suffer; leases and time-outs undo what is amiss
                log.exception("effect_failed kind=%s", type(effect).__name__)
        self._alarm.arm()

    def _deadlines(self) -> list[Deadline]:
        """Return when each decider wants to be told that time has passed, and how.

        Copies are for others: in a cluster of one none is kept.
        """
        found: list[Deadline] = [
            (self.operations.deadline(), self._operate),
            (self.steward.deadline(), self._steward),
            (self.numbers.autoscaling.deadline(), self.numbers.autoscaling.tell),
        ]
        if self._config.cluster_keys:
            found += self.desk.deadlines()
        return found

    # Effects.

    def _make_performers(self) -> dict[type, Callable[[Any], None]]:
        return {
            eff.Send: lambda effect: self._say(effect.boot, effect.message),
            eff.Record: record,
            eff.OperationEnded: self._operation_ended,
            eff.BringUp: self._bring_up,
            eff.DropInstance: self.instancing.drop,
            **self.helping.performers(),
            eff.RetireInstance: self.instancing.retire,
            eff.KeepInstance: self.instancing.keep,
            eff.ReviveInstance: self.instancing.revive,
            **self.desk.performers(),
            eff.ToWorker: self._to_worker,
            eff.PublishNetworks: lambda _: self._on_change(),
        }

    def _say(self, boot: str, message: Any) -> None:
        if boot == self._me.boot:
            asyncio.get_running_loop().call_soon(self._hear, message)
            return
        node = self._view().nodes.get(boot)
        address = None if node is None else (node.host, node.port)
        self._network.links.send(boot, address, message)

    def _hear(self, message: Any) -> None:
        if not self._closed:
            self.said(self._me.boot, message)

    def _operation_ended(self, effect: eff.OperationEnded) -> None:
        facts = self.numbers.desk.ended(effect)
        if effect.copy and facts is not None:
            reason = "" if effect.state == "done" else effect.reason or effect.state
            self._keep(ev.CopyTried(facts.weights, reason))

    def _fetch_copy(self, effect: eff.ObtainCopy) -> None:
        self._operate(ev.CopyWanted(effect.model, f"{self._me.name}/{effect.device}"))

    def _bring_up(self, effect: eff.BringUp) -> None:
        self.desk.comes(effect.device, effect.model, effect.digest)
        self.instancing.bring_up(effect)
        self.desk.left()  # where it could not be

    def _to_worker(self, effect: eff.ToWorker) -> None:
        self._devices[effect.device].supervisor.send(effect.message)

    # What deciders ask.

    def _host(self) -> HostFacts:
        traffic = [runner.traffic for runner in self._devices.values()]
        return self._machine.facts(self._me.host, traffic, self.steward.reserved())

    def _own_facts(self) -> list[OperationFacts]:
        return self.operations.facts(self._clock.now())

    def _whys(self, model: str) -> list[WhyFacts]:
        return self.numbers.autoscaling.whys(model)
