"""Datagrams: authentic, for this process, once; everything else changes nothing and is counted."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.crypto import datagrams
from blitzgw.crypto.datagrams import OVERHEAD_BYTES, Datagrams, Rejection
from blitzgw.crypto.keys import Keyring
from blitzgw.crypto.replay import WINDOW_BITS, ReplayWindow
from blitzgw.errors import ProtocolError

OLD, NEW, FOREIGN = ("old" * 12), ("new" * 12), ("foreign" * 5)
ANN, BOB, EVE = "aa" * 8, "bb" * 8, "ee" * 8


def end(boot: str, *keys: str) -> Datagrams:
    return Datagrams(Keyring(keys or (OLD,)), boot)


def reasons(receiver: Datagrams) -> dict[str, int]:
    return {str(why): count for why, count in receiver.rejected.items() if count}


def test_what_is_sealed_for_a_peer_opens_there_and_says_who_sent_it():
    ann, bob = end(ANN), end(BOB)
    assert bob.open(ann.seal(BOB, b"hello")) == (ANN, b"hello")
    assert ann.open(bob.seal(ANN, b"")) == (BOB, b"")
    assert not reasons(ann)
    assert not reasons(bob)


def test_nothing_of_the_payload_is_readable_and_equal_payloads_differ():
    ann = end(ANN)
    first, second = ann.seal(BOB, b"secret" * 10), ann.seal(BOB, b"secret" * 10)
    assert len(first) == 60 + OVERHEAD_BYTES
    assert b"secret" not in first
    assert first[30:] != second[30:]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "short"),
        (lambda: end(ANN).seal(BOB, b"")[:-1], "short"),
        (lambda: b"\xb1\x02" + end(ANN).seal(BOB, b"x")[2:], "magic"),
        (lambda: end(ANN, FOREIGN).seal(BOB, b"x"), "key"),
        (lambda: end(ANN).seal(EVE, b"x"), "addressee"),
        (lambda: end(ANN).seal(BOB, b"x")[:-1] + b"\0\0", "forged"),
        (lambda: end(BOB).seal(BOB, b"x")[:6] + end(ANN).seal(BOB, b"x")[6:-1] + b"!", "forged"),
    ],
)
def test_a_strangers_datagram_is_dropped_for_its_reason(make, reason):
    bob = end(BOB)
    with pytest.raises(ProtocolError):
        bob.open(make())
    assert reasons(bob) == {reason: 1}
    assert not bob._inbound


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_every_changed_byte_is_noticed_and_the_original_still_opens(at, flip):
    ann, bob = end(ANN), end(BOB)
    good = ann.seal(BOB, b"some payload")
    bad = bytearray(good)
    bad[at % len(bad)] ^= flip
    with pytest.raises(ProtocolError):
        bob.open(bytes(bad))
    assert sum(bob.rejected.values()) == 1
    assert bob.open(good) == (ANN, b"some payload")


def test_a_datagram_opens_once():
    ann, bob = end(ANN), end(BOB)
    data = ann.seal(BOB, b"x")
    bob.open(data)
    for _ in range(3):
        with pytest.raises(ProtocolError):
            bob.open(data)
    assert reasons(bob) == {"replay": 3}


def test_a_datagram_to_an_earlier_life_or_another_node_opens_nowhere():
    data = end(ANN).seal(BOB, b"x")
    readdressed = data[:14] + bytes.fromhex(EVE) + data[22:]
    reborn = end(EVE)
    for attempt in (data, readdressed):
        with pytest.raises(ProtocolError):
            reborn.open(attempt)
    assert reasons(reborn) == {"addressee": 1, "forged": 1}


def test_a_datagram_cannot_be_turned_round():
    ann = end(ANN)
    data = ann.seal(BOB, b"x")
    reflected = data[:6] + data[14:22] + data[6:14] + data[22:]
    with pytest.raises(ProtocolError):
        ann.open(reflected)
    assert reasons(ann) == {"forged": 1}


def test_forged_counters_do_not_move_the_window():
    ann, bob = end(ANN), end(BOB)
    first, second = ann.seal(BOB, b"1"), ann.seal(BOB, b"2")
    bob.open(first)
    ahead = second[:22] + (1 << 60).to_bytes(8, "little") + second[30:]
    with pytest.raises(ProtocolError):
        bob.open(ahead)
    assert bob.open(second) == (ANN, b"2")


def test_keys_rotate_without_a_gap():
    stages = [(OLD,), (OLD, NEW), (NEW, OLD), (NEW,)]
    for before, after in itertools.pairwise(stages):
        ann, bob = end(ANN, *before), end(BOB, *after)
        assert bob.open(ann.seal(BOB, b"x")) == (ANN, b"x")
        assert ann.open(bob.seal(ANN, b"y")) == (BOB, b"y")
    with pytest.raises(ProtocolError):
        end(BOB, OLD).open(end(ANN, NEW).seal(BOB, b"x"))


def test_one_sender_may_change_its_first_key_without_looking_like_a_replay():
    bob = end(BOB, OLD, NEW)
    for key in (OLD, NEW):
        assert bob.open(end(ANN, key).seal(BOB, b"x")) == (ANN, b"x")


def test_what_is_remembered_is_bounded_and_no_nonce_comes_twice(monkeypatch):
    monkeypatch.setattr(datagrams, "MAX_PEERS", 4)
    ann = end(ANN)
    seen = set()
    for boot in [f"{n:016x}" for n in (1, 2, 3, 4, 5, 6, 1, 2, 1, 7, 8, 9, 10, 1)]:
        header = ann.seal(boot, b"x")[:30]
        assert header not in seen
        seen.add(header)
    assert len(ann._outbound) == 4
    bob = end(BOB)
    for n in range(10):
        bob.open(end(f"{n:016x}").seal(BOB, b"x"))
    assert len(bob._inbound) == 4


def test_only_the_authentic_are_remembered():
    bob = end(BOB)
    rng = random.Random(1)
    head = end(ANN).seal(BOB, b"")[:6]
    for _ in range(500):
        with pytest.raises(ProtocolError):
            bob.open(head + rng.randbytes(8) + bytes.fromhex(BOB) + rng.randbytes(40))
    assert bob.rejected[Rejection.FORGED] == 500
    assert not bob._inbound


@pytest.mark.parametrize("boot", ["", "aa", "AA" * 8, "gg" * 8, "aa" * 9, " a" * 8, "é" * 16])
def test_a_boot_id_is_sixteen_hex_characters(boot):
    with pytest.raises(ProtocolError):
        end(ANN).seal(boot, b"")


def test_malformed_payloads_are_counted_by_whoever_finds_them():
    bob = end(BOB)
    assert isinstance(bob.reject(Rejection.MALFORMED), ProtocolError)
    assert reasons(bob) == {"malformed": 1}


@given(st.lists(st.integers(1, 4000), max_size=120))
@settings(max_examples=100, deadline=None)
def test_the_window_agrees_with_a_set(counters):
    window, seen, highest = ReplayWindow(), set(), 0
    for counter in counters:
        expected = counter not in seen and counter > highest - WINDOW_BITS
        assert window.is_new(counter) == expected
        if expected:
            window.add(counter)
            seen.add(counter)
            highest = max(highest, counter)


def test_the_window_s_edges():
    window = ReplayWindow()
    assert not window.is_new(0)
    window.add(1)
    window.add(1 + WINDOW_BITS - 1)
    assert not window.is_new(1)
    assert window.is_new(2)
    window.add(1 + WINDOW_BITS)
    assert not window.is_new(1)
    assert window.is_new(2)
    window.add((1 << 64) - 1)
    assert not window.is_new(2)
