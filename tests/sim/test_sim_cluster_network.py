"""Flows of a simulated cluster: closed forms, conservation, no port over its rate."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blitzgw.core.transfer import PIECE_BYTES, TrafficClass
from blitzgw.sim.cluster.flows import REQUESTS, WEIGHTS
from blitzgw.sim.cluster.network import FlowNetwork
from blitzgw.sim.cluster.streams import Store, Stream
from blitzgw.sim.heap import EventHeap

LINK = 1e9
BLOBS, BLOB_BYTES = 12, 8_000_000
MODEL_S = BLOBS * BLOB_BYTES / LINK


def make(nodes, **rates):
    heap = EventHeap()
    terms = {"link": LINK, "disk": LINK / 10, "host": 1.28 * LINK, "local": 4e9} | rates
    return heap, FlowNetwork(heap, nodes, **terms)


class Landings:
    """Stores of several workers, and when each blob of each has landed."""

    def __init__(self, heap, count, sizes=(BLOB_BYTES,) * BLOBS):
        self.at: dict[tuple[int, int], float] = {}
        self.stores = [Store(sizes, self._note(heap, i)) for i in range(count)]
        self.ends: list[str] = []

    def _note(self, heap, index):
        def landed(blob):
            assert (index, blob) not in self.at
            self.at[index, blob] = heap.now

        return landed

    def whole(self, index):
        self.stores[index].whole.update(range(len(self.stores[index].sizes)))

    def stream(self, network, source, target, blobs=None):
        made = Stream(
            network,
            network.way(source, target),
            range(len(self.stores[0].sizes)) if blobs is None else blobs,
            self.stores[target],
            lambda _, reason: self.ends.append(reason),
            source=self.stores[source],
        )
        made.open()
        return made

    @property
    def last_s(self):
        return max(self.at.values())


@pytest.mark.parametrize("targets", [1, 2, 7, 60])
def test_a_chain_takes_one_model_and_a_piece_for_each_further_hop(targets):
    heap, network = make(targets + 1)
    found = Landings(heap, targets + 1)
    found.whole(0)
    for i in range(targets):
        found.stream(network, i, i + 1)
    heap.run_until(100.0)
    assert found.last_s == pytest.approx(MODEL_S + (targets - 1) * PIECE_BYTES / LINK)
    assert found.ends == [""] * targets


@pytest.mark.parametrize("seed", range(8))
def test_late_in_a_simulation_fast_links_go_on(seed):
    """A few bytes may be nearer than the next moment that a float can tell."""
    rng = random.Random(seed)
    heap, network = make(9, link=(rate := 150 * LINK / 8))
    heap.run_until(rng.uniform(1e3, 1e5))
    for _ in range(200):
        found = Landings(heap, 9, [rng.randrange(1, 3 * PIECE_BYTES) for _ in range(BLOBS)])
        found.whole(0)
        for i in range(8):
            found.stream(network, i, i + 1)
        handled, began_s = heap.handled, heap.now
        stuck = lambda handled=handled: heap.handled > handled + 10_000  # noqa: E731
        heap.run_until(began_s + rng.uniform(0.9, 1.0), stuck)
        assert found.ends == [""] * 8
        least_s = sum(found.stores[0].sizes) / rate
        assert found.last_s - began_s == pytest.approx(least_s + 7 * PIECE_BYTES / rate, rel=0.3)


@pytest.mark.parametrize("targets", [1, 2, 7, 60])
def test_a_star_takes_a_model_for_each_target(targets):
    heap, network = make(targets + 1)
    found = Landings(heap, targets + 1)
    found.whole(0)
    for i in range(targets):
        found.stream(network, 0, i + 1)
    heap.run_until(1000.0)
    assert found.last_s == pytest.approx(targets * MODEL_S)


def test_two_sources_fill_a_target_at_its_ports_rate():
    heap, network = make(3)
    found = Landings(heap, 3)
    found.whole(0)
    found.whole(1)
    found.stream(network, 0, 2, range(0, BLOBS, 2))
    found.stream(network, 1, 2, range(1, BLOBS, 2))
    heap.run_until(100.0)
    assert found.last_s == pytest.approx(MODEL_S)


def test_what_comes_from_a_slow_disk_is_passed_on_as_it_comes():
    heap, network = make(2)
    found = Landings(heap, 2)
    disk = network.disks[0]
    Stream(network, ((disk,), inf), range(BLOBS), found.stores[0], lambda *_: None).open()
    found.stream(network, 0, 1)
    heap.run_until(100.0)
    read_s = 10 * MODEL_S
    assert found.at[0, BLOBS - 1] == pytest.approx(read_s)
    assert found.at[1, BLOBS - 1] == pytest.approx(read_s + PIECE_BYTES / LINK, rel=1e-6)


def test_requests_go_before_weights():
    heap, network = make(2)
    found = Landings(heap, 2)
    found.whole(0)
    found.stream(network, 0, 1)
    came = []
    size = LINK / 50  # 20 ms alone
    heap.at(0.01, network.send, 0, 1, size, TrafficClass.KV, lambda: came.append(heap.now))
    heap.run_until(100.0)
    assert came == [pytest.approx(0.03)]
    assert found.last_s == pytest.approx(MODEL_S + 0.02)


@pytest.mark.parametrize(("cores", "took_s"), [(inf, 1.0), (2.0, 1.5), (1.0, 3.0)])
def test_those_who_compute_share_processors_and_none_has_two(cores, took_s):
    heap, network = make(2, cores=cores)
    ends: list[float] = []
    for _ in range(3):
        network.compute(1.0, lambda: ends.append(heap.now))
    network.compute(0.0, lambda: ends.append(heap.now))
    heap.run_until(10.0)
    assert ends == pytest.approx([0.0] + [took_s] * 3)


def test_traffic_in_the_other_direction_costs_nothing():
    heap, network = make(2)
    found = Landings(heap, 2)
    found.whole(0)
    found.stream(network, 0, 1)
    network.send(1, 0, LINK, TrafficClass.KV, lambda: None)
    heap.run_until(100.0)
    assert found.last_s == pytest.approx(MODEL_S)


def test_a_cancelled_parcel_never_arrives():
    heap, network = make(2)
    parcel = network.send(0, 1, LINK, TrafficClass.KV, lambda: pytest.fail("it has arrived"))
    heap.at(0.5, parcel.cancel)
    heap.run_until(10.0)
    assert network.bytes_by_link()["n0 tx"]["requests"] == pytest.approx(LINK / 2)


def test_a_relay_that_ends_leaves_whole_pieces_and_another_source_goes_on():
    heap, network = make(4)
    found = Landings(heap, 4)
    found.whole(0)
    found.whole(3)
    first = found.stream(network, 0, 1)
    found.stream(network, 1, 2)
    half_s = MODEL_S / 2 + 0.0031
    heap.at(half_s, first.close, "lost")
    heap.at(half_s + 1.0, found.stream, network, 3, 1)
    heap.run_until(100.0)
    assert len(found.at) == 2 * BLOBS
    lost_s = PIECE_BYTES / LINK
    assert found.at[1, BLOBS - 1] <= MODEL_S + 1.0 + lost_s
    assert found.at[2, BLOBS - 1] <= MODEL_S + 1.0 + 2 * lost_s + 1e-6


def test_a_slow_port_slows_all_behind_it_until_it_is_mended():
    heap, network = make(3)
    found = Landings(heap, 3)
    found.whole(0)
    found.stream(network, 0, 1)
    found.stream(network, 1, 2)
    network.slow(0, 0.5)
    heap.at(MODEL_S, network.slow, 0, 1.0)
    heap.run_until(100.0)
    assert found.at[1, BLOBS - 1] == pytest.approx(1.5 * MODEL_S)
    assert found.at[2, BLOBS - 1] == pytest.approx(1.5 * MODEL_S + PIECE_BYTES / LINK, rel=1e-6)


def check_shares(network):
    """No resource carries more than its rate; no flow could have more without another's less."""
    for resource in (*network.tx, *network.rx):
        total = sum(flow.rate for flows in resource.flows for flow in flows)
        assert total <= resource.capacity * (1 + 1e-6)
    for resource in network.tx:
        for rank in (REQUESTS, WEIGHTS):
            for flow in resource.flows[rank]:
                limited = flow.rate >= flow.limit() * (1 - 1e-6)
                assert limited or any(is_bottleneck(r, flow) for r in flow.resources), flow.rate


