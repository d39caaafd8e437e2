"""What a body asks for beside its prompt, its lengths and its seed: read once for all alike.

Clients send the same fields again and again. Reading them touches some hundred places in memory,
most of which have left the caches since the last request; finding what has been read touches a few.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from msgspec.structs import astuple

from blitzgw.api.bodies import ChatBody, CompletionBody
from blitzgw.api.generation import Options
from blitzgw.api.sampling import MAX_INT32, Stopping, read_params, read_stopping
from blitzgw.core.request import SamplingParams
from blitzgw.errors import InvalidRequest

MAX_N = 128
"""Choices of one prompt."""

MAX_KNOWN = 256
"""Wishes that are remembered, some hundred bytes each: an application has a few."""

_FIELDS = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "logit_bias", "ignore_eos", "stop_token_ids", "logprobs"),
    *("top_logprobs", "stop", "include_stop_str_in_output", "skip_special_tokens", "n", "priority"),
    *("stream", "stream_options", "echo", "return_token_ids"),
)
"""All that `_read` looks at; where one is a list or a dict, the wishes are not remembered."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What has been read and checked. `params` lacks the lengths and the seed."""

    params: SamplingParams
    stopping: Stopping
    options: Options
    copies: int
    priority: int


def _picker(kind: type[ChatBody | CompletionBody]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    names = kind.__struct_fields__
    return itemgetter(*(names.index(name) for name in _FIELDS if name in names))


_PICKERS = {kind: _picker(kind) for kind in (ChatBody, CompletionBody)}
_known: dict[Hashable, Wishes] = {}


def read_wishes(body: ChatBody | CompletionBody, vocab: int) -> Wishes:
    """Return what a body asks for, of a model with `vocab` token ids; raises InvalidRequest."""
    kind = type(body)
    key = kind, vocab, _PICKERS[kind](astuple(body))
    try:
        found = _known.get(key)
    except TypeError:  # it has a list
        return _read(body, vocab)
    if found is None:
        found = _read(body, vocab)
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        _known[key] = found
    return found


def _read(body: ChatBody | CompletionBody, vocab: int) -> Wishes:
    return Wishes(
        read_params(body, vocab),
        read_stopping(body),
        _options(body),
        _copies(body),
        _priority(body),
    )


def _copies(body: ChatBody | CompletionBody) -> int:
    copies = 1 if body.n is None else body.n
    if not 1 <= copies <= MAX_N:
        raise InvalidRequest(f"n must be within [1, {MAX_N}]", param="n")
    return copies


def _priority(body: ChatBody | CompletionBody) -> int:
    priority = body.priority or 0
    if abs(priority) > MAX_INT32:
        raise InvalidRequest("priority must fit into 32 bits", param="priority")
    return priority


def _options(body: ChatBody | CompletionBody) -> Options:
    usage = body.stream_options
    return Options(
        chat=isinstance(body, ChatBody),
        stream=bool(body.stream),
        include_usage=usage is not None and bool(usage.include_usage),
        continuous_usage=usage is not None and bool(usage.continuous_usage_stats),
        echo=bool(body.echo),
        token_ids=bool(body.return_token_ids),
        logprobs=body.logprobs is not None and body.logprobs is not False,
    )
