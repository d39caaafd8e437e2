"""What a request takes beyond its steps, at an instance that has nothing else to do.

    over    send → first token  −  the steps that the cost formula gives the prompt

All seconds are of the wall clock.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.gateways import Gateways
from tests.support.live_client import Answer, Client, completion, prompts
from tests.support.live_setting import FIXED_US, LAYERS, TOKENS_PER_S, Pace

BUDGET_TOKENS = 448
"""Of a step, as in an evaluation."""

PROMPTS = (16, 440, 1800, 5300)
"""Tokens: one small step, one full one, 5 and 12 of them."""

SHORT = PROMPTS[:2]

DECODED = 24
"""Tokens of an answer whose steps are measured."""

ROUNDS = 5

OTHERS_TOKENS = 1800
"""Of prompts that other nodes have meanwhile: the trace's usual ones."""

PATIENCE_S = 120.0
VOCABULARY = 256


@dataclass(frozen=True, slots=True)
class Timed:
    """An answer: its prompt's tokens, its first token beyond the formula, a further step."""

    tokens: int
    over: float
    step: float


@dataclass(frozen=True, slots=True)
class Overheads:
    """What was measured of several answers; each list is what it says for single ones."""

    short: list[float]
    """Of prompts of one step."""
    prefill_step: list[float]
    """Of each further step of a long prompt."""
    decode_step: list[float]

    @classmethod
    def of(cls, answers: Sequence[Timed], step_s: float) -> Overheads:
        """Take answers apart; `step_s` is what the formula gives a lone decode's step."""
        short = [one.over for one in answers if one.tokens in SHORT]
        base = statistics.median(short)
        long = [one for one in answers if one.tokens not in SHORT]
        further = [(one.over - base) / (steps(one.tokens) - 1) for one in long]
        return cls(short, further, [one.step - step_s for one in answers])


class Asker:
    """Asks the nodes of a testbed."""

    def __init__(self, made: Gateways, pace: Pace, progress: Callable[[str], None]) -> None:
        self._made, self._pace, self._progress = made, pace, progress

    def ask(self, node: int) -> Overheads:
        """Ask a node for one prompt after another. Raises ValueError for an answer that failed."""
        found = []
        for number in range(-1, ROUNDS):
            for tokens in PROMPTS:
                timed = self._one(node, tokens, f"m{node}-{number}-{tokens}")
                if number >= 0:  # the first round warms up
                    found.append(timed)
        self._progress(f"requests at node {node}: {len(found)}")
        return Overheads.of(found, FIXED_US * 1e-6 * LAYERS * self._pace.slowed)

    @contextmanager
    def others(self, nodes: Sequence[int]) -> Iterator[None]:
        """Let other nodes have one request after another meanwhile."""
        over = threading.Event()
        threads = [threading.Thread(target=self._keep, args=(node, over)) for node in nodes]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join(PATIENCE_S)

    def _keep(self, node: int, over: threading.Event) -> None:
        number = 0
        while not over.is_set():
            number += 1
            self._one(node, OTHERS_TOKENS, f"o{node}-{number}")

    def _one(self, node: int, tokens: int, name: str) -> Timed:
        (prompt,) = prompts(1, tokens, VOCABULARY, seed=1 + sum(map(ord, name)))
        body = completion(prompt, DECODED, stream=True)
        volley = Client(self._made, node, PATIENCE_S).prepare({name: body})
        sent_s = volley.send()
        (answer,) = volley.answers()
        return _timed(answer, tokens, sent_s, self._prefill_s(tokens))

    def _prefill_s(self, tokens: int) -> float:
        """Return what the cost formula gives a lone prompt."""
        token_us = round(1e6 / TOKENS_PER_S / LAYERS - FIXED_US / self._pace.prompt_tokens, 6)
        layer_us = steps(tokens) * FIXED_US + tokens * token_us
        return layer_us * 1e-6 * LAYERS * self._pace.slowed


def steps(tokens: int) -> int:
    """Return how many steps a lone prompt takes."""
    return -(-tokens // BUDGET_TOKENS)


def _timed(answer: Answer, tokens: int, sent_s: float, prefill_s: float) -> Timed:
    times = answer.token_times
    if not answer.good or len(times) < 2:
        raise ValueError(f"{answer.name}: {answer.status} {answer.error}")
    step = (times[-1] - times[0]) / (len(answer.tokens) - 1)
    return Timed(tokens, times[0] - sent_s - prefill_s, step)
