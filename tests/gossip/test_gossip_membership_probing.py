from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from blitzgw.core.rumours import PacketKind, Status
from blitzgw.gossip import events as e
from tests.gossip.membership_kit import (
    KNOBS,
    Network,
    acquainted,
    address,
    arrived,
    only,
    packet,
    packets,
    rumour,
    run_until,
    status,
    tell,
)

PING, ACK, NACK, PING_REQUEST, GOSSIP = PacketKind
ALIVE, SUSPECT, DEAD, LEFT = Status


def first_ping(m):
    """Run until the first ping; return it and the effects of that moment's end."""
    while True:
        now = m.deadline()
        pings = packets(m.handle(e.TimePassed(), now), PING)
        if pings:
            return pings[0], now


def ask_helpers(m, now):
    """Let the ping's time run out; return the requests to helpers."""
    effects = run_until(m, now + KNOBS.ping_timeout_s + 0.001)
    return packets(effects, PING_REQUEST)


def answer(boot, sent, kind=ACK, **more):
    return arrived(boot, packet(kind, sent.packet.seq, **more))


def test_probing_goes_round():
    m = acquainted(*"abcde")
    pinged = []
    while len(pinged) < 15:
        now = m.deadline()
        for sent in packets(m.handle(e.TimePassed(), now), PING):
            pinged.append(sent.boot)
            m.handle(answer(sent.boot, sent), now)
    assert Counter(pinged) == dict.fromkeys("abcde", 3)
    for start in (0, 5, 10):
        assert set(pinged[start : start + 5]) == set("abcde")


def test_the_idle_send_nothing_but_the_probe():
    m = acquainted("a", "b")
    sent = Counter()
    while m.deadline() < 8.0:
        now = m.deadline()
        for effect in only(m.handle(e.TimePassed(), now), e.SendPacket):
            sent[effect.packet.kind] += 1
            if effect.packet.kind is PING:
                m.handle(answer(effect.boot, effect), now)
            if now > 2.0:
                assert not effect.packet.rumours
    assert set(sent) == {PING, GOSSIP}
    assert sent[PING] == pytest.approx(8.0 / KNOBS.probe_interval_s, abs=2)
    assert sent[GOSSIP] < 12


def test_two_members_take_turns_to_ping():
    net = Network(3)
    net.start("a")
    net.start("b", "a")
    net.run(2.0)
    net.sent.clear()
    net.run(20.0)
    pings = Counter(by for _, by, s in net.sent if s.packet.kind is PING)
    rounds = 20.0 / KNOBS.probe_interval_s
    assert rounds <= pings.total() < 1.15 * rounds  # not two in each
    assert min(pings.values()) > 0.4 * rounds


@pytest.mark.parametrize("seed", range(20))
def test_of_two_members_that_take_turns_a_death_is_suspected_as_soon(seed):
    net = Network(seed)
    net.start("a")
    net.start("b", "a")
    net.run(3.0 + 0.0137 * seed)
    net.crash("a")
    suspected = net.time_to(lambda: status(net.nodes["b"], "a") is SUSPECT, 2.0)
    assert suspected <= 2 * KNOBS.probe_interval_s + 0.02 + 0.003  # its steps; what was on its way


def test_of_two_members_who_doubts_itself_gets_over_it():
    """Its pings are rarer than the other one's, which must not put them off for ever."""
    net = Network(5)
    net.start("a")
    net.start("b", "a")
    net.run(3.0)
    net.nodes["b"]._health.worsen(3)
    net.run(10 * KNOBS.probe_interval_s * 4)
    assert net.nodes["b"]._health.score == 0


def next_ping(m):
    """Return when a node pings next, unless it hears of somebody before."""
    while not packets(m.handle(e.TimePassed(), now := m.deadline()), PING):
        pass
    return now


def test_a_ping_of_the_only_other_member_puts_off_the_next_one():
    m = acquainted("a")
    ping, now = first_ping(m)
    m.handle(answer("a", ping), now)
    heard = now + 0.8 * KNOBS.probe_interval_s
    m.handle(arrived("a", packet(PING, 9, target="me")), heard)
    at = next_ping(m)
    assert 0.8 * KNOBS.probe_interval_s < at - heard < KNOBS.probe_interval_s


