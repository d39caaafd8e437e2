"""Serving in virtual time: production schedulers and routers, answers that add up."""

from __future__ import annotations

import gc
from dataclasses import replace
from statistics import fmean

import pytest

from blitzgw.core.instance import PacedCost
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.engine.base import RowInput, SequenceState
from blitzgw.engine.paced import PacedEngine
from blitzgw.sim.cluster import simulate
from blitzgw.sim.cluster.costs import StepCost
from blitzgw.sim.cluster.loop import virtual_loop
from blitzgw.sim.cluster.profiles import named
from blitzgw.sim.cluster.setup import ClusterSetup, Latencies
from blitzgw.sim.cluster.shell import VirtualShell
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.cluster.steps import StepWorker
from blitzgw.sim.cluster.world import START_S, ClusterWorld
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Answer, Record
from tests.sim.serving_kit import AUTO, GROWING, cluster, poisson

NO_TIME = Latencies(message_s=0.0, request_local_s=0.0, request_remote_s=0.0, step_overhead_s=0.0)


def run(setup: ClusterSetup) -> Record:
    record = simulate_cluster(setup)
    assert not record.failure
    return record


def figures(record: Record) -> list[tuple[object, ...]]:
    return [(a.at_s, a.outcome, a.first_s, a.last_s, a.tokens, a.split) for a in record.answers]


def alone(prompt: int, output: int, **changes: object) -> Answer:
    """Return the answer to a request that has a device for itself, where nothing else costs."""
    setup = cluster([Arrival(0.5, prompt, output)], 1, latencies=NO_TIME, **changes)
    return run(setup).answers[0]


# What a step costs.


def test_steps_cost_what_the_paced_device_takes() -> None:
    cost = PacedCost(fixed_us=250.0, token_us=1.9, context_us=0.01)
    state = SequenceState([1] * 4000, 4000, 0, SamplingParams(1))
    rows = [RowInput(state, 0, 300, False), RowInput(state, 700, 1, True)]
    engine = PacedEngine.__new__(PacedEngine)
    engine._cost = cost
    expected = PacedEngine.step_s(engine, rows, Span(3, 19))
    assert StepCost(cost).step_s(16, 301, 300 + 701) == pytest.approx(expected, rel=1e-12)


def test_a_step_costs_more_than_computing() -> None:
    cost = StepCost(PacedCost(), 0.002, 0.0005, 0.001, 0.0001)
    assert cost.besides_s(0, prompt=False) == 0.002
    assert cost.besides_s(4, prompt=False) == pytest.approx(0.004)
    assert cost.besides_s(4, prompt=True) == pytest.approx(0.0014)


def test_decoding_costs_more_as_contexts_grow() -> None:
    cost = StepCost(PacedCost(100.0, 1.0, 0.5))
    singly = [cost.step_s(8, 3, 30 + 3 * i) for i in range(5)]
    assert cost.decoding_s(8, 3, 30, 5) == singly
    assert singly == sorted(set(singly))


def test_one_request_takes_what_the_formula_says() -> None:
    profile = named("a800-8b")
    cost = StepCost(profile.cost)
    chunks = [448, 448, 104]
    answer = alone(1000, 5)
    first = sum(cost.step_s(32, n, 0) for n in chunks)
    assert answer.first_s == pytest.approx(first, rel=1e-9)
    assert answer.last_s == pytest.approx(first + 4 * cost.step_s(32, 1, 0), rel=1e-9)
    assert (answer.tokens, answer.outcome) == (5, "ok")


def test_latencies_come_on_top() -> None:
    request = [Arrival(0.5, 1000, 5)]
    took = Latencies(request_local_s=0.3, request_remote_s=0.2, step_overhead_s=0.0)
    local = run(cluster(request, 1, latencies=took)).answers[0]
    assert local.first_s == pytest.approx(alone(1000, 5).first_s + 0.3, rel=1e-6)


