"""One choice of a response: tokens in, text out, stop strings applied by token index."""

from __future__ import annotations

from collections.abc import Sequence

from orjson import dumps

from blitzgw.api.sampling import Stopping
from blitzgw.api.stops import StopMatcher
from blitzgw.api.text import TextModel
from blitzgw.core.request import FinishReason, TokenEvent


class Choice:
    """The text of one generation as it grows.

    `count` is the number of tokens that count as output: up to the one that completed a stop
    string. `used` is how many of the last event's tokens those were, `shown` how many of them are
    part of the text: a token that ends it is not. A `mute` one has no output at all.
    """

    __slots__ = (
        "_detokenizer", "_enders", "_include", "_matcher", "_min_tokens", "_mute",
        "_stop_ids",
        "count", "finish", "index", "shown", "stop_reason", "used",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        text: TextModel,
        stopping: Stopping,
        *,
        eos_ids: tuple[int, ...] = (),
        stop_token_ids: tuple[int, ...] = (),
        min_tokens: int = 0,
        mute: bool = False,
    ) -> None:
        self.index = index
        self.count = 0
        self.used = self.shown = 0
        self.finish: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._detokenizer = text.detokenizer(
            skip_special_tokens=stopping.skip_special_tokens, shown=stopping.shown
        )
        self._matcher = (
            StopMatcher(stopping.strings, stopping.include) if stopping.strings else None
        )
        self._include = stopping.include
        self._stop_ids = stop_token_ids
        self._enders = (*stop_token_ids, *eos_ids)
        self._min_tokens = min_tokens
        self._mute = mute

    @property
    def looks(self) -> bool:
        """Whether each token is looked at: it may complete a stop string."""
        return self._matcher is not None

    @property
    def pieces(self) -> Sequence[bytes | None] | None:
        """What `feed_json` returns for each token, None where that depends; None: for all."""
        return self._detokenizer.pieces

    def feed_json(self, token: int) -> bytes:
        """Return the text, as JSON, of a token that is neither the last nor looked at.

        It is not counted.
        """
        return dumps(self._detokenizer.feed([token]))

    def take(self, event: TokenEvent) -> str:
        """Return the text that an event adds; sets `finish` once the choice is complete."""
        if self._mute:
            self.finish = FinishReason.LENGTH if event.finish is not None else None
            return ""
        tokens = event.tokens
        if self._matcher is None and event.finish is None:
            self.used = self.shown = len(tokens)
            self.count += self.used
            return self._detokenizer.feed(tokens)
        text = self._cut(self._matcher, tokens, event.finish)
        if self.finish is None and event.finish is not None:
            self.finish = event.finish
            text += self._end(self._matcher)
        return text

    def _cut(
        self, matcher: StopMatcher | None, tokens: Sequence[int], finish: FinishReason | None
    ) -> str:
        """Feed the visible tokens, one by one where stop strings are looked for."""
        visible = self.shown = len(tokens) - self._hides_last(tokens, finish)
        if matcher is None:
            self.used = len(tokens)
            self.count += self.used
            return self._detokenizer.feed(tokens[:visible])
        parts: list[str] = []
        for self.used in range(1, visible + 1):
            armed = self.count + self.used > self._min_tokens
            part, stop = matcher.feed(
                self._detokenizer.feed(tokens[self.used - 1 : self.used]), armed
            )
            parts.append(part)
            if stop is not None:
                self.finish, self.stop_reason = FinishReason.STOP, stop
                self.shown = self.used
                break
        else:
            self.used = len(tokens)
        self.count += self.used
        return "".join(parts)

    def _hides_last(self, tokens: Sequence[int], finish: FinishReason | None) -> bool:
        """Tell whether the last token ended the text, and is no part of it."""
        if finish is not FinishReason.STOP or not tokens or tokens[-1] not in self._enders:
            return False
        if tokens[-1] in self._stop_ids:
            self.stop_reason = tokens[-1]
        return not self._include

    def _end(self, matcher: StopMatcher | None) -> str:
        """Return all that was held back: the text ends here."""
        rest = self._detokenizer.flush()
        if matcher is None:
            return rest
        text, stop = matcher.feed(rest)
        if stop is not None:
            self.finish, self.stop_reason = FinishReason.STOP, stop
            return text
        return text + matcher.flush()
