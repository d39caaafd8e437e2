"""Small clusters of memberships in virtual time: joining, dying, healing; then whatever may be."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from blitzgw.gossip import events as e
from blitzgw.gossip import statebook
from tests.gossip.membership_kit import (
    KNOBS,
    Network,
    address,
    membership,
    only,
    rumour,
    status,
)

ALIVE, SUSPECT, DEAD, LEFT = Status


def cluster(n=10, seed=1, **how):
    net = Network(seed, **how)
    names = [f"n{i}" for i in range(n)]
    for name in names:
        net.start(name, *(names[:1] if name != names[0] else ()))
    net.time_to(net.converged, 20.0)
    net.run(2.0)
    return net


def knows_dead(net, boot):
    return lambda: all(status(m, boot) is DEAD for m in net.nodes.values())


def suspicions(net):
    return sum(m.statistics().suspicions for m in net.nodes.values())


def deaths(net):
    return sum(m.statistics().deaths for m in net.nodes.values())


def test_ten_nodes_join_and_share_their_state():
    net = Network(3)
    for i in range(10):
        name = f"n{i}"
        net.start(name, *(["n0"] if i else []))
        net.handle(name, e.StatePublished({f"k{j}": bytes(200) for j in range(4)}))
    assert net.time_to(net.converged, 20.0) < 1.5
    net.run(5.0)
    net.check()
    assert suspicions(net) == 0
    # each member is told once of each other, and of each entry of the others at most once
    for name in net.nodes:
        told = [x.member.boot for _, to, x in net.told if to == name and type(x) is e.MemberChanged]
        assert len(told) == len(set(told)) == 9
        news = [
            (u.boot, u.key)
            for _, to, x in net.told
            if to == name and isinstance(x, e.StateChanged)
            for u in x.updates
        ]
        assert len(news) == len(set(news)) == 36


def test_fresh_state_is_everywhere_in_well_under_half_a_second():
    net = cluster()
    net.handle("n3", e.StatePublished({f"k{i}": bytes(280) for i in range(20)}))
    assert net.time_to(net.converged, 5.0) < 0.4
    assert sum(m.statistics().syncs.get("started", 0) for m in net.nodes.values()) < 25


def test_a_large_entry_is_everywhere_soon():
    net = cluster()
    net.handle("n3", e.StatePublished({"large": bytes(20_000)}))
    assert net.time_to(net.converged, 15.0) < 5.0


@pytest.mark.parametrize("n", [4, 10])
def test_what_rumours_leave_out_arrives_though_its_node_publishes_all_the_time(n):
    net, number = cluster(n), 0
    net.handle("n3", e.StatePublished({"large": bytes(2000)}))
    begun = net.now
    while any("large" not in m.entries("n3") for m in net.nodes.values()):
        number += 1
        net.handle("n3", e.StatePublished({"load": bytes([number % 256]) * 20}))
        net.run(0.05)
        assert net.now - begun < 5.0
    started = sum(m.statistics().syncs["started"] for m in net.nodes.values())
    for number in range(400):
        net.handle("n3", e.StatePublished({"load": bytes([number % 256]) * 20}))
        net.run(0.05)
    more = sum(m.statistics().syncs["started"] for m in net.nodes.values()) - started
    assert more <= 20 / KNOBS.sync_interval_s * n * 1.5, "none but the periodic ones"


def test_a_death_is_known_to_all_within_two_seconds():
    times = []
    for seed in range(5):
        net = cluster(seed=seed)
        net.crash("n4")
        times.append(net.time_to(knows_dead(net, "n4"), 10.0))
        assert deaths(net) == 9
    assert statistics.median(times) < 2.0


def test_a_broken_link_speeds_that_up():
    net = cluster()
    net.crash("n4")
    for name in ("n1", "n2", "n3", "n5"):
        net.handle(name, e.LinkBroke("n4"))
    assert net.time_to(knows_dead(net, "n4"), 10.0) < 1.6


def test_a_pair_notices_that_one_is_gone():
    net = cluster(2)
    net.crash("n1")
    assert net.time_to(knows_dead(net, "n1"), 10.0) < 2.5


def test_an_idle_cluster_only_probes():
    net = cluster()
    net.run(3.0)
    net.sent.clear()
    net.run(8.0)
    kinds = {s.packet.kind for _, _, s in net.sent}
    assert kinds == {PacketKind.PING, PacketKind.ACK}
    assert not any(s.packet.rumours or s.packet.updates for _, _, s in net.sent)


def test_who_leaves_is_known_to_have_left_and_never_suspected():
    net = cluster()
    net.handle("n4", e.LeaveRequested())
    left_s = net.now
    while not any(isinstance(x, e.Departed) for _, _, x in net.told):
        net.run(0.01)
    assert net.now - left_s <= 2.5 * KNOBS.gossip_interval_s
    net.crash("n4")
    net.time_to(lambda: all(status(m, "n4") is LEFT for m in net.nodes.values()), 1.0)
    net.run(10.0)
    assert suspicions(net) == deaths(net) == 0


def test_a_restart_at_the_same_address_supersedes_at_once():
    net = cluster(4)
    net.crash("n2")
    old = rumour("n2")
    net.start("new", "n0", host=old.host, port=old.port, started_s=200)
    assert net.time_to(lambda: all(status(m, "new") is ALIVE for m in net.nodes.values()), 5.0) < 1
    net.run(0.5)
    assert all(status(m, "n2") is not ALIVE for m in net.nodes.values())


def test_a_stalled_process_is_suspected_at_most_and_not_buried():
    net = cluster()
    for name in list(net.nodes):
        net.stall(name, 0.6)
    net.run(20.0)
    net.stall("n3", 0.6)
    net.run(20.0)
    assert deaths(net) == 0
    assert net.converged()
    net.check()


def test_everybody_starved_at_once_suspects_nobody():
    net = cluster()
    for _ in range(5):
        for name in list(net.nodes):
            net.stall(name, 0.4)
        net.run(3.0)
    assert suspicions(net) == 0


@pytest.mark.parametrize("duration_s", [3.0, 30.0])
def test_a_healed_partition_merges(duration_s):
    net = cluster(8)
    left = {"n0", "n1", "n2", "n3"}
    net.cut = (left, set(net.nodes) - left)
    net.run(duration_s)
    net.handle("n1", e.StatePublished({"k": b"left"}))
    net.handle("n6", e.StatePublished({"k": b"right"}))
    net.run(1.0)
    assert deaths(net) >= 8
    net.cut = (set(), set())
    assert net.time_to(net.converged, 40.0) < 20.0
    net.check()


def test_a_member_that_two_others_cannot_reach_is_kept():
    net = cluster(6)
    net.cut = ({"n1"}, {"n2", "n3"})
    net.run(30.0)
    assert deaths(net) == 0


def test_heavy_loss_is_survived():
    net = cluster(6)
    net.loss = 0.8
    net.run(10.0)
    net.loss = 0.0
    net.time_to(net.converged, 60.0)
    net.check()


def test_under_moderate_loss_nobody_dies():
    net = cluster(10, loss=0.05)
    net.run(30.0)
    assert deaths(net) == 0


NAMES = ("a", "b", "c", "d", "e", "f")
step = st.one_of(
    st.tuples(st.just("run"), st.floats(0.05, 3.0)),
    st.tuples(st.just("loss"), st.sampled_from([0.0, 0.2, 0.8])),
    st.tuples(st.just("crash"), st.integers(0, 5)),
    st.tuples(st.just("leave"), st.integers(0, 5)),
    st.tuples(st.just("start"), st.integers(0, 5)),
    st.tuples(st.just("stall"), st.integers(0, 5)),
    st.tuples(st.just("broke"), st.integers(0, 5)),
    st.tuples(st.just("cut"), st.sets(st.integers(0, 5))),
    st.tuples(st.just("publish"), st.integers(0, 5)),
)


class Story:
    """Performs steps on a network; processes come and go at six addresses."""

    def __init__(self, n: int, seed: int) -> None:
        self.net = Network(seed, jitter_ms=60.0)
        self.n_started = 0
        self.living: dict[int, str] = {}
        self.first = address(NAMES[0])
        for slot in range(n):
            self.start(slot)

    def start(self, slot):
        if slot in self.living:
            return
        self.n_started += 1
        boot = f"{NAMES[slot]}{self.n_started}"
        host, port = address(NAMES[slot])
        self.living[slot] = boot
        self.net.start(boot, host=host, port=port, started_s=100 + self.n_started)
        self.net.handle(boot, e.SeedsFound((self.first, address(NAMES[1]))))

    def crash(self, slot):
        if slot in self.living and len(self.living) > 1:
            self.net.crash(self.living.pop(slot))

    def leave(self, slot):
        if slot in self.living and len(self.living) > 1:
            self.net.handle(self.living[slot], e.LeaveRequested())
            self.net.run(0.3)
            self.crash(slot)

    def stall(self, slot):
        if slot in self.living:
            self.net.stall(self.living[slot], 0.7)

    def broke(self, slot):
        for boot in self.living.values():
            self.net.handle(boot, e.LinkBroke(self.living.get(slot, "nobody")))

    def publish(self, slot):
        if slot in self.living:
            boot = self.living[slot]
            key = f"k{self.net.rng.randrange(4)}"
            value = [None, b"1", bytes(3000), b"x" * 300][self.net.rng.randrange(4)]
            self.net.handle(boot, e.StatePublished({key: value}))

    def run(self, duration_s):
        self.net.run(duration_s)

    def loss(self, loss):
        self.net.loss = loss

    def cut(self, slots):
        left = {boot for slot, boot in self.living.items() if slot in slots}
        self.net.cut = (left, set(self.living.values()) - left)


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 6), st.integers(0, 1000), st.lists(step, max_size=14))
def test_a_cluster_converges_once_faults_end(n, seed, steps):
    story = Story(n, seed)
    for name, argument in steps:
        getattr(story, name)(argument)
        story.net.check()
    story.start(0)  # else those that knew only the dead as seeds could not find each other
    story.net.loss = 0.0
    story.net.cut = (set(), set())
    story.net.time_to(story.net.converged, 90.0)
    story.net.check()


boots = st.sampled_from(["me", "a", "b", "c", "stranger", ""])
numbers = st.sampled_from([-1, 0, 1, 2, 3, 1 << 20, (1 << 20) + 1, 1 << 53, (1 << 63) - 1])
texts = st.sampled_from(["", "x", "10.0.0.1", "é" * 40, "y" * 70, "z" * 300])
rumours = st.builds(
    Rumour,
    boots,
    texts,
    texts,
    st.sampled_from([-1, 0, 1, 2, 65535, 65536]),
    numbers,
    numbers,
    st.sampled_from(Status),
    boots | texts,
)
updates = st.builds(
    Update,
    boots,
    texts,
    numbers,
    st.sampled_from([None, b"", b"x", bytes(2000), bytes(statebook.ENTRY_MAX_BYTES + 1)]),
)
digests = st.builds(Digest, boots, numbers, numbers)
several_rumours = st.lists(rumours, max_size=4).map(tuple)
several_updates = st.lists(updates, max_size=4).map(tuple)
several_digests = st.lists(digests, max_size=3).map(tuple)
packets = st.builds(
    Packet,
    st.sampled_from(PacketKind),
    numbers,
    digests,
    boots | texts,
    texts,
    numbers,
    several_rumours,
    several_updates,
)
addresses = st.tuples(texts, st.integers(-1, 70000))
numbers_of_exchanges = st.integers(0, 3)
events = st.one_of(
    st.builds(e.PacketArrived, boots, addresses, packets),
    st.builds(e.PacketArrived, boots, addresses, packets),
    st.builds(e.TimePassed),
    st.builds(e.SeedsFound, st.lists(addresses, max_size=3).map(tuple)),
    st.builds(
        e.SyncOffered, numbers_of_exchanges, st.builds(SyncOffer, several_rumours, several_digests)
    ),
    st.builds(
        e.SyncAnswered,
        numbers_of_exchanges,
        boots,
        st.builds(SyncAnswer, several_rumours, several_digests, several_updates),
    ),
    st.builds(e.SyncFinished, numbers_of_exchanges, st.builds(SyncRest, several_updates)),
    st.builds(e.SyncFailed, numbers_of_exchanges, addresses),
    st.builds(
        e.StatePublished,
        st.dictionaries(st.sampled_from("kl"), st.none() | st.binary(max_size=9), max_size=2),
    ),
    st.builds(e.LinkBroke, boots),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2.0), events), max_size=25), st.booleans())
def test_whatever_arrives_nothing_raises_and_the_books_agree(script, leaves):
    m = membership()
    m.handle(e.SyncOffered(0, SyncOffer((rumour("a"), rumour("b")), ())), 0.0)
    now = 0.0
    heard: dict[str, Status] = {"me": ALIVE, "a": ALIVE, "b": ALIVE}
    for wait_s, event in script:
        now += wait_s
        for x in m.handle(event, now):
            if isinstance(x, e.MemberChanged):
                heard[x.member.boot] = x.member.status
            elif isinstance(x, e.MemberForgotten):
                del heard[x.boot]
        m.check_integrity()
        assert m.deadline() > now or not isinstance(event, e.TimePassed)
        assert heard == {r.boot: r.status for r in m.members()}  # effects tell all
    if leaves:
        effects = m.handle(e.LeaveRequested(), now)
        while m.deadline() < now + 1:
            effects += m.handle(e.TimePassed(), m.deadline())
        assert only(effects, e.Departed)
