"""The exchanges of anti-entropy between processes: three messages over a connection.

    initiator   StartSync ── connect, offer ──► SyncOffered          responder
                SyncAnswered ◄── answer ──────── AnswerSync
                FinishSync ───── rest ─────────► SyncFinished

It fails at once where nobody listens, too many come or the responder ends, and after a time-out
where the way is cut or the host is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blitzgw.core.rumours import SyncAnswer, SyncOffer, SyncRest
from blitzgw.gossip.events import (
    Address,
    AnswerSync,
    FinishSync,
    StartSync,
    SyncAnswered,
    SyncFailed,
    SyncFinished,
    SyncOffered,
)
from blitzgw.wire import dump

if TYPE_CHECKING:
    from blitzgw.sim.heap import EventHeap
    from blitzgw.sim.network import Network
    from blitzgw.sim.process import Process

TIMEOUT_S = 5.0
"""How long an initiator waits for a whole exchange, connecting included."""

MAX_BEGUN, MAX_TAKEN = 16, 8
"""Exchanges at a time that a process begins, and that it answers (gossip/streams.py)."""

HELLOS_BYTES = 79 + 72 + 32
"""What both sides say to make sure of each other (crypto/handshake.py)."""

SEGMENT_BYTES, SEGMENT_HEADER_BYTES = 1448, 52
"""What a TCP segment holds of content on Ethernet, and what its IP and TCP headers add."""

HANDSHAKE_BYTES = HELLOS_BYTES + 6 * SEGMENT_HEADER_BYTES
"""Connecting: three segments without content and three hellos; counted at the initiator."""

RECORD_BYTES = 20
"""What sealing adds to a message on a stream (crypto/records.py)."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One exchange. `number` is the initiator's name for it, `taken` the responder's.

    `begun`: it counts as one of the initiator's `MAX_BEGUN`.
    """

    initiator: Process
    number: int
    address: Address
    responder: Process | None = None
    taken: int = 0
    begun: bool = False
    open: bool = True


class Streams:
    """Carries exchanges; `lookup` returns the process at an address, `off` whether its host is."""

    def __init__(
        self,
        heap: EventHeap,
        network: Network,
        lookup: Callable[[Address], Process | None],
        off: Callable[[Address], bool],
    ) -> None:
        self._heap = heap
        self._network = network
        self._lookup = lookup
        self._off = off
        self._taken = 0
        self._begun: dict[tuple[str, int], Exchange] = {}
        self._answering: dict[int, Exchange] = {}

    def start(self, process: Process, effect: StartSync) -> None:
        """Connect, and send the offer."""
        exchange = Exchange(process, effect.exchange, effect.address)
        self._begun[process.boot, effect.exchange] = exchange
        if process.syncs_begun >= MAX_BEGUN:
            self._heap.after(0.0, self._fail, exchange)
            return
        process.syncs_begun += 1
        exchange.begun = True
        self._heap.after(TIMEOUT_S, self._fail, exchange)
        trip_s = self._network.round_trip(process.address, effect.address)
        if trip_s is None or self._off(effect.address):
            return  # until the time-out
        self._heap.after(trip_s, self._connected, exchange, effect.offer)

    def answer(self, process: Process, effect: AnswerSync) -> None:
        """Send the second message."""
        exchange = self._answering.get(effect.exchange)
        if exchange is None or exchange.responder is not process:
            return
        _count(process, effect.answer)
        self._send(exchange, process.address, exchange.initiator, self._answered, effect.answer)

    def finish(self, process: Process, effect: FinishSync) -> None:
        """Send the third message; the initiator is done with it."""
        exchange = self._begun.pop((process.boot, effect.exchange), None)
        if exchange is None or exchange.responder is None:
            return
        _count(process, effect.rest)
        self._send(exchange, process.address, exchange.responder, self._finished, effect.rest)

    def _connected(self, exchange: Exchange, offer: SyncOffer) -> None:
        initiator = exchange.initiator
        responder = self._lookup(exchange.address)
        if responder is None or responder.syncs_taken >= MAX_TAKEN:
            self._fail(exchange)  # refused
            return
        responder.syncs_taken += 1
        exchange.responder = responder
        initiator.traffic.syncs += 1
        initiator.traffic.sync_bytes += HANDSHAKE_BYTES
        _count(initiator, offer)
        self._send(exchange, initiator.address, responder, self._offered, offer)

    def _offered(self, exchange: Exchange, offer: SyncOffer) -> None:
        responder = exchange.responder
        assert responder is not None
        self._taken += 1
        exchange.taken = self._taken
        self._answering[exchange.taken] = exchange
        responder.take(SyncOffered(exchange.taken, offer))

    def _answered(self, exchange: Exchange, answer: SyncAnswer) -> None:
        assert exchange.responder is not None
        if (exchange.initiator.boot, exchange.number) in self._begun:
            boot = exchange.responder.boot
            exchange.initiator.take(SyncAnswered(exchange.number, boot, answer))

    def _finished(self, exchange: Exchange, rest: SyncRest) -> None:
        assert exchange.responder is not None
        self._close(exchange)
        exchange.responder.take(SyncFinished(exchange.taken, rest))

    def _send(
        self,
        exchange: Exchange,
        source: Address,
        target: Process,
        arrive: Callable[[Exchange, SyncOffer | SyncAnswer | SyncRest], None] | Callable[..., None],
        message: SyncOffer | SyncAnswer | SyncRest,
    ) -> None:
        delay_s = self._network.leg(source, target.address)
        if delay_s is not None:
            self._heap.after(delay_s, self._arrive, exchange, target, arrive, message)

    def _arrive(
        self,
        exchange: Exchange,
        target: Process,
        arrive: Callable[..., None],
        message: SyncOffer | SyncAnswer | SyncRest,
    ) -> None:
        if not exchange.open:
            return
        if target.running:
            arrive(exchange, message)
        elif target is exchange.responder and not self._off(target.address):
            self._fail(exchange)  # reset by its host

    def _fail(self, exchange: Exchange) -> None:
        if not exchange.open:
            return
        self._close(exchange)
        if self._begun.pop((exchange.initiator.boot, exchange.number), None) is not None:
            exchange.initiator.take(SyncFailed(exchange.number, exchange.address))

    def _close(self, exchange: Exchange) -> None:
        exchange.open = False
        exchange.initiator.syncs_begun -= exchange.begun
        if exchange.responder is not None:
            exchange.responder.syncs_taken -= 1
        self._answering.pop(exchange.taken, None)


def _count(process: Process, message: SyncOffer | SyncAnswer | SyncRest) -> None:
    size_bytes = len(dump(message)) + RECORD_BYTES
    segments = -(-size_bytes // SEGMENT_BYTES)
    process.traffic.sync_bytes += size_bytes + segments * SEGMENT_HEADER_BYTES
