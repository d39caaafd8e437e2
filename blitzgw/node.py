"""The composition root: builds a node from its configuration, joins the parts, starts and stops it.

    api ── generate, abort ──► router ── submit, abort ──► instances, here and on other nodes
        ◄─── push, fail ──────        ◄── tokens, lost ───

Workers are spawned first, because their start is the longest; HTTP listens long before they are
warm, so that requests can wait for the models, and it ends before them. An end goes in this order:
not ready any more, nothing new from peers, streams finish or move, goodbye to the cluster, out.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import uvloop

from blitzgw.api.server import HttpServer
from blitzgw.api.status import NodeStatus, Served
from blitzgw.cluster import Cluster
from blitzgw.config import Config
from blitzgw.core.clock import Clock, MonotonicClock, until_tick_s
from blitzgw.core.view import Fact, LoadFacts
from blitzgw.device import DeviceRunner
from blitzgw.errors import BlitzError
from blitzgw.front import http_server, listen
from blitzgw.hugepages import gather
from blitzgw.placement import (
    Instance,
    LoadedModel,
    claim_copies,
    drivers,
    load_models,
    worker_terms,
)
from blitzgw.reporting import ModelReport, device_facts, hindrance, load_facts
from blitzgw.router.router import Router
from blitzgw.scaleview import wall_time
from blitzgw.scheduler.shell import LocalInstance
from blitzgw.signals import EXIT_INTERRUPTED, Signals

log = logging.getLogger(__name__)

TICK_S = 0.25
"""How often held requests are looked at: a small part of any patience, and next to no work."""

YOUNG_OBJECTS = 20_000
"""New objects until a collection looks at them: more than there are during a step of a thousand
streams and gone after it, so that what is looked at is worth it."""

SETTLED_S = 5.0
"""After so long a start has made what it makes: its memory is gathered in huge pages then."""

POLL_S = 0.05
"""How often a draining node looks whether what it computes for others has finished."""


@dataclass(slots=True)
class Node:
    """One `blitzgw run`. Also the API's `StatusPort`, and the listener of its devices."""

    config: Config
    models: Sequence[LoadedModel]
    clock: Clock
    boot: str = field(default_factory=lambda: secrets.token_hex(8))
    router: Router = field(init=False)
    cluster: Cluster = field(init=False)
    devices: list[DeviceRunner] = field(init=False)
    draining: bool = False
    _hopeless: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        config = self.config
        self.router = Router(
            self.clock,
            node=config.node.name,
            max_attempts=config.cluster.max_attempts,
            hold_timeout_s=config.cluster.hold_timeout_s,
            max_held=config.http.max_queue,
        )
        self.cluster = Cluster(
            config, self.boot, self.models, self.router, self.clock, self._facts, self._loads
        )
        copies = claim_copies(config)
        terms = worker_terms(config, self.cluster.machine.networks(), copies)
        at_start = [m for m in self.models if m.config.load_at_start]
        self.devices = [
            DeviceRunner(
                config.node.name,
                device,
                [m for m in at_start if device.id in m.config.devices],
                self.cluster.network.serving,
                self.clock,
                self,
                pairs=self.cluster.scaling.pairings.port(device.id),
                max_queue=config.http.max_queue,
                max_wait_s=config.http.max_wait_s or None,
                terms=terms,
            )
            for device in drivers(config)
        ]
        self.cluster.scaling.attach(self.devices, copies)

    async def serve(self) -> int:
        """Serve until SIGTERM or ^C, then drain; return the exit status.

        Raises BlitzError when a port is taken, when no model can be loaded, and for a failure
        that leaves nothing to go on with.
        """
        signals = Signals(asyncio.get_running_loop())
        self.cluster.scaling.copies.sweep({model.spec.weights for model in self.models})
        for device in self.devices:
            device.supervisor.start()
        await asyncio.sleep(0)  # spawns the workers, whose imports take longer than all of ours
        server, ticking = None, asyncio.get_running_loop().create_task(self._tick())
        settling = asyncio.get_running_loop().create_task(self._settle())
        try:
            server = http_server(self.config, self.cluster, self.router, self, self.clock)
            port = await listen(server, self.config)
            await self.cluster.open(port)
            gc.freeze()  # what is here now stays: no collection need look at it
            gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
            gc.enable()
            await self._run_until(signals.stop, ticking)
            await self._drain(server, signals)
        finally:
            if server is not None:
                await server.stop(0.0)
            ticking.cancel()
            settling.cancel()
            await self.cluster.close()
            stops = [device.supervisor.stop() for device in self.devices]
            await asyncio.gather(*stops, return_exceptions=True)
            self.cluster.scaling.copies.close()
            log.info("stopped")
        return EXIT_INTERRUPTED if signals.hurry.is_set() else 0

    def status(self) -> NodeStatus:
        """Return the state of the node and of every model that it answers for."""
        definitions = self.cluster.definitions
        view, coming = self.cluster.view(), definitions.table.coming
        report = ModelReport(self.devices, self.router, view, coming, wall_time())
        loads = {i.served.model: i.load_s for i in self._instances() if i.load_s is not None}
        models = tuple(
            report.status(definition, loads.get(name))
            for name, definition in definitions.settled.items()
        )
        reason = self._objection() or hindrance(models)
        return NodeStatus(not reason, reason, models)

    def served_by(self, request_id: str) -> Served | None:
        """Tell which instance serves a request."""
        instance = self.router.instance_of(request_id)
        if instance is None:
            return None
        stages = (
            f"{s.instance}:{s.span.start}-{s.span.stop}" for s in self.router.route_of(request_id)
        )
        return Served(instance, ",".join(stages))

    def instance_up(self, device: str, port: LocalInstance, claim: int, digest: str) -> None:
        """Take an instance of a device into service; implements `DeviceListener`."""
        self.cluster.local_up(port, claim, digest)
        self.cluster.scaling.instance_up(device, port.instance)

    def instance_leads(self, port: LocalInstance, claim: int, digest: str) -> None:
        """Let those in who have what an instance keeps; implements `DeviceListener`."""
        self.cluster.local_up(port, claim, digest)

    def instance_down(self, instance: str, reason: str, *, planned: bool = False) -> None:
        """Route around an instance that is gone; implements `DeviceListener`."""
        self.cluster.local_down(instance, reason, planned=planned)
        self.cluster.scaling.instance_down(instance)

    def instance_failed(self, device: str, instance: str, model: str, reason: str) -> None:
        """Answer those who wait for a model that is on its way nowhere any more."""
        if self.cluster.scaling.instance_failed(device, instance, reason):
            return  # it was being brought up, and is gone without a trace
        if all(i.failure for i in self._instances(model)):
            self.cluster.local_failed(
                model, f"model {model} could not be loaded; the node's log tells why"
            )
        if not self.cluster.networked and all(i.failure for i in self._instances()):
            self._hopeless.set()

    def worker_up(self, device: str) -> None:
        """Tell who moves weights; implements `DeviceListener`."""
        self.cluster.scaling.worker_up(device)

    def worker_lost(self, device: str, reason: str) -> None:
        """Tell who moves weights; implements `DeviceListener`."""
        self.cluster.scaling.worker_lost(device, reason)

    def told(self, device: str, message: Any) -> None:
        """Pass on what a worker tells of weights; implements `DeviceListener`."""
        self.cluster.scaling.told(device, message)

    def device_changed(self) -> None:
        """Publish what has changed; implements `DeviceListener`."""
        self.cluster.changed()

    async def _run_until(self, stop: asyncio.Event, ticking: asyncio.Task[None]) -> None:
        """Watch over everything until `stop`. Raises BlitzError as `serve` does."""
        loop = asyncio.get_running_loop()
        ends: list[asyncio.Task[Any]] = [
            loop.create_task(event.wait()) for event in (stop, self._hopeless)
        ]
        work: list[asyncio.Task[None]] = [
            loop.create_task(device.supervisor.join()) for device in self.devices
        ]
        work.append(loop.create_task(self.cluster.join()))
        try:  # unbounded on purpose: this is the node's life
            await asyncio.wait({*ends, *work, ticking}, return_when=asyncio.FIRST_COMPLETED)
            for task in (*work, ticking):
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

    async def _drain(self, server: HttpServer, signals: Signals) -> None:
        """Take nothing new, let streams finish, give away those of other nodes that do not."""
        self.draining = True
        server.drain()
        self.cluster.drain()
        log.info("draining active=%d for_peers=%d", server.active, self.cluster.guests())
        grace_s = self.config.node.drain_timeout_s
        hurry = signals.hurry.is_set
        deadline = self.clock.now() + grace_s
        served = asyncio.get_running_loop().create_task(server.stop(grace_s, enough=hurry))
        try:
            while self.cluster.guests() and self.clock.now() < deadline and not hurry():
                await self.clock.sleep(POLL_S)
            self.cluster.network.serving.give_away("the node is shutting down")
            await served  # bounded by its grace
        finally:
            served.cancel()

    async def _tick(self) -> None:
        while True:
            await self.clock.sleep(until_tick_s(self.clock.now(), TICK_S))
            try:
                self.router.tick()
                for device in self.devices:
                    device.tick()
                self.cluster.tick()
            except Exception:  # the next one may do better, and running streams do not need it
                log.exception("tick_failed")

    async def _settle(self) -> None:
        await self.clock.sleep(SETTLED_S)
        await asyncio.get_running_loop().run_in_executor(None, gather)  # bounded: see there

    def _facts(self) -> list[Fact]:
        """Return what this node publishes of its devices, as far as it seldom changes."""
        digests = self.cluster.definitions.digests()
        return [*device_facts(self.devices, digests), *self.cluster.scaling.facts()]

    def _loads(self) -> list[LoadFacts]:
        """Return how busy this node's instances are."""
        return load_facts(self.devices)

    def _objection(self) -> str:
        """Tell why this node should not be used, whatever its models are; empty where it should."""
        if self.draining:
            return "draining"
        if self.cluster.displaced():
            return f"another node is called {self.config.node.name}: set [node] name"
        return ""

    def _failures(self) -> str:
        told = (f"{i.served.model}: {i.failure}" for i in self._instances())
        return "; ".join(dict.fromkeys(told))

    def _instances(self, model: str | None = None) -> list[Instance]:
        """Return the instances of this node, of one model or of all."""
        instances = [i for device in self.devices for i in device.instances.values()]
        return [i for i in instances if model in (None, i.served.model)]


def _log_cheaply() -> None:
    """Have records without what no line shows: it takes three quarters of a line's time."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # so the module's documentation: nobody looks for the calling line


def run(config: Config) -> int:
    """Serve until told to stop; return the exit status. Raises BlitzError for what is misplaced."""
    logging.basicConfig(
        stream=sys.stderr,
        level=config.node.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    _log_cheaply()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a pool's hop outlasts most prompts
    started = time.monotonic()
    node = Node(config, load_models(config), MonotonicClock(config.node.dilation))
    log.info("configured models=%d seconds=%.3f", len(node.models), time.monotonic() - started)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(node.serve())
    if status == EXIT_INTERRUPTED:
        click.echo("interrupted", err=True)
    return status
