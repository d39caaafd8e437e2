from __future__ import annotations

import math

import pytest

from blitzgw.core.rumours import PacketKind, Status
from blitzgw.gossip import events as e
from blitzgw.gossip.beliefs import INCARNATION_JUMP_MAX
from blitzgw.gossip.members import MEMBERS_MAX
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


def test_a_node_alone_is_a_cluster_of_one():
    m = membership()
    assert m.members() == (rumour("me"),)
    assert m.deadline() == math.inf
    assert m.handle(e.TimePassed(), 5.0) == []
    assert m.handle(e.StatePublished({"node": b"1"}), 6.0) == []
    assert m.deadline() == math.inf
    assert m.entries("me")["node"].value == b"1"
    assert m.entries("nobody") == {}
    m.check_integrity()


# What is believed, by what is believed already (status, incarnation 1) and what is claimed.
@pytest.mark.parametrize(
    ("held", "claimed", "incarnation", "then"),
    [
        (ALIVE, ALIVE, 1, ALIVE),
        (ALIVE, SUSPECT, 0, ALIVE),
        (ALIVE, SUSPECT, 1, SUSPECT),
        (ALIVE, SUSPECT, 2, SUSPECT),
        (ALIVE, DEAD, 0, ALIVE),
        (ALIVE, DEAD, 1, DEAD),
        (ALIVE, LEFT, 1, LEFT),
        (SUSPECT, ALIVE, 1, SUSPECT),
        (SUSPECT, ALIVE, 2, ALIVE),
        (SUSPECT, SUSPECT, 2, SUSPECT),
        (SUSPECT, DEAD, 0, SUSPECT),
        (SUSPECT, DEAD, 1, DEAD),
        (SUSPECT, LEFT, 1, LEFT),
        (DEAD, ALIVE, 1, DEAD),
        (DEAD, SUSPECT, 1, DEAD),
        (DEAD, SUSPECT, 2, SUSPECT),
        (DEAD, ALIVE, 2, ALIVE),
        (DEAD, LEFT, 1, LEFT),
        (LEFT, ALIVE, 1, LEFT),
        (LEFT, DEAD, 1, LEFT),
        (LEFT, ALIVE, 2, ALIVE),
    ],
)
def test_precedence(held, claimed, incarnation, then):
    m = acquainted("a", "b")
    tell(m, rumour("b", ALIVE, 1))
    tell(m, rumour("b", held, 1))
    assert status(m, "b") is held
    effects = tell(m, rumour("b", claimed, incarnation))
    assert status(m, "b") is then
    changed = [x.member.status for x in only(effects, e.MemberChanged)]
    assert changed == ([then] if then is not held else [])
    m.check_integrity()


@pytest.mark.parametrize(
    ("claimed", "known"), [(ALIVE, True), (SUSPECT, True), (DEAD, False), (LEFT, False)]
)
def test_only_the_living_are_taken_in(claimed, known):
    m = acquainted("a")
    effects = tell(m, rumour("new", claimed, 3, accuser="a"))
    assert (status(m, "new") is claimed) is known
    assert len(only(effects, e.MemberChanged)) == known
    m.check_integrity()


def test_a_new_address_or_name_is_told():
    m = acquainted("a", "b")
    effects = tell(m, rumour("b", ALIVE, 1, host="10.0.0.9"))
    assert [x.member.host for x in only(effects, e.MemberChanged)] == ["10.0.0.9"]
    assert not only(tell(m, rumour("b", ALIVE, 2, host="10.0.0.9")), e.MemberChanged)
    m.check_integrity()


@pytest.mark.parametrize(
    "claim",
    [
        rumour("new", port=0),
        rumour("new", port=65536),
        rumour("new", host=""),
        rumour("new", host="x" * 256),
        rumour("new", name="x" * 256),
        rumour("", port=1),
        rumour("x" * 65),
        rumour("new", incarnation=-1),
        rumour("new", started_s=-1),
        rumour("new", accuser="x" * 65),
        rumour("b", SUSPECT, accuser="x" * 65),
    ],
)
def test_unsound_claims_are_dropped_and_counted(claim):
    m = acquainted("a", "b")
    before = m.members()
    tell(m, claim)
    assert m.members() == before
    assert m.statistics().dropped == {"unsound_rumour": 1}


@pytest.mark.parametrize("boot", ["me", "b", "new"])
def test_absurd_incarnations_are_dropped_and_counted(boot):
    m = acquainted("a", "b")
    before = m.members()
    tell(m, rumour(boot, SUSPECT, INCARNATION_JUMP_MAX + 1))
    assert m.members() == before
    assert m.statistics().dropped == {"incarnation_jump": 1}
    tell(m, rumour(boot, SUSPECT, INCARNATION_JUMP_MAX))
    assert m.members() != before


