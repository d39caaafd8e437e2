from __future__ import annotations

from itertools import pairwise

import pytest

from blitzgw.core.rumours import Digest, PacketKind, Status, SyncAnswer, SyncOffer, Update
from blitzgw.gossip import events as e
from blitzgw.gossip.members import MEMBERS_MAX
from blitzgw.gossip.syncing import SEEDS_MAX, SYNCS_MAX
from tests.gossip.membership_kit import (
    KNOBS,
    acquainted,
    address,
    arrived,
    exchange,
    membership,
    only,
    packet,
    packets,
    rumour,
    run_until,
    status,
    tell,
)

ALIVE, SUSPECT, DEAD, LEFT = Status


def syncs(effects):
    return only(effects, e.StartSync)


def answered(start, boot, *members, updates=()):
    return e.SyncAnswered(start.exchange, boot, SyncAnswer(members, (), tuple(updates)))


def fail_all(m, until_s):
    """Let every sync fail at once; return when they were begun."""
    times = []
    while m.deadline() <= until_s:
        now = m.deadline()
        for start in syncs(m.handle(e.TimePassed(), now)):
            times.append(now)
            m.handle(e.SyncFailed(start.exchange, start.address), now)
        m.check_integrity()
    return times


# Seeds.


def test_seeds_are_tried_at_once_but_not_this_node_itself():
    m = membership()
    effects = m.handle(e.SeedsFound((address("a"), address("me"), address("b"), ("", 1))), 0.0)
    assert [s.address for s in syncs(effects)] == [address("a"), address("b")]
    assert syncs(effects)[0].offer == SyncOffer(m.members(), ())
    assert not syncs(m.handle(e.SeedsFound((address("a"), address("b"))), 0.1))


def test_seeds_are_tried_for_ever_and_ever_more_rarely():
    m = membership()
    m.handle(e.SeedsFound((address("a"),)), 0.0)
    times = fail_all(m, 300.0)
    assert len(times) > 25
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] <= 1.25 * KNOBS.seed_retry_s
    assert max(gaps) <= 1.25 * KNOBS.sync_interval_s
    assert min(gaps[6:]) >= 0.75 * KNOBS.sync_interval_s


def test_a_seed_that_is_a_member_is_left_alone_until_it_is_gone():
    m = membership()
    (start,) = syncs(m.handle(e.SeedsFound((("alias", 5),)), 0.0))
    m.handle(answered(start, "a", rumour("a")), 0.1)
    assert status(m, "a") is ALIVE
    tried = [s.address for s in syncs(m.handle(e.TimePassed(), 9.0)) if s.address[0] == "alias"]
    assert tried == []
    tell(m, rumour("a", DEAD), now=9.0)
    tried = [s.address for s in syncs(run_until(m, 30.0)) if s.address[0] == "alias"]
    assert tried


def test_a_seed_that_turns_out_to_be_this_node_is_left_alone():
    m = membership()
    (start,) = syncs(m.handle(e.SeedsFound((("alias", 5),)), 0.0))
    (echo,) = only(m.handle(e.SyncOffered(9, start.offer), 0.0), e.AnswerSync)
    m.handle(e.SyncAnswered(start.exchange, "me", echo.answer), 0.0)
    assert fail_all(m, 60.0) == []
    assert len(m.members()) == 1


def test_seeds_that_are_not_found_any_more_are_dropped():
    m = membership()
    m.handle(e.SeedsFound((address("a"), address("b"))), 0.0)
    m.handle(e.SeedsFound((address("b"),)), 0.0)
    assert {s.address for s in syncs(run_until(m, 20.0))} == {address("b")}
    m.check_integrity()


def test_seeds_and_syncs_under_way_are_bounded():
    m = membership()
    found = tuple((f"h{i}", 1) for i in range(SEEDS_MAX + 5))
    assert len(syncs(m.handle(e.SeedsFound(found), 0.0))) == SYNCS_MAX
    assert m.statistics().dropped == {"too_many_seeds": 5}
    m.check_integrity()
    # a shell that never tells what came of them does not block this for ever
    assert syncs(run_until(m, 40.0))
    m.check_integrity()


# Exchanges.


