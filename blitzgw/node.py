"""The composition root: builds a node from its configuration, joins the parts, starts and stops it.

    api ── generate, abort ──► router ── submit, abort ──► devices
        ◄─── push, fail ──────        ◄── tokens, lost ───

One instance of a model on each of its devices. Workers are spawned first, because their start is
the longest; HTTP listens long before they are warm, so that requests can wait for the models, and
it ends before them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import uvloop

from blitzgw.api.limits import Limits
from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.api.server import HttpServer
from blitzgw.api.services import Services, unix_time
from blitzgw.api.status import ModelStatus, NodeStatus, Served
from blitzgw.api.text import TextModel
from blitzgw.config import Config
from blitzgw.core.clock import Clock, MonotonicClock
from blitzgw.core.instance import InstanceState
from blitzgw.device import DeviceRunner
from blitzgw.errors import BlitzError
from blitzgw.placement import Instance, LoadedModel, load_models
from blitzgw.router.router import Router

log = logging.getLogger(__name__)

TICK_S = 0.25
"""How often held requests are looked at: a small part of any patience, and next to no work."""

EXIT_INTERRUPTED = 130
"""128 + SIGINT: what a shell expects of a process that did not end in its own time."""

FAILED = "failed"
"""The state of a model none of whose instances could be loaded."""


class Signals:
    """SIGTERM and ^C: the first asks for an end, `hurry` is that somebody has pressed ^C again."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        log.info("signal name=%s", signal.Signals(number).name)
        if self.stop.is_set() and number == signal.SIGINT:
            self.hurry.set()
        self.stop.set()


@dataclass(slots=True)
class Node:
    """One `blitzgw run`. Also the API's `StatusPort`."""

    config: Config
    models: Sequence[LoadedModel]
    clock: Clock
    router: Router = field(init=False)
    devices: list[DeviceRunner] = field(init=False)
    draining: bool = False
    _hopeless: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        cluster, http = self.config.cluster, self.config.http
        self.router = Router(
            self.clock,
            max_attempts=cluster.max_attempts,
            hold_timeout_s=cluster.hold_timeout_s,
            max_held=http.max_queue,
        )
        self.devices = [
            DeviceRunner(
                device,
                [m for m in self.models if device.id in m.config.devices],
                self.router,
                self.clock,
                self._on_failed,
                max_queue=http.max_queue,
                dilation=self.config.node.dilation,
            )
            for device in self.config.devices
        ]

    async def serve(self) -> int:
        """Serve until SIGTERM or ^C, then drain; return the exit status.

        Raises BlitzError when the port is taken, when no model can be loaded, and for a failure
        that leaves nothing to go on with.
        """
        signals = Signals(asyncio.get_running_loop())
        for device in self.devices:
            device.supervisor.start()
        await asyncio.sleep(0)  # spawns the workers, whose imports take longer than all of ours
        server = None
        try:
            server = self._server()
            await self._listen(server)
            gc.freeze()  # what is here now stays: no collection need look at it
            gc.enable()
            await self._run_until(signals.stop)
            self.draining = True
            log.info("draining active=%d", server.active)
            await server.stop(self.config.node.drain_timeout_s, enough=signals.hurry.is_set)
        finally:
            if server is not None:
                await server.stop(0.0)
            stops = [device.supervisor.stop() for device in self.devices]
            await asyncio.gather(*stops, return_exceptions=True)
            log.info("stopped")
        return EXIT_INTERRUPTED if signals.hurry.is_set() else 0

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

    async def _listen(self, server: HttpServer) -> None:
        http = self.config.http
        try:
            port = await server.start(http.host, http.port)
        except OSError as error:
            where = f"{http.host}:{http.port}"
            raise BlitzError(f"cannot listen on {where}: {_reason(error)}") from error
        log.info("listening url=http://%s:%d node=%s", http.host, port, self.config.node.name)

    async def _run_until(self, stop: asyncio.Event) -> None:
        """Watch the workers and the router until `stop`. Raises BlitzError as `serve` does."""
        loop = asyncio.get_running_loop()
        ends: list[asyncio.Task[Any]] = [
            loop.create_task(event.wait()) for event in (stop, self._hopeless)
        ]
        work: list[asyncio.Task[None]] = [
            loop.create_task(device.supervisor.join()) for device in self.devices
        ]
        work.append(loop.create_task(self._tick()))
        try:  # unbounded on purpose: this is the node's life
            await asyncio.wait({*ends, *work}, return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                if task.done():
                    raise BlitzError("an internal error; see the log") from task.exception()
            if self._hopeless.is_set():
                raise BlitzError(f"no model could be loaded: {self._failures()}")
        except BlitzError as error:
            log.critical("node_failed error=%s", error, exc_info=error.__cause__)
            raise
        finally:
            for task in (*ends, *work):
                task.cancel()
            await asyncio.wait({*ends, *work})  # at once

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(TICK_S)
            try:
                self.router.tick()
            except Exception:  # the next one may do better, and running streams do not need it
                log.exception("tick_failed")

    def _on_failed(self, name: str) -> None:
        """Answer those who wait for a model that is on its way nowhere any more."""
        if all(instance.failure for instance in self._instances(name)):
            reason = f"model {name} could not be loaded; the node's log tells why"
            self.router.give_up(name, reason)
        if all(i.failure for device in self.devices for i in device.instances.values()):
            self._hopeless.set()

    def _failures(self) -> str:
        instances = [i for device in self.devices for i in device.instances.values()]
        return "; ".join(dict.fromkeys(f"{i.served.model}: {i.failure}" for i in instances))

    def _instances(self, model: str) -> list[Instance]:
        instances = [i for device in self.devices for i in device.instances.values()]
        return [i for i in instances if i.served.model == model]

    def _model_status(self, model: LoadedModel) -> ModelStatus:
        name = model.spec.name
        instances = self._instances(name)
        states = [i.state for i in instances]
        order = (InstanceState.SERVING, InstanceState.LOADING)
        lanes = [lane for device in self.devices for lane in device.statistics(name)]
        return ModelStatus(
            name=name,
            state=next((state for state in order if state in states), FAILED),
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
        http = self.config.http
        limits = Limits(
            max_body=http.max_body_bytes,
            max_connections=http.max_connections,
            body_timeout_s=http.body_timeout_s,
            max_unsent=http.max_stream_buffer_bytes,
        )
        services = Services(
            node=self.config.node.name,
            models=self._table(),
            generator=self.router,
            status=self,
            clock=self.clock,
            limits=limits,
        )
        routes = frozenset(http.public_routes)
        return HttpServer(services, api_keys=http.api_keys, public_paths=routes)

    def _table(self) -> ModelTable:
        created = unix_time()
        return ModelTable(
            [
                ModelEntry(
                    model.spec.name,
                    model.config.aliases,
                    model.spec,
                    TextModel(model.text, model.spec.shape.vocab),
                    created,
                )
                for model in self.models
            ]
        )


def _reason(error: OSError) -> str:
    """Return the system's words, without asyncio's around them."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


def run(config: Config) -> int:
    """Serve until told to stop; return the exit status. Raises BlitzError for what is misplaced."""
    logging.basicConfig(
        stream=sys.stderr,
        level=config.node.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a pool's hop outlasts most prompts
    started = time.monotonic()
    node = Node(config, load_models(config), MonotonicClock(config.node.dilation))
    log.info("configured models=%d seconds=%.3f", len(node.models), time.monotonic() - started)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(node.serve())
    if status == EXIT_INTERRUPTED:
        click.echo("interrupted", err=True)
    return status
