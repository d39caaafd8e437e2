"""Predictions against a second opinion: pieces moved one small stretch of time after another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blitzgw.core.plan import Holder, Links, Plan, Port, Read, Task, Tier
from blitzgw.scaling.planner.check import resident_blobs
from blitzgw.scaling.planner.choose import STRATEGIES
from blitzgw.scaling.planner.fairshare import fair_rates
from blitzgw.scaling.planner.flows import Resources
from tests.scaling.planner_kit import RATE, all_plans, even_links, even_task, predict

STEPS = 1200
"""Stretches of time that a plan is followed in."""


class Pieces:
    """Follows a plan in steps: whole pieces are there, or they are not."""

    def __init__(self, plan: Plan, task: Task, links: Links, step_s: float) -> None:
        self.sizes = [max(1, size) for size in task.blob_bytes]
        self.resources = Resources(links)
        self.flows = [
            (item, self.resources.of_read(item) if isinstance(item, Read) else self._of(item))
            for item in (*plan.reads, *plan.edges)
        ]
        self.at = [[0, 0.0] for _ in self.flows]
        self.has: dict[tuple[str, int], float] = {}
        for worker, blobs in resident_blobs(task).items():
            self.has.update({(worker, blob): self.sizes[blob] for blob in blobs})
        self.piece = links.piece_bytes
        self.step_s = step_s

    def _of(self, edge: object) -> tuple[int, ...]:
        return self.resources.of_edge(edge)  # type: ignore[arg-type]

    def ready(self, number: int) -> float:
        """Return what a flow could send now of its present blob."""
        item = self.flows[number][0]
        place, sent = self.at[number]
        blob = item.blobs[int(place)]
        if isinstance(item, Read):
            return self.sizes[blob] - sent
        there = self.has.get((item.source, blob), 0.0)
        if there < self.sizes[blob]:
            there = there // self.piece * self.piece
        return there - sent

    def move(self, number: int, amount: float) -> bool:
        """Send so much of the present blob; return whether it is done."""
        item = self.flows[number][0]
        worker = item.worker if isinstance(item, Read) else item.target
        place, sent = self.at[number]
        blob = item.blobs[int(place)]
        sent += amount
        done = sent >= self.sizes[blob] - 1e-6
        self.has[worker, blob] = self.sizes[blob] if done else sent
        self.at[number] = [place + 1, 0.0] if done else [place, sent]
        return done

    def run(self, most_steps: int) -> float:
        """Return when all is there, in seconds."""
        for step in range(most_steps):
            open_ones = [i for i, (f, _) in enumerate(self.flows) if self.at[i][0] < len(f.blobs)]
            if not open_ones:
                return step * self.step_s
            active = [number for number in open_ones if self.ready(number) > 0.0]
            uses = {number: self.flows[number][1] for number in active}
            for number, rate in fair_rates(uses, self.resources.rates).items():
                self.spend(number, rate * self.step_s)
        raise AssertionError("it takes far longer than predicted")

    def spend(self, number: int, budget: float) -> None:
        while budget > 1e-9 and self.at[number][0] < len(self.flows[number][0].blobs):
            amount = min(budget, self.ready(number))
            if amount <= 0.0:
                return
            budget -= amount
            self.move(number, amount)


def situation(targets: int, sources: int) -> tuple[Task, Links]:
    """Return targets with disks and a fast network of their own beside the sources' one."""
    task, links = even_task(targets, sources), even_links(targets + sources, disks=0.6 * RATE)
    own = tuple(Holder(t, frozenset(range(32)), Tier.DISK) for t in task.targets)
    fast = {(f"n{i + sources}", "fast"): Port(4 * RATE, 4 * RATE) for i in range(targets)}
    ports = links.ports if targets % 2 else {**links.ports, **fast}
    return replace(task, holders=(*task.holders, *own)), replace(links, ports=ports)


@pytest.mark.parametrize(("targets", "sources"), [(1, 1), (3, 1), (4, 2), (7, 1), (8, 2)])
def test_predictions_agree_with_pieces_in_time(targets: int, sources: int) -> None:
    task, links = situation(targets, sources)
    plans = all_plans(task, links)
    assert {"star", "chain", "binomial", "disk"} <= set(plans) <= set(STRATEGIES)
    for name, plan in plans.items():
        predicted_s = predict(plan, task, links).complete_s
        pieces = Pieces(plan, task, links, predicted_s / STEPS)
        assert pieces.run(2 * STEPS) == pytest.approx(predicted_s, rel=0.03), name