@pytest.mark.parametrize("doubt", ["it accuses me", "it has not answered", "there are others"])
def test_a_ping_proves_nothing_to_who_doubts(doubt):
    m = acquainted("a", "b") if doubt == "there are others" else acquainted("a")
    ping, now = first_ping(m)
    if doubt != "it has not answered":
        m.handle(answer(ping.boot, ping), now)
    accusation = [rumour("me", SUSPECT, accuser="a")] if doubt == "it accuses me" else []
    heard = now + 0.8 * KNOBS.probe_interval_s
    run_until(m, heard)
    m.handle(arrived("a", packet(PING, 9, accusation, target="me")), heard)
    run_until(m, now + KNOBS.probe_interval_s - 0.001)
    if doubt == "it has not answered":
        assert status(m, "a") is ALIVE
        run_until(m, now + KNOBS.probe_interval_s + 0.001)
        assert status(m, "a") is SUSPECT
    else:
        assert next_ping(m) == pytest.approx(now + KNOBS.probe_interval_s)


def test_a_ping_is_answered_with_the_same_number():
    m = acquainted("a")
    (sent,) = packets(m.handle(arrived("a", packet(PING, 77, target="me")), 0.0), ACK)
    assert (sent.boot, sent.address, sent.packet.seq) == ("a", address("a"), 77)


def test_a_ping_for_who_lived_here_before_is_not_answered_but_told_who_does():
    m = acquainted("a")
    effects = m.handle(arrived("a", packet(PING, 77, target="before")), 0.0)
    assert not packets(effects, ACK)
    (sent,) = packets(effects, GOSSIP)
    assert sent.packet.rumours[0] == rumour("me")


def test_silence_is_suspected_at_the_end_of_the_interval_and_the_suspect_is_told_first():
    m = acquainted(*"abcdef")
    ping, now = first_ping(m)
    requests = ask_helpers(m, now)
    assert len({r.boot for r in requests}) == 3
    assert ping.boot not in {r.boot for r in requests}
    for request in requests:
        p = request.packet
        assert (p.seq, p.target) == (ping.packet.seq, ping.boot)
        assert (p.target_host, p.target_port) == address(ping.boot)
    effects = m.handle(e.TimePassed(), now + KNOBS.probe_interval_s)
    assert status(m, ping.boot) is SUSPECT
    told = next(s for s in packets(effects, GOSSIP) if s.boot == ping.boot)
    assert told.packet.rumours[0] == rumour(ping.boot, SUSPECT, accuser="me")


def test_an_ack_in_time_ends_the_probe():
    m = acquainted(*"abcdef")
    ping, now = first_ping(m)
    m.handle(answer(ping.boot, ping), now + 0.1)
    assert ask_helpers(m, now) == []
    m.check_integrity()


def test_an_ack_by_a_helper_ends_the_probe():
    m = acquainted(*"abcdef")
    ping, now = first_ping(m)
    helper = ask_helpers(m, now)[0].boot
    m.handle(answer(helper, ping, target=ping.boot), now + 0.2)
    run_until(m, now + KNOBS.probe_interval_s)
    assert status(m, ping.boot) is ALIVE


def test_acks_of_others_do_not_end_the_probe():
    m = acquainted(*"abcdef")
    ping, now = first_ping(m)
    helpers = {r.boot for r in ask_helpers(m, now)}
    other = next(b for b in "abcdef" if b not in helpers | {ping.boot})
    m.handle(answer(other, ping, target=ping.boot), now + 0.2)
    m.handle(answer(next(iter(helpers)), ping, target=other), now + 0.2)
    m.handle(arrived(ping.boot, packet(ACK, ping.packet.seq + 999)), now + 0.2)
    run_until(m, now + KNOBS.probe_interval_s)
    assert status(m, ping.boot) is SUSPECT


@pytest.mark.parametrize(("n_nacks", "health"), [(0, 3), (1, 2), (3, 0)])
def test_silent_helpers_are_this_nodes_own_trouble(n_nacks, health):
    m = acquainted(*"abcdef")
    ping, now = first_ping(m)
    for request in ask_helpers(m, now)[:n_nacks]:
        m.handle(answer(request.boot, ping, NACK, target=ping.boot), now + 0.2)
    m.handle(e.TimePassed(), now + KNOBS.probe_interval_s)
    assert status(m, ping.boot) is SUSPECT
    assert m.statistics().health == health


def test_trouble_stretches_probes_and_answers_shorten_them_again():
    m = acquainted("a", "b")
    for incarnation in range(4):
        tell(m, rumour("me", SUSPECT, 2 * incarnation))
    assert m.statistics().health == 4
    times = []
    while m.statistics().health:
        now = m.deadline()
        for ping in packets(m.handle(e.TimePassed(), now), PING):
            times.append(now)
            m.handle(answer(ping.boot, ping), now)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps == pytest.approx([x * KNOBS.probe_interval_s for x in (5, 4, 3)], abs=0.3)


def test_a_stall_of_this_process_accuses_nobody_at_once():
    m = acquainted(*"abcdef")
    ping, now = first_ping(m)
    m.handle(e.TimePassed(), now + 1.0)  # the time-out was due long ago
    late = m.handle(answer(ping.boot, ping), now + 1.001)
    assert status(m, ping.boot) is ALIVE
    assert not packets(late, GOSSIP)
    assert m.statistics().stalls == 1
    assert m.statistics().suspicions == 0


