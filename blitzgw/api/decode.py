"""From a body's bytes to a typed request; every mistake is a 400 that names the field."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from blitzgw.api.bodies import (
    CancelBody,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    ProbeBody,
    ScaleBody,
    TokenizeBody,
    Unsupported,
)
from blitzgw.api.models import NO_ADAPTERS
from blitzgw.errors import InvalidRequest

Body = TypeVar("Body")

HARMLESS: dict[str, tuple[Any, ...]] = {
    "bad_words": ([],),
    "documents": ([],),
    "early_stopping": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "length_penalty": (1.0,),
    "logits_processors": ([],),
    "modalities": (["text"], []),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
}
"""Values of unsupported fields that ask for nothing, beside null."""

ADAPTERS = frozenset({"adapter_id", "lora_path", "lora_request"})
"""The unsupported fields by which clients of other servers ask for LoRA adapters."""

_UNSUPPORTED = tuple(Unsupported.__struct_fields__)
"""The first fields of each body that has them."""

_NONE = (None,) * len(_UNSUPPORTED)
_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (
        ChatBody,
        CompletionBody,
        TokenizeBody,
        DetokenizeBody,
        ScaleBody,
        CancelBody,
        ProbeBody,
    )
}
_PATH = re.compile(r"^(.*) - at `(?:key in )?\$\.?([^`]*)`$", re.DOTALL)


def decode(body: bytes, kind: type[Body]) -> Body:
    """Decode a JSON object; raises InvalidRequest.

    msgspec bounds the depth by the interpreter's recursion limit and knows no NaN or Infinity.
    """
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into fields that it skips
        decoded: Body = _DECODERS[kind].decode(body)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not valid UTF-8") from None
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    if isinstance(decoded, GenerationBody):
        _refuse_unsupported(decoded)
    return decoded


def _invalid(message: str) -> InvalidRequest:
    match = _PATH.match(message)
    if match is None:
        return InvalidRequest(f"the body is not as expected: {message}")
    problem, path = match.groups()
    field = re.split(r"[.\[]", path, maxsplit=1)[0] or None
    return InvalidRequest(f"{path}: {problem}", param=field)


def _refuse_unsupported(body: GenerationBody) -> None:
    # one look at all of them: nearly always there is none
    if msgspec.structs.astuple(body)[: len(_UNSUPPORTED)] != _NONE:
        _refuse_values(body)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("best_of is not supported unless it equals n", param="best_of")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    if isinstance(body, ChatBody):
        _refuse_in_chat(body)


def _refuse_values(body: GenerationBody) -> None:
    for name in _UNSUPPORTED:
        value = getattr(body, name)
        if value is not None and value not in HARMLESS.get(name, ()):
            if name in ADAPTERS:
                raise InvalidRequest(f"{name}: {NO_ADAPTERS}", param=name)
            raise InvalidRequest(f"{name} is not supported with this value", param=name)


def _refuse_in_chat(body: ChatBody) -> None:
    if body.echo:
        raise InvalidRequest("echo is supported by /v1/completions only", param="echo")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
