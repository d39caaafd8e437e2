from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.rumours import Digest, PacketKind, Update
from blitzgw.gossip import events as e
from blitzgw.gossip import statebook as sb
from blitzgw.gossip.statebook import NodeState, StateBook
from tests.gossip.membership_kit import (
    KNOBS,
    acquainted,
    arrived,
    exchange,
    only,
    packet,
    packets,
    run_until,
)


def told(m, *updates, now=0.0, by="a", digest=None):
    digest = digest or Digest(by, 0, 0)
    return m.handle(arrived(by, packet(updates=updates, digest=digest)), now)


def news(effects):
    return [u for x in only(effects, e.StateChanged) for u in x.updates]


# The book.


def test_publishing_counts_changes_only():
    book = StateBook("me")
    assert [u.version for u in book.publish({"a": b"1", "b": b"2", "c": None})] == [1, 2]
    assert book.publish({"a": b"1", "b": b"2"}) == []
    assert book.publish({"a": None}) == [Update("me", "a", 3, None)]
    assert book.publish({"a": None}) == []
    assert book.digest == Digest("me", 3, 5)
    assert book.publish({"a": b"3"}) == [Update("me", "a", 4, b"3")]
    assert book.digest == Digest("me", 4, 6)
    book.check_integrity()


FULL = {str(i): b"x" * 1000 for i in range(sb.STATE_MAX_BYTES // 1010)}


@pytest.mark.parametrize(
    "entries",
    [
        {"": b"1"},
        {"x" * 257: b"1"},
        {"a": b"x" * (sb.ENTRY_MAX_BYTES + 1)},
        {str(i): b"" for i in range(sb.ENTRIES_MAX + 1)},
        FULL | {"one": b"x" * 1000, "more": b"x" * 1000, "y": b"x" * 2000},
    ],
)
def test_what_is_too_large_is_refused_as_a_whole(entries):
    book = StateBook("me")
    book.publish({"before": b"1"})
    with pytest.raises(ValueError, match=r"limit|characters"):
        book.publish({"first": b"1"} | entries)
    assert list(book.own.entries) == ["before"]
    book.check_integrity()


def test_entries_that_are_gone_make_room():
    book = StateBook("me")
    for n in range(5):
        book.publish({f"{n}-{i}": b"x" for i in range(sb.ENTRIES_MAX)})
        book.publish({f"{n}-{i}": None for i in range(sb.ENTRIES_MAX)})
        book.check_integrity()
    assert len(book.own.entries) == sb.TOMBSTONES_MAX


def test_holders_let_go_of_the_same_tombstones():
    updates = [Update("b", str(i), i, None) for i in range(1, sb.TOMBSTONES_MAX + 40)]
    a, b = NodeState(), NodeState()
    for update in updates:
        a.apply(update)
    for update in reversed(updates[-sb.TOMBSTONES_MAX :]):
        b.apply(update)
    assert a.entries == b.entries
    assert (a.version, a.total) == (b.version, b.total)
    a.check_integrity("b")


changes = st.dictionaries(st.sampled_from("cdefg"), st.none() | st.binary(max_size=1), max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(changes, max_size=12), st.randoms(use_true_random=False))
def test_whatever_was_heard_a_sync_with_the_origin_completes_it(history, rng):
    origin, holder = StateBook("b"), StateBook("me")
    updates = [u for entries in history for u in origin.publish(entries)]
    for update in rng.choices(updates, k=rng.randrange(20)) if updates else []:
        if holder.is_news(update):
            holder.state("b").apply(update)
    heard = holder.state("b").entries
    same = heard == origin.own.entries
    assert same == (holder.digest_of("b") == origin.digest)
    assert not [u for u in holder.lacking(origin.digests()) if origin.is_news(u)]
    for update in origin.lacking(holder.digests()):
        if holder.is_news(update):
            holder.state("b").apply(update)
    holder.check_integrity()
    assert heard == origin.own.entries


def test_a_sync_sends_only_what_is_newer_unless_there_is_a_hole():
    book = StateBook("me")
    book.publish({str(i): b"x" for i in range(10)})
    assert len(book.lacking([])) == 10
    assert [u.version for u in book.lacking([Digest("me", 8, 36)])] == [9, 10]
    assert len(book.lacking([Digest("me", 10, 54)])) == 10
    assert book.lacking([Digest("me", 10, 55)]) == ()
    assert book.lacking([Digest("me", 11, 60)]) == ()


def test_the_origin_knows_of_a_hole_at_an_earlier_version_unless_that_is_long_ago():
    book = StateBook("me")
    book.publish({"lost": b"x"})
    for number in range(sb.TOTALS_KEPT + 3):
        book.publish({"load": str(number).encode()})
    last = book.own.version - 1
    assert [u.key for u in book.lacking([Digest("me", last, last + 1)])] == ["load"]
    assert {u.key for u in book.lacking([Digest("me", last, last)])} == {"lost", "load"}
    assert {u.key for u in book.lacking([Digest("me", 2, 3)])} == {"lost", "load"}


def test_one_message_of_a_sync_is_bounded():
    book = StateBook("me")
    value = b"x" * sb.ENTRY_MAX_BYTES
    for i in range(40):
        for key in "abcdefg":
            book.state(f"b{i}").apply(Update(f"b{i}", key, 1, value))
    lacking = book.lacking([])
    size = sum(len(u.value or b"") for u in lacking)
    assert sb.SYNC_UPDATES_MAX_BYTES * 0.9 < size < sb.SYNC_UPDATES_MAX_BYTES


# The decider.


def test_only_real_news_is_told():
    m = acquainted("a", "b")
    first = Update("b", "k", 2, b"1")
    assert news(told(m, first)) == [first]
    assert news(told(m, first)) == []
    assert news(told(m, Update("b", "k", 1, b"0"))) == []
    assert news(told(m, Update("b", "unheard", 3, None))) == []
    assert news(told(m, Update("b", "k", 4, None))) == [Update("b", "k", 4, None)]
    assert set(m.entries("b")) == {"k", "unheard"}
    m.check_integrity()


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (Update("me", "k", 1, b"1"), "forged_update"),
        (Update("stranger", "k", 1, b"1"), "update_of_stranger"),
        (Update("b", "", 1, b"1"), "unsound_update"),
        (Update("b", "x" * 257, 1, b"1"), "unsound_update"),
        (Update("b", "k", 0, b"1"), "unsound_update"),
        (Update("b", "k", 1 << 60, b"1"), "unsound_update"),
        (Update("b", "k", 1, b"x" * (sb.ENTRY_MAX_BYTES + 1)), "unsound_update"),
    ],
)
def test_what_cannot_be_is_dropped_and_counted(update, reason):
    m = acquainted("a", "b")
    assert not news(told(m, update))
    assert m.statistics().dropped == {reason: 1}
    m.check_integrity()


