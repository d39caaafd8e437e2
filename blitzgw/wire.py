"""Framing and codec of every link between processes.

    frame   := length (u32, little endian, of what follows) · message     node ↔ worker
    message := tag (u8) · msgpack body                                    peer links, gossip

Peer links and gossip seal each message in a record of `crypto.py`, which knows its length. The tag
says which message the body is; tags are appended, never reused. Every message has a maximum size,
checked before its body is decoded. Decoding raises `ProtocolError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Any, get_args

import msgspec

from blitzgw.core import live, operation, parcels, peer, probe, rumours, scale, transfer, view
from blitzgw.core import messages as m
from blitzgw.core.card import ModelCard
from blitzgw.core.finite import finite_check
from blitzgw.core.request import PlainToken
from blitzgw.core.step import Step, StepResult
from blitzgw.errors import ProtocolError

HEADER = struct.Struct("<IB")
KIB, MIB = 1 << 10, 1 << 20

# Tag, type, maximum body size. A step carries whole prompts: 64 sequences of 128k tokens at most
# 5 bytes each, with grammars of 64 KiB; its result may have log-probabilities of 21 tokens for each
# of its own; a manifest or a plan has some 50 bytes for each of up to
# 4,098 blobs; all others are small.
MESSAGES: tuple[tuple[int, type[Any], int], ...] = (
    (1, m.Start, 64 * KIB),
    (2, m.Hello, 64 * KIB),
    (3, m.LoadModel, 1 * MIB),
    (4, m.UnloadModel, 64 * KIB),
    (5, m.BlobResident, 64 * KIB),
    (6, m.ModelLoaded, 64 * KIB),
    (7, m.LoadFailed, 64 * KIB),
    (8, Step, 64 * MIB),
    (9, StepResult, 64 * MIB),
    (10, m.StepFailed, 64 * KIB),
    (11, peer.Submit, 4 * MIB),
    (12, peer.Declined, 64 * KIB),
    (13, peer.Tokens, 4 * MIB),
    (14, peer.Lost, 4 * MIB),
    (15, peer.Abort, 64 * KIB),
    (16, peer.LoadReport, 64 * KIB),
    (17, peer.Heartbeat, 64 * KIB),
    (18, peer.Fetch, 64 * KIB),
    (19, peer.Content, 1 * MIB),
    (20, rumours.Packet, 64 * KIB),
    (21, rumours.SyncOffer, 16 * MIB),
    (22, rumours.SyncAnswer, 16 * MIB),
    (23, rumours.SyncRest, 16 * MIB),
    (24, transfer.OpenSend, 1 * MIB),
    (25, transfer.OpenReceive, 1 * MIB),
    (26, transfer.CloseEdge, 64 * KIB),
    (27, transfer.ReadBlobs, 1 * MIB),
    (28, transfer.HoldCopy, 1 * MIB),
    (29, transfer.DropCopy, 64 * KIB),
    (30, transfer.CapWeights, 64 * KIB),
    (31, transfer.EdgeProgress, 64 * KIB),
    (32, transfer.EdgeClosed, 64 * KIB),
    (33, transfer.BlobChecked, 64 * KIB),
    (34, transfer.BlobDamaged, 64 * KIB),
    (35, transfer.CopyHeld, 64 * KIB),
    (36, transfer.CopyFailed, 64 * KIB),
    (37, transfer.TrafficReport, 64 * KIB),
    (38, operation.Claim, 64 * KIB),
    (39, operation.Claimed, 64 * KIB),
    (40, operation.Engage, 4 * MIB),
    (41, operation.Engaged, 64 * KIB),
    (42, operation.BlobNews, 64 * KIB),
    (43, operation.EdgeNews, 64 * KIB),
    (44, operation.TargetReady, 64 * KIB),
    (45, operation.TargetFailed, 64 * KIB),
    (46, operation.Renew, 64 * KIB),
    (47, operation.Conclude, 64 * KIB),
    (48, operation.Abandon, 64 * KIB),
    (49, operation.Retire, 64 * KIB),
    (50, operation.Retired, 64 * KIB),
    (51, operation.ScaleOrder, 64 * KIB),
    (52, operation.ScaleAnswer, 4 * MIB),
    (53, operation.CancelOrder, 64 * KIB),
    (54, probe.ProbeOrder, 64 * KIB),
    (55, probe.ProbeDone, 64 * KIB),
    (56, probe.ProbeCancel, 64 * KIB),
    (57, live.Attach, 64 * KIB),
    (58, live.Attached, 64 * KIB),
    (59, live.Detach, 64 * KIB),
    (60, live.Pull, 64 * KIB),
    (61, live.Lend, 4 * MIB),
    (62, live.Recall, 64 * KIB),
    (63, live.Handoff, 64 * KIB),
    (64, live.Nothing, 64 * KIB),
    (65, live.Offer, 64 * KIB),
    (66, live.Withdraw, 64 * KIB),
    (67, live.Finished, 1 * MIB),
    (68, live.Move, 4 * MIB),
    (69, live.Room, 64 * KIB),
    (70, live.NoRoom, 64 * KIB),
    (71, live.Moved, 64 * KIB),
    (72, parcels.DropParcels, 1 * MIB),
    (73, parcels.ParcelArrived, 64 * KIB),
    (74, parcels.ParcelsSent, 64 * KIB),
    (75, live.StageReady, 64 * KIB),
    (76, live.Reserve, 4 * MIB),
    (77, live.Reserved, 64 * KIB),
    (78, live.Pass, 64 * KIB),
    (79, live.Sampled, 64 * KIB),
    (80, live.Keep, 1 * MIB),
    (83, live.Return, 64 * KIB),
    (81, scale.Demand, 1 * MIB),
    (82, scale.Cede, 64 * KIB),
    (84, peer.PlainTokens, 4 * MIB),
)

PEER_MESSAGES: frozenset[type[Any]] = frozenset(
    get_args(peer.PeerMessage)
    + get_args(operation.OperationMessage)
    + get_args(probe.ProbeMessage)
    + get_args(live.LiveMessage)
    + get_args(scale.ScaleMessage)
)
"""What may come over a peer link."""

FACTS: dict[str, type[Any]] = {
    "node": view.NodeFacts,
    "host": view.HostFacts,
    "device": view.DeviceFacts,
    "model": view.ModelFacts,
    "copy": view.CopyFacts,
    "instance": view.InstanceFacts,
    "load": view.LoadFacts,
    "wish": view.ScaleWish,
    "scale": view.ScaleFacts,
}
"""The facts of core/view.py by the part of their key before the slash."""

_FINITE = {
    cls: check
    for cls in get_args(operation.OperationMessage)
    + get_args(probe.ProbeMessage)
    + get_args(live.LiveMessage)
    + get_args(scale.ScaleMessage)
    if (check := finite_check(cls)) is not None
}
"""Messages between nodes whose numbers become deadlines and reservations: none may be a NaN."""

_TAGS = {cls: tag for tag, cls, _ in MESSAGES}
_TYPES = {tag: cls for tag, cls, _ in MESSAGES}
_LIMITS = {tag: limit for tag, _, limit in MESSAGES}
_DECODERS = {tag: msgspec.msgpack.Decoder(cls) for tag, cls, _ in MESSAGES}
_FACT_DECODERS = {kind: msgspec.msgpack.Decoder(cls) for kind, cls in FACTS.items()}
_PLAIN_DECODER = msgspec.msgpack.Decoder(list[PlainToken])
_CARD_DECODER = msgspec.msgpack.Decoder(ModelCard)
_REQUESTS_DECODER = msgspec.msgpack.Decoder(list[view.RequestFacts])
_OPERATIONS_DECODER = msgspec.msgpack.Decoder(list[operation.OperationFacts])
_WHY_DECODER = msgspec.msgpack.Decoder(list[scale.WhyFacts])
_ERRORS = (msgspec.MsgspecError, ValueError, KeyError, UnicodeDecodeError, RecursionError)
_encode = msgspec.msgpack.Encoder().encode
_PLAIN_TAG = _TAGS[peer.PlainTokens]
_PLAIN_HEAD = _PLAIN_TAG.to_bytes(1) + _encode(peer.PlainTokens([]))[:-1]  # up to the tokens
_PLAIN_TOKENS, _PLAIN_END = len(_PLAIN_HEAD), 1 + _LIMITS[_PLAIN_TAG]


def pack(message: Any) -> bytes:
    """Return a message as one frame; raises ProtocolError above its limit."""
    tag, body = _body(message)
    return HEADER.pack(len(body) + 1, tag) + body


def dump(message: Any) -> bytes:
    """Return a message without a frame; raises ProtocolError above its limit."""
    tag, body = _body(message)
    return tag.to_bytes(1) + body


def parse(data: bytes, kinds: Collection[type[Any]]) -> Any:
    """Return the message of one of `kinds` that `dump` has made."""
    if not data:
        raise ProtocolError("an empty message")
    tag = data[0]
    cls = _TYPES.get(tag)
    if cls is None or cls not in kinds:
        raise ProtocolError(f"a message with tag {tag}, which is not expected here")
    if len(data) - 1 > _LIMITS[tag]:
        raise ProtocolError(f"{cls.__name__} of {len(data) - 1} bytes; limit {_LIMITS[tag]}")
    try:  # as `unpack` does: this runs for every step
        message = _DECODERS[tag].decode(memoryview(data)[1:])
    except _ERRORS as e:
        raise ProtocolError(f"a message with tag {tag} that does not decode: {e}") from e
    check = _FINITE.get(cls)
    if check is not None and not check(message):
        raise ProtocolError(f"{cls.__name__} with a number that is not finite")
    return message


def parse_plain(data: bytes) -> list[PlainToken] | None:
    """Return the tokens of a `PlainTokens` that `dump` has made; None for any other message.

    As `parse` does, without the object around them: this runs for every step.
    """
    if data[:_PLAIN_TOKENS] != _PLAIN_HEAD or len(data) > _PLAIN_END:
        return None
    try:
        return _PLAIN_DECODER.decode(data[_PLAIN_TOKENS:])
    except _ERRORS as e:
        raise ProtocolError(f"plain tokens that do not decode: {e}") from e


def encode_fact(fact: view.Fact) -> bytes:
    """Return a fact as the value of an entry of the directory."""
    return _encode(fact)


def decode_fact(key: str, value: bytes) -> Any:
    """Return the fact of a directory entry; None where this version does not know its kind."""
    decoder = _FACT_DECODERS.get(key.partition("/")[0])
    try:
        return None if decoder is None else decoder.decode(value)
    except _ERRORS as e:
        raise ProtocolError(f"an entry {key[:80]!r} that does not decode: {e}") from e


def encode_card(card: ModelCard) -> bytes:
    """Return a model's card in the form whose digest identifies the model."""
    return _encode(card)


