"""The measurement of a small cluster, and the constants that the simulation shares with shells."""

from __future__ import annotations

import pytest

from blitzgw.core.rumours import Status
from blitzgw.crypto import datagrams, handshake, records
from blitzgw.gossip import streams as gossip_streams
from blitzgw.gossip.knobs import Knobs
from blitzgw.sim import streams, world
from blitzgw.sim.phases import Setup, measure
from blitzgw.sim.report import Quantiles, Report, quantiles
from blitzgw.sim.world import World

KNOBS = Knobs.of(0.25)


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(Setup(12, seed=3, seeds=2, idle_s=5.0, kills=2), KNOBS, lambda _: None)


def test_every_phase_gets_somewhere(report: Report) -> None:
    assert report.join_s is not None
    assert report.join_s < 30.0
    assert report.publish is not None
    assert 0 < report.publish.p50_s <= report.publish.p95_s <= report.publish.max_s
    assert (report.kills, report.kills_known) == (2, 2)
    assert report.first_suspicion is not None
    assert report.first_detection is not None
    assert report.known_to_all is not None
    assert report.first_suspicion.max_s < report.first_detection.max_s
    assert report.first_detection.max_s <= report.known_to_all.max_s < 15.0
    assert report.partition_s is not None
    assert report.partition_noticed == 1.0
    assert report.merge_s is not None


def test_a_healthy_cluster_accuses_nobody_wrongly(report: Report) -> None:
    assert [phase.phase for phase in report.phases] == [
        "join", "idle", "publish", "kill", "partition", "merge",
    ]  # fmt: skip
    for phase in report.phases[:-1]:  # merging, each side first hears itself suspected
        assert (phase.false_suspicions, phase.false_failures) == (0, 0), phase


def test_costs_are_of_the_order_that_the_knobs_say(report: Report) -> None:
    idle = report.phases[1]
    assert idle.duration_s == 5.0
    assert idle.packets_per_node_s == pytest.approx(2 / KNOBS.probe_interval_s, rel=0.3)
    assert idle.bytes_per_node_s > idle.packets_per_node_s * world.DATAGRAM_BYTES
    assert idle.bytes_per_node_s <= idle.busiest_bytes_s
    assert report.bytes > report.packets * world.DATAGRAM_BYTES


def test_a_node_alone_is_a_cluster_too() -> None:
    report = measure(Setup(1, seed=1, seeds=1, idle_s=1.0), KNOBS, lambda _: None)
    assert (report.join_s, report.packets) == (0.1, 0)


def test_quantiles_are_of_the_nearest_rank() -> None:
    assert quantiles([]) is None
    assert quantiles([3.0]) == Quantiles(3.0, 3.0, 3.0)
    assert quantiles([float(i) for i in range(100, 0, -1)]) == Quantiles(50.0, 95.0, 100.0)


def test_the_watch_agrees_with_the_members() -> None:
    subject = World(6, seed=1, knobs=KNOBS)
    for index in range(6):
        subject.start(index)
    assert subject.run(30.0, lambda: subject.watch.all_alive)
    subject.crash(5)
    subject.leave(4)
    subject.run(20.0)
    processes = subject.running()
    assert len(processes) == 4
    for process in processes:
        held = {m.boot: m.status for m in process.membership.members() if m.boot != process.boot}
        assert held == process.view
        assert sorted(held.values()) == [Status.ALIVE] * 3 + [Status.DEAD, Status.LEFT]
    assert all(death.known_s is not None for death in subject.watch.deaths.values())


def test_a_restart_is_another_process_at_the_same_address() -> None:
    subject = World(3, seed=1, knobs=KNOBS)
    for index in range(3):
        subject.start(index)
    subject.run(5.0)
    before = subject.hosts[2].process
    assert subject.start(2) is None  # it runs already
    subject.crash(2)
    after = subject.start(2)
    assert before is not None
    assert after is not None
    assert after.address == before.address
    assert after.boot != before.boot
    assert subject.run(30.0, lambda: subject.watch.all_alive)


def test_sizes_and_limits_are_those_of_the_shells() -> None:
    assert world.SEAL_BYTES == datagrams.OVERHEAD_BYTES
    assert streams.RECORD_BYTES == records.OVERHEAD_BYTES
    hellos = handshake.CLIENT_HELLO_BYTES + handshake.SERVER_HELLO_BYTES
    assert hellos + handshake.CONFIRMATION_BYTES == streams.HELLOS_BYTES
    assert streams.MAX_BEGUN == gossip_streams.MAX_BEGUN
    assert streams.MAX_TAKEN == gossip_streams.MAX_TAKEN
    assert streams.TIMEOUT_S == gossip_streams.SYNC_S