def test_a_sync_brings_members_and_states_both_ways():
    a, b = acquainted("x"), acquainted("y")
    b = membership("b")
    b.handle(e.SyncAnswered(0, "y", SyncAnswer((rumour("y"),), (), ())), 0.0)
    a.handle(e.StatePublished({"k": b"of a"}), 0.0)
    b.handle(e.StatePublished({"k": b"of b", "gone": b""}), 0.0)
    b.handle(e.StatePublished({"gone": None}), 0.0)
    effects = exchange(a, b, 1.0)
    assert {r.boot for r in a.members()} == {r.boot for r in b.members()} == {"me", "b", "x", "y"}
    assert a.entries("b") == b.entries("b")
    assert a.entries("me") == b.entries("me")
    told = [u for x in only(effects, e.StateChanged) for u in x.updates]
    assert sorted(u.value for u in told) == [b"of a", b"of b"]
    assert exchange(a, b, 2.0) == []
    a.check_integrity()


@pytest.mark.parametrize(
    ("claimed", "then"), [(ALIVE, ALIVE), (SUSPECT, SUSPECT), (DEAD, SUSPECT), (LEFT, LEFT)]
)
def test_death_by_sync_is_a_suspicion_first(claimed, then):
    m = acquainted("a", "b")
    m.handle(e.SyncOffered(1, SyncOffer((rumour("b", claimed, accuser="c"),), ())), 0.0)
    assert status(m, "b") is then
    m.check_integrity()


def test_who_was_alone_passes_on_only_itself():
    m = membership()
    m.handle(e.StatePublished({"k": b"1"}), 0.0)
    (start,) = syncs(m.handle(e.SeedsFound((address("a"),)), 0.0))
    m.handle(answered(start, "a", *(rumour(b) for b in "abcdef")), 0.0)
    sent = packets(m.handle(e.TimePassed(), 0.0), PacketKind.GOSSIP)
    assert {r.boot for s in sent for r in s.packet.rumours} == {"me"}
    assert {u.key for s in sent for u in s.packet.updates} == {"k"}


def test_who_was_not_alone_passes_on_what_a_sync_has_brought():
    m = acquainted("a")
    run_until(m, 1.0)
    m.handle(e.SyncOffered(1, SyncOffer((rumour("new"),), ())), 1.0)
    sent = packets(m.handle(e.TimePassed(), 1.0), PacketKind.GOSSIP)
    assert "new" in {r.boot for s in sent for r in s.packet.rumours}


def test_every_answer_is_finished_even_of_an_exchange_that_is_not_known():
    m = acquainted("a")
    effects = m.handle(e.SyncAnswered(99, "b", SyncAnswer((), (), ())), 0.0)
    assert [x.exchange for x in only(effects, e.FinishSync)] == [99]
    assert m.handle(e.SyncFailed(99, ("h", 1)), 0.0) == []


def test_an_offer_of_too_many_members_is_cut():
    m = membership()
    claims = tuple(rumour(str(i), LEFT) for i in range(MEMBERS_MAX + 3))
    (answer,) = only(m.handle(e.SyncOffered(4, SyncOffer(claims, ())), 0.0), e.AnswerSync)
    assert answer.answer.members == m.members()
    assert m.statistics().dropped == {"too_many_members": 3}


# When.


def test_a_random_member_is_synced_now_and_then():
    m = acquainted(*"abc")
    for boot in "abc":  # keep them from dying of silence
        tell(m, rumour(boot, ALIVE, 1))
    begun = []
    while m.deadline() < 100:
        now = m.deadline()
        effects = m.handle(e.TimePassed(), now)
        for ping in packets(effects, PacketKind.PING):
            m.handle(arrived(ping.boot, packet(PacketKind.ACK, ping.packet.seq)), now)
        for start in syncs(effects):
            begun.append(start.address)
            m.handle(e.SyncFailed(start.exchange, start.address), now)
    assert 7 <= len(begun) <= 14
    assert set(begun) == {address(b) for b in "abc"}


