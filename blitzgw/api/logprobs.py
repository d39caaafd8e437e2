"""Log-probabilities in the shapes of both APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blitzgw.api.text import TextModel
from blitzgw.core.request import Logprobs

FLOOR = -9999.0
"""JSON has no infinity; vLLM clamps at the same value."""


class ChatLogprobs:
    """`{"content": [{token, logprob, bytes, top_logprobs}]}`."""

    def __init__(self, text: TextModel) -> None:
        self._raw = text.table.raw

    def format(self, tokens: Sequence[int], logprobs: Sequence[Logprobs]) -> dict[str, Any]:
        """Return the object for some tokens of a choice."""
        content = [
            self._item(token, entry.chosen)
            | {"top_logprobs": [self._item(other, value) for other, value in entry.top]}
            for token, entry in zip(tokens, logprobs, strict=True)
        ]
        return {"content": content, "refusal": None}

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return one object for what several calls of `format` gave."""
        return {"content": [item for part in parts for item in part["content"]], "refusal": None}

    def _item(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._raw[token]
        return {
            "token": raw.decode(errors="replace"),
            "logprob": max(logprob, FLOOR),
            "bytes": list(raw),
        }


class CompletionLogprobs:
    """`{tokens, token_logprobs, top_logprobs, text_offset}`; offsets count characters."""

    def __init__(self, text: TextModel) -> None:
        self._raw = text.table.raw
        self._offset = 0

    def format(self, tokens: Sequence[int], logprobs: Sequence[Logprobs]) -> dict[str, Any]:
        """Return the object for some tokens of a choice; offsets go on from the last call."""
        strings = [self._string(token) for token in tokens]
        offsets = []
        for string in strings:
            offsets.append(self._offset)
            self._offset += len(string)
        return {
            "tokens": strings,
            "token_logprobs": [max(entry.chosen, FLOOR) for entry in logprobs],
            "top_logprobs": [
                {self._string(other): max(value, FLOOR) for other, value in entry.top}
                | {string: max(entry.chosen, FLOOR)}
                for string, entry in zip(strings, logprobs, strict=True)
            ],
            "text_offset": offsets,
        }

    def format_prompt(self, tokens: Sequence[int], logprobs: Sequence[Logprobs]) -> dict[str, Any]:
        """Return the object for a prompt, before any other; of its first token nothing is known."""
        known = self.format(tokens, [Logprobs(0.0), *logprobs])
        known["token_logprobs"][0] = known["top_logprobs"][0] = None
        return known

    def join(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return one object for what several calls of `format` gave."""
        keys = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return {key: [item for part in parts for item in part[key]] for key in keys}

    def _string(self, token: int) -> str:
        return self._raw[token].decode(errors="replace")
