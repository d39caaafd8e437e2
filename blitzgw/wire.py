"""Framing and codec of every link between processes.

    frame := length (u32, little endian, of what follows) · tag (u8) · msgpack body

The tag says which message the body is; tags are appended, never reused. Every message has a
maximum size, checked before its body is read. Decoding raises `ProtocolError` and nothing else.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from blitzgw.core import messages as m
from blitzgw.core.step import Step, StepResult
from blitzgw.errors import ProtocolError

HEADER = struct.Struct("<IB")
KIB, MIB = 1 << 10, 1 << 20

# Tag, type, maximum body size. A step carries whole prompts: 64 sequences of 128k tokens at most
# 5 bytes each; all others are small.
MESSAGES: tuple[tuple[int, type[Any], int], ...] = (
    (1, m.Start, 64 * KIB),
    (2, m.Hello, 64 * KIB),
    (3, m.LoadModel, 64 * KIB),
    (4, m.UnloadModel, 64 * KIB),
    (5, m.BlobResident, 64 * KIB),
    (6, m.ModelLoaded, 64 * KIB),
    (7, m.LoadFailed, 64 * KIB),
    (8, Step, 64 * MIB),
    (9, StepResult, 4 * MIB),
    (10, m.StepFailed, 64 * KIB),
)

_TAGS = {cls: tag for tag, cls, _ in MESSAGES}
_LIMITS = {tag: limit for tag, _, limit in MESSAGES}
_DECODERS = {tag: msgspec.msgpack.Decoder(cls) for tag, cls, _ in MESSAGES}
_encode = msgspec.msgpack.Encoder().encode


def pack(message: Any) -> bytes:
    """Return a message as one frame."""
    tag = _TAGS[type(message)]
    body = _encode(message)
    if len(body) > _LIMITS[tag]:
        raise ProtocolError(
            f"{type(message).__name__} of {len(body)} bytes exceeds its limit of {_LIMITS[tag]}"
        )
    return HEADER.pack(len(body) + 1, tag) + body


def check_header(header: bytes | bytearray) -> tuple[int, int]:
    """Return (body size in bytes, tag) of a frame's first `HEADER.size` bytes."""
    length, tag = HEADER.unpack(header)
    limit = _LIMITS.get(tag)
    if limit is None:
        raise ProtocolError(f"unknown message tag {tag}")
    if not 1 <= length <= limit + 1:
        raise ProtocolError(f"frame of {length} bytes with tag {tag}; the limit is {limit}")
    return length - 1, tag


def unpack(tag: int, body: bytes | bytearray) -> Any:
    """Return the message of a frame's body."""
    try:
        return _DECODERS[tag].decode(body)
    except (msgspec.MsgspecError, ValueError, KeyError, UnicodeDecodeError, RecursionError) as e:
        raise ProtocolError(f"a message with tag {tag} that does not decode: {e}") from e


class FrameBuffer:
    """Cuts a byte stream into messages: feed what arrived, iterate over what is complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that `data` completes."""
        self._buffer += data
        messages: list[Any] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            at = start + HEADER.size
            size, tag = check_header(self._buffer[start:at])
            if at + size > len(self._buffer):
                break
            messages.append(unpack(tag, self._buffer[at : at + size]))
            start = at + size
        del self._buffer[:start]
        return messages
