"""A simulated serving cluster, end to end: all is answered once, and paid for once."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from blitzgw.config import ModelConfig
from blitzgw.sim.cluster.cell import setup_of
from blitzgw.sim.cluster.faults import Faults
from blitzgw.sim.cluster.loop import virtual_loop
from blitzgw.sim.cluster.profiles import named
from blitzgw.sim.cluster.serving import Serving
from blitzgw.sim.cluster.setup import ClusterSetup, Failures, Latencies, ModelSetup
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.cluster.streams import Store
from blitzgw.sim.cluster.world import START_S, ClusterWorld
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.ladder import SYSTEMS
from blitzgw.sim.evaluation.record import HOLDING
from tests.support.gateways import CONFIG

LINK = 1.25e10
NODES = 6
BURST_S = 3.0
FAIR = ("stop+chain", "stop+host", "stop+disk", "pipeline", "live-zigzag", "oracle")


def burst(seed=0, rate=50.0, until_s=BURST_S):
    """Requests that need more than one instance for a while, and a few after it."""
    gap_s = 1.0 / rate
    count = int(until_s * rate)
    found = [Arrival(i * gap_s, 900 + (i * 37 + seed) % 400, 10) for i in range(count)]
    return (*found, *(Arrival(until_s + 2.0 * i, 1000, 10) for i in range(1, 4)))


def make(name="stop+chain", *, models=1, arrivals=None, **terms):
    system = SYSTEMS[name]
    knobs = {
        "max_model_len": 4096,
        "max_batched_tokens": 512,
        "prefix_caching": False,
        "ttft_target_s": 0.5,
        "max_instances": NODES // models,
        "scale_down_after_s": 1.0,
        "keep_s": 0.5,
        "scaling": "auto" if system.scales else "manual",
    } | dict(system.settings)
    profile = named("a800-8b")
    setups = tuple(
        ModelSetup(
            f"m{i}", profile, burst(i) if arrivals is None else arrivals, ModelConfig(**knobs)
        )
        for i in range(models)
    )
    terms = {"nodes": NODES, "duration_s": 20.0, "ingresses": NODES, "seed": 1} | terms
    return ClusterSetup(
        system=system,
        models=setups,
        link_bytes_per_s=LINK,
        disk_bytes_per_s=LINK / 10,
        host_bytes_per_s=1.28 * LINK,
        **terms,
    )


def paid_s(record):
    ends = [*(look.at_s for look in record.looks[1:]), record.seconds]
    states = HOLDING - {"kept"} if record.about["free_when_kept"] else HOLDING
    return sum(
        look.held(states) * max(0.0, min(end, record.seconds) - max(0.0, look.at_s))
        for look, end in zip(record.looks, ends, strict=True)
    )


def mean_s(record):
    return sum(answer.first_s for answer in record.answers) / len(record.answers)


@pytest.fixture(scope="module")
def records():
    names = ("static-full", *FAIR)
    return {name: simulate_cluster(make(name)) for name in names}


@pytest.mark.parametrize("name", ["static-full", *FAIR])
def test_all_requests_are_answered_whole_and_in_order_of_arrival(records, name):
    record = records[name]
    assert [answer.at_s for answer in record.answers] == sorted(a.at_s for a in burst())
    for answer in record.answers:
        assert answer.ok, answer.error
        assert answer.tokens == answer.output_tokens
        assert 0 < answer.first_s <= answer.last_s


@pytest.mark.parametrize("name", FAIR)
def test_systems_that_scale_grow_in_the_burst_and_shrink_after_it(records, name):
    record = records[name]
    most = max(look.held(frozenset({"serving"})) for look in record.looks if look.at_s > 0)
    last = record.looks[-1].held(frozenset({"serving"}))
    assert most > 1
    assert last < most
    assert name == "stop+disk" or paid_s(record) < 0.9 * paid_s(records["static-full"])
    assert record.about["operations"].get("done", 0) >= 2
    assert {decision["action"] for decision in record.decisions} >= {"grow", "shrink"}


def test_what_is_there_all_the_time_is_paid_for_all_the_time(records):
    record = records["static-full"]
    assert paid_s(record) == pytest.approx(NODES * record.seconds)
    assert not record.operations
    assert not record.bytes_by_link or all(
        each["weights"] == 0 for each in record.bytes_by_link.values()
    )


def test_nothing_to_load_is_the_best_of_those_that_scale_and_a_disk_the_worst(records):
    means = {name: mean_s(records[name]) for name in FAIR}
    assert min(means, key=means.__getitem__) == "oracle"
    assert max(means, key=means.__getitem__) == "stop+disk"


def test_weights_go_over_the_network_once_for_each_instance_that_was_loaded_by_it(records):
    record = records["stop+chain"]
    loaded = sum(
        target["arrived"] == target["blobs"]
        for operation in record.operations
        for target in operation["targets"]
        if any(edge["target"] == target["worker"] for edge in operation["edges"])
    )
    carried = sum(e["weights"] for n, e in record.bytes_by_link.items() if n.endswith("rx"))
    assert loaded > 0
    assert carried == pytest.approx(loaded * named("a800-8b").weight_bytes, rel=0.01)


def test_loading_instances_help(records):
    assert any(answer.split for answer in records["live-zigzag"].answers)
    assert not any(answer.split for answer in records["stop+chain"].answers)


def test_a_growth_takes_what_its_phases_take(records):
    operations = records["stop+chain"].operations
    chain = next(each for each in operations if len(each["edges"]) > 1)
    events = {event["what"]: event["at_s"] for event in reversed(chain["events"])}
    load_s = named("a800-8b").weight_bytes / LINK
    assert chain["strategy"] == "chain"
    assert events["decided"] <= events["planned"] < events["claimed"] < events["blob"]
    assert events["blob"] + load_s / 2 < events["ready"] <= events["done"]
    assert load_s < chain["elapsed_s"] < load_s * 1.2


def test_a_worker_warms_up_once_unless_its_instance_has_computed_while_it_loaded(records):
    apart = [dataclasses.replace(one, at_s=one.at_s + 12.0) for one in burst(until_s=1.5)]
    setup = make("stop+chain", arrivals=(*burst(until_s=1.5), *apart), duration_s=15.0)
    took_s, warm_up_s = Latencies().serve_s, named("a800-8b").warm_up_s
    assert warm_up_s == pytest.approx(32 * 2 * 250e-6, rel=0.05)  # two steps of 32 layers
    found = {}
    for record in (simulate_cluster(setup), records["live-zigzag"]):
        for operation in record.operations:
            for target in operation["targets"]:
                if target["arrived"] == target["blobs"] and target["ready_s"] is not None:
                    ready_s = target["ready_s"] - max(target["arrived_s"])
                    key = record.system, target["worker"]
                    found.setdefault(key, []).append(pytest.approx(ready_s, abs=1e-6))
    again = [waits for waits in found.values() if len(waits) > 1]
    assert again
    for first, *others in again:
        assert first == took_s + warm_up_s
        assert others == [took_s] * len(others)
    assert [took_s] in [waits for (system, _), waits in found.items() if system == "live-zigzag"]


def test_first_reads_share_the_processors_of_one_machine():
    took = Latencies(first_read_s=1.0, cores=2.0, disk_first_byte_s=0.25)
    world = ClusterWorld(make("stop+disk", arrivals=(), latencies=took))
    landed_s = []

    def read(nodes):
        for node in nodes:
            store = Store((8,), lambda _: landed_s.append(world.heap.now))
            node.premises.shelf.read(store, (0,))

    with virtual_loop(world.heap):
        world.open()
        world.heap.at(10.0, read, world.nodes[:4])
        world.heap.at(20.0, read, [*world.nodes[:2], world.nodes[5]])
        world.heap.run_until(30.0)
    assert landed_s == pytest.approx([12.25] * 4 + [20.25] * 2 + [21.25])


def same(record):
    found = dataclasses.asdict(record)
    for name in ("wall_s", "events_per_s"):
        del found["about"][name]
    return found


@pytest.mark.parametrize("name", ["live"])
def test_a_seed_gives_the_same_run(name):
    failures = Failures(crashes_per_node_hour=200.0, slow_links_per_node_hour=200.0)
    setup = make(name, failures=failures, duration_s=4.0, arrivals=burst(until_s=1.0))
    assert same(simulate_cluster(setup)) == same(simulate_cluster(setup))


@pytest.mark.parametrize("name", ["live"])
def test_crashes_lose_only_those_whose_own_node_is_gone(name):
    setup = make(name, failures=Failures(crashes_per_node_hour=600.0, down_s=(1.0, 2.0)))
    world = ClusterWorld(setup)
    with virtual_loop(world.heap):
        world.open()
        faults = Faults(world)
        faults.draw()
        world.heap.run_until(START_S + 60.0)
    assert faults.crashes > 2
    assert world.done == world.offered
    answers = [one for many in world.record.answers.values() for one in many if one is not None]
    outcomes = Counter(answer.outcome for answer in answers)
    wrong = {answer.error for answer in answers if not answer.ok}
    assert outcomes["ok"] > 0.5 * world.offered
    assert wrong <= {"the node is gone", "no node can be reached"}
    serving = [i for node in world.nodes for i in node.premises.instances()]
    assert serving
    for node in world.nodes:
        node.steward.check_integrity()
        if node.owner is not None:
            node.owner.operations.check_integrity()
            node.owner.autoscaler.check_integrity()


def test_several_models_share_the_devices():
    record = simulate_cluster(make("stop+chain", models=3, arrivals=burst(until_s=1.0)))
    assert len(record.answers) == 3 * len(burst(until_s=1.0))
    assert all(answer.ok for answer in record.answers)
    assert max(look.held() for look in record.looks) <= NODES


@pytest.mark.parametrize("disk", [1, NODES])
def test_a_host_copy_is_made_anew_when_its_holder_dies(disk):
    setup = make("stop+chain", arrivals=(), duration_s=60.0)
    setup = dataclasses.replace(
        setup, models=(dataclasses.replace(setup.models[0], disk=disk),), failures=Failures()
    )
    world = ClusterWorld(setup)
    weights = setup.models[0].definition.weights

    def holders():
        return [n for n in world.nodes if weights in n.premises.shelf.copies]

    with virtual_loop(world.heap):
        world.open()
        (holder,) = holders()
        faults = Faults(world)
        world.heap.at(START_S, faults.crash, holder.index)
        world.heap.run_until(START_S + 30.0)
        (other,) = holders()
        assert other is not holder
        assert other.premises.shelf.copies[weights].store.complete


def test_two_devices_on_a_node_hand_weights_over_by_its_memory():
    record = simulate_cluster(make("stop+chain", nodes=3, devices_per_node=2, ingresses=3))
    assert all(answer.ok for answer in record.answers)
    assert max(look.held() for look in record.looks) > 1


def test_an_interrupt_comes_out_as_it_is():
    def stop(share, _text):
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_cluster(make("static-full"), stop)
    simulate_cluster(make("static-full", arrivals=burst(until_s=0.2), duration_s=1.0))


def test_what_drains_may_go_on_for_as_long_as_nodes_are_told(monkeypatch):
    looking, given_s = Serving._look, []

    def look(serving, there, number, deadline_s):
        given_s.append(deadline_s - serving.clock.now())
        looking(serving, there, number, deadline_s)

    monkeypatch.setattr(Serving, "_look", look)
    simulate_cluster(make("stop+chain", drain_timeout_s=0.3, arrivals=burst(until_s=1.5)))
    assert max(given_s) == pytest.approx(0.3)


RECORDED = {
    "nodes": 4,
    "window": [0.0, 9.0],
    "link_bytes_per_s": LINK,
    "disk_bytes_per_s": LINK / 10,
    "host_bytes_per_s": LINK,
    "knobs": {"max_model_len": 4096},
    "initial": 3,
}
"""What a record of a testbed tells of itself, as far as it matters."""


def test_a_testbeds_record_is_simulated_as_its_nodes_were_told():
    def of(system, **told):
        return setup_of(RECORDED | told, SYSTEMS[system], 1, Latencies(), burst())

    plain = of("live")
    assert f"\ndrain_timeout_s = {plain.drain_timeout_s}\n" in CONFIG
    assert plain.models[0].max_tokens == 1024
    told = of("live", max_tokens=2048, drain_timeout_s=7.0)
    assert (told.models[0].max_tokens, told.drain_timeout_s) == (2048, 7.0)
    assert [s.initial(s.models[0]) for s in map(of, ("live", "static-mean", "static-full"))] == [
        1, 3, 4,
    ]  # fmt: skip


def test_measured_latencies_are_undilated_but_for_shares():
    told = {"serve_s": 0.4, "link_share": 0.9, "cores": 2, "unknown_s": 1.0}
    found = Latencies.measured(told, 4.0)
    assert (found.serve_s, found.link_share, found.cores) == (0.1, 0.9, 2)
    assert found.gossip_lag_s == Latencies().gossip_lag_s