def test_a_member_whose_state_stays_different_is_synced_and_ever_more_rarely():
    m = acquainted("a", "b")
    times = []
    now = 0.0
    while now < 30:
        now += 0.1
        effects = m.handle(arrived("a", packet(digest=Digest("a", 5, 9))), now)
        effects += m.handle(e.TimePassed(), now)
        for ping in packets(effects, PacketKind.PING):
            seq = ping.packet.seq
            m.handle(arrived(ping.boot, packet(PacketKind.ACK, seq, digest=Digest("", -1, 0))), now)
        for start in syncs(effects):
            m.handle(e.SyncFailed(start.exchange, start.address), now)
            if start.address == address("a"):
                times.append(now)
    assert KNOBS.sync_patience_s <= times[0] <= KNOBS.sync_patience_s + 0.3
    assert 5 <= len(times) <= 10


def test_a_member_whose_rumours_are_only_late_is_not_synced():
    m = acquainted("a")
    m.handle(arrived("a", packet(digest=Digest("a", 1, 1))), 0.0)
    tell(m)
    m.handle(arrived("a", packet(updates=[Update("a", "k", 1, b"")])), 0.1)
    assert not syncs(run_until(m, 1.0))


@pytest.mark.parametrize("digest", [Digest("a", 1, 1), Digest("other", 9, 9)])
def test_old_packets_and_nonsense_start_nothing(digest):
    m = acquainted("a")
    m.handle(arrived("a", packet(updates=[Update("a", "k", 2, b"")])), 0.0)
    m.handle(arrived("a", packet(digest=digest)), 0.1)
    assert not syncs(run_until(m, 1.0))


def test_a_stranger_is_synced_unless_it_is_heard_of_meanwhile():
    m = acquainted("a")
    m.handle(arrived("new", packet()), 0.0)
    assert [s.address for s in syncs(run_until(m, 0.4))] == [address("new")]
    m = acquainted("a")
    m.handle(arrived("new", packet()), 0.0)
    tell(m, rumour("new"), now=0.1)
    assert not syncs(run_until(m, 0.4))


def test_strangers_that_nobody_gets_to_know_are_visited_ever_more_rarely():
    m = acquainted("a")
    n = 0
    for step in range(600):
        m.handle(arrived(f"s{step}", packet()), 0.1 * step)
        for start in syncs(run_until(m, 0.1 * step)):
            m.handle(e.SyncFailed(start.exchange, start.address), 0.1 * step)
            n += start.address not in {address("a")}
    assert 5 <= n <= 20


def test_the_dead_are_tried_again_and_those_who_left_are_not():
    m = acquainted("a", "b", "c")
    tell(m, rumour("a", DEAD))
    tell(m, rumour("b", LEFT))
    tell(m, rumour("c", LEFT), by="b")
    tried = [s.address for s in syncs(run_until(m, 30.0))]
    assert 4 <= len(tried) <= 8
    assert set(tried) == {address("a")}


def test_a_packet_that_claims_to_be_this_nodes_own_is_dropped():
    m = acquainted("a")
    assert m.handle(arrived("me", packet(PacketKind.PING, 1)), 0.0) == []
    assert m.statistics().dropped == {"packet_of_mine": 1}


def gossip_of(boot, census):
    return arrived(boot, packet(PacketKind.GOSSIP)._replace(census=census))


def test_who_knows_others_is_synced_once_nothing_moves_any_more():
    m = acquainted("a", "b")
    begun_at_s = []
    tell(m, rumour("c"), now=0.0)
    m.handle(gossip_of("a", 12345), 0.0)
    m.handle(gossip_of("b", 54321), 0.0)  # one at a time
    while not begun_at_s:
        now = m.deadline()
        assert now < 1.0, "no sync"
        begun_at_s += [(now, start.address) for start in syncs(m.handle(e.TimePassed(), now))]
    [(when, whom)] = begun_at_s
    assert whom == address("a")
    assert when == pytest.approx(KNOBS.sync_patience_s)


def test_a_census_that_differs_while_rumours_move_is_no_reason_to_sync():
    m = acquainted("a", "b")
    m.handle(gossip_of("a", 12345), 0.0)
    tell(m, rumour("c"), now=0.05)
    assert not syncs(run_until(m, 0.5))


def test_an_equal_census_and_one_that_is_not_told_are_no_reason_to_sync():
    m, same = acquainted("a"), acquainted("a")
    pings = packets(run_until(same, 0.3), PacketKind.PING)
    assert pings[0].packet.census
    m.handle(gossip_of("a", 0), 0.0)
    m.handle(gossip_of("a", pings[0].packet.census), 0.0)
    assert not syncs(run_until(m, 0.5))
