"""Each fault of the network does what it says, and only that."""

from __future__ import annotations

import random

import pytest

from blitzgw.sim.network import RETRANSMIT_S, Cut, Lossy, Network

A, B, C = ("10.0.0.0", 7077), ("10.0.0.1", 7077), ("10.0.0.2", 7077)
MANY = 4000


def network(**options: float) -> Network:
    return Network(random.Random("network"), **options)


def lost(net: Network, source: tuple[str, int], target: tuple[str, int]) -> float:
    return sum(not net.datagram(source, target) for _ in range(MANY)) / MANY


def test_without_faults_everything_arrives_once() -> None:
    net = network()
    arrivals = [net.datagram(A, B) for _ in range(MANY)]
    assert all(len(delays) == 1 for delays in arrivals)
    delays_s = sorted(delay for (delay,) in arrivals)
    assert delays_s[0] >= 0.0002
    assert 0.0004 < sum(delays_s) / MANY < 0.0008
    assert delays_s[-1] > 0.002  # the tail lets packets overtake each other


def test_jitter_reorders() -> None:
    net = network()
    arrivals = [i * 0.0005 + net.datagram(A, B)[0] for i in range(MANY)]
    assert arrivals != sorted(arrivals)


def test_loss_loses_its_share() -> None:
    assert lost(network(loss=0.2), A, B) == pytest.approx(0.2, abs=0.03)


def test_duplication_doubles_its_share() -> None:
    net = network(duplication=0.1)
    doubled = sum(len(net.datagram(A, B)) == 2 for _ in range(MANY)) / MANY
    assert doubled == pytest.approx(0.1, abs=0.03)


def test_ingress_loss_is_of_one_node_and_adds_to_the_rest() -> None:
    net = network(loss=0.1)
    fault = net.add(Lossy(frozenset([B]), 0.8))
    assert lost(net, A, B) == pytest.approx(1 - 0.9 * 0.2, abs=0.03)
    assert lost(net, B, A) == pytest.approx(0.1, abs=0.03)
    net.remove(fault)
    assert lost(net, A, B) == pytest.approx(0.1, abs=0.03)


def test_a_partition_cuts_groups_in_both_directions_until_it_heals() -> None:
    net = network()
    cuts = net.partition([A, B], [C])
    assert not net.datagram(A, C)
    assert not net.datagram(C, B)
    assert net.datagram(A, B)
    assert net.leg(A, C) is None
    for cut in cuts:
        net.remove(cut)
    assert net.datagram(A, C)
    assert net.datagram(C, B)


def test_an_asymmetric_cut_lets_the_other_direction_pass() -> None:
    net = network()
    net.add(Cut(frozenset([B]), frozenset([A])))  # A does not hear B
    assert net.datagram(A, B)
    assert not net.datagram(B, A)
    assert net.leg(A, B) is None  # no stream without its acknowledgements
    assert not net.connected(A, B)
    assert net.connected(A, C)


def test_equal_faults_overlap_and_end_one_by_one() -> None:
    net = network()
    first = net.add(Cut(frozenset([A]), frozenset([B])))
    second = net.add(Cut(frozenset([A]), frozenset([B])))
    net.remove(first)
    assert not net.open(A, B)
    net.remove(second)
    assert net.open(A, B)


def test_a_stream_pays_for_losses_with_time() -> None:
    net = network(loss=0.3)
    legs = [net.leg(A, B) for _ in range(MANY)]
    waited = [leg for leg in legs if leg is not None and leg > RETRANSMIT_S]
    assert len(waited) / MANY == pytest.approx(1 - 0.7**2, abs=0.06)
    assert sum(leg is None for leg in legs) / MANY < 0.05


def test_a_hopeless_stream_gives_up() -> None:
    net = network()
    net.add(Lossy(frozenset([B]), 1.0))
    assert net.leg(A, B) is None
    assert net.round_trip(B, A) is None


def test_a_network_calms_down() -> None:
    net = network(loss=0.5, duplication=0.5, tail_s=1.0)
    net.calm()
    arrivals = [net.datagram(A, B) for _ in range(MANY)]
    assert all(len(delays) == 1 for delays in arrivals)
    assert sum(delay for (delay,) in arrivals) / MANY < 0.001


def test_a_seed_gives_the_same_network() -> None:
    def run() -> list[tuple[float, ...]]:
        net = network(loss=0.2, duplication=0.2)
        return [net.datagram(A, B) for _ in range(200)]

    assert run() == run()
