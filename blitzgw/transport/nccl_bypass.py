"""Payloads by NCCL beside an edge's own connection: agreed on there, given up without a loss.

    TCP inline ── OFFER · INVITE · READY, while the pair warms ──► by NCCL, piece by piece
        ▲                                                              │
        └── the connection is given up, dialled anew and resumed ◄─────┘  error, silence, damage

A bypass lives as long as one connection of an edge. Whatever goes wrong ends that connection: the
next one begins where the receiver's prefix ends, as always, and stays inline while the pair cools
down. So no piece is lost, and there is one way to recover, not two.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from blitzgw.core.transfer import TrafficClass
from blitzgw.errors import ProtocolError
from blitzgw.transport.base import ChannelLost, Piece, PieceDamaged
from blitzgw.transport.nccl_device import DeviceStore
from blitzgw.transport.nccl_library import Role
from blitzgw.transport.nccl_pair import PairState, Transfer
from blitzgw.transport.nccl_pairs import Lease, Pairs
from blitzgw.transport.nccl_run import DRAIN_S, TRANSFER_S
from blitzgw.transport.nccl_words import (
    NAME_BYTES,
    Invite,
    Offer,
    Ready,
    Refuse,
    Word,
    decode_word,
    encode_word,
)

log = logging.getLogger(__name__)

MAX_AHEAD = 4
"""Pieces that a sender has launched and that have not gone: enough to hide the receiver's check of
one behind the transfer of the next."""

ANSWER_S = TRANSFER_S + DRAIN_S + 2.0
"""Patience for the launching thread, which ends every transfer in time unless NCCL holds it."""

WORD_BYTES = 4
"""Lane sums are of words, so a piece that begins within one goes inline."""

_SLICE_S: Final = 0.02
"""How often a waiting edge looks whether its peer is still there."""


class NcclBypass:
    """A base.Bypass. The edge's thread alone calls it, but `abort`."""

    def __init__(
        self,
        role: Role,
        store: DeviceStore,
        kind: TrafficClass,
        version: int,
        pairs: Pairs,
        lost: Callable[[], bool],
    ) -> None:
        self._role, self._store, self._kind = role, store, kind
        self._version, self._pairs, self._lost = version, pairs, lost
        self._lock = threading.Lock()
        self._lease: Lease | None = None
        self._agreed = self._aborted = self._is_new = False
        self._ahead: list[Transfer] = []
        self._words: list[Word] = []
        if role is Role.RECEIVES:
            self._words.append(Offer(version, pairs.token))

    @property
    def ready(self) -> bool:
        """Whether payloads can go this way now."""
        lease = self._lease
        return self._agreed and lease is not None and lease.pair.state is PairState.READY

    def words(self) -> list[bytes]:
        """Return what is to be told to the peer now, as bodies of BYPASS records."""
        if self._role is Role.RECEIVES and not self._agreed and self._lease is not None:
            self._look_at(self._lease)
        words, self._words = self._words, []
        return [encode_word(word) for word in words]

    def hear(self, body: bytes) -> None:
        """Take what the peer has told; raises ProtocolError for what none would."""
        word = decode_word(body)
        if self._role is Role.RECEIVES and isinstance(word, Invite):
            self._join(word)
        elif self._role is Role.SENDS and isinstance(word, Offer):
            self._invite(word)
        elif self._role is Role.SENDS and isinstance(word, Ready):
            self._agreed = self._lease is not None and self._lease.name == word.name
        elif isinstance(word, Refuse):
            self._refused(word)
        else:
            raise ProtocolError(f"{type(word).__name__} from the wrong end of a bypass")

    def piece(self, blob: int, offset: int, stop: int) -> Piece | None:
        """Return the head of a piece to go this way, None where it is to go inline.

        Its digest is the lane sum, taken on the device.
        """
        if not self.ready:
            self._await_all()  # where the pair is broken they never came: this raises
            return None
        if offset % WORD_BYTES:
            return None
        return Piece(blob, offset, stop - offset, self._store.lane_sum(blob, offset, stop))

    def send(self, piece: Piece) -> None:
        """Launch a piece whose head has been sent; raises ChannelLost, also for one before it."""
        self._launch(piece)
        while len(self._ahead) > MAX_AHEAD or (self._ahead and self._ahead[0].has_ended):
            self._await_first()

    def receive(self, piece: Piece) -> None:
        """Receive the piece whose head has come, onto the device, and check it.

        Raises ChannelLost, PieceDamaged. Nothing writes to its place any more when this returns.
        """
        self._launch(piece)
        self._await_all()
        if self._store.lane_sum(piece.blob, piece.offset, piece.stop) != piece.digest:
            self._give_up("a damaged piece")
            raise PieceDamaged(f"blob {piece.blob} at {piece.offset}, by NCCL")
        self._store.landed(piece.blob, piece.offset, piece.stop)

    def finish(self) -> None:
        """Wait for what has been launched, so that the pair is at rest; raises ChannelLost."""
        self._await_all()

    def abort(self) -> None:
        """Make `send` and `receive` return, now and for ever; a pair at rest is kept."""
        with self._lock:
            self._aborted = True
            lease, self._lease = self._lease, None
            at_rest = all(transfer.has_ended for transfer in self._ahead)
        if lease is not None and at_rest and lease.pair.state is not PairState.BROKEN:
            self._pairs.give_back(lease)
        elif lease is not None:
            self._pairs.drop(lease, "its edge has ended")

    def _invite(self, offer: Offer) -> None:
        if offer.version != self._version:
            self._disagree(offer.version)
        elif self._lease is None:
            self._lend(offer.token)

    def _lend(self, peer: bytes) -> None:
        lease = self._pairs.lend(peer, self._kind)
        if not self._hold(lease) or lease is None:
            return
        self._is_new = lease.n_pieces == 0 and lease.used_at == 0.0
        self._words.append(
            Invite(self._version, self._pairs.token, lease.name, self._is_new, lease.n_pieces)
        )

    def _join(self, invite: Invite) -> None:
        if self._lease is not None:
            raise ProtocolError("two pairs for one connection")
        if invite.version != self._version:
            self._disagree(invite.version)
            return
        lease = self._pairs.join(
            invite.token,
            self._kind,
            invite.name,
            invite.n_pieces,
            is_new=invite.is_new,
        )
        if lease is None or not self._hold(lease):
            self._words.append(Refuse(invite.name, "not to be had here"))

    def _refused(self, refuse: Refuse) -> None:
        """Give up a pair that the peer does not have; try once with a new one."""
        log.info("nccl_refused why=%r", refuse.why)
        lease = self._lease
        if lease is None or lease.name != refuse.name:
            return
        with self._lock:
            self._lease, self._agreed = None, False
        self._pairs.drop(lease, refuse.why, cool=self._is_new)
        if not self._is_new:
            self._lend(lease.key[0])

    def _disagree(self, version: int) -> None:
        log.warning("nccl_versions_differ ours=%d theirs=%d", self._version, version)
        if self._role is Role.SENDS:
            self._words.append(Refuse(b"\0" * NAME_BYTES, f"NCCL {self._version} here"))

    def _look_at(self, lease: Lease) -> None:
        """Tell the sender what has become of this end of the pair."""
        if lease.pair.state is PairState.READY:
            self._agreed = True
            self._words.append(Ready(lease.name))
        elif lease.pair.state is PairState.BROKEN:
            self._words.append(Refuse(lease.name, lease.pair.why))
            self._give_up(lease.pair.why)

    def _hold(self, lease: Lease | None) -> bool:
        """Take a lease, unless this has been aborted meanwhile."""
        with self._lock:
            if not self._aborted:
                self._lease = lease
                return lease is not None
        if lease is not None:
            self._pairs.give_back(lease)
        return False

    def _launch(self, piece: Piece) -> None:
        pointer = self._store.pointer(piece.blob, piece.offset)
        with self._lock:
            lease = self._lease
            if self._aborted or lease is None:
                raise ChannelLost("the bypass is given up")
            lease.n_pieces += 1
            self._ahead.append(
                self._pairs.launcher.transfer(lease.pair, pointer, piece.size_bytes, self._store)
            )

    def _await_all(self) -> None:
        while self._ahead:
            self._await_first()

    def _await_first(self) -> None:
        """Wait for the transfer that was launched first, and forget it. Raises ChannelLost."""
        try:
            self._await(self._ahead[0])
        finally:
            with self._lock:
                self._ahead.pop(0)

    def _await(self, transfer: Transfer) -> None:
        """Wait for a transfer; where the peer is gone, abort it. Raises ChannelLost."""
        deadline, noticed = time.monotonic() + ANSWER_S, False
        while not self._is_over(transfer):
            if not noticed and self._lost():
                noticed = True
                self._give_up("the peer is gone")
            if time.monotonic() > deadline:
                self._pairs.launcher.give_up()
                self._give_up("the launching thread does not answer")
                raise ChannelLost(f"NCCL has not answered for {ANSWER_S:g} s")

    def _is_over(self, transfer: Transfer) -> bool:
        try:
            return transfer.wait(_SLICE_S)
        except ChannelLost as e:
            self._give_up(str(e))
            raise

    def _give_up(self, why: str) -> None:
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            self._pairs.drop(lease, why)