def is_bottleneck(resource, flow):
    mine = sum(each.rate for each in resource.flows[flow.rank])
    before = sum(each.rate for each in resource.flows[REQUESTS]) if flow.rank == WEIGHTS else 0.0
    full = mine + before >= resource.capacity * (1 - 1e-6)
    return full and all(each.rate <= flow.rate * (1 + 1e-6) for each in resource.flows[flow.rank])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9))
def test_shares_are_fair_and_bytes_are_conserved(seed):
    rng = random.Random(seed)
    nodes = rng.randint(3, 9)
    heap, network = make(nodes)
    sizes = tuple(rng.randint(1, 20_000_000) for _ in range(rng.randint(1, 8)))
    found = Landings(heap, nodes, sizes)
    found.whole(0)
    came, sent = [], 0.0
    for i in range(1, nodes):  # a tree: each from one that is nearer to the source
        heap.at(rng.random() * 0.05, found.stream, network, rng.randrange(i), i)
    for _ in range(rng.randint(0, 15)):
        ends = rng.sample(range(nodes), 2)
        size = rng.uniform(1.0, 3e7)
        sent += size
        lane = rng.choice([TrafficClass.KV, TrafficClass.ACTIVATIONS])
        heap.at(rng.random() * 0.3, network.send, *ends, size, lane, lambda: came.append(1))
    slow = rng.randrange(nodes)
    heap.at(rng.random() * 0.1, network.slow, slow, rng.uniform(0.1, 1.0))
    while len(heap) and heap.now < 60.0:
        heap.run_until(heap.now + 0.01)
        check_shares(network)
    carried = network.bytes_by_link()
    weights = sum(each["weights"] for name, each in carried.items() if name.endswith("tx"))
    requests = sum(each["requests"] for name, each in carried.items() if name.endswith("tx"))
    assert all(store.complete for store in found.stores)
    assert weights == pytest.approx(sum(sizes) * (nodes - 1), rel=1e-6)
    assert requests == pytest.approx(sent, rel=1e-6)
    for name, each in carried.items():
        assert sum(each.values()) <= LINK * heap.now * (1 + 1e-6), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_streams_that_end_at_any_moment_leave_nothing_stuck(seed):
    rng = random.Random(seed)
    nodes = rng.randint(3, 7)
    heap, network = make(nodes)
    sizes = tuple(rng.randint(1, 12_000_000) for _ in range(rng.randint(1, 6)))
    found = Landings(heap, nodes, sizes)
    found.whole(0)
    streams = [found.stream(network, rng.randrange(i), i) for i in range(1, nodes)]
    for stream in streams:
        if rng.random() < 0.5:
            heap.at(rng.random() * 0.1, stream.close, "lost")
    for i in range(1, nodes):  # and then everyone is told to take from the source
        heap.at(0.2, found.stream, network, 0, i)
    heap.run_until(60.0)
    assert all(store.complete for store in found.stores)
    assert not any(store.streams or store.filling for store in found.stores)
