"""Payloads by NCCL, against the fake: what goes right, and all that goes wrong."""

import gc
import importlib.util
import os
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.transfer import TrafficClass
from blitzgw.errors import ProtocolError
from blitzgw.transport import nccl_bypass, nccl_launcher, nccl_pairs, nccl_run
from blitzgw.transport.base import ChannelLost
from blitzgw.transport.nccl import CupyNccl, open_library, version_name, versions
from blitzgw.transport.nccl_bypasses import open_bypasses
from blitzgw.transport.nccl_device import DeviceStore
from blitzgw.transport.nccl_launcher import Launcher
from blitzgw.transport.nccl_library import NcclFailed, Role
from blitzgw.transport.nccl_pair import Pair, PairState
from blitzgw.transport.nccl_pairs import Pairs
from blitzgw.transport.nccl_words import (
    Invite,
    Offer,
    Ready,
    Refuse,
    decode_word,
    encode_word,
)
from tests.support.fake_nccl import World
from tests.transport.edges_kit import MemoryStore, join, terms, until
from tests.transport.nccl_kit import DeviceMemoryStore, NcclHost, lane_sum

MB = 1 << 20


@pytest.fixture
def world():
    world = World()
    yield world
    gc.collect()
    assert not world.faults


def blobs(*sizes):
    return [os.urandom(size) for size in sizes]


def leases(host):
    return list(host.bypasses._pairs._leases.values())


def has_agreed(source, edge):
    """Whether the sender of an edge would send its next piece by NCCL."""
    return any(end.terms.id == edge.id and end._bypass.ready for end in _senders(source))


def _senders(host):
    return [end for (_, _), end in list(host.edges._ends.items()) if end._bypass is not None]


def warm(source, target, weights="warm"):
    """Let two workers make their pair before the edge that a test is about."""
    edge = terms(f"warm-{source.gpu.name}-{target.gpu.name}", (0,), weights)
    here, there = (
        DeviceMemoryStore((400 * 4096,), weights),
        DeviceMemoryStore((400 * 4096,), weights),
    )
    source.stores[weights], target.stores[weights] = here, there
    join(source, target, edge)
    until(lambda: leases(target) and leases(target)[0].pair.state is PairState.READY)
    here.advance(0, 0, MB)
    until(lambda: has_agreed(source, edge))
    here.advance(0, MB, 400 * 4096)
    assert source.closed(edge.id).reason == target.closed(edge.id).reason == ""
    assert there.n_landed >= 1


def begin(source, target, data, edge=None, *, agreed=True):
    """Begin to send blobs, once the ends have agreed on NCCL; return the target's store."""
    edge = edge or terms("e", range(len(data)))
    here = source.stores[edge.weights] = DeviceMemoryStore.full(data, edge.weights)
    there = DeviceMemoryStore([len(blob) for blob in data], edge.weights)
    target.stores[edge.weights] = there
    first, here.resident[0] = here.resident[0], 0 if agreed else here.resident[0]
    join(source, target, edge)
    if agreed:
        until(lambda: has_agreed(source, edge))
        here.advance(0, 0, first)
    return there


def carry(source, target, data, edge=None, *, agreed=True):
    """Send blobs from one worker to another and compare them; return the target's store."""
    edge = edge or terms("e", range(len(data)))
    there = begin(source, target, data, edge, agreed=agreed)
    assert target.closed(edge.id).reason == ""
    assert source.closed(edge.id).reason == ""
    assert there.contents() == data
    return there


def test_a_store_on_a_device_is_one():
    assert isinstance(DeviceMemoryStore((1,)), DeviceStore)
    assert not isinstance(MemoryStore((1,)), DeviceStore)


