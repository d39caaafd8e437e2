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
from typing import Any

from blitzgw.api.services import unix_time
from blitzgw.config import Config
from blitzgw.copyshelf import CopyShelf, Deciders
from blitzgw.core import operation as op
from blitzgw.core.clock import Clock
from blitzgw.core.operation import OperationFacts
from blitzgw.core.rumours import Rumour
from blitzgw.core.transfer import TrafficReport
from blitzgw.core.view import ClusterView, Fact, HostFacts
from blitzgw.definitions import Definitions
from blitzgw.device import DeviceRunner
from blitzgw.instancing import Instancing
from blitzgw.machine import Machine
from blitzgw.network import Network
from blitzgw.premises import Premises
from blitzgw.probes import Probes
from blitzgw.scaleorders import ScaleOrders
from blitzgw.scaling import events as ev
from blitzgw.scaling.copies import CopyKeeper
from blitzgw.scaling.operation import Surroundings
from blitzgw.scaling.operations import Operations
from blitzgw.scaling.ownership import owner_of
from blitzgw.scaling.planner.choose import choose
from blitzgw.scaling.steward import Steward
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.weights.hostcache import HostCopies

log = logging.getLogger(__name__)

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
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False

    def join(self, network: Network, definitions: Definitions) -> None:
        """Work over this network, with these definitions."""
        self._network, self._definitions = network, definitions
        self.copies = CopyShelf(
            self._devices, definitions, Deciders(self._steward, self._keep), self._on_change
        )
        self.instancing = Instancing(
            self._devices,
            definitions,
            network,
            self._steward,
            self._clock,
            self._config.node.drain_timeout_s,
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
            local, self._me.name, self._view, lambda: secrets.token_bytes(32), unix_time, choose
        )
        self.operations = Operations(around, self._definition)
        self.keeper = CopyKeeper(self._view, self._definition, self.steward.uses)
        self.orders = ScaleOrders(
            local,
            self._view,
            self._own_facts,
            lambda model: owner_of(model, self._view()),
            self._tell,
            self._clock,
        )
        self.orders.join(network)
        self.probes = Probes(self._me.name, self._view, self._devices, self._say)
        self._performers = self._make_performers()

    def attach(self, devices: Sequence[DeviceRunner], copies: HostCopies | None) -> None:
        """Have these devices, and host copies in that folder, which is this node's alone."""
        self._devices.update({runner.device.id: runner for runner in devices})
        self.copies.open(copies)

    def open(self, me: Rumour) -> None:
        """Begin: the address that peers find this node at is known."""
        self._me = me
        for device in self._devices:
            self.copies.worker_up(device)
        self._arm()

    async def close(self) -> None:
        """End what is under way here; other nodes notice, or are told by gossip."""
        self._closed = True
        self.probes.ends.close()
        if self._alarm is not None:
            self._alarm.cancel()
        await self.instancing.close()

    def facts(self) -> list[Fact]:
        """Return what this node publishes of its machine and of the weights in its memory."""
        if not self._config.cluster_keys:
            return []
        return [self._host(), *self.copies.facts()]

    # What links tell: implements `gossip.switchboard.OperationsPort`.

    def said(self, boot: str, message: Any) -> None:
        """Take what a node says, this one perhaps."""
        match message:
            case op.ScaleAnswer():
                self.orders.answered(boot, message)
            case op.ScaleOrder():
                self._operate(ev.OrderGiven(boot, message))
            case op.CancelOrder():
                self._cancel(boot, message)
            case op.ProbeOrder() | op.ProbeDone() | op.ProbeCancel():
                self.probes.said(boot, message)
            case _ if isinstance(message, TO_STEWARD):
                self._steward(ev.MessageCame(boot, message))
            case _:
                self._operate(ev.MessageCame(boot, message))

    def link_lost(self, boot: str, reason: str) -> None:  # noqa: ARG002
        """Have everybody know that messages may not have arrived."""
        self.orders.link_lost(boot)
        self.probes.link_lost(boot)
        self._operate(ev.LinkLost(boot))
        self._steward(ev.LinkLost(boot))

    def count(self, boot: str) -> int:
        """Return how many answers are awaited from a node.

        Operations need no link kept open for them: a renewal is sent every second.
        """
        return self.orders.count(boot) + self.probes.count(boot)

    def node_died(self, boot: str) -> None:
        """Take the news that a node is dead or has left."""
        self.probes.link_lost(boot)
        self._operate(ev.NodeDied(boot))
        self._steward(ev.NodeDied(boot))

    # What devices tell.

    def instance_up(self, device: str, instance: str) -> None:
        """Take the news that an instance serves."""
        self._steward(ev.InstanceServes(device, instance))

    def instance_failed(self, device: str, instance: str, reason: str) -> bool:
        """Take the news that an instance will not come; return whether it has been dropped."""
        return self.instancing.failed(device, instance, reason)

    def worker_up(self, device: str) -> None:
        """Take the news that a worker is warm, and has nothing yet."""
        self.copies.worker_up(device)

    def worker_lost(self, device: str, reason: str) -> None:
        """Take the news that a worker is gone with its stores and edges."""
        self.copies.worker_lost(device, reason)
        self.probes.ends.worker_lost(device)
        self._steward(ev.WorkerLost(device, reason))

    def told(self, device: str, message: Any) -> None:
        """Take what a worker tells of weights."""
        if isinstance(message, TrafficReport):
            self._on_change()
            return
        if self.probes.ends.told(device, message):
            return
        self.copies.told(device, message)
        self._steward(ev.WorkerSaid(device, message))

    # Deciders.

    def _operate(self, event: ev.OperationsEvent) -> None:
        self._perform(self.operations.handle(event, self._clock.now()))

    def _steward(self, event: ev.StewardEvent) -> None:
        self._perform(self.steward.handle(event, self._clock.now()))

    def _keep(self, event: ev.KeeperEvent) -> None:
        self._perform(self.keeper.handle(event, self._clock.now()))

    def _perform(self, effects: Sequence[Any]) -> None:
        if self._closed:
            return
        for effect in effects:
            try:
                self._performers[type(effect)](effect)
            except Exception:  # the others must not suffer; leases and time-outs undo what is amiss
                log.exception("effect_failed kind=%s", type(effect).__name__)
        self._arm()

    def _arm(self) -> None:
        """Have `_on_time` called when the first decider wants it."""
        deadlines = [at_s for at_s, _ in self._deadlines() if at_s is not None]
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if deadlines and not self._closed:
            delay_s = max(0.0, min(deadlines) - self._clock.now()) * self._config.node.dilation
            self._alarm = asyncio.get_running_loop().call_later(delay_s, self._on_time)

    def _on_time(self) -> None:
        self._alarm = None
        now, event = self._clock.now(), ev.TimePassed()
        for due_s, tell in self._deadlines():
            if due_s is not None and due_s <= now:
                try:
                    tell(event)
                except Exception:  # the other deciders' time must not stand still
                    log.exception("time_not_told")
        self._arm()

    def _deadlines(self) -> list[tuple[float | None, Callable[[Any], None]]]:
        """Return when each decider wants to be told that time has passed, and how.

        Copies are for others: in a cluster of one none is kept.
        """
        found: list[tuple[float | None, Callable[[Any], None]]] = [
            (self.operations.deadline(), self._operate),
            (self.steward.deadline(), self._steward),
        ]
        if self._config.cluster_keys:
            found.append((self.keeper.deadline(), self._keep))
        return found

    # Effects.

    def _make_performers(self) -> dict[type, Callable[[Any], None]]:
        return {
            ev.Send: self._send,
            ev.Record: self._record,
            ev.OperationEnded: self._operation_ended,
            ev.BringUp: self.instancing.bring_up,
            ev.DropInstance: self.instancing.drop,
            ev.RetireInstance: self.instancing.retire,
            ev.HoldWeights: self.copies.hold,
            ev.DropWeights: self.copies.drop,
            ev.ReadWeights: self.copies.read,
            ev.ToWorker: self._to_worker,
            ev.PublishNetworks: lambda _: self._on_change(),
            ev.ObtainCopy: self._obtain_copy,
        }

    def _send(self, effect: ev.Send) -> None:
        self._say(effect.boot, effect.message)

    def _tell(self, boot: str, order: op.ScaleOrder | op.CancelOrder) -> None:
        self._say(boot, order)

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

    def _record(self, effect: ev.Record) -> None:
        event = effect.event
        log.info(
            "operation id=%s model=%s what=%s about=%s at_s=%.3f detail=%s",
            effect.operation, effect.model, event.what, event.about, event.at_s, event.detail,
        )  # fmt: skip

    def _operation_ended(self, effect: ev.OperationEnded) -> None:
        level = logging.INFO if effect.state == "done" else logging.WARNING
        log.log(
            level, "operation_ended id=%s model=%s state=%s reason=%s",
            effect.operation, effect.model, effect.state, effect.reason,
        )  # fmt: skip
        facts = self.operations.facts_of(effect.operation, self._clock.now())
        if effect.copy and facts is not None:
            reason = "" if effect.state == "done" else effect.reason or effect.state
            self._keep(ev.CopyTried(facts.weights, reason))

    def _obtain_copy(self, effect: ev.ObtainCopy) -> None:
        if effect.disk:
            self.copies.read_copy(effect)
        else:
            self._operate(ev.CopyWanted(effect.model, f"{self._me.name}/{effect.device}"))

    def _to_worker(self, effect: ev.ToWorker) -> None:
        self._devices[effect.device].supervisor.send(effect.message)

    def _cancel(self, boot: str, order: op.CancelOrder) -> None:
        self._operate(ev.CancelAsked(order.operation, "cancelled by an operator"))
        found = self.operations.facts_of(order.operation, self._clock.now())
        answer = op.ScaleAnswer(order.id, found)
        if found is None:
            answer = op.ScaleAnswer(order.id, None, "unknown_operation", "nothing is known of it")
        self._say(boot, answer)

    # What deciders ask.

    def _host(self) -> HostFacts:
        traffic = [runner.traffic for runner in self._devices.values()]
        return self._machine.facts(self._me.host, traffic, self.steward.reserved())

    def _own_facts(self) -> list[OperationFacts]:
        return self.operations.facts(self._clock.now())

    def _definition(self, model: str) -> ModelDefinition | None:
        """Return the definition that holds for a name, with its weights where they are known."""
        settled = self._definitions.settled.get(model)
        if settled is None:
            return None
        known = self._definitions.known(settled.digest)
        if known is None:
            return ModelDefinition(model, settled.digest, "", ())
        sizes = tuple(blob.size_bytes for blob in known.card.blobs)
        return ModelDefinition(model, settled.digest, known.card.weights, sizes)