@pytest.mark.parametrize("claimed", [SUSPECT, DEAD, LEFT])
def test_a_claim_about_this_node_is_contradicted(claimed):
    m = acquainted("a")
    tell(m, rumour("me", claimed, 4, accuser="a"))
    assert m.members()[0] == rumour("me", ALIVE, 5)
    effects = m.handle(arrived("a", packet(PacketKind.PING, 7)), 0.0)
    (ack,) = packets(effects, PacketKind.ACK)
    assert rumour("me", ALIVE, 5) in ack.packet.rumours
    assert m.statistics().refutations == 1
    assert m.statistics().health == 1


def test_a_stale_claim_about_this_node_is_answered_with_what_holds():
    m = acquainted("a")
    tell(m, rumour("me", SUSPECT, 4))
    run_until(m, 1.0)
    assert m.statistics().queued == 0
    effects = m.handle(
        arrived("a", packet(PacketKind.PING, 7, rumours=[rumour("me", SUSPECT, 4)])), 1.0
    )
    (ack,) = packets(effects, PacketKind.ACK)
    assert rumour("me", ALIVE, 5) in ack.packet.rumours
    assert m.statistics().refutations == 1


def test_members_above_the_limit_are_dropped_and_counted():
    m = acquainted("a")
    claims = [rumour(f"m{i}", host=f"h{i}") for i in range(MEMBERS_MAX)]
    tell(m, *claims)
    assert len(m.members()) == MEMBERS_MAX
    assert m.statistics().dropped == {"too_many_members": 2}
    m.check_integrity()


@pytest.mark.parametrize("started_s", [100, 101])
def test_a_younger_process_supersedes_whoever_had_its_address(started_s):
    m = acquainted("a", "old")
    old = rumour("old")
    effects = tell(m, rumour("new", host=old.host, port=old.port, started_s=started_s))
    changed = [(x.member.boot, x.member.status) for x in only(effects, e.MemberChanged)]
    assert changed == [("old", DEAD), ("new", ALIVE)]
    m.check_integrity()


def test_an_older_process_does_not_come_back_to_its_address():
    m = acquainted("a", "new")
    new = rumour("new")
    tell(m, rumour("old", host=new.host, port=new.port, started_s=99))
    assert status(m, "old") is None
    assert m.statistics().dropped == {"address_taken": 1}


def test_nobody_takes_this_nodes_address():
    m = acquainted("a")
    me = rumour("me")
    tell(m, rumour("thief", host=me.host, port=me.port, started_s=999))
    assert status(m, "thief") is None
    m.check_integrity()


# Suspicion.


def test_an_unconfirmed_suspicion_lasts_longest_and_ends_in_death():
    m = acquainted(*"abcdefghi")
    tell(m, rumour("b", SUSPECT, accuser="c"))
    told = []
    while status(m, "b") is SUSPECT:
        now = m.deadline()
        # all others answer, so that nobody else is suspected
        for sent in packets(m.handle(e.TimePassed(), now), PacketKind.PING):
            if sent.boot != "b":
                m.handle(arrived(sent.boot, packet(PacketKind.ACK, sent.packet.seq)), now)
        told.append(now)
    assert told[-1] <= KNOBS.suspicion_max_s(10)
    assert status(m, "b") is DEAD
    assert m.statistics().deaths == 1


@pytest.mark.parametrize(
    ("accusers", "intervals"), [("c", 24), ("cd", 14), ("cdef", 4), ("cccc", 24), ("cdefghi", 4)]
)
def test_independent_accusers_shorten_a_suspicion(accusers, intervals):
    m = acquainted(*"abcdefghi")
    for accuser in accusers:
        tell(m, rumour("b", SUSPECT, accuser=accuser))
    for boot in "acdefghi":  # away with those whose probes would confirm it
        tell(m, rumour(boot, LEFT))
    ends_s = intervals * KNOBS.probe_interval_s
    if "b" in {r.boot for r in m.members() if r.status is SUSPECT}:
        m.handle(e.TimePassed(), ends_s - 0.02)
        assert status(m, "b") is SUSPECT
    run_until(m, ends_s + 0.3)
    assert status(m, "b") is DEAD


def test_confirmations_are_passed_on_until_there_are_enough():
    m = acquainted(*"abcdefghi")
    for accuser in "cdefgh":
        tell(m, rumour("b", SUSPECT, accuser=accuser))
    effects = m.handle(arrived("a", packet(PacketKind.PING, 1)), 0.0)
    (ack,) = packets(effects, PacketKind.ACK)
    assert {r.accuser for r in ack.packet.rumours if r.boot == "b"} == set("cdef")