def test_pieces_go_by_nccl_once_the_pair_is_warm(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        store = carry(source, target, blobs(3 * MB + 5, 17, 2 * MB))
        assert store.landed_bytes == 5 * MB + 22
        assert store.blobs[0] != store.contents()[0], "they were copied to the host"


def test_tcp_carries_them_while_the_pair_warms(world):
    world.warm_s = 30
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        store = carry(source, target, blobs(3 * MB, 100), agreed=False)
        assert store.n_landed == world.n_moved == 0
        assert world.n_names == 1, "none was asked for"


def test_calls_that_take_time_to_settle_are_waited_for(world):
    world.settle_s = 0.003
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        assert carry(source, target, blobs(9 * MB)).landed_bytes == 9 * MB


def test_stores_on_the_host_stay_inline(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        data = blobs(2 * MB)
        source.stores["w"], store = MemoryStore.full(data), MemoryStore((2 * MB,))
        target.stores["w"] = store
        join(source, target, terms())
        assert target.closed("e").reason == ""
        assert store.blobs == data
        assert world.n_names == 0


@pytest.mark.parametrize("gpu_at_source", [True, False])
def test_one_end_on_the_host_stays_inline(world, gpu_at_source):
    data = blobs(2 * MB)
    here = (DeviceMemoryStore if gpu_at_source else MemoryStore).full(data)
    there = (MemoryStore if gpu_at_source else DeviceMemoryStore)((2 * MB,))
    with NcclHost(world, here, name="a") as source, NcclHost(world, there, name="b") as target:
        join(source, target, terms())
        assert target.closed("e").reason == source.closed("e").reason == ""
        assert there.blobs == data
        assert world.n_names == 0


def test_other_versions_stay_inline(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b", version=23000) as target:
        assert carry(source, target, blobs(2 * MB), agreed=False).n_landed == 0
        assert world.n_names == 0


def test_a_pair_that_cannot_be_made_costs_nothing(world):
    world.fails_to_connect = True
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        for n in range(3):
            edge = terms(f"e{n}")
            assert carry(source, target, blobs(3 * MB), edge, agreed=False).n_landed == 0
            until(lambda: all(r.pair.state is PairState.BROKEN for r in leases(source)))
        assert world.n_names <= 2, "it does not cool down"
        assert all(p.resumed == 0 for p in target.progress("e0"))


def test_an_error_in_mid_piece_falls_back_without_a_loss(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        world.error_after = world.n_moved + 2
        store = carry(source, target, blobs(18 * MB))
        assert store.n_landed == 2
        assert target.progress("e")[-1].resumed == 1
        starts, stops, _ = zip(*store.sources[0], strict=True)
        assert (*starts, 18 * MB) == (0, *stops), "received twice"


def test_a_damaged_piece_is_found_on_the_device(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        world.damage = {world.n_moved + 1}
        store = carry(source, target, blobs(6 * MB))
        assert store.landed_bytes < 6 * MB
        assert target.progress("e")[-1].damaged == 1


def test_silence_ends_in_an_abort_and_tcp(world, monkeypatch):
    monkeypatch.setattr(nccl_run, "TRANSFER_S", 0.4)
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        world.hang_after = world.n_moved + 1
        began = time.monotonic()
        store = carry(source, target, blobs(8 * MB))
        assert store.n_landed == 1
        assert 0.35 < time.monotonic() - began < 5


def test_a_peer_that_is_gone_is_noticed_before_the_deadline(world):
    with NcclHost(world, name="b") as target:
        with NcclHost(world, name="a") as source:
            warm(source, target)
            world.hang_after = world.n_moved + 1
            store = begin(source, target, blobs(8 * MB))
            until(lambda: store.n_landed == 1)
            began = time.monotonic()
        assert target.closed("e").reason != ""
        assert time.monotonic() - began < 3
        assert store.resident[0] == store.landed_bytes, "what came is kept"
        world.hang_after = None
        with NcclHost(world, name="c") as other:  # and the survivor goes on
            carry(other, target, blobs(2 * MB), terms("e2"), agreed=False)


def test_a_wedged_device_is_left_alone(world, monkeypatch):
    monkeypatch.setattr(nccl_run, "TRANSFER_S", 0.2)
    monkeypatch.setattr(nccl_run, "DRAIN_S", 0.2)
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        world.hang_after, world.ignores_abort = world.n_moved + 1, True
        carry(source, target, blobs(4 * MB))
        assert source.bypasses.wedged
        assert target.bypasses.wedged
        names = world.n_names
        carry(source, target, blobs(2 * MB), terms("e2"), agreed=False)
        assert world.n_names == names


def test_a_library_that_does_not_return_is_left_alone(world, monkeypatch):
    monkeypatch.setattr(nccl_run, "TRANSFER_S", 0.2)
    monkeypatch.setattr(nccl_bypass, "ANSWER_S", 0.6)
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        world.hang_after = world.n_moved + 1
        world.holds_abort.clear()
        try:
            carry(source, target, blobs(4 * MB))
            assert target.bypasses.wedged
            assert not target.bypasses._launcher.join(0)
        finally:
            world.holds_abort.set()


def test_with_a_cap_pieces_stay_inline_where_it_is_kept_exactly(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        source.edges.cap(50e6)
        moved = world.n_moved
        assert carry(source, target, blobs(3 * MB)).n_landed == 0
        assert world.n_moved == moved
        source.edges.cap(0)
        assert carry(source, target, blobs(3 * MB), terms("e2")).landed_bytes == 3 * MB


def test_a_pair_is_kept_for_the_next_edge(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        for n in range(3):
            store = carry(source, target, blobs(3 * MB), terms(f"e{n}"))
            assert store.landed_bytes == 3 * MB
        assert world.n_names == 1


def test_edges_at_one_time_share_nothing(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        edges = [terms(f"e{n}", (0,), f"w{n}") for n in range(4)]
        data = [blobs(8 * MB) for _ in edges]
        stores = []
        for edge, contents in zip(edges, data, strict=True):
            source.stores[edge.weights] = DeviceMemoryStore.full(contents, edge.weights)
            stores.append(DeviceMemoryStore((8 * MB,), edge.weights))
            target.stores[edge.weights] = stores[-1]
        for edge in edges:
            join(source, target, edge)
        assert [target.closed(edge.id).reason for edge in edges] == [""] * 4
        assert [store.contents() for store in stores] == data


def test_both_directions_at_once_do_not_cross(world):
    with NcclHost(world, name="a") as one, NcclHost(world, name="b") as other:
        warm(one, other)
        warm(other, one, "warm-back")
        data = blobs(12 * MB), blobs(12 * MB)
        stores = [
            begin(one, other, data[0], terms("there", (0,), "there")),
            begin(other, one, data[1], terms("back", (0,), "back")),
        ]
        assert other.closed("there").reason == one.closed("back").reason == ""
        assert [store.contents() for store in stores] == list(data)
        assert [store.landed_bytes for store in stores] == [12 * MB, 12 * MB]


@pytest.mark.parametrize("last_version", [22809, 23000])
def test_a_relay_forwards_what_landed_on_its_device(world, last_version):
    with (
        NcclHost(world, name="a") as first,
        NcclHost(world, name="b") as relay,
        NcclHost(world, name="c", version=last_version) as last,
    ):
        warm(first, relay)
        data = blobs(6 * MB)
        end = last.stores["w"] = DeviceMemoryStore((6 * MB,))
        middle = begin(first, relay, data, terms("one"))
        join(relay, last, terms("two"))
        assert relay.closed("one").reason == last.closed("two").reason == ""
        assert end.contents() == middle.contents() == data
        assert middle.landed_bytes == 6 * MB
        if last_version != 22809:
            assert middle.staged_bytes == 6 * MB
            assert end.n_landed == 0
        assert last.progress("two")[-1].damaged == 0


def test_an_edge_that_is_closed_in_mid_piece_ends(world):
    with NcclHost(world, name="a") as source, NcclHost(world, name="b") as target:
        warm(source, target)
        world.hang_after = world.n_moved + 1
        store = begin(source, target, blobs(8 * MB))
        until(lambda: store.n_landed == 1)
        began = time.monotonic()
        target.edges.close("e")
        source.edges.close("e")
        assert target.closed("e").reason == source.closed("e").reason == "closed"
        assert time.monotonic() - began < 2
        world.hang_after = None
        carry(source, target, blobs(2 * MB), terms("e2"), agreed=False)


def library(world, **options):
    return CupyNccl(world.gpu(**options), 0)


@pytest.fixture
def launchers(world):
    made = [Launcher(library(world, name=name)) for name in "ab"]
    for launcher in made:
        launcher.start()
    yield made
    for launcher in made:
        launcher.stop()
        assert launcher.join(5)


def test_a_peer_that_never_comes_is_given_up(launchers, monkeypatch):
    monkeypatch.setattr(nccl_run, "WARM_S", 0.2)
    pair = launchers[0].connect(bytes(128), Role.SENDS)
    assert pair.state is PairState.WARMING
    until(lambda: pair.state is PairState.BROKEN)
    assert "in time" in pair.why
    with pytest.raises(ChannelLost, match="in time"):
        launchers[0].transfer(pair, 0, 1, None).wait(5)


def test_stopping_ends_what_is_under_way(world):
    one, other = Launcher(library(world)), Launcher(library(world))
    one.start()
    other.start()
    pairs = one.connect(bytes(128), Role.SENDS), other.connect(bytes(128), Role.RECEIVES)
    until(lambda: all(pair.state is PairState.READY for pair in pairs))
    store = DeviceMemoryStore((8,))
    transfers = [one.transfer(pairs[0], store.pointer(0, 0), 8, store) for _ in range(3)]
    one.stop()
    other.stop()
    assert one.join(5)
    assert other.join(5)
    for transfer in transfers:
        with pytest.raises(ChannelLost):
            transfer.wait(0)
    with pytest.raises(ChannelLost, match="any more"):
        one.connect(bytes(128), Role.SENDS)
    assert all(pair.state is PairState.BROKEN for pair in pairs)


def test_jobs_that_nobody_launches_have_a_limit(world, monkeypatch):
    monkeypatch.setattr(nccl_launcher, "MAX_JOBS", 3)
    launcher = Launcher(library(world))  # not started
    for _ in range(3):
        launcher.connect(bytes(128), Role.SENDS)
    with pytest.raises(ChannelLost, match="too much"):
        launcher.connect(bytes(128), Role.SENDS)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(1, 5000)), max_size=40
    ),
    st.sampled_from([0.0, 0.0005]),
    st.randoms(),
)
def test_any_order_of_jobs_arrives(jobs, settle_s, rng):
    """Whatever edges ask for, in whatever order, over several pairs in both directions."""
    world = World(settle_s=settle_s)
    sides = {name: Launcher(library(world, name=name)) for name in "ab"}
    for launcher in sides.values():
        launcher.start()
    peers, pairs = {"a": "b", "b": "a"}, {}
    for name in "ab":
        for n in range(3):
            uid = (1000 + n + 10 * ord(name)).to_bytes(128, "big")
            pairs[name, n] = (
                sides[name].connect(uid, Role.SENDS),
                sides[peers[name]].connect(uid, Role.RECEIVES),
            )
    until(lambda: all(p.state is PairState.READY for both in pairs.values() for p in both))
    stores, transfers, orders = [], [], ([], [])
    for name, n, size in jobs:
        here, there = DeviceMemoryStore.full(blobs(size)), DeviceMemoryStore((size,))
        stores.append((here, there))
        orders[0].append((sides[name], pairs[name, n][0], here, size))
        orders[1].append((sides[peers[name]], pairs[name, n][1], there, size))
    while any(orders):
        launcher, pair, store, size = rng.choice([order for order in orders if order]).pop(0)
        transfers.append(launcher.transfer(pair, store.pointer(0, 0), size, store))
    assert all(transfer.wait(10) for transfer in transfers)
    assert all(here.contents() == there.contents() for here, there in stores)
    for launcher in sides.values():
        launcher.stop()
        assert launcher.join(5)
    assert not world.faults


def test_receives_are_launched_before_sends(world, launchers):
    one, other = launchers
    there, back = bytes(128), bytes(127) + b"x"
    sends, takes = one.connect(there, Role.SENDS), other.connect(there, Role.RECEIVES)
    receives, gives = one.connect(back, Role.RECEIVES), other.connect(back, Role.SENDS)
    pairs = (sends, takes, receives, gives)
    until(lambda: all(pair.state is PairState.READY for pair in pairs))
    store = DeviceMemoryStore((8, 8, 8, 8))
    with one._changed:  # so that both are found at once
        transfers = [one.transfer(sends, store.pointer(0, 0), 8, store)]
        transfers.append(one.transfer(receives, store.pointer(1, 0), 8, store))
    until(lambda: len(world.launches) == 2)
    assert world.launches == [("a", "recv"), ("a", "send")]
    transfers.append(other.transfer(takes, store.pointer(2, 0), 8, store))
    transfers.append(other.transfer(gives, store.pointer(3, 0), 8, store))
    assert all(transfer.wait(5) for transfer in transfers)


def test_a_pair_moves_only_forwards():
    pair = Pair(Role.SENDS)
    pair.move(PairState.READY)
    with pytest.raises(ValueError, match="becomes"):
        pair.move(PairState.WARMING)
    pair.move(PairState.BROKEN, "why")
    for state in PairState:
        with pytest.raises(ValueError, match="becomes"):
            pair.move(state)
    assert pair.why == "why"


PEER, OTHER, NAME = b"p" * 16, b"q" * 16, b"n" * 128
KIND = TrafficClass.WEIGHTS


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def pairs(launchers):
    clock = Clock()
    pairs = Pairs(launchers[0], clock)
    pairs.clock = clock
    return pairs


def test_a_pair_is_lent_to_one_edge_at_a_time(pairs):
    lease = pairs.lend(PEER, KIND)
    assert pairs.lend(PEER, KIND) is None
    assert pairs.lend(OTHER, KIND).name != lease.name
    assert pairs.lend(PEER, TrafficClass.KV).name != lease.name
    pairs.give_back(lease)
    assert pairs.lend(PEER, KIND) is lease


def test_a_pair_that_is_dropped_cools_down(pairs):
    lease = pairs.lend(PEER, KIND)
    pairs.drop(lease, "broken")
    assert pairs.lend(PEER, KIND) is None
    pairs.clock.now += nccl_pairs.COOLDOWN_S + 1
    assert pairs.lend(PEER, KIND).name != lease.name
    until(lambda: lease.pair.state is PairState.BROKEN)


def test_idle_pairs_are_dropped_and_room_is_limited(pairs, monkeypatch):
    monkeypatch.setattr(nccl_pairs, "MAX_PAIRS", 2)
    first, second = pairs.lend(PEER, KIND), pairs.lend(OTHER, KIND)
    assert pairs.lend(b"r" * 16, KIND) is None
    pairs.give_back(first)
    assert pairs.lend(b"r" * 16, KIND) is not None
    until(lambda: first.pair.state is PairState.BROKEN)
    pairs.give_back(second)
    pairs.clock.now += nccl_pairs.IDLE_S + 1
    assert pairs.lend(OTHER, KIND) is not second


def test_a_receiver_uses_what_the_sender_names(pairs):
    lease = pairs.join(PEER, KIND, NAME, 0, is_new=True)
    assert pairs.join(PEER, KIND, NAME, 0, is_new=False) is None, "it is lent"
    pairs.give_back(lease)
    assert pairs.join(PEER, KIND, NAME, 0, is_new=False) is lease
    pairs.give_back(lease)
    assert pairs.join(PEER, KIND, NAME, 1, is_new=False) is None, "a piece was cut off"
    assert pairs.join(PEER, KIND, NAME, 0, is_new=False) is None, "it was dropped"
    assert pairs.join(PEER, KIND, b"m" * 128, 0, is_new=True) is not None


WORDS = [
    Offer(22809, PEER),
    Invite(22809, PEER, NAME, True, 2**40),
    Ready(NAME),
    Refuse(NAME, "why"),
]


@pytest.mark.parametrize("word", WORDS)
def test_words_survive(word):
    assert decode_word(encode_word(word)) == word


@given(st.one_of(st.binary(max_size=400), st.sampled_from([encode_word(w)[:-1] for w in WORDS])))
def test_words_that_mean_nothing_are_protocol_errors(body):
    try:
        word = decode_word(body)
    except ProtocolError:
        return
    assert isinstance(word, Offer | Invite | Ready | Refuse)


@pytest.mark.parametrize("sends", [True, False])
def test_words_from_the_wrong_end_are_protocol_errors(world, sends):
    with NcclHost(world) as host:
        for word in WORDS[1:2] if sends else [WORDS[0], WORDS[2]]:
            bypass = host.bypasses.open(DeviceMemoryStore((8,)), KIND, lambda: False, sends=sends)
            with pytest.raises(ProtocolError):
                bypass.hear(encode_word(word))


def test_a_second_pair_for_one_connection_is_a_protocol_error(world):
    with NcclHost(world) as host:
        bypass = host.bypasses.open(DeviceMemoryStore((8,)), KIND, lambda: False, sends=False)
        bypass.hear(encode_word(WORDS[1]))
        with pytest.raises(ProtocolError):
            bypass.hear(encode_word(WORDS[1]))
        bypass.abort()


def test_a_pair_that_the_receiver_does_not_have_is_made_anew(world):
    with NcclHost(world) as host:
        store = DeviceMemoryStore((8,))
        first = host.bypasses.open(store, KIND, lambda: False, sends=True)
        first.hear(encode_word(Offer(22809, PEER)))
        first.words()
        first.abort()
        bypass = host.bypasses.open(store, KIND, lambda: False, sends=True)
        bypass.hear(encode_word(Offer(22809, PEER)))
        old = decode_word(bypass.words()[0])
        assert not old.is_new
        bypass.hear(encode_word(Refuse(old.name, "gone")))
        new = decode_word(bypass.words()[0])
        assert new.is_new
        assert new.name != old.name
        bypass.hear(encode_word(Refuse(new.name, "no")))
        assert not bypass.words()
        assert not bypass.ready


def test_cupy_fails_in_one_way_only(world):
    made = library(world)
    made._cuda.nccl.get_unique_id = lambda: 1 / 0
    with pytest.raises(NcclFailed, match="zero"):
        made.unique_id()
    made._cuda.Device = lambda index: 1 / 0
    with pytest.raises(NcclFailed, match="zero"):
        made.use()
    world.fails_to_connect = True
    with pytest.raises(NcclFailed, match="no connection"):
        made.link(bytes(128), Role.SENDS)
    assert not made._cuda.live, "not aborted"


def test_a_status_without_a_name_is_a_failure(world):
    link = library(world).link(bytes(128), Role.SENDS)
    link._comm.error = 6
    with pytest.raises(NcclFailed, match="6"):
        link.settled()
    link.abort()
    link.abort()


def test_the_fake_knows_what_the_real_one_would_not_forgive():
    world = World(warm_s=30)
    gpu = world.gpu()
    comm = gpu.nccl.NcclCommunicator.__new__(gpu.nccl.NcclCommunicator)
    with pytest.raises(KeyError):
        comm.__init__(2, bytes(128), 0)
    stream = gpu.Stream(non_blocking=True)
    with pytest.raises(KeyError):
        comm.send(0, 1, gpu.nccl.NCCL_UINT8, 1, stream.ptr)
    comm.destroy()
    assert [fault.split()[0] for fault in world.faults] == ["a", "destroyed"]


def test_the_fake_moves_bytes_when_both_have_launched_and_not_before():
    world = World()
    ends = [
        library(world, name=name).link(bytes(128), role)
        for name, role in zip("ab", Role, strict=True)
    ]
    assert all(end.settled() for end in ends)
    store = DeviceMemoryStore.full(blobs(100, 100))
    ends[0].launch(store.pointer(0, 0), 100)
    mark = ends[0].mark()
    assert ends[0].settled()
    assert not mark.passed()
    ends[1].launch(store.pointer(1, 0), 100)
    assert ends[1].settled()
    assert mark.passed()
    assert store.contents()[0] == store.contents()[1]
    ends[0].launch(store.pointer(0, 0), 100)
    ends[1].launch(store.pointer(1, 0), 99)
    with pytest.raises(NcclFailed, match="6"):
        ends[1].settled()
    assert world.faults == ["a send of 100 met a receive of 99"]
    for end in ends:
        end.abort()


def test_versions_are_named_as_people_do():
    assert version_name(22809) == "2.28.9"
    assert version_name(23007) == "2.30.7"


def test_with_cupy_versions_are_told_and_communicators_do_not_block(world, monkeypatch):
    cuda = world.gpu()
    cupy = SimpleNamespace(__version__="14.2.0", cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setenv("NCCL_COMM_BLOCKING", "")
    monkeypatch.delenv("NCCL_COMM_BLOCKING")
    assert versions() == {"cupy": "14.2.0", "nccl": "2.28.9"}
    assert open_library(0).version == 22809
    assert os.environ["NCCL_COMM_BLOCKING"] == "0"
    bypasses = open_bypasses(0)
    bypasses.stop()
    assert bypasses.join(5)
    monkeypatch.setattr(cuda, "is_available", lambda: False, raising=False)
    assert open_library(0) is open_bypasses(0) is None


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="cupy is here")
def test_without_cupy_there_is_none():
    assert versions() == {}
    assert open_library(0) is None


def test_the_sum_is_that_of_the_engine():
    torch = pytest.importorskip("torch")
    from blitzgw.engine.lanes import lane_sum as by_torch

    for size in (1, 4, 4097, MB):
        data = os.urandom(size)
        assert lane_sum(data) == by_torch(torch.frombuffer(bytearray(data), dtype=torch.uint8))
