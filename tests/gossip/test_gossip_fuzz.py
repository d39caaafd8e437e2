"""Every decoder of what peers send: of whatever bytes, only ProtocolError comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw import wire
from blitzgw.core import live, peer, probe, scale
from blitzgw.core import operation as op
from blitzgw.core.plan import Tier
from blitzgw.core.request import (
    GenerationRequest,
    Logprobs,
    SamplingParams,
    Stage,
    TokenEvent,
)
from blitzgw.core.rumours import (
    Digest,
    Packet,
    PacketKind,
    Rumour,
    Status,
    SyncAnswer,
    SyncOffer,
    SyncRest,
    Update,
)
from blitzgw.core.span import Span
from blitzgw.core.transfer import EdgeTerms, TrafficClass
from blitzgw.core.view import LoadFacts, NodeFacts
from blitzgw.crypto.datagrams import Datagrams
from blitzgw.crypto.handshake import ClientHandshake, Purpose, ServerHandshake
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.records import RecordReader, Session, check_length
from blitzgw.errors import ProtocolError

KEYRING = Keyring(("k" * 40,))
ANN, BOB = "aa" * 8, "bb" * 8

_RUMOUR = Rumour(ANN, "ann", "10.0.0.1", 7946, 1_700_000_000, 3, Status.SUSPECT, BOB)
_UPDATES = (Update(ANN, "node", 7, b"value"), Update(BOB, "load/x", 8, None))
_DIGEST = Digest(ANN, 7, 12)
_REQUEST = GenerationRequest("r", "m", (1, 2, 3), 3, SamplingParams(max_tokens=4))
_EDGE = op.EdgeOrder("o.1.0", "a/p0", "b/p0", "", "10.0.0.1", 4711, (0, 1), b"k" * 32, 5e7)
_READ = op.ReadOrder("b/p0", Tier.DISK, (1,))
_ROAD = live.Road(EdgeTerms("p", "parcels", "parcels", (), b"k" * 32), "10.0.0.1", 4711)
_OPERATION = op.OperationFacts(
    id="o",
    model="m",
    digest="d",
    weights="w",
    owner="a",
    state="done",
    started_s=1e9,
    instances_before=1,
    instances_wanted=2,
    targets=(op.TargetFacts("b/p0", "m@b/p0", "ready", (0.5,), (0.6,), 0.7),),
    edges=(op.EdgeFacts("a/p0", "b/p0", "", 2, 10),),
    reads=(_READ,),
    alternatives={"star": 1.0},
    events=(op.OperationEvent(0.1, "claimed", "b/p0"),),
)
_MESSAGES: tuple[Any, ...] = (
    Packet(PacketKind.PING_REQUEST, 5, _DIGEST, BOB, "::1", 99, (_RUMOUR,), _UPDATES),
    SyncOffer((_RUMOUR,), (_DIGEST,)),
    SyncAnswer((_RUMOUR,), (_DIGEST,), _UPDATES),
    SyncRest(_UPDATES),
    peer.Submit("i", 1, _REQUEST),
    peer.Declined("r", 1, "overloaded", "full", None, 1.5),
    peer.Tokens([TokenEvent("r", 1, [5], None)]),
    peer.PlainTokens([("r", 1, 5)]),
    peer.Lost((peer.Loss("r", 1),), "gone", True),
    peer.Abort("r", 1),
    peer.LoadReport((LoadFacts("i", 1, 2, 3, 0.5),)),
    peer.Heartbeat(1.5, True),
    peer.Fetch(1, "card/x", 5),
    peer.Content(1, 0, 4, b"data"),
    op.Claim("o", "p0", 3, "m", "d"),
    op.Claimed("o", "p0", 4, "m@b/p0", "no"),
    op.Engage("o", 1, "m", "d", "w", (_EDGE,), (_READ,), 9),
    op.Engaged("o", 1, "taken: "),
    op.BlobNews("o", "b/p0", (0, 1)),
    op.EdgeNews("o", 1, "o.1.0", 5, True, "lost", 1.5, 1, 1, 0.1, 0.2),
    op.TargetReady("o", "b/p0"),
    op.TargetFailed("o", "b/p0", "no memory"),
    op.Renew("o"),
    op.Conclude("o"),
    op.Abandon("o", "cancelled"),
    op.Retire("o", "m@b/p0", 4),
    op.Retired("o", "m@b/p0", "gone"),
    op.ScaleOrder(1, "m", 4, True, "chain"),
    op.CancelOrder(2, "o"),
    op.ScaleAnswer(1, _OPERATION, "", ""),
    probe.ProbeOrder(_EDGE, 5, 1.0, TrafficClass.KV, 7),
    probe.ProbeDone("p", True, "lost", 5, 0.5),
    probe.ProbeCancel("p"),
    live.Attach("p", live.Purpose.HELP, "g", "h", 3, _ROAD, live.LivePolicy.ZIGZAG, 4),
    live.Attached("p"),
    live.Detach("p", "gone"),
    live.Pull("p", 4, 2048, keeps=True),
    live.Lend("p", _REQUEST, 7),
    live.Recall("p", "r", 1),
    live.Handoff("p", "r", 1, 3),
    live.Nothing("p", "r", 1),
    live.Offer("p", "r", 1, 3),
    live.Withdraw("p", "r", 1),
    live.Finished("p", (live.Kept("r", 1),)),
    live.Move("p", _REQUEST),
    live.Room("p", "r", 1, 7, 64),
    live.NoRoom("p", "r", 1, "full"),
    live.Moved("p", "r", 1, 60),
    live.StageReady("p", (Stage("i", Span(0, 3)),)),
    live.Reserve("p", _REQUEST, 64),
    live.Reserved("p", "r", 1, 7),
    live.Pass("p", "r", 1, 0, 3, sample=True),
    live.Sampled("p", "r", 1, 3, 17, Logprobs(-0.5, ((17, -0.5),))),
    live.Keep("p", (live.Kept("r", 1),)),
    live.Return("p", "r", 1, 7, 3),
    scale.Demand("m", "d", 3, 1, 40, 0.5, 7, 1, (LoadFacts("m@a/p0", 1),), {5: 2}, {1: 1}, {0: 3}),
    scale.Cede("m", "n", 1, 1.5),
)
KINDS = frozenset(map(type, _MESSAGES))

Mutation = Callable[[bytes], bytes]


def _mutate(edits: list[tuple[str, int, bytes]], data: bytes) -> bytes:
    for how, at, what in edits:
        at %= len(data) + 1
        if how == "cut":
            data = data[:at]
        elif how == "insert":
            data = data[:at] + what + data[at:]
        else:
            data = data[:at] + what + data[at + len(what) :]
    return data


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "insert", "replace", "replace"]),
        st.integers(0, 1 << 16),
        st.binary(min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=3,
)
BYTES = st.binary(max_size=300)
fuzz = settings(max_examples=150, deadline=None)


def only_protocol_error(decode: Callable[[], Any]) -> None:
    with contextlib.suppress(ProtocolError):
        decode()


def sessions() -> tuple[Session, Session]:
    client = ClientHandshake(KEYRING, ANN, Purpose.LINK)
    server = ServerHandshake(KEYRING, BOB)
    session, confirmation = client.finish(server.answer(client.hello))
    return session, server.finish(confirmation)


def test_every_kind_that_a_peer_may_send_is_here_and_survives_a_round_trip():
    assert wire.PEER_MESSAGES <= KINDS
    for message in _MESSAGES:
        assert wire.parse(wire.dump(message), KINDS) == message


@pytest.mark.parametrize("message", _MESSAGES, ids=lambda m: type(m).__name__)
def test_mutations_of_a_message(message):
    data = wire.dump(message)

    @fuzz
    @given(EDITS)
    def check(edits):
        only_protocol_error(lambda: wire.parse(_mutate(edits, data), KINDS))

    check()


@fuzz
@given(st.sampled_from(sorted(tag for tag, *_ in wire.MESSAGES)), BYTES)
def test_random_bodies_of_every_tag(tag, body):
    only_protocol_error(lambda: wire.parse(bytes([tag]) + body, KINDS))


@fuzz
@given(BYTES)
def test_random_bytes_as_messages_facts_and_cards(data):
    only_protocol_error(lambda: wire.parse(data, KINDS))
    only_protocol_error(lambda: wire.decode_card(data))
    for kind in wire.FACTS:
        only_protocol_error(lambda kind=kind: wire.decode_fact(f"{kind}/x", data))


@fuzz
@given(EDITS)
def test_mutations_of_a_fact(edits):
    data = wire.encode_fact(NodeFacts("n", "http://x", True, {"a": "b"}))
    only_protocol_error(lambda: wire.decode_fact("node", _mutate(edits, data)))


def test_deep_nesting_is_refused():
    for tag in sorted(tag for tag, *_ in wire.MESSAGES):
        data = bytes([tag]) + b"\x91" * 60_000
        with pytest.raises(ProtocolError):
            wire.parse(data, KINDS)


@fuzz
@given(st.lists(BYTES, max_size=4))
def test_random_bytes_as_frames(chunks):
    frames = wire.FrameBuffer()
    for chunk in chunks:
        only_protocol_error(lambda chunk=chunk: frames.feed(chunk))


@fuzz
@given(st.sampled_from(_MESSAGES), EDITS, st.integers(1, 50))
def test_mutations_of_frames_however_cut(message, edits, size):
    data = _mutate(edits, wire.pack(message) * 2)
    frames = wire.FrameBuffer()

    def feed() -> None:
        for at in range(0, len(data), size):
            frames.feed(data[at : at + size])

    only_protocol_error(feed)


@fuzz
@given(BYTES, EDITS)
def test_datagrams(data, edits):
    bob = Datagrams(KEYRING, BOB)
    good = Datagrams(KEYRING, ANN).seal(BOB, b"payload")
    for attempt in (data, _mutate(edits, good), good[:30] + data):
        if attempt == good:
            continue
        with pytest.raises(ProtocolError):
            bob.open(attempt)
    assert bob.open(good) == (ANN, b"payload")
    assert sum(bob.rejected.values()) >= 2


@fuzz
@given(BYTES, EDITS, st.integers(1, 60))
def test_records(data, edits, size):
    ann, bob = sessions()
    stream = _mutate(edits, ann.seal(b"one") + ann.seal(b"two"))
    for attempt, session in ((data, bob), (stream, sessions()[1]), (stream, bob)):
        reader = RecordReader(session, 200)

        def feed(attempt=attempt, reader=reader) -> None:
            for at in range(0, len(attempt), size):
                reader.feed(attempt[at : at + size])

        only_protocol_error(feed)
        assert len(reader._buffer) <= 4 + 16 + 200 + size
    only_protocol_error(lambda: check_length(data[:4].ljust(4, b"\0"), 100))


@fuzz
@given(BYTES, EDITS)
def test_hellos(data, edits):
    client = ClientHandshake(KEYRING, ANN, Purpose.SYNC)
    server = ServerHandshake(KEYRING, BOB)
    for hello in (data, _mutate(edits, client.hello)):
        if hello != client.hello:
            with pytest.raises(ProtocolError):
                server.answer(hello)
    with pytest.raises(ProtocolError):
        server.finish(data)
    answer = server.answer(client.hello)
    for attempt in (data, _mutate(edits, answer)):
        if attempt != answer:
            with pytest.raises(ProtocolError):
                client.finish(attempt)
    session, confirmation = client.finish(answer)
    for attempt in (data, _mutate(edits, confirmation)):
        if attempt != confirmation:
            with pytest.raises(ProtocolError):
                server.finish(attempt)
    assert server.finish(confirmation).peer_boot == ANN
    assert session.peer_boot == BOB
