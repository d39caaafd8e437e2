"""From a request body to `SamplingParams` and stop strings: ranges, caps and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from blitzgw.api.bodies import ChatBody, CompletionBody, GenerationBody
from blitzgw.core.request import SamplingParams
from blitzgw.errors import InvalidRequest

COMPLETION_TOKENS = 16
"""`max_tokens` of a text completion that names none, as OpenAI has it."""

MAX_STOPS = 16
"""Each stop string is searched for at each token; OpenAI allows 4."""

MAX_STOP_CHARS = 1024
"""All stop strings of a request together: bounds the text held back and the work per token."""

MAX_STOP_TOKENS = 1024
"""Token ids that end a sequence: they travel with the request to its worker."""

MAX_LOGPROBS = 20
"""Alternatives per token, as OpenAI and vLLM have it."""

MAX_PROMPT_LOGPROBS = 1 << 16
"""Log-probabilities of one prompt, alternatives included: they come in one message."""

MAX_BIASES = 1024
"""Entries of `logit_bias`: they travel with the request and cost work at each token."""

SEED_MODULUS = 1 << 63
"""Seeds are kept non-negative and within a signed 64-bit integer."""

MAX_INT32 = (1 << 31) - 1
"""Counts beyond this mean nothing anywhere, and workers keep them in 32 bits."""

MAX_ID_DIGITS = 10
"""Decimal digits of a token id below 2³¹; bounds the conversion of `logit_bias` keys."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """How the ingress ends a text. `include` keeps what ended it in the output.

    `shown` are tokens that are never skipped, special or not.
    """

    strings: tuple[str, ...]
    include: bool
    skip_special_tokens: bool
    shown: tuple[int, ...] = ()


class Lengths:
    """The lengths that one body asks for; `at` gives them for a prompt of a certain length."""

    __slots__ = ("_chat", "_max_tokens", "_min_tokens", "mute")

    def __init__(self, body: ChatBody | CompletionBody) -> None:
        """Check all that does not depend on the prompt; raises InvalidRequest."""
        self._chat = isinstance(body, ChatBody)
        self._max_tokens = _max_tokens(body)
        self.mute = self._max_tokens == 0
        """Only the prompt is wanted: what is generated with it is not shown."""
        self._min_tokens = int(_within("min_tokens", body.min_tokens, 0, 0, MAX_INT32))
        if self._max_tokens is not None and self._min_tokens > self._max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self._min_tokens}) is above max_tokens ({self._max_tokens})",
                param="min_tokens",
            )

    def at(self, prompt_length: int, max_model_len: int) -> tuple[int, int]:
        """Return the most and the fewest tokens after a prompt.

        Raises InvalidRequest where the context is short.
        """
        left = max_model_len - prompt_length
        if left < 1:
            raise InvalidRequest(
                f"the prompt has {prompt_length} tokens; the context of this model holds "
                f"{max_model_len}, at least one of them for the output",
                param=self._prompt_field(),
            )
        wanted = self._max_tokens
        if wanted is None:
            wanted = left if self._chat else min(COMPLETION_TOKENS, left)
        if wanted > left:
            raise InvalidRequest(
                f"max_tokens ({wanted}) and the prompt's {prompt_length} tokens exceed the "
                f"context of {max_model_len} tokens",
                param="max_tokens",
            )
        if self._min_tokens > wanted:
            raise InvalidRequest(
                f"min_tokens ({self._min_tokens}) is above the {wanted} tokens that may be "
                "generated",
                param="min_tokens",
            )
        return max(1, wanted), self._min_tokens

    def _prompt_field(self) -> str:
        return "messages" if self._chat else "prompt"


def read_seed(body: GenerationBody, draw_seed: Callable[[], int]) -> int:
    """Return the seed that a body gives, or one that is drawn; raises InvalidRequest."""
    seed = draw_seed() if body.seed is None else body.seed
    if not -SEED_MODULUS <= seed < 2 * SEED_MODULUS:
        raise InvalidRequest("seed must fit into 64 bits", param="seed")
    return seed % SEED_MODULUS


def check_scores(params: SamplingParams, prompt_length: int) -> None:
    """Raise InvalidRequest where a prompt is too long for its log-probabilities to be told."""
    if params.prompt_logprobs is None:
        return
    most = MAX_PROMPT_LOGPROBS // (1 + params.prompt_logprobs)
    if prompt_length > most:
        raise InvalidRequest(
            f"the prompt has {prompt_length} tokens; with logprobs {params.prompt_logprobs} and "
            f"echo at most {most} are allowed",
            param="logprobs",
        )


def read_params(body: ChatBody | CompletionBody, vocab: int) -> SamplingParams:
    """Return the parameters but for lengths, seed and grammar; raises InvalidRequest."""
    return SamplingParams(
        max_tokens=1,  # `begin` sets it
        temperature=_within("temperature", body.temperature, 1.0, 0.0),
        top_p=_positive("top_p", body.top_p, 1.0),
        top_k=int(max(0, _within("top_k", body.top_k, 0, -1, MAX_INT32))),
        min_p=_within("min_p", body.min_p, 0.0, 0.0, 1.0),
        presence_penalty=_within("presence_penalty", body.presence_penalty, 0.0, -2.0, 2.0),
        frequency_penalty=_within("frequency_penalty", body.frequency_penalty, 0.0, -2.0, 2.0),
        repetition_penalty=_positive("repetition_penalty", body.repetition_penalty, math.inf),
        logit_bias=_logit_bias(body.logit_bias, vocab),
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=_stop_tokens(body.stop_token_ids, vocab),
        logprobs=(logprobs := _logprobs(body)),
        prompt_logprobs=logprobs if body.echo else None,
    )


def read_stopping(body: GenerationBody) -> Stopping:
    """Return how a text ends; raises InvalidRequest."""
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(
            f"stop has {len(stops)} strings, at most {MAX_STOPS} are allowed", param="stop"
        )
    if sum(map(len, stops)) > MAX_STOP_CHARS:
        raise InvalidRequest(
            f"the stop strings exceed {MAX_STOP_CHARS} characters together", param="stop"
        )
    if "" in stops:
        raise InvalidRequest("a stop string must not be empty", param="stop")
    return Stopping(
        tuple(dict.fromkeys(stops)),
        bool(body.include_stop_str_in_output),
        body.skip_special_tokens is not False,
    )


def _stop_tokens(tokens: list[int] | None, vocab: int) -> tuple[int, ...]:
    tokens = tokens or []
    if len(tokens) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"stop_token_ids has {len(tokens)} entries, at most {MAX_STOP_TOKENS} are allowed",
            param="stop_token_ids",
        )
    for token in tokens:
        check_token(token, vocab, "stop_token_ids")
    return tuple(dict.fromkeys(tokens))


def _logit_bias(biases: dict[str, float] | None, vocab: int) -> tuple[tuple[int, float], ...]:
    if not biases:
        return ()
    if len(biases) > MAX_BIASES:
        raise InvalidRequest(
            f"logit_bias has {len(biases)} entries, at most {MAX_BIASES} are allowed",
            param="logit_bias",
        )
    pairs: dict[int, float] = {}
    for key, bias in biases.items():
        if not key.isascii() or not key.isdigit() or len(key) > MAX_ID_DIGITS:
            raise InvalidRequest("the keys of logit_bias are token ids", param="logit_bias")
        check_token(int(key), vocab, "logit_bias")
        pairs[int(key)] = _within("logit_bias", bias, 0.0, -100.0, 100.0)
    return tuple(sorted(pairs.items()))


def _logprobs(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, ChatBody):
        if not body.logprobs:
            return None
        return int(_within("top_logprobs", body.top_logprobs, 0, 0, MAX_LOGPROBS))
    if body.logprobs is None:
        return None
    return int(_within("logprobs", body.logprobs, 0, 0, MAX_LOGPROBS))


def _max_tokens(body: GenerationBody) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value: int | None = getattr(body, name)
        if value is not None:
            return int(_within(name, value, 1, 0 if body.echo else 1, MAX_INT32))
    return None


def check_token(token: int, vocab: int, param: str) -> None:
    """Raise InvalidRequest where a token id is not in `[0, vocab)`."""
    if not 0 <= token < vocab:
        raise InvalidRequest(
            f"{param}: a token id is outside of the vocabulary of {vocab} tokens", param=param
        )


def _within(
    name: str, value: float | None, default: float, low: float, high: float = math.inf
) -> float:
    """Return a value of `[low, high]`, or the default."""
    if value is None:
        return default
    if not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"within [{low}, {high}]"
        raise InvalidRequest(f"{name} must be {bounds}", param=name)
    return value


def _positive(name: str, value: float | None, high: float) -> float:
    """Return a value of `(0, high]`, or 1."""
    if value is None:
        return 1.0
    if not 0.0 < value <= high:
        bounds = "above 0" if high == math.inf else f"within (0, {high}]"
        raise InvalidRequest(f"{name} must be {bounds}", param=name)
    return value
