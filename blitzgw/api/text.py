"""A model's text: tokenizer, chat template and detokenising, from a tokenizer.json."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from blitzgw.api.detokenizer import Detokenizer, TokenTable, build_table
from blitzgw.api.dialects import ToolKnowledge, ask
from blitzgw.api.encoding import Encoder, trim_heap
from blitzgw.api.template import ChatTemplate
from blitzgw.core.model import TextSpec
from blitzgw.errors import CheckpointError, InvalidRequest
from blitzgw.weights.tokens import DecoderRules, read_rules

INLINE_TEMPLATE_CHARS = 20_000
"""Conversations up to this length are rendered on the event loop (well below 1 ms)."""


class _Document(msgspec.Struct):
    """The only part of a tokenizer.json that `tokenizers` does not tell; the rest is skipped."""

    decoder: Any = None


class Vocabulary:
    """A tokenizer and the table of its tokens: all of a text model that is costly to make.

    Models that have the same tokenizer.json and the same number of token ids can share one.
    """

    def __init__(self, source: bytes, path: str, vocab: int = 0) -> None:
        """Build it from the content of the tokenizer.json at `path`; raises CheckpointError.

        Takes 0.3 s for 1.5 MB and seconds for 35 MB, in which `tokenizers` holds the GIL, whatever
        thread calls it: it has no constructor that releases it, and the parts that can be built
        apart (`models.BPE`) hold it as well. So it is better shared than built twice.
        """
        self.path = path
        try:
            self.tokenizer: Any = Tokenizer.from_buffer(source)
            document = msgspec.json.decode(source, type=_Document)
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path}: not a tokenizer.json") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.rules = read_rules(document.decoder)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = frozenset(index for index, token in added.items() if token.special)
        self.added = {token.content: index for index, token in added.items()}
        vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        self.table = build_table(vocabulary, self.special, self.rules, vocab)
        self.max_token_bytes = max(map(len, self.table.raw))
        self.encoder = Encoder(self.tokenizer, path)
        trim_heap()


class TextModel:
    """Text to tokens and back, for one model."""

    def __init__(
        self,
        spec: TextSpec,
        vocab: int = 0,
        executor: Executor | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Load a tokenizer, or use a `vocabulary` of it; raises CheckpointError.

        `vocab` is the model's number of token ids, which may exceed the tokenizer's. `executor`
        runs what is too long for the event loop; None: the loop's own.
        """
        if vocabulary is None:
            vocabulary = Vocabulary(_read(spec.tokenizer_path), spec.tokenizer_path, vocab)
        self.vocabulary = vocabulary
        self._encoder = vocabulary.encoder
        self._rules = vocabulary.rules
        self._executor = executor
        self.template = _template(spec)
        self.special = vocabulary.special
        self.added = vocabulary.added
        self.table = vocabulary.table
        self._tables: dict[tuple[int, ...], TokenTable] = {}
        self.max_token_bytes = vocabulary.max_token_bytes

    @property
    def rules(self) -> DecoderRules:
        """How tokens become text."""
        return self._rules

    @cached_property
    def tools(self) -> ToolKnowledge:
        """What the chat template knows of tools."""
        return ask(self.template)

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text."""
        return (await self.encode_all([text], add_special_tokens=add_special_tokens))[0]

    async def encode_all(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Return the token ids of several texts; long ones together leave the event loop free."""
        encoder = self._encoder
        if sum(map(len, texts)) <= encoder.inline_chars:
            return encoder.encode(texts, add_special_tokens)
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, encoder.encode, texts, add_special_tokens
        )

    def encode_now(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the token ids of a text, in the calling thread."""
        return self._encoder.encode([text], add_special_tokens)[0]

    def fits(self, text: str, max_tokens: int) -> bool:
        """Tell whether a text can have `max_tokens` tokens or fewer, without tokenising it.

        Each token of a byte-level vocabulary stands for at most `max_token_bytes` bytes.
        """
        return not self._rules.byte_level or len(text) <= max_tokens * self.max_token_bytes

    async def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[dict[str, Any]] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of a conversation; raises InvalidRequest."""
        template = self.template
        if template is None:
            raise InvalidRequest(
                "this model has no chat template: use /v1/completions", param="messages"
            )

        def run() -> str:
            return template.render(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                extra=extra,
            )

        if _chars(messages, tools) <= INLINE_TEMPLATE_CHARS:
            return run()
        return await asyncio.get_running_loop().run_in_executor(self._executor, run)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of a whole sequence of tokens."""
        whole = Detokenizer(self.table, skip_special_tokens, at_start=True)
        return whole.feed(tokens) + whole.flush()

    def detokenizer(self, *, skip_special_tokens: bool, shown: tuple[int, ...] = ()) -> Detokenizer:
        """Return a detokenizer for what follows a prompt; it does not skip the tokens `shown`."""
        return Detokenizer(self._showing(shown) if shown else self.table, skip_special_tokens)

    def _showing(self, shown: tuple[int, ...]) -> TokenTable:
        """Return the table with some tokens visible, which is made once."""
        if shown not in self._tables:
            hidden = list(self.table.hidden)
            for token in shown:
                hidden[token] = self.table.shown[token]
            self._tables[shown] = replace(self.table, hidden=hidden)
        return self._tables[shown]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _chars(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> int:
    """Return about how many characters a conversation has, with its tools and their calls."""
    chars = sum(len(message["content"]) for message in messages)
    calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
    return chars + len(json.dumps([tools, calls])) if tools or calls else chars


def _template(spec: TextSpec) -> ChatTemplate | None:
    if spec.chat_template is None:
        return None
    return ChatTemplate(spec.chat_template, spec.bos_token, spec.eos_token)
