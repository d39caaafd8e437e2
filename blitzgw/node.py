"""The composition root: builds a node from its configuration, joins the parts, starts and stops it.

    api ── generate, abort ──► router ── submit, abort ──► scheduler ── steps ──► worker
        ◄─── push, fail ──────        ◄── tokens, lost ───           ◄─ results ──

One scheduler and one supervised worker a device; one instance of a model on each of its devices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import click
import uvloop

from blitzgw.api.limits import Limits
from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.api.server import HttpServer
from blitzgw.api.services import Services, unix_time
from blitzgw.api.status import ModelStatus, NodeStatus, Served
from blitzgw.api.text import TextModel
from blitzgw.config import Config, ModelConfig
from blitzgw.core.clock import Clock, MonotonicClock
from blitzgw.core.instance import DeviceKind, DeviceSpec, InstanceState, ModelSpec
from blitzgw.core.messages import Hello, LoadModel, StepFailed
from blitzgw.core.model import TextSpec
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, StepResult
from blitzgw.errors import BlitzError
from blitzgw.router.router import Router
from blitzgw.scheduler.events import ServedInstance
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.scheduler.shell import SchedulerShell
from blitzgw.weights.cache import resolve
from blitzgw.weights.info import model_spec
from blitzgw.worker.discovery import available_memory_bytes, device_memory_bytes
from blitzgw.worker.supervisor import WorkerSupervisor

log = logging.getLogger(__name__)

TICK_S = 0.25
"""How often held requests are looked at: a small part of any patience, and next to no work."""

CPU_KV_SHARE = 0.25
"""KV's share of the memory available: the rest is for weights, the page cache and others."""

GPU_KV_SHARE = 0.85
"""KV's share of what weights leave of a GPU: activations and the allocator need the rest."""

SLOTS_PER_SEQUENCE = 2
"""Slots beyond those that can run keep the prefixes of finished sequences."""


@dataclass(slots=True)
class Instance:
    """A model on a device, as the node sees it."""

    load: LoadModel
    served: ServedInstance
    state: InstanceState = InstanceState.LOADING
    layers_resident: int = 0
    failure: str = ""


@dataclass(slots=True)
class LoadedModel:
    """A configured model, resolved."""

    config: ModelConfig
    spec: ModelSpec
    text: TextSpec
    load_s: float | None = None
    """Seconds that the last load took, for the ETA of the next."""


class DeviceRunner:
    """One device: its supervised worker, its scheduler, its instances. A `WorkerListener`."""

    def __init__(
        self, device: DeviceSpec, models: Sequence[LoadedModel], router: Router, node: Node
    ) -> None:
        self.device = device
        self._router, self._clock = router, node.clock
        self._max_queue = node.config.http.max_queue
        self._models = {f"{m.spec.name}@{device.id}": m for m in models}
        self._kv_bytes = kv_bytes(device, models)
        self.instances = {
            name: _instance(name, model, device, self._kv_bytes)
            for name, model in self._models.items()
        }
        loads = [instance.load for instance in self.instances.values()]
        self.supervisor = WorkerSupervisor(
            device, loads, node.clock, self, dilation=node.config.node.dilation
        )
        self.scheduler = self._new_scheduler()

    def _new_scheduler(self) -> SchedulerShell:
        scheduler = Scheduler(self._kv_bytes, max_queue=self._max_queue)
        router = self._router
        return SchedulerShell(scheduler, self._clock, self.supervisor, router, router.on_lost)

    def worker_up(self, hello: Hello) -> None:
        """Note what the device is."""
        log.info("worker_up device=%s pid=%d name=%r", self.device.id, hello.pid, hello.device_name)

    def worker_lost(self, reason: str) -> None:
        """Begin again with an empty scheduler; the router sends what was here elsewhere."""
        log.error("worker_lost device=%s reason=%s", self.device.id, reason)
        self.scheduler = self._new_scheduler()
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
        self._router.instance_up(self.scheduler.add_instance(self.instances[instance].served))

    def instance_failed(self, instance: str, message: str) -> None:
        """Note that an instance will not come; answer those who wait for it alone."""
        self.instances[instance].state = InstanceState.GONE
        self.instances[instance].failure = message
        log.error("instance_failed instance=%s message=%s", instance, message)
        self._router.fail_held(
            self._models[instance].spec.name, "this model could not be loaded; see the node's log"
        )

    def step_done(self, result: StepResult) -> None:
        """Pass a step's result on."""
        self.scheduler.on_result(result)

    def step_failed(self, failure: StepFailed) -> None:
        """Pass a step's failure on."""
        log.error("step_failed instance=%s message=%s", failure.instance, failure.message)
        self.scheduler.on_step_failed(failure)


