"""What there is to tell of a sequence beside its next token."""

from __future__ import annotations

from blitzgw.core.request import FinishReason, Logprobs, TokenEvent
from blitzgw.core.step import PromptLogprobs
from blitzgw.scheduler.lane import PostedStep
from blitzgw.scheduler.sequence import Sequence


def take_scores(posted: PostedStep, told: tuple[PromptLogprobs, ...]) -> None:
    """Give sequences what has been computed of their prompts; who begins anew is told anew.

    What was posted before one was preempted counts as well: its first token may come of it.
    """
    sequences = {number: seq for seq, number, _ in posted.chunks}
    for scored in told:
        seq = sequences.get(scored.seq)
        if seq is not None:
            known = seq.prompt_logprobs if scored.start > 1 else None
            seq.prompt_logprobs = [*(known or ()), *scored.logprobs]


def event_of(
    seq: Sequence, token: int, logprobs: Logprobs | None, finish: FinishReason | None
) -> TokenEvent:
    """Return what there is to tell of a token that is a first or last one, or has more to it."""
    event = TokenEvent(seq.id, seq.attempt, [token], finish=finish)
    if logprobs is not None:
        event.logprobs = [logprobs]
    if seq.first_step_s is not None:
        event.cached_tokens = seq.cached_tokens
        event.queued_s, seq.first_step_s = seq.first_step_s - seq.arrived_s, None
        event.route = seq.route
        event.prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, None
    return event
