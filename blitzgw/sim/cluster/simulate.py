"""Simulate a serving cluster: a setup in, a record out, the same for the same seed."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blitzgw.hugepages import Gathering
from blitzgw.sim.cluster.faults import Faults
from blitzgw.sim.cluster.loop import virtual_loop
from blitzgw.sim.cluster.setup import ClusterSetup
from blitzgw.sim.cluster.world import START_S, ClusterWorld
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Answer, Record

LOOKS, TOLD = 200, 10
"""At whether it is over, of the window; and how often it is told how far it is for each of them."""

LONGEST_S = 600.0
"""After the last client's patience, until what has no answer is given up: nothing takes so long."""

YOUNG_OBJECTS = 50_000
"""Between two collections of cycles: deciders make many objects and few cycles."""

MANY_OBJECTS = 2_000_000
"""More than before, after which cycles are collected even where the collector is kept out: an
instance that has gone leaves hundreds of objects, and in an hour a large cluster has had as many
instances as would fill the memory."""

Progress = Callable[[float, str], None]
"""(share of the work, in words)."""


def simulate_cluster(setup: ClusterSetup, progress: Progress = lambda *_: None) -> Record:
    """Carry a setup out. ^C is raised as `KeyboardInterrupt`, and leaves nothing behind."""
    began_s = time.perf_counter()
    world = ClusterWorld(setup)
    with virtual_loop(world.heap), _few_collections(), _quiet():
        world.open()
        Faults(world).draw()
        _run(world, progress)
    return _record(world, time.perf_counter() - began_s)


def _run(world: ClusterWorld, progress: Progress) -> None:
    """Let time pass until all is answered, and the window is over."""
    setup, memory = world.setup, Gathering()
    last_s = max([a.at_s for model in setup.models for a in model.arrivals[-1:]], default=0.0)
    until_s = START_S + max(setup.duration_s, last_s)
    longest_s = until_s + setup.patience_s + LONGEST_S
    step_s = until_s / LOOKS
    while world.heap.now < until_s or (world.done < world.offered and world.heap.now < longest_s):
        begun_s, next_s = world.heap.now, world.heap.now + step_s
        for part in range(1, TOLD + 1):
            world.heap.run_until(min(begun_s + part * step_s / TOLD, next_s))
            share = min(world.heap.now / until_s, 1.0)
            progress(0.99 * share, f"{world.now_s():.1f} s, {world.done}/{world.offered} answered")
            memory.look()
        world.heap.run_until(next_s)
        if gc.get_count()[0] > MANY_OBJECTS:
            gc.collect()


def _record(world: ClusterWorld, wall_s: float) -> Record:
    """Return what there is to tell of a run that is over."""
    setup, noted = world.setup, world.record
    for node in world.nodes:
        if node.owner is not None:
            for facts in node.owner.operations.facts(world.heap.now):
                if facts.state not in ("done", "failed", "cancelled", "planned"):
                    noted.operation(facts)
    answers = [
        answer or _unanswered(arrival)
        for model in setup.models
        for arrival, answer in zip(model.arrivals, noted.answers[model.name], strict=True)
    ]
    answers.sort(key=lambda answer: answer.at_s)
    record = Record(setup.system.name, setup.seed, virtual=True, about={**setup.about})
    record.answers = answers
    record.looks = noted.looks
    record.operations, record.decisions = noted.operations, noted.decisions
    record.bytes_by_link = world.network.bytes_by_link()
    ends = [answer.at_s + answer.last_s for answer in answers if answer.last_s >= 0]
    record.seconds = max([setup.duration_s, *ends])
    record.about |= {
        "nodes": setup.nodes,
        "free_when_kept": setup.system.free_when_kept,
        "events": world.heap.handled,
        "wall_s": round(wall_s, 3),
        "events_per_s": round(world.heap.handled / max(wall_s, 1e-9)),
        "pictures": world.sights.pictures,
        "operations": dict(noted.n_operations),
        "decisions": dict(noted.n_decisions),
    }
    return record


def _unanswered(arrival: Arrival) -> Answer:
    """Return what becomes of a request that nobody has answered at all: a mistake somewhere."""
    return Answer(
        arrival.at_s, arrival.prompt_tokens, arrival.output_tokens, error="it was not answered"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Have no log but of errors: thousands of nodes would write into one."""
    former = logging.root.manager.disable
    logging.disable(max(former, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(former)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Collect cycles seldom: millions of objects that live long are looked through each time."""
    former = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*former)
        gc.unfreeze()