def test_a_stall_does_not_save_the_dead():
    m = acquainted("a")
    for step in range(60):
        m.handle(e.TimePassed(), 0.3 * step)
        m.check_integrity()
    assert m.statistics().stalls > 5
    assert status(m, "a") is DEAD


def test_a_stall_lets_a_suspect_speak_that_has_spoken_already():
    m = acquainted("a", "b")
    tell(m, rumour("b", SUSPECT, accuser="a"))
    m.handle(e.TimePassed(), 60.0)
    assert status(m, "b") is SUSPECT
    tell(m, rumour("b", ALIVE, 1), now=60.01)
    run_until(m, 60.0 + KNOBS.ping_timeout_s)
    assert status(m, "b") is ALIVE


# Helping others.


def test_a_helper_pings_and_passes_the_answer_on():
    m = acquainted("a", "b")
    request = packet(PING_REQUEST, 5, target="b", target_host="elsewhere", target_port=1)
    (ping,) = packets(m.handle(arrived("a", request), 0.0), PING)
    assert (ping.boot, ping.address, ping.packet.target) == ("b", address("b"), "b")
    m.handle(answer("a", ping), 0.01)  # not from the target
    (ack,) = packets(m.handle(answer("b", ping), 0.02), ACK)
    assert (ack.boot, ack.packet.seq, ack.packet.target) == ("a", 5, "b")
    assert not packets(run_until(m, 0.2), NACK)


def test_a_helper_that_gets_no_answer_says_so():
    m = acquainted("a", "b")
    m.handle(arrived("a", packet(PING_REQUEST, 5, target="b")), 0.0)
    (nack,) = packets(run_until(m, KNOBS.nack_timeout_s), NACK)
    assert (nack.boot, nack.packet.seq, nack.packet.target) == ("a", 5, "b")


def test_a_helper_pings_whom_it_does_not_know_where_it_is_told():
    m = acquainted("a")
    request = packet(PING_REQUEST, 5, target="new", target_host="10.1.1.1", target_port=9)
    (ping,) = packets(m.handle(arrived("a", request), 0.0), PING)
    assert (ping.boot, ping.address) == ("new", ("10.1.1.1", 9))


def test_a_helper_that_is_the_target_answers_itself():
    m = acquainted("a")
    (ack,) = packets(m.handle(arrived("a", packet(PING_REQUEST, 5, target="me")), 0.0), ACK)
    assert (ack.packet.seq, ack.packet.target) == (5, "me")


@pytest.mark.parametrize(
    ("boot", "fields"),
    [
        ("stranger", {"target": "a"}),
        ("a", {"target": "new"}),
        ("a", {"target": "new", "target_host": "h", "target_port": 65536}),
        ("a", {"target": "x" * 65, "target_host": "h", "target_port": 1}),
    ],
)
def test_requests_that_make_no_sense_are_dropped_and_counted(boot, fields):
    m = acquainted("a")
    effects = m.handle(arrived(boot, packet(PING_REQUEST, 5, **fields)), 0.0)
    assert not packets(effects, PING)
    assert m.statistics().dropped == {"ping_request": 1}


def test_a_flood_of_requests_is_bounded():
    m = acquainted("a", "b")
    for seq in range(300):
        m.handle(arrived("a", packet(PING_REQUEST, seq, target="b")), 0.0)
    assert m.statistics().dropped["ping_request"] == 44
    assert len(packets(run_until(m, 0.2), NACK)) == 256


# Out of turn.


def test_a_broken_link_has_its_member_probed_at_once():
    m = acquainted(*"abcdef")
    (ping,) = packets(m.handle(e.LinkBroke("d"), 0.0), PING)
    assert ping.boot == "d"
    assert m.handle(e.LinkBroke("d"), 0.01) == []
    run_until(m, KNOBS.probe_interval_s)
    assert status(m, "d") is SUSPECT


@pytest.mark.parametrize("boot", ["me", "stranger", "gone"])
def test_other_broken_links_are_nothing_to_look_after(boot):
    m = acquainted("a", "gone")
    tell(m, rumour("gone", DEAD))
    assert m.handle(e.LinkBroke(boot), 0.0) == []


def test_a_ping_to_a_suspect_carries_its_suspicion():
    m = acquainted("a", "b")
    tell(m, rumour("b", SUSPECT, accuser="a"))
    run_until(m, 0.01)
    (ping,) = packets(m.handle(e.LinkBroke("b"), 0.02), PING)
    assert ping.packet.rumours[0] == rumour("b", SUSPECT, accuser="a")
