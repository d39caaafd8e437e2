"""A node's HTTP side with scale operations and nothing else behind it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from blitzgw.api.admin import AdminGuard
from blitzgw.api.models import ModelEntry, ModelTable
from blitzgw.api.server import HttpServer
from blitzgw.api.services import Services
from blitzgw.api.status import NodeStatus, ProbePort, ScalePort, Served
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import ModelSpec
from blitzgw.core.model import Dtype, ModelShape, Rope

ADMIN_KEY = "a" * 64
NAMES = ("m", "org/Model-1B", "org/x/scale")


@dataclass
class Nothing:
    """A status and a generator of a node that serves nothing."""

    def status(self) -> NodeStatus:
        return NodeStatus(True, "", ())

    def served_by(self, request_id: str) -> Served | None:
        return None

    def turn_away(self, model: str, digest: str) -> None:
        raise AssertionError("nothing is generated here")

    def generate(self, request: Any, sink: Any) -> None:
        raise AssertionError("nothing is generated here")

    def abort(self, request_id: str) -> None:
        raise AssertionError("nothing is generated here")


def models() -> ModelTable:
    """Return the models of the node: `m` answers to every name, and two have names with slashes."""
    shape = ModelShape("llama", 2, 8, 1, 1, 8, 8, 600, 1e-5, Rope(), 4096, True)
    entries = [
        ModelEntry(
            name,
            ("*", "alias") if name == "m" else (),
            ModelSpec(name, "/nowhere", shape, Dtype.FLOAT32, 4096, (2,)),
            None,  # type: ignore[arg-type]  # nobody tokenises here
            1_700_000_000,
        )
        for name in NAMES
    ]
    return ModelTable(entries)


@contextlib.asynccontextmanager
async def scale_node(
    scaling: ScalePort | None,
    *,
    probing: ProbePort | None = None,
    admin_keys: Iterable[str] = (ADMIN_KEY,),
    api_keys: Iterable[str] = (),
    hosts: Iterable[str] = (),
) -> AsyncIterator[int]:
    """Serve on a free port of this machine; yield the port. No admin keys: no guard."""
    keys, nothing = tuple(admin_keys), Nothing()
    services = Services(
        node="node-a",
        models=models(),
        generator=nothing,
        status=nothing,
        clock=MonotonicClock(),
        scaling=scaling,
        probing=probing,
    )
    guard = AdminGuard(keys, hosts) if keys else None
    server = HttpServer(services, api_keys=api_keys, admin=guard)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop(grace_s=0.0)


@contextlib.contextmanager
def scale_node_beside(scaling: ScalePort | None, **options: Any) -> Iterator[str]:
    """Serve in a thread of its own, for clients that block; yield the URL."""
    ready = threading.Event()
    told: list[Any] = []

    async def serve() -> None:
        stop = asyncio.Event()
        async with scale_node(scaling, **options) as port:
            told.extend((port, asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    port, loop, stop = told
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