def test_a_refutation_ends_a_suspicion_and_what_was_told_of_it():
    m = acquainted("a", "b", "c")
    tell(m, rumour("b", SUSPECT, accuser="c"))
    tell(m, rumour("b", SUSPECT, accuser="a"))
    tell(m, rumour("b", ALIVE, 1))
    effects = m.handle(arrived("a", packet(PacketKind.PING, 1)), 0.0)
    (ack,) = packets(effects, PacketKind.ACK)
    assert [r for r in ack.packet.rumours if r.boot == "b"] == [rumour("b", ALIVE, 1)]
    m.check_integrity()


def test_the_word_of_the_dead_is_only_a_suspicion():
    m = acquainted("a", "b", "c")
    tell(m, rumour("c", DEAD))
    tell(m, rumour("b", DEAD, accuser="c"))
    assert status(m, "b") is SUSPECT
    tell(m, rumour("b", DEAD, accuser="a"))
    assert status(m, "b") is DEAD


def test_one_who_is_taken_for_dead_is_told_when_it_is_heard():
    m = acquainted("a", "b")
    tell(m, rumour("b", DEAD, accuser="a"))
    effects = m.handle(arrived("b", packet(PacketKind.GOSSIP)), 1.0)
    (sent,) = packets(effects, PacketKind.GOSSIP)
    assert (sent.boot, sent.address) == ("b", address("b"))
    assert sent.packet.rumours[0] == rumour("b", DEAD, accuser="a")
    assert not packets(m.handle(arrived("b", packet(PacketKind.GOSSIP)), 1.1), PacketKind.GOSSIP)
    (ack,) = packets(m.handle(arrived("b", packet(PacketKind.PING, 1)), 1.2), PacketKind.ACK)
    assert ack.packet.rumours[0].status is DEAD


# Forgetting and leaving.


def test_the_dead_are_remembered_longer_than_those_who_left():
    m = acquainted("a", "b")
    tell(m, rumour("a", DEAD))
    tell(m, rumour("b", LEFT), by="a")
    effects = run_until(m, KNOBS.forget_left_s + 1)
    assert [x.boot for x in only(effects, e.MemberForgotten)] == ["b"]
    effects = run_until(m, KNOBS.forget_dead_s + 1)
    assert [x.boot for x in only(effects, e.MemberForgotten)] == ["a"]
    assert [r.boot for r in m.members()] == ["me"]
    run_until(m, KNOBS.forget_dead_s + 20)
    assert m.deadline() == math.inf


def test_one_who_came_back_is_not_forgotten_and_may_die_again():
    m = acquainted("a", "b")
    tell(m, rumour("b", LEFT))
    tell(m, rumour("b", ALIVE, 1), now=1.0)
    tell(m, rumour("b", LEFT, 1), now=2.0)
    m.handle(e.TimePassed(), KNOBS.forget_left_s + 1)
    assert status(m, "b") is LEFT
    m.handle(e.TimePassed(), KNOBS.forget_left_s + 2.1)
    assert status(m, "b") is None
    tell(m, rumour("b", ALIVE, 2), now=KNOBS.forget_left_s + 3)
    assert status(m, "b") is ALIVE
    m.check_integrity()


def test_who_leaves_alone_departs_at_once():
    m = membership()
    assert m.handle(e.LeaveRequested(), 0.0) == [e.Departed()]
    assert m.deadline() == math.inf


def test_who_leaves_tells_enough_members_and_departs_soon():
    m = acquainted(*"abcdefghi")
    effects = m.handle(e.LeaveRequested(), 1.0)
    told = {s.boot for s in packets(effects, PacketKind.GOSSIP)}
    assert len(told) == 8
    assert all(s.packet.rumours[0].status is LEFT for s in packets(effects, PacketKind.GOSSIP))
    assert m.handle(e.LeaveRequested(), 1.0) == []
    later = run_until(m, 1.0 + 2 * KNOBS.gossip_interval_s + 0.01)
    assert later[-1] == e.Departed()
    assert not packets(later, PacketKind.PING_REQUEST)
    assert m.deadline() == math.inf


def test_who_has_left_contradicts_nothing_and_answers_syncs_with_nothing():
    m = acquainted("a", "b")
    m.handle(e.LeaveRequested(), 1.0)
    tell(m, rumour("me", DEAD))
    assert m.members()[0].status is LEFT
    run_until(m, 2.0)
    assert m.handle(arrived("a", packet(PacketKind.PING, 1)), 2.0) == []
    assert m.handle(e.LeaveRequested(), 2.0) == [e.Departed()]
    assert exchange(acquainted("x"), m, 2.0) == []
