"""A simulated device and the instance on it: what is loaded, what is queued, how it is served.

One prompt after another is computed at PREFILL_TOKENS_PER_S, in the order in which they came; a
request that has its first token stays in the KV until its output is done. So the time to the first
token is the queue plus tokens over rate. An instance that drains gives back what it has not begun.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import LoadFacts
from blitzgw.sim.scalingload import DECODE_STEP_S, KV_TOKENS, PREFILL_TOKENS_PER_S, SLOTS, SimModel
from blitzgw.sim.scalingrequests import Submit


@dataclass(slots=True, eq=False)
class SimInstance:
    """A model on a device, at a claim, since `began_s`. `blobs` are resident."""

    id: str
    model: SimModel
    device: str
    claim: int
    began_s: float
    stopped_s: float | None = None
    """Since when it uses its device no more: kept, or gone."""
    state: InstanceState = InstanceState.LOADING
    blobs: set[int] = field(default_factory=set)
    queue: deque[tuple[Submit, float]] = field(default_factory=deque)
    computing: tuple[Submit, float] | None = None
    decoding: int = 0
    measured: bool = False
    number: int = 0

    @property
    def complete(self) -> bool:
        """Whether all weights are there."""
        return len(self.blobs) == len(self.model.definition.blob_bytes)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self.computing is None and not self.decoding and not self.queue

    @property
    def waiting(self) -> int:
        """Requests that are not begun, and the one that is being computed."""
        return len(self.queue) + (self.computing is not None)

    def submits(self) -> list[Submit]:
        """Return the requests whose prompts are not computed yet, in order."""
        begun = [self.computing] if self.computing is not None else []
        return [submit for submit, _ in (*begun, *self.queue)]

    def next(self, now: float) -> tuple[Submit, float] | None:
        """Begin the next prompt, if there is one, nothing is computed and the KV has room."""
        if self.computing is not None or not self.queue or self.decoding >= SLOTS:
            return None
        self.computing = self.queue.popleft()
        return self.computing[0], now - self.computing[1]

    def load(self) -> LoadFacts:
        """Return what its node tells of its load, with a new number."""
        self.number += 1
        model, running = self.model, self.decoding + (self.computing is not None)
        each = model.prompt_tokens + model.output_tokens
        in_kv, all_of_it = running * each, (running + len(self.queue)) * each
        return LoadFacts(
            instance=self.id,
            running=running,
            waiting=len(self.queue),
            queued_tokens=self.waiting * model.prompt_tokens,
            kv_usage=min(1.0, in_kv / KV_TOKENS),
            prefill_tokens_per_s=PREFILL_TOKENS_PER_S if self.measured else None,
            decode_step_s=DECODE_STEP_S if self.measured else None,
            number=self.number,
            kv_tokens=KV_TOKENS,
            kv_committed_tokens=min(all_of_it, 2 * KV_TOKENS),
        )


@dataclass(slots=True, eq=False)
class SimDevice:
    """A device of a node, or its host worker. `stores` are weights held without an instance."""

    id: str
    node: str
    claim: int = 1
    instance: SimInstance | None = None
    stores: dict[str, set[int]] = field(default_factory=dict)
    life: int = 0
    """Raised with every change of what is on it: what was begun for a former one is dropped."""

    @property
    def worker(self) -> str:
        """Its name between nodes."""
        return f"{self.node}/{self.id}"

    def blobs(self, weights: str) -> set[int]:
        """Return what it has of some weights."""
        found = self.stores.get(weights, set())
        if self.instance is not None and self.instance.model.definition.weights == weights:
            return self.instance.blobs | found
        return found
