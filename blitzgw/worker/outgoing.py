"""A `Send` as parcels: what is captured at once, and what is read when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any
from weakref import ref

from blitzgw.core.parcels import Parcel
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, Send
from blitzgw.engine.base import SpanEngine
from blitzgw.transport.parcel import Outgoing
from blitzgw.worker.frontier import Piece

PARCEL_TOKENS = 8192
"""Positions of one parcel. So it stays below MAX_PARCEL_BYTES up to 32 KiB of KV a layer and token,
the most that models have; and hidden states, which overtake, wait for no more than one."""

Engine = SpanEngine[Any, Any]


def parcels_of(
    send: Send, pieces: Sequence[Piece], table: Sequence[int], engine: Engine
) -> list[Outgoing]:
    """Return the parcels of a `Send`: hidden states first, then KV by layer, each by position.

    The table is copied. The engine is not kept alive: what is read after its end is refused.
    Raises ValueError for positions that have no block.
    """
    needed = -(-send.stop // BLOCK_TOKENS) if len(send.span) else 0
    if not 0 <= send.start < send.stop or needed > len(table):
        raise ValueError(f"positions [{send.start}, {send.stop}) in {len(table)} blocks")
    blocks, held = tuple(table[:needed]), ref(engine)
    hidden = [
        Outgoing(Parcel(send.ticket, Span(part.layer, part.layer), part.start, part.stop), read)
        for piece in pieces
        for start, stop in _ranges(piece.start, piece.stop)
        for part in (piece.cut(start, stop),)
        for read in (partial(_read_hidden, held, part.hidden),)
    ]
    kv = [
        Outgoing(parcel, partial(_read_kv, held, blocks, parcel))
        for layer in send.span.layers()
        for start, stop in _ranges(send.start, send.stop)
        for parcel in (Parcel(send.ticket, Span(layer, layer + 1), start, stop),)
    ]
    return hidden + kv


def _ranges(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, PARCEL_TOKENS):
        yield first, min(stop, first + PARCEL_TOKENS)


def _read_hidden(held: ref[Engine], hidden: Any) -> memoryview:
    return _alive(held).export_hidden(hidden)


def _read_kv(held: ref[Engine], table: tuple[int, ...], parcel: Parcel) -> memoryview:
    kv = _alive(held).export_kv(table, parcel.start, parcel.stop, parcel.span)
    return memoryview(kv.data)


def _alive(held: ref[Engine]) -> Engine:
    engine = held()
    if engine is None:
        raise RuntimeError("the instance is gone")
    return engine
