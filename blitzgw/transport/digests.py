"""Digests of pieces that this process has checked or made, so that none is made twice."""

from __future__ import annotations

from blitzgw.core.transfer import PIECE_BYTES
from blitzgw.transport.base import Piece, piece_digest


class PieceDigests:
    """Of one store under one seed. Thread-safe: single operations on a dict.

    Some 200 bytes for each PIECE_BYTES of weights, for as long as an edge of the operation is open.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._digests: dict[tuple[int, int, int], int] = {}

    def keep(self, piece: Piece) -> None:
        """Remember the digest of a piece that has been checked."""
        self._digests[piece.blob, piece.offset, piece.size_bytes] = piece.digest

    def piece(self, blob: int, offset: int, payload: memoryview, *, afresh: bool) -> Piece:
        """Return the piece of these bytes; `afresh` trusts nothing that is remembered."""
        key = (blob, offset, len(payload))
        digest = None if afresh else self._digests.get(key)
        if digest is None:
            digest = self._digests[key] = piece_digest(payload, self._seed)
        return Piece(*key, digest)


def piece_stop(offset: int, size: int, unit: int = PIECE_BYTES) -> int:
    """Return where the piece that begins at `offset` of a blob ends.

    Pieces end at multiples of the unit wherever they begin, so that all edges cut alike.
    """
    return min(size, (offset // unit + 1) * unit)
