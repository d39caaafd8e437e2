"""What a step has sampled: each token goes to its sequence, and that on into the next step.

Mostly it is certain that the step which is posted next has a row for everybody who goes on
(`Planner.follow`). Then they get it in the same pass: between two steps the caches forget the
sequences, so that what counts is to look at each of them once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

from blitzgw.core.request import PlainToken, StepTokens, TokenEvent
from blitzgw.core.step import BLOCK_TOKENS, StepResult
from blitzgw.scheduler.batch import Decoding
from blitzgw.scheduler.fairness import OUTPUT_WEIGHT
from blitzgw.scheduler.lane import PostedStep
from blitzgw.scheduler.planning import Planner
from blitzgw.scheduler.sequence import Phase, Sequence
from blitzgw.scheduler.telling import event_of


def take_sampled(
    posted: PostedStep,
    result: StepResult,
    planner: Planner,
    begun: Decoding | None,
    end: Callable[[Sequence], None],
) -> StepTokens:
    """Append sampled tokens to their sequences, `end` those that are done; return what to tell.

    Those who go on have a row of `begun`, if it is there. This runs for every token: no calls but
    the necessary ones.
    """
    running, ended, lane = Phase.RUNNING, Phase.ENDED, posted.lane
    plain: list[PlainToken] = []
    events: list[TokenEvent] = []
    samplers: list[Sequence] = [] if begun is None else begun.samplers
    for seq, token, logprobs in zip(
        posted.samplers, result.tokens, result.logprobs or repeat(None), strict=False
    ):
        phase = seq.phase
        if phase is ended:
            continue
        tokens, limit = seq.tokens, seq.limit
        n_computed = len(tokens)
        tokens.append(token)
        seq.account.charged += OUTPUT_WEIGHT
        if not n_computed % BLOCK_TOKENS and phase is running:
            lane.allocator.commit(seq.number, tokens, n_computed)
        finish = None
        if token in seq.stop_ids or n_computed + 1 >= limit:
            finish = seq.finish_reason()
        if finish is None and logprobs is None and seq.first_step_s is None:
            plain.append((seq.id, seq.attempt, token))
        else:
            events.append(event_of(seq, token, logprobs, finish))
            if finish is not None:
                seq.samples_in_flight -= 1
                lane.outputs.record(seq)
                end(seq)
                continue
        start = seq.scheduled
        if begun is not None and start + 1 < limit and phase is running:
            if start >= seq.capacity:
                lane.grow(seq)
                begun.grown.append(seq)
            samplers.append(seq)
            seq.scheduled = start + 1
            continue  # the token that has come and the one that will come make no difference
        seq.samples_in_flight -= 1
        if phase is not running and not seq.samples_in_flight:
            planner.requeue(seq)
    return StepTokens(plain, events)