@dataclass(slots=True)
class Node:
    """One `blitzgw run`. Also the API's `StatusPort`."""

    config: Config
    models: Sequence[LoadedModel]
    clock: Clock
    router: Router = field(init=False)
    devices: list[DeviceRunner] = field(init=False)
    draining: bool = False

    def __post_init__(self) -> None:
        cluster = self.config.cluster
        self.router = Router(
            self.clock,
            max_attempts=cluster.max_attempts,
            hold_timeout_s=cluster.hold_timeout_s,
            max_held=self.config.http.max_queue,
        )
        self.devices = []
        for device in self.config.devices:
            placed = [m for m in self.models if device.id in m.config.devices]
            self.devices.append(DeviceRunner(device, placed, self.router, self))

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, stop, number)
        server = self._server()
        http = self.config.http
        try:
            port = await server.start(http.host, http.port)
        except OSError as error:
            where = f"{http.host}:{http.port}"
            raise BlitzError(f"cannot listen on {where}: {error.strerror or error}") from error
        log.info("listening url=http://%s:%d node=%s", http.host, port, self.config.node.name)
        ticker = loop.create_task(self._tick())
        try:
            for device in self.devices:
                device.supervisor.start()
            await stop.wait()
            self.draining = True
            log.info("draining active=%d", server.active)
            await server.stop(self.config.node.drain_timeout_s)
        finally:
            ticker.cancel()
            await server.stop(0.0)
            await asyncio.gather(*(device.supervisor.stop() for device in self.devices))
            log.info("stopped")

    def status(self) -> NodeStatus:
        """Return the state of the node and of every configured model."""
        models = tuple(self._model_status(model) for model in self.models)
        waiting = [m.name for m in models if m.state == InstanceState.LOADING]
        reason = "draining" if self.draining else ""
        if not reason and not any(m.state == InstanceState.SERVING for m in models):
            reason = f"loading {', '.join(waiting)}" if waiting else "no model could be loaded"
        return NodeStatus(not reason, reason, models)

    def served_by(self, request_id: str) -> Served | None:
        """Tell which instance serves a request."""
        instance = self.router.instance_of(request_id)
        return None if instance is None else Served(instance)

    def _model_status(self, model: LoadedModel) -> ModelStatus:
        name = model.spec.name
        instances = [
            i for d in self.devices for i in d.instances.values() if i.served.model == name
        ]
        states = [i.state for i in instances]
        order = (InstanceState.SERVING, InstanceState.LOADING)
        lanes = [
            lane
            for device in self.devices
            for key, lane in device.scheduler.statistics().instances.items()
            if device.instances[key].served.model == name
        ]
        return ModelStatus(
            name=name,
            state=next((state for state in order if state in states), InstanceState.GONE),
            instances=states.count(InstanceState.SERVING),
            layers_resident=max((i.layers_resident for i in instances), default=0),
            layers_total=model.spec.shape.n_layers,
            eta_s=model.load_s if InstanceState.LOADING in states else None,
            running=sum(lane.running for lane in lanes),
            waiting=sum(lane.waiting for lane in lanes) + self.router.held(name),
            kv_usage=max((lane.kv_usage for lane in lanes), default=0.0),
            kv_blocks=sum(i.served.kv.slots * i.served.kv.blocks_per_slot for i in instances),
            preemptions=sum(lane.preemptions for lane in lanes),
        )

    def _server(self) -> HttpServer:
        http, created = self.config.http, unix_time()
        entries = [
            ModelEntry(
                m.spec.name,
                m.config.aliases,
                m.spec,
                TextModel(m.text, m.spec.shape.vocab),
                created,
            )
            for m in self.models
        ]
        services = Services(
            node=self.config.node.name,
            models=ModelTable(entries),
            generator=self.router,
            status=self,
            clock=self.clock,
            limits=Limits(
                max_body=http.max_body_bytes,
                max_connections=http.max_connections,
                body_timeout_s=http.body_timeout_s,
            ),
        )
        return HttpServer(
            services, api_keys=http.api_keys, public_paths=frozenset(http.public_routes)
        )

    async def _tick(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await self.clock.sleep(TICK_S)
                self.router.tick()

    def _on_signal(self, stop: asyncio.Event, number: int) -> None:
        if stop.is_set() and number == signal.SIGINT:
            log.warning("second interrupt: not waiting for running streams")
            raise KeyboardInterrupt
        stop.set()


def kv_bytes(device: DeviceSpec, models: Sequence[LoadedModel]) -> int:
    """Return the bytes of KV that a device may hold: as configured, else a share of its memory."""
    if device.kv_bytes:
        return device.kv_bytes
    if device.kind is not DeviceKind.CUDA:
        return int(CPU_KV_SHARE * available_memory_bytes())
    weights = sum(m.spec.shape.parameters() * m.spec.dtype.size_bytes for m in models)
    return max(0, int(GPU_KV_SHARE * (device_memory_bytes(device.index) - weights)))


def kv_geometry(model: LoadedModel, device: DeviceSpec, budget_bytes: int) -> KvGeometry:
    """Cut a model's KV into slots. On a GPU slots are real memory and must fit the budget.

    Raises BlitzError where not even one sequence of full length fits.
    """
    spec = model.spec
    block_bytes = spec.shape.kv_bytes_per_token(spec.dtype) * BLOCK_TOKENS
    per_slot = -(-spec.max_model_len // BLOCK_TOKENS)
    affordable = budget_bytes // (block_bytes * per_slot)
    if affordable < 1:
        raise BlitzError(
            f"model {spec.name} on {device.id}: one sequence of {spec.max_model_len} tokens needs"
            f" {block_bytes * per_slot >> 20} MiB of KV and {budget_bytes >> 20} MiB are allowed;"
            " lower max_model_len or raise kv_bytes"
        )
    slots = SLOTS_PER_SEQUENCE * model.config.max_num_seqs
    if device.kind is DeviceKind.CUDA:
        slots = min(slots, affordable)
    return KvGeometry(slots, per_slot, block_bytes)


def load_models(config: Config) -> list[LoadedModel]:
    """Open every configured checkpoint. Raises CheckpointError."""
    loaded = []
    for model in config.models:
        path = resolve(model.path)
        spec, text = model_spec(model.name, path, model.forced_dtype, model.max_model_len or None)
        loaded.append(LoadedModel(model, spec, text))
    return loaded


def run(config: Config) -> int:
    """Serve until told to stop; return the exit status. Raises BlitzError for what is misplaced."""
    logging.basicConfig(
        stream=sys.stderr,
        level=config.node.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    started = time.monotonic()
    node = Node(config, load_models(config), MonotonicClock(config.node.dilation))
    log.info("configured models=%d seconds=%.3f", len(node.models), time.monotonic() - started)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(node.serve())
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return 130
    return 0


def _instance(name: str, model: LoadedModel, device: DeviceSpec, budget_bytes: int) -> Instance:
    spec, config = model.spec, model.config
    geometry = kv_geometry(model, device, budget_bytes)
    served = ServedInstance(
        id=name,
        model=spec.name,
        n_layers=spec.shape.n_layers,
        eos_ids=spec.eos_ids,
        max_model_len=spec.max_model_len,
        kv=geometry,
        max_num_seqs=min(config.max_num_seqs, geometry.slots),
        max_batched_tokens=config.max_batched_tokens,
        prefix_caching=config.prefix_caching,
    )
    return Instance(LoadModel(name, spec, geometry), served)
