"""An operation as it hears of its targets: who does what he was told, which bytes have come where.

News are taken from whom they concern only, and of the present plan where a plan is meant; whatever
a node says shows that it lives.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from blitzgw.core.operation import (
    BlobNews,
    Claimed,
    EdgeNews,
    Engaged,
    TargetFailed,
    TargetReady,
)
from blitzgw.core.plan import node_of
from blitzgw.scaling.events import GONE, TAKEN, UNKNOWN_EPOCH
from blitzgw.scaling.targets import CLAIMED, CONNECTED, LOADING, READY, EdgeBook, Target
from blitzgw.scaling.transferring import Transfer
from blitzgw.scaling.workernews import READ


class Reception(Transfer):
    """Takes what nodes say and keeps the books of it."""

    def _hear(self, boot: str, message: Any, now: float) -> None:
        handler = self._messages().get(type(message))
        if handler is not None and (not self.ended or isinstance(message, Claimed)):
            self._trust(boot, now)
            handler(boot, message, now)

    def _messages(self) -> dict[type, Callable[[str, Any, float], None]]:
        return {
            Claimed: self._on_claimed,
            Engaged: self._on_engaged,
            BlobNews: self._on_blobs,
            EdgeNews: self._on_edge,
            TargetReady: self._on_ready,
            TargetFailed: self._on_failed,
        }

    @abstractmethod
    def _on_claimed(self, boot: str, message: Claimed, now: float) -> None: ...

    @abstractmethod
    def _check_claims(self, now: float) -> None: ...

    # Orders.

    def _on_engaged(self, boot: str, message: Engaged, now: float) -> None:
        execution = self._execution
        if message.epoch == UNKNOWN_EPOCH:
            self._let_go_by(boot, message.reason, now)
        elif message.epoch != execution.epoch or boot not in execution.engaged:
            return
        elif not message.reason:
            execution.confirm(boot)
        else:
            self._note(now, "refused", self._name_of(boot), message.reason)
            self._on_refusal(boot, message.reason, now)

    def _on_refusal(self, boot: str, reason: str, now: float) -> None:
        kind, _, what = reason.partition(": ")
        target = self._targets.get(what)
        if kind == TAKEN:
            self._execution.sourcing.unpromised.add(self._name_of(boot))
        elif kind == GONE and target is not None and target.boot == boot:
            self._lose_target(target, "its device was given away", now)
        elif kind == GONE:
            self._execution.sourcing.gone(what)
        else:
            self._let_go_by(boot, reason, now)
        self._trouble(now)
        self._check_end(now)

    def _let_go_by(self, boot: str, reason: str, now: float) -> None:
        """Go on without a node that does nothing for the operation any more."""
        if boot not in self._parties():
            return
        if self._execution.lose_node(boot, self._name_of(boot)):
            self._trouble(now)
        for target in list(self._targets.values()):
            if target.boot == boot and target.held:
                self._lose_target(target, reason, now)
        self._check_end(now)

    # Bytes.

    def _on_blobs(self, boot: str, message: BlobNews, now: float) -> None:
        target = self._targets.get(message.worker)
        if target is None or target.boot != boot or not target.held:
            return
        self._connect(target, now)
        target.state = LOADING
        n_blobs = len(self.definition.blob_bytes)
        for index in message.blobs:
            if 0 <= index < n_blobs and index not in target.arrived:
                self._arrive(target, index, now)
        self._note_helping(now)
        if len(target.arrived) == n_blobs:
            self._note_complete(target, now)

    def _arrive(self, target: Target, index: int, now: float) -> None:
        at = self._waterfall.since(now)
        target.arrived[index] = at
        self._progress_at = target.moved_s = now
        self._covered.add(index)
        if self._first_blob_s < 0:
            self._first_blob_s = at
        if self._coverage_s < 0 and len(self._covered) == len(self.definition.blob_bytes):
            self._coverage_s = at
        self._note(now, "blob", target.worker, str(index))

    def _note_complete(self, target: Target, now: float) -> None:
        if not target.complete:
            target.complete = True
            self._note(now, "complete", target.worker)

    def _connect(self, target: Target, now: float) -> None:
        if target.state == CLAIMED:
            target.state = CONNECTED
            self._note(now, "connected", target.worker)

    def _on_edge(self, boot: str, message: EdgeNews, now: float) -> None:
        if message.edge.startswith(READ):
            self._on_read_failed(boot, message, now)
            return
        book = self._execution.edges.get(message.edge)
        target = self._targets.get(book.order.target) if book is not None else None
        if book is None or target is None:
            return
        former_state, former_bytes = book.state, book.received_bytes
        first = self._execution.take(message, target.boot, boot, now)
        if book.received_bytes > former_bytes:
            self._progress_at = target.moved_s = now
            self._connect(target, now)
        if first:
            self._note(now, "first_byte", book.order.target, book.order.source)
        if book.state == "lost" and former_state != "lost":
            self._suspect(book, boot)
            self._on_edge_lost(book, target, message.reason, now)

    def _on_edge_lost(self, book: EdgeBook, target: Target, reason: str, now: float) -> None:
        order = book.order
        self._note(now, "lost", f"{order.source} → {order.target}", reason)
        self._execution.sourcing.lost(order.source)
        if not set(order.blobs) <= set(target.arrived):
            self._trouble(now)

    def _on_read_failed(self, boot: str, message: EdgeNews, now: float) -> None:
        worker = message.edge.removeprefix(READ)
        if node_of(worker) == self._name_of(boot) and self._execution.sourcing.spoilt(worker):
            self._note(now, "lost", message.edge, message.reason)
            self._trouble(now)

    def _on_ready(self, boot: str, message: TargetReady, now: float) -> None:
        target = self._targets.get(message.worker)
        if target is None or target.boot != boot or not target.held:
            return
        self._connect(target, now)
        for index in range(len(self.definition.blob_bytes)):
            if index not in target.arrived:
                self._arrive(target, index, now)  # mapped from a host copy, all at once
        self._note_complete(target, now)
        target.state, target.ready_s = READY, self._waterfall.since(now)
        self._progress_at = now
        self._note(now, "ready", target.worker, target.instance)
        self._check_end(now)

    def _on_failed(self, boot: str, message: TargetFailed, now: float) -> None:
        target = self._targets.get(message.worker)
        if target is not None and target.boot == boot:
            self._lose_target(target, message.reason, now)
            self._check_claims(now)
            self._check_end(now)
