"""From prompts and messages to token ids, within the model's context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from blitzgw.api.bodies import ChatBody, CompletionBody, TokenizeBody
from blitzgw.api.messages import template_messages
from blitzgw.api.models import ModelEntry
from blitzgw.api.sampling import check_token
from blitzgw.api.template import RESERVED
from blitzgw.api.tools import template_tools
from blitzgw.errors import InvalidRequest

MAX_PROMPTS = 1024
"""Prompts in one request: each becomes a generation of its own."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as tokens; `text` only where the client gave text."""

    tokens: tuple[int, ...]
    text: str | None = None


async def chat_prompt(body: ChatBody | TokenizeBody, entry: ModelEntry) -> Prompt:
    """Apply the chat template and tokenise; raises InvalidRequest."""
    messages = template_messages(body.messages, entry.text)
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    generates = not continues if body.add_generation_prompt is None else body.add_generation_prompt
    text = await entry.text.render(
        messages,
        add_generation_prompt=generates,
        continue_final_message=continues,
        tools=template_tools(body),
        extra=_extra(body),
    )
    return (await _tokenise([text], entry, bool(body.add_special_tokens), "messages"))[0]


async def completion_prompts(body: CompletionBody, entry: ModelEntry) -> list[Prompt]:
    """Return the prompts of a text completion; raises InvalidRequest."""
    given = body.prompt
    if given is None or given in ("", []):
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if isinstance(given, str):
        given = [given]
    special = body.add_special_tokens is not False
    kinds = set(map(type, given))
    if kinds == {int}:
        return [_ids(given, entry)]
    if len(given) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt has {len(given)} entries, at most {MAX_PROMPTS} are allowed", param="prompt"
        )
    if kinds == {str}:
        return await _tokenise([str(text) for text in given], entry, special, "prompt")
    if kinds == {list}:
        return [_ids(ids, entry) for ids in given]
    raise InvalidRequest("prompt mixes texts, token ids and lists", param="prompt")


async def tokenize_prompt(body: TokenizeBody, entry: ModelEntry) -> Prompt:
    """Return the tokens that `/tokenize` shows; raises InvalidRequest."""
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either prompt or messages", param="prompt")
    if body.prompt is None:
        return await chat_prompt(body, entry)
    special = body.add_special_tokens is not False
    return Prompt(tuple(await entry.text.encode(body.prompt, add_special_tokens=special)))


def _extra(body: ChatBody | TokenizeBody) -> dict[str, Any]:
    if isinstance(body, TokenizeBody) and body.chat_template:
        raise InvalidRequest("chat_template is not supported", param="chat_template")
    extra = body.chat_template_kwargs or {}
    clash = RESERVED.intersection(extra)
    if clash:
        raise InvalidRequest(
            f"chat_template_kwargs: {sorted(clash)[0]} is reserved", param="chat_template_kwargs"
        )
    return extra


async def _tokenise(texts: list[str], entry: ModelEntry, special: bool, param: str) -> list[Prompt]:
    limit = entry.spec.max_model_len
    for text in texts:
        if not entry.text.fits(text, limit):
            raise InvalidRequest(
                f"the prompt of {len(text)} characters cannot fit into the context of "
                f"{limit} tokens",
                param=param,
            )
    all_tokens = await entry.text.encode_all(texts, add_special_tokens=special)
    if not all(all_tokens):
        raise InvalidRequest("the prompt is empty", param=param)
    return [Prompt(tuple(tokens), text) for tokens, text in zip(all_tokens, texts, strict=True)]


def _ids(given: Any, entry: ModelEntry) -> Prompt:
    if not given:
        raise InvalidRequest("a prompt must not be empty", param="prompt")
    check_token(min(given), entry.spec.shape.vocab, "prompt")
    check_token(max(given), entry.spec.shape.vocab, "prompt")
    return Prompt(tuple(given))
