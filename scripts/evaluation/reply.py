"""What becomes of one request: its answer, and what the events of its stream say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Answer

CONTENT = ("content", "reasoning_content", "reasoning")
"""Keys of a chat's delta with what a model has said."""

MAX_ERROR_CHARS = 200
"""Of what a server says: enough to tell errors apart, thousands of which fit a record."""


@dataclass(slots=True)
class Reply:
    """An answer, and what a record does not keep of it.

    `endpoint` is its place among the player's. `prompt_counted`: tokens of the prompt as the
    endpoint has counted them; -1: it has not told.
    """

    number: int
    arrival: Arrival
    request_id: str
    endpoint: int
    answer: Answer
    status: int = 0
    finish: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_counted: int = -1


class Listening:
    """Takes the events of a stream, each with the moment of its bytes, into a reply.

    Seconds of a reply count from `due_s`, undilated; moments are of `time.monotonic()`.
    """

    def __init__(self, reply: Reply, due_s: float, dilation: float) -> None:
        self._reply, self._due_s, self._dilation = reply, due_s, dilation
        self._gaps_s: list[float] = []
        self.error = ""

    def heard(self, data: bytes, now_s: float) -> None:
        """Take an event. Raises ValueError or the like for what is none of OpenAI's."""
        chunk = orjson.loads(data)
        if (error := chunk.get("error")) is not None:
            self.error = said(error)
        for choice in chunk.get("choices") or ():
            if count := self._content(choice):
                self._came(count, (now_s - self._due_s) / self._dilation)
            self._reply.finish = choice.get("finish_reason") or self._reply.finish
        if usage := chunk.get("usage"):
            self._counted(usage)

    def close(self) -> None:
        """Write down what is known at the end only."""
        self._reply.answer.gaps_s = tuple(self._gaps_s)

    def _counted(self, usage: dict[str, Any]) -> None:
        """Take the endpoint's word for what it has counted, save for tokens whose ids are here."""
        answer = self._reply.answer
        if not self._reply.token_ids:
            answer.tokens = int(usage.get("completion_tokens") or answer.tokens)
        self._reply.prompt_counted = int(usage.get("prompt_tokens") or -1)
        answer.split = ",".join(
            "{}:{}-{}".format(one["instance"], *one["layers"])
            for one in usage.get("blitzgw_split") or ()
        )

    def _content(self, choice: dict[str, Any]) -> int:
        """Return how many tokens a chunk bears: those that it has ids of, or one if it has text."""
        if ids := choice.get("token_ids"):
            self._reply.token_ids += ids
            return len(ids)
        delta = choice.get("delta") or {}
        return int(bool(choice.get("text") or any(delta.get(key) for key in CONTENT)))

    def _came(self, count: int, at_s: float) -> None:
        """Note tokens; those that come together have no gap between them."""
        answer = self._reply.answer
        if answer.first_s >= 0:
            self._gaps_s.append(at_s - answer.last_s)
        else:
            answer.first_s = at_s
        self._gaps_s += [0.0] * (count - 1)
        answer.last_s = at_s
        answer.tokens += count


def said(error: object) -> str:
    """Return what an error's object says, whatever it looks like."""
    told = error.get("message", error) if isinstance(error, dict) else error
    return str(told)[:MAX_ERROR_CHARS] or "an error"