def decode_card(data: bytes) -> ModelCard:
    """Return the card that `encode_card` has encoded."""
    try:
        return _CARD_DECODER.decode(data)
    except _ERRORS as e:
        raise ProtocolError(f"a model card that does not decode: {e}") from e


def encode_operations(operations: Sequence[operation.OperationFacts]) -> bytes:
    """Return what a node tells of its operations."""
    return _encode(operations)


def decode_operations(data: bytes) -> list[operation.OperationFacts]:
    """Return what `encode_operations` has encoded."""
    try:
        return _OPERATIONS_DECODER.decode(data)
    except _ERRORS as e:
        raise ProtocolError(f"a list of operations that does not decode: {e}") from e


def encode_whys(whys: Sequence[scale.WhyFacts]) -> bytes:
    """Return what a node tells of its decisions about models."""
    return _encode(whys)


def decode_whys(data: bytes) -> list[scale.WhyFacts]:
    """Return what `encode_whys` has encoded."""
    try:
        return _WHY_DECODER.decode(data)
    except _ERRORS as e:
        raise ProtocolError(f"a list of decisions that does not decode: {e}") from e


def encode_requests(requests: Sequence[view.RequestFacts]) -> bytes:
    """Return a list of requests for another node."""
    return _encode(requests)


def decode_requests(data: bytes) -> list[view.RequestFacts]:
    """Return the list that `encode_requests` has encoded."""
    try:
        return _REQUESTS_DECODER.decode(data)
    except _ERRORS as e:
        raise ProtocolError(f"a list of requests that does not decode: {e}") from e


def _body(message: Any) -> tuple[int, bytes]:
    tag = _TAGS[type(message)]
    body = _encode(message)
    if len(body) > _LIMITS[tag]:
        raise ProtocolError(
            f"{type(message).__name__} of {len(body)} bytes exceeds its limit of {_LIMITS[tag]}"
        )
    return tag, body


def check_header(header: bytes | bytearray) -> tuple[int, int]:
    """Return (body size in bytes, tag) of a frame's first `HEADER.size` bytes."""
    length, tag = HEADER.unpack(header)
    limit = _LIMITS.get(tag)
    if limit is None:
        raise ProtocolError(f"unknown message tag {tag}")
    if not 1 <= length <= limit + 1:
        raise ProtocolError(f"frame of {length} bytes with tag {tag}; the limit is {limit}")
    return length - 1, tag


def unpack(tag: int, body: bytes | bytearray | memoryview) -> Any:
    """Return the message of a frame's body."""
    try:
        return _DECODERS[tag].decode(body)
    except _ERRORS as e:
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
