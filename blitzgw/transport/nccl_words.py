"""What the ends of an edge say to agree on a pair: the bodies of BYPASS records.

    receiver                                  sender
    OFFER    NCCL's version · who I am    →
                                          ←   INVITE   version · who I am · name · new? · pieces
    READY    name   (its end is warm)     →            from here on pieces may go by NCCL
    REFUSE   name · why                   →            the sender makes a new pair, or stays inline

Tags are appended, never reused. Who I am: 16 random bytes of a process, so that one that has died
and come back is somebody else.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from blitzgw.errors import ProtocolError

TOKEN_BYTES = 16
"""Who a process is: drawn at random, so never twice."""

NAME_BYTES = 128
"""The size of NCCL's unique id, by which both ends call a pair."""

MAX_WHY_BYTES = 200
"""The longest reason: it is for a log."""

_OFFER: Final = struct.Struct(f"<I{TOKEN_BYTES}s")
_INVITE: Final = struct.Struct(f"<I{TOKEN_BYTES}s{NAME_BYTES}s?Q")


@dataclass(frozen=True, slots=True)
class Offer:
    """The receiver could take payloads by NCCL."""

    version: int
    token: bytes


@dataclass(frozen=True, slots=True)
class Invite:
    """Let us use this pair: a new one, or one that `n_pieces` have gone by."""

    version: int
    token: bytes
    name: bytes
    is_new: bool
    n_pieces: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The receiver's end of the pair is warm."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not this pair; without a name: none at all."""

    name: bytes
    why: str


Word = Offer | Invite | Ready | Refuse


def encode_word(word: Word) -> bytes:
    """Return a word as the body of a record."""
    if isinstance(word, Offer):
        return b"O" + _OFFER.pack(word.version, word.token)
    if isinstance(word, Invite):
        return b"I" + _INVITE.pack(word.version, word.token, word.name, word.is_new, word.n_pieces)
    if isinstance(word, Ready):
        return b"R" + word.name
    return b"N" + word.name.ljust(NAME_BYTES, b"\0") + word.why.encode()[:MAX_WHY_BYTES]


def decode_word(body: bytes) -> Word:
    """Return what `encode_word` was given; raises ProtocolError for anything else."""
    tag, rest = body[:1], body[1:]
    if tag == b"O" and len(rest) == _OFFER.size:
        return Offer(*_OFFER.unpack(rest))
    if tag == b"I" and len(rest) == _INVITE.size:
        return Invite(*_INVITE.unpack(rest))
    if tag == b"R" and len(rest) == NAME_BYTES:
        return Ready(rest)
    if tag == b"N" and NAME_BYTES <= len(rest) <= NAME_BYTES + MAX_WHY_BYTES:
        return Refuse(rest[:NAME_BYTES], rest[NAME_BYTES:].decode(errors="replace"))
    raise ProtocolError(f"a word about a bypass in {len(body)} bytes that means nothing")
