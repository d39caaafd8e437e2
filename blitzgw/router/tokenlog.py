"""What is known of a request under way: enough to start it again somewhere else."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from functools import partial

from blitzgw.core.ports import TokenSink
from blitzgw.core.request import GenerationRequest, Stage
from blitzgw.core.view import RequestFacts
from blitzgw.errors import Outdated
from blitzgw.router.refusal import Refusal, kinder


@dataclass(slots=True)
class Round:
    """One search for an instance: who has refused, and the kindest refusal so far.

    `declines` counts refusals that took the way there and back.
    """

    tried: frozenset[str] = frozenset()
    refusal: Refusal | None = None
    declines: int = 0

    def refused(self, instance: str, refusal: Refusal) -> None:
        """Note an instance's refusal; one that is not there is as if nobody knew of it."""
        self.tried |= {instance}
        if not isinstance(refusal, Outdated):
            self.refusal = kinder(self.refusal, refusal)


@dataclass(slots=True, eq=False)
class Entry:
    """One request: as it came, the tokens generated so far, and where it is now.

    `number` tells who came first. `attempt` rises whenever an instance gives the request back, so
    that what it still says can be told apart; only `failures` count against it, and `moves` are
    those that nobody is to blame for. The present attempt is `alive` once it has been heard of;
    instances that have `failed` it are asked last. `instance` is empty while the request is held;
    `held_since` is the time from which its patience counts, None where it begins anew. `admitted`:
    it has been held or lost, and is not turned away any more.
    """

    request: GenerationRequest
    sink: TokenSink
    number: int
    since_s: float
    tokens: array[int] = field(default_factory=partial(array, "I"))
    attempt: int = 0
    failures: int = 0
    moves: int = 0
    alive: bool = False
    failed: frozenset[str] = frozenset()
    instance: str = ""
    route: tuple[Stage, ...] = ()
    """Who ran which layers of the prompt, where not one instance ran them all."""
    admitted: bool = False
    held_since: float | None = None
    round: Round = field(default_factory=Round)
    prefixes: list[int] | None = None
    """Names of the prompt's prefixes; None until asked for."""

    @property
    def displaced(self) -> bool:
        """Whether it had been placed before it was held: it goes before new ones."""
        return bool(self.failures or self.moves)

    def resubmission(self) -> GenerationRequest:
        """Return the request for the present attempt: prompt and all tokens so far."""
        if self.attempt == 0:
            return self.request
        return replace(
            self.request,
            tokens=(*self.request.tokens, *self.tokens),
            attempt=self.attempt,
        )

    def facts(self, ingress: str, now: float) -> RequestFacts:
        """Return what an operator may see of it."""
        request = self.request
        return RequestFacts(
            id=request.id,
            model=request.model,
            ingress=ingress,
            instance=self.instance,
            attempt=self.attempt,
            prompt_tokens=request.prompt_length,
            output_tokens=len(self.tokens),
            max_tokens=request.sampling.max_tokens,
            age_s=now - self.since_s,
        )
