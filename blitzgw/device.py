"""One device of a node: its supervised worker, its scheduler, its instances.

router ── submit, abort ──► scheduler ── steps ──► worker
    ◄── tokens, lost ──        ◄─ results ──

The device's claim is raised whenever what it is used for begins anew: whoever still means what was
here before is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from blitzgw.config import ModelConfig
from blitzgw.core.clock import Clock
from blitzgw.core.instance import DeviceSpec, InstanceState, ModelSpec
from blitzgw.core.live import StageReady
from blitzgw.core.manifest import BlobDigest
from blitzgw.core.messages import Hello, StepFailed
from blitzgw.core.ports import Ingress, PairingPort
from blitzgw.core.span import Span
from blitzgw.core.step import StepResult
from blitzgw.core.transfer import TrafficReport
from blitzgw.core.view import LoadFacts
from blitzgw.devicelistener import DeviceListener
from blitzgw.placement import Instance, LoadedModel, WorkerTerms, kv_bytes, place
from blitzgw.scaling.lifecycle import REVIVABLE
from blitzgw.scheduler.events import (
    Event,
    InstanceOpened,
    InstanceReady,
    LayersResident,
    PairingClosed,
    PairingOpened,
    StageAssigned,
    StageResident,
)
from blitzgw.scheduler.lane import InstanceStatistics
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.scheduler.shell import LocalInstance, SchedulerShell
from blitzgw.worker.supervisor import WorkerSupervisor

log = logging.getLogger(__name__)

OPENING = (StageReady, PairingOpened, PairingClosed)
"""What can make a lead take requests, or none any more."""

DRAINABLE = (InstanceState.SERVING, InstanceState.DRAINING)
"""States in which an instance has what its requests need, without others."""

STEP_BITS = 40
"""Of the number of a step, within its scheduler: decades of steps. Results of a former one's are
told apart by the rest."""


class DeviceRunner:
    """A `WorkerListener`: what happens to the worker goes to the scheduler and the listener.

    `node` is the node's name, a part of instances' ids. Raises BlitzError where a model cannot fit
    the device.
    """

    def __init__(
        self,
        node: str,
        device: DeviceSpec,
        models: Sequence[LoadedModel],
        ingress: Ingress,
        clock: Clock,
        listener: DeviceListener,
        *,
        pairs: PairingPort,
        max_queue: int,
        max_wait_s: float | None,
        terms: WorkerTerms,
    ) -> None:
        self.device = device
        self.hardware, self.memory_bytes, self.claim = "", 0, 0
        self.software: dict[str, str] = {}
        self.data_ports: dict[str, int] = {}
        self.traffic = TrafficReport(0.0, 0.0, 0.0)
        self.node, self.up = node, False
        self._schedulers = 0
        self._ingress, self._clock, self._listener = ingress, clock, listener
        self._pairs, self._max_queue, self._max_wait_s = pairs, max_queue, max_wait_s
        self._kv_bytes = kv_bytes(device, [m.spec for m in models])
        self.instances: dict[str, Instance] = {}
        self._ports: dict[str, LocalInstance] = {}
        for m in models:
            name = self.instance_name(m.spec.name)
            self.instances[name] = place(
                name,
                m.spec,
                m.config,
                device,
                self._kv_bytes,
                m.manifest.blobs,
                self.instances.values(),
            )
        loads = [instance.load for instance in self.instances.values()]
        self.supervisor = WorkerSupervisor(
            device,
            loads,
            clock,
            self,
            dilation=terms.dilation,
            networks=terms.networks,
            copies=terms.copies,
            weight_bytes_per_s=terms.weight_bytes_per_s,
            disk_bytes_per_s=terms.disk_bytes_per_s,
            host_bytes_per_s=terms.host_bytes_per_s,
        )
        self._scheduler = self._new_scheduler()

    def instance_name(self, model: str) -> str:
        """Return the id that an instance of a model has here."""
        return f"{model}@{self.node}/{self.device.id}"

    def lanes(self) -> dict[str, InstanceStatistics]:
        """Return the figures of the instances that serve, by id."""
        return self._scheduler.statistics().instances

    def loads(self) -> list[LoadFacts]:
        """Return how busy the instances that serve are."""
        return self._scheduler.loads()

    def statistics(self, model: str) -> list[InstanceStatistics]:
        """Return the figures of the instances of a model that serve."""
        lanes = self.lanes().items()
        return [lane for name, lane in lanes if self.instances[name].served.model == model]

    # What the node has it do.

    def take(self) -> int:
        """Raise the claim, for a new use of the device; return it."""
        self.claim += 1
        self._listener.device_changed()
        return self.claim

    def bring_up(
        self, spec: ModelSpec, config: ModelConfig, blobs: tuple[BlobDigest, ...], digest: str
    ) -> str:
        """Set the memory of an instance aside, whose weights will arrive; return its id.

        Raises BlitzError where the model does not fit.
        """
        name = self.instance_name(spec.name)
        if not self.instances:
            self._kv_bytes = kv_bytes(self.device, [spec])
            self._scheduler = self._new_scheduler()
        others = self.instances.values()
        instance = place(name, spec, config, self.device, self._kv_bytes, blobs, others)
        instance.load, instance.digest = replace(instance.load, reads=()), digest
        self.instances[name] = instance
        self.supervisor.load(instance.load)
        self._listener.device_changed()
        return name

    def helps(self, name: str, other: str) -> None:
        """Note whom an instance that is loading helps; empty: nobody."""
        instance = self.instances.get(name)
        if instance is not None and instance.helps != other:
            instance.helps = other
            self._listener.device_changed()

    def stage(self, name: str, span: Span | None) -> None:
        """Have an instance that is loading be a stage of a pipeline, or none any more.

        The first stage keeps requests, for which those who have them come here.
        """
        instance = self.instances.get(name)
        if instance is None or not instance.assign(span):
            return
        if span and instance.state is InstanceState.LOADING:
            self._open(name)
            self._scheduler.tell(StageAssigned(name, span))
            self._tell_stage(name, instance)
            if span.start == 0 and name not in self._ports:
                self._ports[name] = port = self._scheduler.port(instance.served)
                self._listener.instance_leads(port, self.claim, instance.digest)
        self._listener.device_changed()

    def live(self, event: Event) -> None:
        """Tell the scheduler of a pairing: that it is there, or gone, or what is said in it."""
        if isinstance(event, PairingOpened):
            self._open(event.here)
        self._scheduler.tell(event)
        if isinstance(event, OPENING):
            self._mind_leads(gone=isinstance(event, PairingClosed))

    def retire(self, name: str) -> bool:
        """Let an instance take nothing new; return whether it still computes something.

        One that is not complete computes nothing that is worth waiting for.
        """
        instance = self.instances.get(name)
        if instance is None or instance.state not in DRAINABLE:
            return False
        if instance.state is not InstanceState.DRAINING:
            instance.move(InstanceState.DRAINING)
            if name in self._ports:
                self._ports[name].open = False
            self._listener.device_changed()
        lane = self.lanes().get(name)
        return lane is not None and lane.running + lane.waiting + lane.live.sending > 0

    def keep(self, name: str, reason: str) -> None:
        """Let an instance that has drained do nothing, and stay loaded; unknown ones are ignored.

        What it may still have is tried elsewhere.
        """
        instance = self.instances.get(name)
        if instance is None:
            return
        log.info("instance_kept instance=%s reason=%s", name, reason)
        instance.move(InstanceState.KEPT)
        self._stop(name, reason, planned=True)
        self._listener.device_changed()

    def revive(self, name: str) -> bool:
        """Let an instance that drains or is kept serve again; return whether it is there."""
        instance = self.instances.get(name)
        if instance is None or instance.state not in REVIVABLE:
            return False
        log.info("instance_revived instance=%s former=%s", name, instance.state)
        instance.move(InstanceState.SERVING)
        port = self._ports.get(name)
        if port is None:
            self._ports[name] = port = self._scheduler.add_instance(instance.served)
        port.open = True
        self._listener.instance_up(self.device.id, port, self.claim, instance.digest)
        self._listener.device_changed()
        return True

    def drop(self, name: str, reason: str, *, planned: bool = False) -> None:
        """Remove an instance, whatever its state; unknown ones are ignored.

        What it still had is tried elsewhere, which is no failed attempt if it is `planned`.
        """
        instance = self.instances.pop(name, None)
        if instance is None:
            return
        log.info("instance_dropped instance=%s reason=%s", name, reason)
        instance.move(InstanceState.GONE)
        self.supervisor.unload(name)
        self._stop(name, reason, planned=planned)
        self._listener.device_changed()

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        for name, instance in self.instances.items():
            assert not instance.slips, instance.slips
            serves = instance.state in DRAINABLE
            assert serves == (name in self._ports) or instance.opened, (name, instance.state)
        assert self._ports.keys() <= self.instances.keys()

    def _stop(self, name: str, reason: str, *, planned: bool) -> None:
        """Have nobody come to an instance any more, and its scheduler forget it."""
        self._ports.pop(name, None)
        self._listener.instance_down(name, reason, planned=planned)
        if name in self.lanes():
            self._scheduler.remove_instance(name)

    # What its worker tells.

    def worker_up(self, hello: Hello) -> None:
        """Note what the device is."""
        self.hardware, self.memory_bytes = hello.device_name, hello.memory_bytes
        self.software, self.data_ports = hello.software, hello.data_ports
        self.claim, self.up = self.claim + 1, True
        log.info("worker_up device=%s pid=%d name=%r", self.device.id, hello.pid, hello.device_name)
        self._listener.worker_up(self.device.id)
        self._listener.device_changed()

    def worker_lost(self, reason: str) -> None:
        """Begin again with an empty scheduler; the router sends what was here elsewhere."""
        log.error("worker_lost device=%s reason=%s", self.device.id, reason)
        former, self._scheduler = self._scheduler, self._new_scheduler()
        self.data_ports, self.traffic = {}, TrafficReport(0.0, 0.0, 0.0)
        self.up, self.software = False, {}
        self._ports.clear()
        for name, instance in [*self.instances.items()]:
            if instance.state in REVIVABLE:
                self.drop(name, reason)  # it was about to go, and does not come back
                continue
            if not instance.failure:
                instance.move(InstanceState.LOADING)
                instance.blobs.clear()
            instance.forget_duties()
            self._listener.instance_down(name, reason)
        for name in former.statistics().instances:
            former.remove_instance(name)  # what peers had there is reported lost
        self._listener.worker_lost(self.device.id, reason)
        self._listener.device_changed()

    def instance_loading(self, instance: str, resident: int, total: int) -> None:
        """Note progress."""
        log.debug("layer_resident instance=%s resident=%d total=%d", instance, resident, total)

    def blob_resident(self, instance: str, index: int) -> None:
        """Note a blob that is in place."""
        known = self.instances.get(instance)
        if known is None:
            return
        known.blobs.add(index)
        if known.opened:
            self._scheduler.tell(LayersResident(instance, known.layers_usable))
            self._tell_stage(instance, known)
        self._listener.device_changed()

    def instance_ready(self, instance: str, duration_s: float) -> None:
        """Put an instance into service."""
        ready = self.instances.get(instance)
        if ready is None:
            return  # dropped meanwhile
        ready.load_s = duration_s
        ready.move(InstanceState.SERVING)
        ready.blobs = set(range(ready.served.n_layers + 2))
        self._tell_stage(instance, ready)
        ready.opened = ready.open = False
        log.info("instance_ready instance=%s load_s=%.3f", instance, duration_s)
        port = self._ports.get(instance)
        if port is None:
            self._ports[instance] = port = self._scheduler.add_instance(ready.served)
        else:  # it has led a pipeline: what it keeps goes on by the same way
            self._scheduler.tell(InstanceReady(ready.served))
        self._listener.instance_up(self.device.id, port, self.claim, ready.digest)
        self._listener.device_changed()

    def instance_failed(self, instance: str, message: str) -> None:
        """Note that an instance will not come, and tell."""
        failed = self.instances.get(instance)
        if failed is None:
            return
        failed.failure = message
        failed.move(InstanceState.GONE)
        failed.blobs.clear()
        log.error("instance_failed instance=%s message=%s", instance, message)
        self._listener.instance_failed(self.device.id, instance, failed.served.model, message)
        self._listener.device_changed()

    def told(self, message: Any) -> None:
        """Pass on what concerns the data plane."""
        if isinstance(message, TrafficReport):
            self.traffic = message
        self._listener.told(self.device.id, message)

    def step_done(self, result: StepResult) -> None:
        """Pass a step's result on."""
        self._scheduler.on_result(result)

    def step_failed(self, failure: StepFailed) -> None:
        """Pass a step's failure on."""
        log.error("step_failed instance=%s message=%s", failure.instance, failure.message)
        self._scheduler.on_step_failed(failure)

    def tick(self) -> None:
        """Let the scheduler know that time has passed; once a second."""
        self._scheduler.tick()

    def _open(self, name: str) -> None:
        """Have the scheduler know an instance that is loading."""
        instance = self.instances.get(name)
        if instance is None or instance.opened or instance.state is not InstanceState.LOADING:
            return
        instance.opened = True
        self._scheduler.tell(InstanceOpened(instance.served))
        self._scheduler.tell(LayersResident(name, instance.layers_usable))

    def _tell_stage(self, name: str, instance: Instance) -> None:
        """Have the scheduler know, once, that an instance has what its stage needs."""
        if not instance.staged and instance.stage_resident:
            instance.staged = True
            self._scheduler.tell(StageResident(name))
            self._mind_leads()

    def _mind_leads(self, *, gone: bool = False) -> None:
        """Tell of leads that take requests by now; `gone`: or none any more.

        One that is full for a moment takes more soon, and is not told of.
        """
        for name, instance in self.instances.items():
            port = self._ports.get(name) if instance.leads else None
            is_open = port is not None and self._scheduler.outlook(name).open
            if is_open == instance.open or not (is_open or gone or port is None):
                continue
            instance.open = is_open
            log.info("lead_open instance=%s open=%s", name, is_open)
            if port is not None and is_open:
                self._listener.instance_leads(port, self.claim, instance.digest)
            self._listener.device_changed()

    def _new_scheduler(self) -> SchedulerShell:
        """Return a scheduler whose steps have numbers that no earlier one's had."""
        self._schedulers += 1
        first = self._schedulers << STEP_BITS
        scheduler = Scheduler(
            self._kv_bytes,
            max_queue=self._max_queue,
            max_wait_s=self._max_wait_s,
            last_step=first,
        )
        return SchedulerShell(scheduler, self._clock, self.supervisor, self._ingress, self._pairs)
