"""A model in virtual time: prompts in one FIFO queue, several instances, the policy in the loop."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

from blitzgw.core.scale import Demand, bucket_of
from blitzgw.core.view import LoadFacts, ScaleTerms
from blitzgw.scaling.autoevents import Coming
from blitzgw.scaling.monitor import Monitor
from blitzgw.scaling.policy import Fleet, PolicyState, Verdict, decide

TICK_S = 0.02


@dataclass
class Model:
    """One model on one node; call `run` with arrivals (time, tokens), sorted."""

    terms: ScaleTerms
    rate: float = 10_000.0
    load_s: float = 1.0
    devices: int = 64
    instances: int = 1
    most: int = 0
    told_load_s: float | None = None
    now: float = 0.0
    queue: deque[tuple[float, int]] = field(default_factory=deque)
    free: list[float] = field(default_factory=list)
    busy: list[tuple[float, int]] = field(default_factory=list)
    coming: list[float] = field(default_factory=list)
    changes: list[tuple[float, int, Verdict]] = field(default_factory=list)
    ttfts: list[tuple[float, float]] = field(default_factory=list)
    instance_s: float = 0.0
    leaving: int = 0

    def __post_init__(self) -> None:
        self.serving = self.instances
        self.idle = self.instances
        self.monitor = Monitor("m", 0.0)
        self.state = PolicyState()
        self.number = 0
        self.arrived = self.arrived_tokens = 0
        self.news: dict[int, int] = {}

    @property
    def present(self) -> int:
        return self.serving + len(self.coming)

    def run(self, arrivals: list[tuple[float, int]], until: float) -> Model:
        pending = deque(arrivals)
        while self.now < until:
            edge = self.now + TICK_S
            self._serve(pending, edge)
            self.now = edge
            self._decide()
            self.instance_s += TICK_S * (self.present + self.leaving)
        return self

    def _serve(self, pending: deque[tuple[float, int]], edge: float) -> None:
        while True:
            times = [edge]
            if pending:
                times.append(pending[0][0])
            if self.busy:
                times.append(self.busy[0][0])
            if self.coming:
                times.append(min(self.coming))
            at = min(times)
            if at >= edge:
                return
            if pending and pending[0][0] == at:
                self.queue.append(pending.popleft())
                self.arrived += 1
                self.arrived_tokens += self.queue[-1][1]
            elif self.busy and self.busy[0][0] == at:
                heapq.heappop(self.busy)
                if self.leaving:
                    self.leaving -= 1
                else:
                    self.idle += 1
            else:
                self.coming.remove(at)
                self.serving += 1
                self.idle += 1
            self._start(at)

    def _start(self, at: float) -> None:
        while self.queue and self.idle:
            arrived_s, tokens = self.queue.popleft()
            self.idle -= 1
            done = at + tokens / self.rate
            heapq.heappush(self.busy, (done, tokens))
            self.ttfts.append((arrived_s, done - arrived_s))
            bucket = bucket_of(done - arrived_s)
            self.news[bucket] = self.news.get(bucket, 0) + 1

    def _decide(self) -> None:
        self.number += 1
        waiting = sum(tokens for _, tokens in self.queue)
        computing = sum((done - self.now) * self.rate for done, _ in self.busy)
        held = not (self.serving or self.leaving)
        load = LoadFacts(
            "i",
            running=len(self.busy),
            waiting=0 if held else len(self.queue),
            queued_tokens=int(computing) + (0 if held else waiting),
            prefill_tokens_per_s=self.rate,
            number=self.number,
        )
        demand = Demand(
            "m",
            "d",
            self.number,
            held=len(self.queue) if held else 0,
            held_tokens=waiting if held else 0,
            held_s=self.now - self.queue[0][0] if held and self.queue else 0.0,
            arrived=self.arrived,
            arrived_tokens=self.arrived_tokens,
            loads=(load,),
            ttft=self.news,
        )
        self.news = {}
        self.monitor.look({"i": "gpu"}, [], self.now)
        self.monitor.take("a", demand, self.now)
        coming = tuple(
            Coming(f"c{i}", 1 - (at - self.now) / self.load_s, at - self.now, False)
            for i, at in enumerate(sorted(self.coming))
        )
        load_s = self.load_s if self.told_load_s is None else self.told_load_s
        figures = self.monitor.figures(self.terms, self.serving, coming, self.now, "", load_s)
        fleet = Fleet(
            serving=self.serving,
            coming=coming,
            least=self.terms.min_instances,
            most=self.terms.max_instances,
            devices=self.devices - self.present,
            load_s=load_s,
        )
        verdict = decide(figures, self.terms, fleet, self.state, self.now)
        self.state = verdict.state
        if verdict.changes:
            self._carry_out(verdict)

    def _carry_out(self, verdict: Verdict) -> None:
        self.changes.append((round(self.now, 3), verdict.wanted, verdict))
        while self.present < verdict.wanted:
            self.coming.append(self.now + self.load_s)
        while self.present > verdict.wanted:
            if self.coming:
                self.coming.remove(max(self.coming))
                continue
            self.serving -= 1
            if self.idle:
                self.idle -= 1
            else:
                self.leaving += 1

    def p90(self, start: float = 0.0, stop: float = 1e9) -> float:
        found = sorted(ttft for at, ttft in self.ttfts if start <= at < stop)
        return found[int(0.9 * (len(found) - 1))] if found else 0.0

    def attained(self) -> float:
        good = sum(ttft <= self.terms.ttft_s for _, ttft in self.ttfts)
        return good / max(1, len(self.ttfts))


def constant(per_s: float, tokens: int, start: float, stop: float) -> list[tuple[float, int]]:
    n = int((stop - start) * per_s)
    return [(start + (i + 0.5) / per_s, tokens) for i in range(n)]


def poisson(
    seed: int, per_s: float, tokens: int, start: float, stop: float, vary: bool = False
) -> list[tuple[float, int]]:
    rng, at, found = random.Random(seed), start, []
    while (at := at + rng.expovariate(per_s)) < stop:
        size = max(1, int(rng.expovariate(1 / tokens))) if vary else tokens
        found.append((at, size))
    return found