@pytest.mark.parametrize(("n", "size"), [(sb.ENTRIES_MAX, 1), (8, sb.ENTRY_MAX_BYTES - 10)])
def test_state_above_the_limits_is_dropped_and_counted(n, size):
    m = acquainted("a", "b")
    told(m, *(Update("b", str(i), i, b"x" * size) for i in range(1, n + 1)))
    assert m.statistics().dropped == {}
    assert not news(told(m, Update("b", "more", n + 1, b"x" * size)))
    assert m.statistics().dropped == {"state_full": 1}
    assert news(told(m, Update("b", "1", n + 2, b"")))  # smaller than before
    m.check_integrity()
    # what cannot be held cannot be caught up with: no syncs for it
    told(m, by="b", digest=Digest("b", 9999, 9999), now=1.0)
    assert not only(run_until(m, 3.0), e.StartSync)


def test_what_is_published_goes_out_at_once_and_is_bounded():
    m = acquainted(*"abcdefghi")
    run_until(m, 5.0)
    m.handle(e.StatePublished({str(i): bytes(300) for i in range(20)}), 6.0)
    assert m.deadline() <= 6.0
    effects = m.handle(e.TimePassed(), 6.0)
    by_boot: dict[str, set[str]] = {}
    for sent in packets(effects, PacketKind.GOSSIP):
        by_boot.setdefault(sent.boot, set()).update(u.key for u in sent.packet.updates)
    assert len(by_boot) == 3
    assert all(len(keys) == 20 for keys in by_boot.values())
    run_until(m, 8.0)
    assert m.statistics().queued == 0


def test_too_large_a_value_is_refused_by_the_decider():
    m = acquainted("a")
    with pytest.raises(ValueError, match="limit"):
        m.handle(e.StatePublished({"k": bytes(sb.ENTRY_MAX_BYTES + 1)}), 0.0)
    assert m.entries("me") == {}
    m.check_integrity()


def test_an_entry_larger_than_a_packet_travels_by_sync():
    m, other = acquainted("a"), acquainted("me", me="other")
    m.handle(e.StatePublished({"large": bytes(5000), "small": b"1"}), 1.0)
    sent = [s.packet for s in packets(run_until(m, 1.0), PacketKind.GOSSIP)]
    assert {p.digest for p in sent} == {Digest("me", 2, 3)}
    assert {u.key for p in sent for u in p.updates} == {"small"}
    other.handle(e.PacketArrived("me", ("h", 1), sent[0]), 1.0)
    syncs = only(run_until(other, 1.001 + KNOBS.sync_patience_s), e.StartSync)
    assert len(syncs) == 1
    assert [u.key for u in news(exchange(other, m, 1.3))] == ["large"]
    assert other.entries("me") == m.entries("me")


def test_the_state_of_the_forgotten_is_forgotten():
    m = acquainted("a", "b")
    told(m, Update("b", "k", 1, b"1"))
    for boot in ("a", "b"):
        m.handle(e.LinkBroke(boot), 0.0)
    effects = run_until(m, KNOBS.forget_dead_s + 20)
    assert {x.boot for x in only(effects, e.MemberForgotten)} == {"a", "b"}
    assert m.entries("b") == {}
