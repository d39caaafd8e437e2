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
from collections.abc import Callable, Collection, Sequence
from typing import Any

from blitzgw.api.services import unix_time
from blitzgw.config import Config
from blitzgw.core import operation as op
from blitzgw.core.clock import Clock
from blitzgw.core.operation import OperationFacts
from blitzgw.core.rumours import Rumour
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CopyFailed,
    CopyHeld,
    DropCopy,
    HoldCopy,
    ReadBlobs,
    TrafficReport,
)
from blitzgw.core.view import ClusterView, Fact, HostFacts
from blitzgw.definitions import Definitions
from blitzgw.device import DeviceRunner
from blitzgw.errors import BlitzError
from blitzgw.machine import Machine
from blitzgw.network import Network
from blitzgw.premises import HeldWeights, Premises
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

POLL_S = 0.05
"""How often a draining instance is looked at."""

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
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._closed = False
        self._copies: HostCopies | None = None
        self._performers: dict[type, Callable[[Any], None]] = {
            ev.Send: self._send,
            ev.Record: self._record,
            ev.OperationEnded: self._operation_ended,
            ev.BringUp: self._bring_up,
            ev.DropInstance: self._drop_instance,
            ev.RetireInstance: self._retire,
            ev.HoldWeights: self._hold,
            ev.DropWeights: self._drop_weights,
            ev.ReadWeights: self._read,
            ev.ToWorker: self._to_worker,
            ev.PublishNetworks: lambda _: self._on_change(),
            ev.ObtainCopy: self._obtain_copy,
        }

    def join(self, network: Network, definitions: Definitions) -> None:
        """Work over this network, with these definitions."""
        self._network, self._definitions = network, definitions
        self.premises = Premises(
            self._devices, definitions, self._host, lambda: network.serving.draining
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

    def attach(self, devices: Sequence[DeviceRunner], copies: HostCopies | None) -> None:
        """Have these devices, and host copies in that folder, which is this node's alone."""
        self._devices.update({runner.device.id: runner for runner in devices})
        self._copies = copies

    def adopt_copies(self, wanted: Collection[str]) -> None:
        """Keep the wanted ones of the copies that a killed node has left; before workers start."""
        if self._copies is not None:
            self._sweep(self._copies, wanted)

    def drop_copies(self) -> None:
        """Leave no copies behind; after the workers' end."""
        if self._copies is not None:
            self._sweep(self._copies, ())
            self._copies.disown()

    def _sweep(self, copies: HostCopies, wanted: Collection[str]) -> None:
        try:
            for weights in copies.sweep(wanted):
                log.info("copy_removed weights=%.12s", weights)
        except BlitzError as error:
            log.warning("copies_not_removed error=%s", error)

    def open(self, me: Rumour) -> None:
        """Begin: the address that peers find this node at is known."""
        self._me = me
        for device in self._devices:
            self.worker_up(device)
        self._arm()

    async def close(self) -> None:
        """End what is under way here; other nodes notice, or are told by gossip."""
        self._closed = True
        self.probes.ends.close()
        if self._alarm is not None:
            self._alarm.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)  # at once

    def facts(self) -> list[Fact]:
        """Return what this node publishes of its machine and of the weights in its memory."""
        if not self._config.cluster_keys:
            return []
        return [self._host(), *self.premises.copies()]

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
        """Take the news that an instance will not come; return whether it has been dropped.

        One whose weights came from peers cannot be loaded again by itself: it is dropped, and its
        device is free.
        """
        runner = self._devices[device]
        known = runner.instances.get(instance)
        if known is None or known.load.reads is None:
            return False
        runner.drop(instance, reason)
        runner.take()
        self._steward(ev.InstanceEnded(device, instance, reason))
        return True

    def worker_up(self, device: str) -> None:
        """Have a worker take up the host copies that a former worker, or node, has left behind."""
        if self._copies is None or not self._devices[device].up:
            return
        try:
            there = {file.weights for file in self._copies.list() if file.complete}
        except BlitzError as error:
            log.warning("copies_not_found error=%s", error)
            return
        for name, definition in self._definitions.settled.items():
            known = self._definitions.known(definition.digest)
            if known is None or known.card.weights not in there - self.premises.held.keys():
                continue
            weights = known.card.weights
            self._hold(ev.HoldWeights(device, name, definition.digest, weights, ()))

    def worker_lost(self, device: str, reason: str) -> None:
        """Take the news that a worker is gone with its stores and edges."""
        held = self.premises.held
        for weights in [w for w, each in held.items() if each.device == device]:
            del held[weights]
            self._keep(ev.CopyTried(weights, reason))
        self.probes.ends.worker_lost(device)
        self._steward(ev.WorkerLost(device, reason))

    def told(self, device: str, message: Any) -> None:
        """Take what a worker tells of weights."""
        if isinstance(message, TrafficReport):
            self._on_change()
            return
        if self.probes.ends.told(device, message):
            return
        self._note(device, message)
        self._steward(ev.WorkerSaid(device, message))

    def _note(self, device: str, message: Any) -> None:
        """Keep the books of host copies."""
        weights = getattr(message, "weights", "")
        held = self.premises.held.get(weights)
        if held is None or held.device != device:
            return
        match message:
            case BlobChecked(index=index):
                held.blobs.add(index)
            case BlobDamaged(index=index):
                held.blobs.discard(index)
            case CopyHeld():
                held.complete = True
                log.info("copy_held model=%s weights=%.12s", held.model, weights)
                self._keep(ev.CopyTried(weights))
            case CopyFailed(message=text):
                del self.premises.held[weights]
                log.warning("copy_failed weights=%.12s reason=%s", weights, text)
                self._keep(ev.CopyTried(weights, text))
        self._on_change()

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

    def _bring_up(self, effect: ev.BringUp) -> None:
        runner, known = self._devices[effect.device], self._definitions.known(effect.digest)
        claim = runner.take()
        assert claim == effect.claim, "the steward counts claims as the device does"
        assert known is not None, "the premises objected to unknown definitions"
        config = self._definitions.config_of(effect.model, effect.digest)
        try:
            runner.bring_up(known.spec, config, known.card.blobs, effect.digest)
        except BlitzError as error:
            failed = ev.InstanceEnded(effect.device, effect.instance, str(error))
            asyncio.get_running_loop().call_soon(self._steward, failed)

    def _drop_instance(self, effect: ev.DropInstance) -> None:
        runner = self._devices[effect.device]
        runner.drop(effect.instance, effect.reason)
        runner.take()

    def _retire(self, effect: ev.RetireInstance) -> None:
        task = asyncio.get_running_loop().create_task(self._drain(effect))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self, effect: ev.RetireInstance) -> None:
        """Let an instance finish what it has, for as long as a node does; the rest moves."""
        runner = self._devices[effect.device]
        deadline = self._clock.now() + self._config.node.drain_timeout_s
        while runner.retire(effect.instance) and self._clock.now() < deadline:
            await self._clock.sleep(POLL_S)
        self._network.serving.give_away(effect.reason, effect.instance)
        runner.drop(effect.instance, effect.reason, planned=True)
        runner.take()
        self._steward(ev.InstanceEnded(effect.device, effect.instance))

    def _hold(self, effect: ev.HoldWeights) -> None:
        known, runner = self._definitions.known(effect.digest), self._devices[effect.device]
        if not runner.up or known is None or known.card.weights != effect.weights:
            why = "its definition is not known here" if runner.up else "the worker is not up"
            asyncio.get_running_loop().call_soon(self._not_held, effect, why)
            return
        blobs = known.card.blobs
        size = sum(blob.size_bytes for blob in blobs)
        self.premises.held[effect.weights] = HeldWeights(effect.device, effect.model, size)
        hold = HoldCopy(effect.weights, known.spec, blobs, effect.reads)
        runner.supervisor.send(hold)

    def _not_held(self, effect: ev.HoldWeights, why: str) -> None:
        failed = CopyFailed(effect.weights, why)
        self._steward(ev.WorkerSaid(effect.device, failed))
        self._keep(ev.CopyTried(effect.weights, why))

    def _drop_weights(self, effect: ev.DropWeights) -> None:
        held = self.premises.held.get(effect.weights)
        if held is not None and held.device == effect.device:
            del self.premises.held[effect.weights]
            self._devices[effect.device].supervisor.send(DropCopy(effect.weights))
            self._on_change()

    def _read(self, effect: ev.ReadWeights) -> None:
        known = self._definitions.known(effect.digest)
        if known is not None:
            read = ReadBlobs(effect.weights, known.spec, effect.blobs)
            self._devices[effect.device].supervisor.send(read)

    def _to_worker(self, effect: ev.ToWorker) -> None:
        self._devices[effect.device].supervisor.send(effect.message)

    def _obtain_copy(self, effect: ev.ObtainCopy) -> None:
        if not effect.disk:
            self._operate(ev.CopyWanted(effect.model, f"{self._me.name}/{effect.device}"))
            return
        known = self._definitions.known(effect.digest)
        reads = () if known is None else tuple(range(len(known.card.blobs)))
        self._hold(
            ev.HoldWeights(effect.device, effect.model, effect.digest, effect.weights, reads)
        )

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
