"""One device of a node: its supervised worker, its scheduler, its instances.

router ── submit, abort ──► scheduler ── steps ──► worker
    ◄── tokens, lost ──        ◄─ results ──

The device's claim is raised whenever what it is used for begins anew: whoever still means what was
here before is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from blitzgw.core.clock import Clock
from blitzgw.core.instance import DeviceSpec, InstanceState
from blitzgw.core.messages import Hello, StepFailed
from blitzgw.core.ports import Ingress
from blitzgw.core.step import StepResult
from blitzgw.placement import LoadedModel, kv_bytes, place
from blitzgw.scheduler.lane import InstanceStatistics
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.scheduler.shell import LocalInstance, SchedulerShell
from blitzgw.worker.supervisor import WorkerSupervisor

log = logging.getLogger(__name__)


class DeviceListener(Protocol):
    """Who is told what becomes of a device's instances. Called from the event loop."""

    def instance_up(self, port: LocalInstance, claim: int) -> None:
        """An instance takes requests from now on, at a claim of its device."""

    def instance_down(self, instance: str, reason: str) -> None:
        """An instance is gone, and with it what it had."""

    def instance_failed(self, model: str) -> None:
        """An instance of this model will not come."""

    def device_changed(self) -> None:
        """Something that the node publishes has changed."""


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
        max_queue: int,
        dilation: float,
    ) -> None:
        self.device = device
        self.hardware, self.memory_bytes, self.claim = "", 0, 0
        self.software: dict[str, str] = {}
        self._ingress, self._clock, self._listener = ingress, clock, listener
        self._max_queue = max_queue
        self._models = {f"{m.spec.name}@{node}/{device.id}": m for m in models}
        self._kv_bytes = kv_bytes(device, models)
        self.instances = {
            name: place(name, model, device, self._kv_bytes) for name, model in self._models.items()
        }
        loads = [instance.load for instance in self.instances.values()]
        self.supervisor = WorkerSupervisor(device, loads, clock, self, dilation=dilation)
        self._scheduler = self._new_scheduler()

    def lanes(self) -> dict[str, InstanceStatistics]:
        """Return the figures of the instances that serve, by id."""
        return self._scheduler.statistics().instances

    def statistics(self, model: str) -> list[InstanceStatistics]:
        """Return the figures of the instances of a model that serve."""
        lanes = self.lanes().items()
        return [lane for name, lane in lanes if self.instances[name].served.model == model]

    def worker_up(self, hello: Hello) -> None:
        """Note what the device is."""
        self.hardware, self.memory_bytes = hello.device_name, hello.memory_bytes
        self.software = hello.software
        self.claim += 1
        log.info("worker_up device=%s pid=%d name=%r", self.device.id, hello.pid, hello.device_name)
        self._listener.device_changed()

    def worker_lost(self, reason: str) -> None:
        """Begin again with an empty scheduler; the router sends what was here elsewhere."""
        log.error("worker_lost device=%s reason=%s", self.device.id, reason)
        former, self._scheduler = self._scheduler, self._new_scheduler()
        for name, instance in self.instances.items():
            if not instance.failure:
                instance.state, instance.layers_resident = InstanceState.LOADING, 0
            self._listener.instance_down(name, reason)
        for name in former.statistics().instances:
            former.remove_instance(name)  # what peers had there is reported lost
        self._listener.device_changed()

    def instance_loading(self, instance: str, resident: int, total: int) -> None:
        """Note progress."""
        self.instances[instance].layers_resident = resident
        log.debug("layer_resident instance=%s resident=%d total=%d", instance, resident, total)
        self._listener.device_changed()

    def instance_ready(self, instance: str, duration_s: float) -> None:
        """Put an instance into service."""
        self._models[instance].load_s = duration_s
        self.instances[instance].state = InstanceState.SERVING
        log.info("instance_ready instance=%s load_s=%.3f", instance, duration_s)
        port = self._scheduler.add_instance(self.instances[instance].served)
        self._listener.instance_up(port, self.claim)
        self._listener.device_changed()

    def instance_failed(self, instance: str, message: str) -> None:
        """Note that an instance will not come, and tell."""
        failed = self.instances[instance]
        failed.state, failed.failure, failed.layers_resident = InstanceState.GONE, message, 0
        log.error("instance_failed instance=%s message=%s", instance, message)
        self._listener.instance_failed(failed.served.model)
        self._listener.device_changed()

    def step_done(self, result: StepResult) -> None:
        """Pass a step's result on."""
        self._scheduler.on_result(result)

    def step_failed(self, failure: StepFailed) -> None:
        """Pass a step's failure on."""
        log.error("step_failed instance=%s message=%s", failure.instance, failure.message)
        self._scheduler.on_step_failed(failure)

    def _new_scheduler(self) -> SchedulerShell:
        scheduler = Scheduler(self._kv_bytes, max_queue=self._max_queue)
        return SchedulerShell(scheduler, self._clock, self.supervisor, self._ingress)