# Runs of equal steps.


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step be an event of its own."""
    monkeypatch.setattr(VirtualShell, "repeats", property(lambda _: 0))


@pytest.mark.parametrize(
    ("profile", "knobs"),
    [("a800-8b", {}), ("h100-8b", {}), ("a800-8b", {"max_num_seqs": 3}), ("a800-8b", AUTO)],
)
def test_runs_of_equal_steps_change_nothing(
    profile: str, knobs: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = GROWING if knobs is AUTO else None
    setup = cluster(
        poisson(7.0, 3.0), 2, profile=named(profile), system=system, ingresses=2, **knobs
    )
    fast = run(setup)
    one_by_one(monkeypatch)
    slow = run(setup)
    assert figures(fast) == figures(slow)
    assert fast.about["events"] < slow.about["events"]


def test_a_lone_answer_is_a_handful_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    passing = StepWorker._pass
    monkeypatch.setattr(
        StepWorker, "_pass", lambda self, count: (told.append(count), passing(self, count))
    )
    answer = alone(300, 1000)
    assert answer.tokens == 1000
    assert sum(told) > 990
    assert len(told) <= 3


# Requests.


@pytest.mark.parametrize("knobs", [{}, AUTO], ids=["static", "growing"])
def test_every_request_is_answered_once(knobs: dict[str, object]) -> None:
    arrivals = poisson(20.0, 5.0, seed=3)
    setup = cluster(arrivals, 4, system=GROWING if knobs else None, ingresses=3, **knobs)
    record = run(setup)
    assert [a.at_s for a in record.answers] == [a.at_s for a in arrivals]
    assert {a.outcome for a in record.answers} == {"ok"}
    assert [a.tokens for a in record.answers] == [a.output_tokens for a in arrivals]
    assert all(0 < a.first_s <= a.last_s for a in record.answers)
    if knobs:
        assert any(a.split for a in record.answers)


def test_the_same_seed_gives_the_same_run() -> None:
    setup = cluster(poisson(15.0, 4.0), 3, ingresses=3)
    assert figures(run(setup)) == figures(run(setup))


def test_what_leaves_objects_behind_is_collected_where_the_collector_is_kept_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulate, "MANY_OBJECTS", 1000)
    gc.disable()
    try:
        before = gc.get_stats()[2]["collections"]
        simulate_cluster(cluster(poisson(20.0, 10.0)))
        assert gc.get_stats()[2]["collections"] > before + 2
    finally:
        gc.enable()


def test_longer_answers_than_allowed_are_cut() -> None:
    assert alone(100, 3000).tokens == 1024
    setup = cluster([Arrival(0.5, 100, 3000)], 1, latencies=NO_TIME)
    models = tuple(replace(model, max_tokens=2048) for model in setup.models)
    assert run(replace(setup, models=models)).answers[0].tokens == 2048


def test_what_does_not_fit_is_an_error() -> None:
    answer = alone(9300, 5)
    assert answer.outcome == "failed"
    assert "9300 tokens" in answer.error


def test_a_client_gives_up() -> None:
    arrivals = [Arrival(0.1 + 0.001 * n, 3000, 5) for n in range(60)]
    setup = cluster(arrivals, 1)
    object.__setattr__(setup, "patience_s", 4.0)
    outcomes = [a.outcome for a in run(setup).answers]
    assert outcomes.count("timeout") > 20
    assert set(outcomes) == {"ok", "timeout"}


def test_nothing_is_kept_for_its_patience_that_has_an_answer() -> None:
    world = ClusterWorld(cluster([Arrival(0.1 + 0.1 * n, 100, 2) for n in range(40)], 1))
    with virtual_loop(world.heap):
        world.open()
        world.heap.run_until(START_S + 10.0)
    ingress = world.nodes[0].ingress
    assert world.done == 40
    assert ingress is not None
    assert len(ingress._patience) <= 2


def test_shared_prefixes_are_not_computed_twice() -> None:
    blocks = tuple(range(4))
    arrivals = [Arrival(0.5 + n, 2100, 3, blocks) for n in range(3)]
    record = run(cluster(arrivals, 1, prefix_caching=True))
    first, *others = (a.first_s for a in record.answers)
    assert all(other < 0.25 * first for other in others)


def test_unshared_prompts_share_nothing() -> None:
    arrivals = [Arrival(0.5 + n, 2100, 3) for n in range(3)]
    record = run(cluster(arrivals, 1, prefix_caching=True))
    assert len({round(a.first_s, 6) for a in record.answers}) == 1


# Queues.


def mean_s(service_s: float, every_s: float) -> float:
    """Return the mean time in an M/D/1 queue (Pollaczek and Khinchine)."""
    load = service_s / every_s
    return service_s * (1 + load / (2 * (1 - load)))


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_one_device_is_a_queue_with_fixed_service(load: float) -> None:
    profile = named("a800-8b")
    service_s = StepCost(profile.cost).step_s(32, 447, 0)
    every_s = service_s / load
    arrivals = poisson(1 / every_s, 50.0, 5, prompt=(447, 447), output=(1, 1))
    first = fmean(a.first_s for a in run(cluster(arrivals, 1, latencies=NO_TIME)).answers)
    # the step that finds the answer's end out is alone, or shared with the next prompt
    assert mean_s(service_s, every_s) < first < mean_s(service_s + profile.step_s, every_s)


def test_two_devices_take_more_than_one() -> None:
    arrivals = poisson(9.0, 10.0, 2)
    one, two = (fmean(a.first_s for a in run(cluster(arrivals, n)).answers) for n in (1, 2))
    assert two < 0.5 * one
