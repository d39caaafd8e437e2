"""Keeps a worker's weights: instances that load, host copies, and edges to other workers.

One thread carries out what is posted, in that order, and waits for nothing: disks, peers, digests
and engines have threads of their own, which post what has become of it. All that concerns one
model's weights meets in its holding:

    disk ──► reads ──┐                      ┌──► loads ──► engine, BlobResident
    peers ─► edges ──┼──► store ──checked───┼──► the file of a host copy, CopyHeld
    file ──► verify ─┘      └──► edges      └──► duplicate
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from blitzgw.core.instance import DeviceKind, ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.messages import LoadFailed, LoadModel, Start, UnloadModel
from blitzgw.core.transfer import (
    CapWeights,
    CloseEdge,
    DropCopy,
    HoldCopy,
    OpenReceive,
    OpenSend,
    ReadBlobs,
    TrafficReport,
)
from blitzgw.errors import CheckpointError, ProtocolError, WorkerLost
from blitzgw.transport.edges import Edges
from blitzgw.weights.hostcache import HostCopies
from blitzgw.worker.copies import Copies
from blitzgw.worker.dataplane import DataPlane
from blitzgw.worker.faults import describe
from blitzgw.worker.filling import Filler
from blitzgw.worker.holding import Holding
from blitzgw.worker.holdings import Holdings, named
from blitzgw.worker.loader import MAX_LOADS, Load, Loader, LoadHooks
from blitzgw.worker.pacing import Pace
from blitzgw.worker.parcels import Inbox
from blitzgw.worker.reads import DiskReads

log = logging.getLogger(__name__)

MAX_COMMANDS = 4096
"""Commands that may wait; an operation has a few for each of some tens of edges."""

REPORT_S = 1.0
"""How often traffic is looked at: nobody decides faster on it."""

CHANGE_SHARE, CHANGE_BYTES_PER_S = 0.1, 10_000.0
"""A rate has changed when it differs by this share, and by this much: the rest is noise."""


class Keeper:
    """The keeper of a worker. Calls come from any thread and return at once.

    `hooks` are how loads reach the main thread; `forget` takes a load that was unloaded off it.
    """

    def __init__(
        self,
        start: Start,
        hooks: LoadHooks,
        forget: Callable[[Load], None],
        now: Callable[[], float],
        inbox: Inbox | None = None,
    ) -> None:
        self._send, self._forget, self._now = hooks.send, forget, now
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        post = self._jobs.put
        self._holdings = Holdings(
            HostCopies(start.copies) if start.copies else None,
            self._tell,
            lambda *args: post(partial(self._damaged, *args)),
            lambda holding: post(lambda: self._copies.completed(holding)),
            on_device=start.device.kind is DeviceKind.CUDA,
        )
        self._reads, self._dilation = DiskReads(start.disk_bytes_per_s), start.dilation
        self._filler = Filler(
            self._holdings,
            self._reads,
            post,
            self._tell,
            self._failed,
            self._spoiled,
        )
        self._copies = Copies(self._holdings, self._filler, post, self._tell)
        self._loader = Loader(hooks, self._reads, Pace(start.host_bytes_per_s))
        self._loads: dict[str, Load] = {}
        self._plane = DataPlane(start, self._holdings.store, self._tell, inbox)
        self._edges = self._plane.edges
        self._reported = TrafficReport(0.0, 0.0, 0.0)

    @property
    def data_ports(self) -> dict[str, int]:
        """Where this worker listens for others, by the name of the network."""
        return self._edges.ports

    @property
    def edges(self) -> Edges:
        """The edges, for what is not the keeper's: parcels."""
        return self._edges

    def start(self) -> None:
        """Start the threads; they end with the process."""
        self._reads.start()
        threading.Thread(target=self._run, name="keeper", daemon=True).start()

    def close(self) -> None:
        """Let go of what the end of the process does not; for that moment."""
        self._plane.close()

    def post(self, message: Any) -> None:
        """Queue a command. Raises ProtocolError for what is none, and beyond MAX_COMMANDS."""
        handler = _HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a worker does not take {type(message).__name__}")
        if self._jobs.qsize() >= MAX_COMMANDS:
            raise ProtocolError(f"more than {MAX_COMMANDS} commands are waiting")
        self._jobs.put(partial(handler, self, message))

    def failed(self, load: Load) -> None:
        """Note that a load is over without success: its weights are used by it no more."""
        self._jobs.put(partial(self._release, load))

    def _run(self) -> None:
        due = self._now() + REPORT_S
        while True:
            with suppress(queue.Empty):
                self._carry_out(self._jobs.get(timeout=max(0.0, due - self._now())))
            if self._now() >= due:
                due = self._now() + REPORT_S
                self._carry_out(self._filler.again)
                self._carry_out(self._report)

    def _carry_out(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception:  # one command's mistake must not end what serves
            log.exception("command_failed job=%r", job)

    def _tell(self, message: Any) -> None:
        """Tell the node; where it is gone, so is this process in a moment."""
        with suppress(WorkerLost):
            self._send(message)

    # Instances.

    def _load(self, message: LoadModel) -> None:
        instance = message.instance
        if instance in self._loads:
            self._refuse(message, f"instance {instance} is already here")
            return
        if len(self._loads) >= MAX_LOADS:
            self._refuse(message, f"more than {MAX_LOADS} models are here")
            return
        load = self._loads[instance] = Load(message, self._now())
        try:
            if message.blobs:
                self._join(load)
            elif message.reads is None and not message.model.path:
                raise CheckpointError(_nowhere(message.model))
        except Exception as error:
            self._release(load)
            self._refuse(message, describe(error))
        else:
            self._loader.start(load)

    def _refuse(self, message: LoadModel, why: str) -> None:
        self._tell(LoadFailed(message.instance, why, message.load))

    def _join(self, load: Load) -> None:
        """Give a load its weights: those that are here, or new ones, and have them filled."""
        message, model = load.message, named(load.message.model, load.message.blobs)
        holding = self._holdings.get(model.weights)
        is_new = holding is None
        if holding is None:
            holding = self._holdings.for_instance(model, message.blobs, message.load)
        load.holding, load.in_memory = holding, holding.in_memory
        holding.users.add(message.instance)
        holding.follow(load.announce)
        if is_new:
            self._filler.verify(holding)
        if message.reads is None and not (model.path or holding.mapped or holding.is_complete):
            raise CheckpointError(_nowhere(model))  # what is here of it nobody would complete
        self._filler.read(holding, model, message.reads)

    def _unload(self, message: UnloadModel) -> None:
        load = self._loads.get(message.instance)
        if load is not None:
            self._release(load)
            self._forget(load)

    def _release(self, load: Load) -> None:
        if self._loads.get(load.message.instance) is not load:
            return
        del self._loads[load.message.instance]
        load.cancel()
        holding, load.holding = load.holding, None
        if holding is not None:
            holding.unfollow(load.announce)
            self._copies.leave(holding, load.message.instance)

    # Copies, and what fills them.

    def _hold(self, message: HoldCopy) -> None:
        self._copies.hold(message)

    def _drop(self, message: DropCopy) -> None:
        self._copies.drop(message.weights)

    def _read_blobs(self, message: ReadBlobs) -> None:
        holding = self._holdings.get(message.weights)
        if holding is None:
            log.warning("read_without_store weights=%s", message.weights)
            return
        self._filler.read(holding, replace(message.model, weights=message.weights), message.blobs)

    def _damaged(self, holding: Holding, index: int, source: str) -> None:
        if not source:  # the disk's; what an edge has brought is for the node to bring again
            name = blob_layouts(holding.model.shape, holding.model.dtype)[index].name
            why = f"blob {index} ({name}) is not what the manifest says"
            self._failed(holding, f"{holding.model.path}: {why}")

    def _failed(self, holding: Holding, why: str) -> None:
        """End all that waits for blobs which cannot be read."""
        if not self._holdings.is_current(holding) or holding.is_complete:
            return
        for load in list(self._loads.values()):
            if load.holding is holding:
                load.fail(why)
        self._copies.failed(holding, why)

    def _spoiled(self, holding: Holding, blobs: Sequence[int]) -> None:
        self._copies.spoiled(holding, blobs)

    # Edges.

    def _open_send(self, message: OpenSend) -> None:
        self._edges.open_send(message)

    def _open_receive(self, message: OpenReceive) -> None:
        self._edges.open_receive(message)

    def _close_edge(self, message: CloseEdge) -> None:
        self._edges.close(message.edge)

    def _cap(self, message: CapWeights) -> None:
        self._edges.cap(message.bytes_per_s)

    def _report(self) -> None:
        report = replace(self._edges.traffic(), disk=self._reads.rate * self._dilation)
        if _differs(report, self._reported):
            self._reported = report
            self._tell(report)


_HANDLERS: dict[type[Any], Callable[[Keeper, Any], None]] = {
    LoadModel: Keeper._load,
    UnloadModel: Keeper._unload,
    HoldCopy: Keeper._hold,
    DropCopy: Keeper._drop,
    ReadBlobs: Keeper._read_blobs,
    OpenSend: Keeper._open_send,
    OpenReceive: Keeper._open_receive,
    CloseEdge: Keeper._close_edge,
    CapWeights: Keeper._cap,
}


def _nowhere(model: ModelSpec) -> str:
    return f"the weights of {model.name} came from peers; scale it again"


def _differs(one: TrafficReport, other: TrafficReport) -> bool:
    """Say whether two reports differ in more than their noise; a rate that ends always does."""
    pairs = (
        (one.activations, other.activations),
        (one.kv, other.kv),
        (one.weights, other.weights),
        (one.disk, other.disk),
    )
    return any(
        abs(a - b) > max(CHANGE_BYTES_PER_S, CHANGE_SHARE * max(a, b)) or (not a and bool(b))
        for a, b in pairs
    )
