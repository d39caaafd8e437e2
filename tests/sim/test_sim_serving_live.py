"""Live scaling on the serving core: the optimum of ALGORITHMS.md, policies, moves, failures."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any

import pytest

from blitzgw.core.instance import PacedCost
from blitzgw.core.step import Step, StepResult
from blitzgw.scheduler.events import StepCompleted
from blitzgw.sim.cluster.costs import StepCost
from blitzgw.sim.cluster.setup import Failures
from blitzgw.sim.cluster.simulate import simulate_cluster
from blitzgw.sim.cluster.steps import Company, StepWorker
from blitzgw.sim.evaluation.ladder import System
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.live import HELPER_RANK, HOME, HOME_RANK, LiveSetup, LiveWorld
from blitzgw.sim.liveworker import Agenda
from tests.sim.serving_kit import AUTO, GROWING, cluster, poisson

# The setting of ALGORITHMS.md: one layer of one request is a unit of time.


SEEDS = range(4, 24) if os.environ.get("BLITZGW_LONG") else (4,)


class Ranked:
    """An agenda as a worker's heap: of equal moments the home's come first."""

    def __init__(self, agenda: Agenda, rank: int) -> None:
        self._agenda, self._rank = agenda, rank

    @property
    def now(self) -> float:
        return self._agenda.now

    def at(self, moment: float, call: Any, *arguments: Any) -> None:
        self._agenda.at(moment, self._rank, call, *arguments)


class Ours:
    """A `StepWorker` in the place of an ideal one."""

    repeats = 0

    def __init__(self, world: PlayedWorld, number: int) -> None:
        self._world, self._number = world, number
        self.resident, self.work = 0, []
        rank = HELPER_RANK if number else HOME_RANK
        cost = StepCost(PacedCost(token_us=1e6 / world.setup.prompt_tokens))
        heap: Any = Ranked(world.agenda, rank)
        self._inner = StepWorker(
            heap, cost, world.setup.layers, self._send, lambda _: None, Company()
        )
        self._inner.join(self)

    def post(self, step: Step) -> None:
        self._inner.post(step)
        self._inner.go_on()

    def take_in(self, _edge: str, _parcel: object) -> None:
        pass

    def drop_parcels(self, _edge: str, _tickets: object) -> None:
        pass

    def completed(self, result: StepResult) -> None:
        self._world._tell(self._number, StepCompleted(result))

    def repeated(self, _steps: object, _at_s: float) -> None:
        raise AssertionError("nobody decodes")

    def _send(self, send: Any) -> None:
        self._world.roads[send.edge].send(send)


class PlayedWorld(LiveWorld):
    def _worker(self, number: int) -> Any:
        return Ours(self, number)


def test_the_optimum_by_brute_force_is_reached() -> None:
    outcome = PlayedWorld(LiveSetup(layers=7, requests=6, load=6)).run()
    assert sorted(outcome.completion) == pytest.approx([7, 12, 17, 21, 24, 27])
    assert HOME == 0


@pytest.mark.parametrize(("load", "mean"), [(8, 219), (4, 211), (2, 209)])
def test_means_of_a_long_queue(load: int, mean: int) -> None:
    outcome = PlayedWorld(LiveSetup(layers=32, requests=24, load=load)).run()
    assert outcome.mean == pytest.approx(mean, abs=1.0)


# A cluster.


@cache
def run(live: str, seed: int = 2, crashes: float = 0.0, **more: Any) -> Record:
    setup = cluster(
        poisson(16.0, 5.0, seed), 3, system=GROWING, ingresses=2, seed=seed, link=3e9,
        **(AUTO | {"live": live} | more),
    )  # fmt: skip
    return simulate_cluster(replace(setup, failures=Failures(crashes_per_node_hour=crashes)))


def check_answers(record: Record) -> None:
    for answer in record.answers:
        assert answer.outcome in ("ok", "failed")
        assert answer.outcome == "ok" or "node" in answer.error
        if answer.ok:
            assert answer.tokens == answer.output_tokens
            assert 0 < answer.first_s <= answer.last_s


@pytest.mark.parametrize("live", ["stop", "zigzag", "best-effort", "pipeline"])
def test_helpers_change_who_computes_but_no_answer(live: str) -> None:
    record = run(live)
    check_answers(record)
    assert {answer.outcome for answer in record.answers} == {"ok"}
    assert any(answer.split for answer in record.answers) == (live != "stop")
    assert sum(link["requests"] for link in record.bytes_by_link.values()) > 0  # KV that moves


def test_live_brings_first_tokens_sooner() -> None:
    stop, live = (fmean(a.first_s for a in run(kind).answers) for kind in ("stop", "zigzag"))
    assert live < 0.97 * stop


def test_kept_instances_serve_again_at_once() -> None:
    oracle = System("oracle", "all are kept", scales=True, initial="full", free_when_kept=True)
    setup = cluster(
        poisson(14.0, 3.0, 3), 4, system=oracle, ingresses=2, **(AUTO | {"keep_s": 1000.0})
    )
    record = simulate_cluster(setup)
    check_answers(record)
    before = [look.states for look in record.looks if look.at_s < 0.0]
    assert before[-1] == {"serving": 1, "kept": 3}
    assert max(look.states.get("serving", 0) for look in record.looks) == 4
    assert not any("loading" in look.states for look in record.looks)


@pytest.mark.parametrize("seed", SEEDS)
def test_crashes_lose_only_what_their_clients_were_connected_to(seed: int) -> None:
    record = run("zigzag", seed, crashes=150.0)
    check_answers(record)
    assert sum(answer.ok for answer in record.answers) > 0.3 * len(record.answers)
