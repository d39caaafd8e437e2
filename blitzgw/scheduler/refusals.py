"""Why an instance does not take a request."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence as Tokens

from blitzgw.core.request import GenerationRequest
from blitzgw.errors import InvalidRequest, Overloaded, RequestError, Unavailable
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.sequence import Sequence

MAX_TOKEN_ID = 2**31 - 1
"""What prefix names are packed from; an id beyond would fail in the middle of an admission."""

_TOP_BYTE = 3 if sys.byteorder == "little" else 0
"""Of the four of an id: its first bit is set beyond MAX_TOKEN_ID."""

RETRY_AFTER_MIN_S, RETRY_AFTER_MAX_S = 1.0, 120.0
"""Below, clients come back before anything has changed; above, they have given up."""


def objection_to(
    request: GenerationRequest,
    lane: Lane,
    former: Sequence | None,
    max_queue: int,
    max_wait_s: float | None,
) -> RequestError | None:
    """Return why an instance does not take a request, or None.

    `former` is what is here of the same request already. A new one may wait behind `max_queue`
    others, and, if that is bounded, behind those that begin within `max_wait_s`. One may always
    wait, or it would never be known that the instance has become faster.
    """
    if former is not None:
        return _conflict(former, request)
    if not request.tokens:
        return InvalidRequest("the prompt is empty", param="prompt")
    if not _are_ids(request.tokens):
        return InvalidRequest(f"token ids are 0 to {MAX_TOKEN_ID}", param="prompt")
    if request.prompt_length >= lane.context:
        return InvalidRequest(
            f"the prompt has {request.prompt_length} tokens; prompt and answer together may "
            f"have {lane.context}",
            param="prompt",
        )
    per_s = lane.turnover.per_s
    if max_wait_s is not None and per_s is not None:
        max_queue = min(max_queue, max(1, int(max_wait_s * per_s)))
    if len(lane.queue) >= max_queue + lane.max_running - lane.n_running:
        return Overloaded(
            f"{len(lane.queue)} requests are waiting", retry_after_s=_retry_after_s(lane)
        )
    return None


def _are_ids(tokens: Tokens[int]) -> bool:
    """Tell whether all are within 0 and MAX_TOKEN_ID, in a third of the time of min and max."""
    try:
        packed = array("I", tokens).tobytes()
    except OverflowError:
        return False
    return packed[_TOP_BYTE::4].isascii()


def _conflict(former: Sequence, request: GenerationRequest) -> RequestError:
    """Return why a request whose id is here already is not taken.

    Whoever has given an attempt up has aborted it: one that is still here is somebody's, perhaps
    another node's, who would never hear of its end.
    """
    if former.attempt >= request.attempt:
        return InvalidRequest(f"request {request.id} is already being answered")
    text = f"attempt {former.attempt} of request {request.id} is here"
    return Unavailable(text, retry_after_s=RETRY_AFTER_MIN_S)


def _retry_after_s(lane: Lane) -> float:
    """Return when the queue will have been worked off at the measured rates, within bounds."""
    rate, per_s = lane.pace.prefill_tokens_per_s, lane.turnover.per_s
    backlog_s = lane.queue.tokens / rate if rate else 0.0
    turn_s = len(lane.queue) / per_s if per_s else 0.0
    return min(max(backlog_s, turn_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)
