"""One device of a node: its supervised worker, its scheduler, its instances.

router ── submit, abort ──► scheduler ── steps ──► worker
    ◄── tokens, lost ──        ◄─ results ──
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from blitzgw.core.clock import Clock
from blitzgw.core.instance import DeviceSpec, InstanceState
from blitzgw.core.messages import Hello, StepFailed
from blitzgw.core.step import StepResult
from blitzgw.placement import LoadedModel, kv_bytes, place
from blitzgw.router.router import Router
from blitzgw.scheduler.lane import InstanceStatistics
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.scheduler.shell import SchedulerShell
from blitzgw.worker.supervisor import WorkerSupervisor

log = logging.getLogger(__name__)


class DeviceRunner:
    """A `WorkerListener`: what happens to the worker goes to the scheduler and the router.

    `on_failed` is told the model of an instance that will not come. Raises BlitzError where a
    model cannot fit the device.
    """

    def __init__(
        self,
        device: DeviceSpec,
        models: Sequence[LoadedModel],
        router: Router,
        clock: Clock,
        on_failed: Callable[[str], None],
        *,
        max_queue: int,
        dilation: float,
    ) -> None:
        self.device = device
        self._router, self._clock, self._on_failed = router, clock, on_failed
        self._max_queue = max_queue
        self._models = {f"{m.spec.name}@{device.id}": m for m in models}
        self._kv_bytes = kv_bytes(device, models)
        self.instances = {
            name: place(name, model, device, self._kv_bytes) for name, model in self._models.items()
        }
        loads = [instance.load for instance in self.instances.values()]
        self.supervisor = WorkerSupervisor(device, loads, clock, self, dilation=dilation)
        self._scheduler = self._new_scheduler()

    def statistics(self, model: str) -> list[InstanceStatistics]:
        """Return the figures of the instances of a model that serve."""
        lanes = self._scheduler.statistics().instances
        return [lane for name, lane in lanes.items() if self.instances[name].served.model == model]

    def worker_up(self, hello: Hello) -> None:
        """Note what the device is."""
        log.info("worker_up device=%s pid=%d name=%r", self.device.id, hello.pid, hello.device_name)

    def worker_lost(self, reason: str) -> None:
        """Begin again with an empty scheduler; the router sends what was here elsewhere."""
        log.error("worker_lost device=%s reason=%s", self.device.id, reason)
        self._scheduler = self._new_scheduler()
        for name, instance in self.instances.items():
            if not instance.failure:
                instance.state, instance.layers_resident = InstanceState.LOADING, 0
            self._router.instance_down(name, reason)

    def instance_loading(self, instance: str, resident: int, total: int) -> None:
        """Note progress."""
        self.instances[instance].layers_resident = resident
        log.debug("layer_resident instance=%s resident=%d total=%d", instance, resident, total)

    def instance_ready(self, instance: str, duration_s: float) -> None:
        """Put an instance into service."""
        self._models[instance].load_s = duration_s
        self.instances[instance].state = InstanceState.SERVING
        log.info("instance_ready instance=%s load_s=%.3f", instance, duration_s)
        self._router.instance_up(self._scheduler.add_instance(self.instances[instance].served))

    def instance_failed(self, instance: str, message: str) -> None:
        """Note that an instance will not come, and tell."""
        failed = self.instances[instance]
        failed.state, failed.failure, failed.layers_resident = InstanceState.GONE, message, 0
        log.error("instance_failed instance=%s message=%s", instance, message)
        self._on_failed(failed.served.model)

    def step_done(self, result: StepResult) -> None:
        """Pass a step's result on."""
        self._scheduler.on_result(result)

    def step_failed(self, failure: StepFailed) -> None:
        """Pass a step's failure on."""
        log.error("step_failed instance=%s message=%s", failure.instance, failure.message)
        self._scheduler.on_step_failed(failure)

    def _new_scheduler(self) -> SchedulerShell:
        scheduler = Scheduler(self._kv_bytes, max_queue=self._max_queue)
        router = self._router
        return SchedulerShell(scheduler, self._clock, self.supervisor, router, router.on_lost)
