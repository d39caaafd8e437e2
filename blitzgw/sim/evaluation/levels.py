"""How many times a trace's arrivals are played: levels, found before anything is measured.

    capacity    budget / step_s(budget)                     tokens/s of an instance in full steps
    load        Σ (prompt + output tokens) / capacity / window    instances that are busy on average
    paper       the factor at which the load is half of the instances
    feasible    the largest factor at which all instances, there from the start, attain 99 %
    bound       half of what is due of the median prompt before the window          ttft_target_s

The latter is computed with steps of the cost model alone: each instance fills its steps first with
the next tokens of what it is answering, then with prompts in order of arrival; a request goes to
where fewest tokens waited when that was last told. What scales has no say in it, and cells of
`static-full` confirm it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from blitzgw.sim.evaluation.arrivals import Arrival, Objective
from blitzgw.sim.evaluation.statistics import median

FEASIBLE = 0.99
"""Attainment of `static-full` at the feasible level."""

PAPER = 0.5
"""Share of the largest number of instances that the paper level needs on average."""

OF_DUE = 0.5
"""The share of what is due that a queue may take: the rest is left to what nobody predicts."""

UTILISATION = 0.7
"""Of `static-mean`: as many instances as are this busy on average, for a queue needs room."""

LEAST_FACTOR, MAX_FACTOR, STEPS = 1 / 16, 64.0, 8
"""Of the search: it doubles, then halves its interval so often, which tells factors to 0.3 %."""

OVERHEAD_S = 0.0015
"""Of a step beyond the cost model: what a node's processes take of shared processors."""

NEWS_S = 0.1
"""Between two pictures of what waits where, each place having its own requests beside."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The cost model of an instance: a step of so many tokens, and how many it may have."""

    fixed_s: float
    token_s: float
    budget: int
    sequences: int

    def step_s(self, tokens: int) -> float:
        """Return what a step takes."""
        return self.fixed_s + self.token_s * tokens

    @property
    def tokens_per_s(self) -> float:
        """What full steps compute."""
        return self.budget / self.step_s(self.budget)


@dataclass(slots=True)
class _Request:
    arrival: Arrival
    left: int
    outputs: int = 0
    first_s: float = -1.0
    last_s: float = -1.0


@dataclass(slots=True)
class _Instance:
    """Batches continuously; `now_s` is when its present step ends."""

    steps: Steps
    now_s: float = 0.0
    backlog: int = 0
    waiting: deque[_Request] = field(default_factory=deque)
    running: list[_Request] = field(default_factory=list)

    def take(self, request: _Request) -> None:
        """Queue a request."""
        self.waiting.append(request)
        self.backlog += request.left

    def run_until(self, until_s: float) -> None:
        """Compute steps that begin before a moment."""
        while self.now_s < until_s and (self.waiting or self.running):
            self._step()
        if not self.waiting and not self.running and self.now_s < until_s < math.inf:
            self.now_s = until_s

    def _step(self) -> None:
        decoding, tokens = self.running, len(self.running)
        begun: list[_Request] = []
        while self.waiting and tokens < self.steps.budget:
            if len(decoding) + len(begun) >= self.steps.sequences:
                break
            head = self.waiting[0]
            part = min(head.left, self.steps.budget - tokens)
            head.left -= part
            self.backlog -= part
            tokens += part
            if not head.left:
                begun.append(self.waiting.popleft())
        self.now_s += self.steps.step_s(tokens) + OVERHEAD_S
        for one in (*decoding, *begun):
            one.outputs += 1
            one.first_s = self.now_s if one.first_s < 0 else one.first_s
            one.last_s = self.now_s
        self.running = [o for o in (*decoding, *begun) if o.outputs < o.arrival.output_tokens]


class _Fleet:
    """Instances, and as many places where requests come in, each with its own picture of them."""

    def __init__(self, instances: int, steps: Steps) -> None:
        self.instances = [_Instance(steps) for _ in range(instances)]
        self._told = [0] * instances
        self._told_s = 0.0
        self._sent = [[0] * instances for _ in range(instances)]

    def serve(self, arrivals: Sequence[Arrival]) -> list[_Request]:
        """Return what has become of requests."""
        requests = [_Request(one, one.prompt_tokens) for one in arrivals]
        for number, request in enumerate(requests):
            self._run_until(request.arrival.at_s)
            sent = self._sent[number % len(self._sent)]
            waits = [told + own for told, own in zip(self._told, sent, strict=True)]
            # of equals each place takes another
            order = sorted(range(len(waits)), key=lambda i: (waits[i], (i - number) % len(waits)))
            self.instances[order[0]].take(request)
            sent[order[0]] += request.left
        self._run_until(math.inf)
        return requests

    def _run_until(self, until_s: float) -> None:
        while self._told_s + NEWS_S <= until_s < math.inf:
            self._told_s += NEWS_S
            for one in self.instances:
                one.run_until(self._told_s)
            self._told = [one.backlog for one in self.instances]
            self._sent = [[0] * len(self.instances) for _ in self.instances]
        for one in self.instances:
            one.run_until(until_s)


def attainment(
    arrivals: Sequence[Arrival], instances: int, steps: Steps, objective: Objective
) -> float:
    """Return the share of requests within their objectives on so many instances."""
    served = _Fleet(instances, steps).serve(arrivals)
    return sum(_met(one, objective) for one in served) / max(1, len(served))


def _met(one: _Request, objective: Objective) -> bool:
    first_s = one.first_s - one.arrival.at_s
    further = one.outputs - 1
    tpot_s = (one.last_s - one.first_s) / further if further > 0 else 0.0
    return first_s <= objective.ttft_s(one.arrival.prompt_tokens) and tpot_s <= objective.tpot_s


def load(arrivals: Sequence[Arrival], window_s: float, steps: Steps) -> float:
    """Return how many instances are busy on average."""
    tokens = sum(one.prompt_tokens + one.output_tokens for one in arrivals)
    return tokens / steps.tokens_per_s / window_s


def mean_instances(load: float, most: int) -> int:
    """Return how many instances a load needs on average."""
    return min(most, max(1, math.ceil(load / UTILISATION)))


def paper(load_at_one: float, instances: int) -> float:
    """Return the factor of the paper level."""
    return PAPER * instances / load_at_one


def feasible(attained: Callable[[float], float]) -> float:
    """Return the largest factor at which `attained(factor)` reaches FEASIBLE; raises ValueError.

    Bisection on a logarithmic scale: attainment falls with the factor but for the dice of thinning.
    """
    low = LEAST_FACTOR
    if attained(low) < FEASIBLE:
        raise ValueError("even the thinnest trace cannot be served within the objectives")
    while low < MAX_FACTOR and attained(2 * low) >= FEASIBLE:
        low *= 2
    high = 2 * low
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if attained(middle) >= FEASIBLE else (low, middle)
    return low


def ttft_target_s(before: Sequence[Arrival], objective: Objective) -> float:
    """Return the policy's bound: it follows from the objective and from what has come before."""
    middle = median(one.prompt_tokens for one in before)
    return round(OF_DUE * objective.ttft_s(round(middle)), 3)
