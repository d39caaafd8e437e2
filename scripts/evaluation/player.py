"""Open-loop replay of arrivals against OpenAI endpoints: who asks does not wait for who answers.

    arrival ──CONNECT_S before──► connected ──due──► written ──► first token … last ──► Answer

Latencies count from the *intended* send, so that what makes requests late cannot make them look
fast. How late the player itself was is kept of each: with MAX_LAG_S at the 99th percentile a run is
void. The wall clock runs `dilation` times as fast as what is told: all seconds are undilated.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop

from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.record import Answer
from scripts.evaluation.client import SPLIT_HEADER, BadAnswer, Call, Endpoint, connect
from scripts.evaluation.prompts import Alphabet, alphabet_of, prompt_ids, prompt_text
from scripts.evaluation.reply import Listening, Reply, said
from scripts.evaluation.unhindered import unhindered

CONNECT_S = 1.0
"""So long before it is due a request is connected: far longer than that takes. On the wall."""

REFUSALS = frozenset({429, 503})
"""Statuses that say that there is no room, now."""


@dataclass(frozen=True, slots=True)
class Options:
    """How requests are asked. Seconds are undilated.

    `prompts`: "ids" (lists of token ids to /completions), "text" (to the same) or "chat".
    `seed_ends`: the seed is prompt + output tokens, at which a paced device ends by itself; nothing
    else may learn an answer's length from its request, so `max_tokens` is one for all. `token_ids`
    asks for the ids of tokens, which not all endpoints know. `name` begins the ids of requests.
    """

    model: str
    max_tokens: int = 1024
    dilation: float = 1.0
    seed: int = 1
    patience_s: float = 120.0
    prompts: str = "ids"
    seed_ends: bool = False
    token_ids: bool = False
    api_key: str = ""
    name: str = "r"


@dataclass(slots=True)
class Tally:
    """How far a run is."""

    offered: int
    sent: int = 0
    answered: int = 0
    """Of those that were sent: over, however."""
    done: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def under_way(self) -> int:
        """How many were sent and are not over."""
        return self.sent - self.answered


class Player:
    """Sends arrivals to endpoints in turns, as a load balancer would; a connection for each."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        arrivals: Sequence[Arrival],
        options: Options,
        on_reply: Callable[[Reply], None] | None = None,
    ) -> None:
        """`on_reply` is called in the event loop as answers end: it has to be quick."""
        self._endpoints, self._arrivals, self._options = endpoints, arrivals, options
        self._on_reply = on_reply
        self._begun_s = float("inf")
        self._alphabet: Alphabet | None = None
        self._answers: dict[int, Answer] = {}
        self.tally = Tally(len(arrivals))

    @property
    def now_s(self) -> float:
        """Undilated seconds since the window's start; -∞ before anything has been prepared."""
        return (time.monotonic() - self._begun_s) / self._options.dilation

    @property
    def answers(self) -> list[Answer]:
        """What has ended so far, in the order of arrivals."""
        return [self._answers[number] for number in sorted(self._answers)]

    def run(
        self, watch: Callable[[float], None] | None = None, every_s: float = 0.25
    ) -> list[Answer]:
        """Send everything and wait for the answers, each bounded by its patience.

        `watch(undilated seconds)` is called in a thread meanwhile; what it raises ends the run. It
        should start no processes: they would go before others too (`unhindered`).
        """
        with unhindered(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run(watch, every_s))
        return self.answers

    async def _run(self, watch: Callable[[float], None] | None, every_s: float) -> None:
        if self._options.prompts != "ids":
            self._alphabet = await alphabet_of(self._counted)
        self._begun_s = time.monotonic() + CONNECT_S
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._watch(watch, every_s)) if watch else None
                async with asyncio.TaskGroup() as requests:
                    await self._offer(requests)
                if watching:
                    watching.cancel()
        except BaseExceptionGroup as several:
            raise _first_of(several) from None

    async def _watch(self, watch: Callable[[float], None], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s * self._options.dilation)
            await asyncio.to_thread(watch, self.now_s)  # bounded by who watches

    async def _offer(self, requests: asyncio.TaskGroup) -> None:
        for number, arrival in enumerate(self._arrivals):
            await _until(self._due_s(arrival) - CONNECT_S)
            requests.create_task(self._one(number, arrival))
            await asyncio.sleep(0)  # what is due meanwhile goes before the next one's prompt

    def _due_s(self, arrival: Arrival) -> float:
        return self._begun_s + arrival.at_s * self._options.dilation

    async def _one(self, number: int, arrival: Arrival) -> None:
        """Ask, and keep what becomes of it."""
        reply = self._reply(number, arrival)
        due_s = self._due_s(arrival)
        request = self._request(reply, self._body(number, arrival))
        await self._answered(request, reply, due_s)
        self._answers[number] = reply.answer
        self.tally.done += 1
        self.tally.outcomes[reply.answer.outcome] += 1
        if self._on_reply:
            self._on_reply(reply)

    def _reply(self, number: int, arrival: Arrival) -> Reply:
        answer = Answer(arrival.at_s, arrival.prompt_tokens, arrival.output_tokens)
        options = self._options
        request_id = f"{options.name}{options.seed}-{number}"
        return Reply(number, arrival, request_id, number % len(self._endpoints), answer)

    async def _answered(self, request: bytes, reply: Reply, due_s: float) -> None:
        """Ask, and write into `reply` what is heard, whatever that is."""
        options, answer = self._options, reply.answer
        listening = Listening(reply, due_s, options.dilation)
        patience_s = due_s - time.monotonic() + options.patience_s * options.dilation
        try:
            async with asyncio.timeout(patience_s):
                await self._ask(request, reply, listening, due_s)
        except TimeoutError:
            answer.outcome, answer.error = "timeout", f"not over within {options.patience_s:g} s"
        except BadAnswer as error:
            answer.outcome, answer.error = "failed", str(error)
        listening.close()
        self.tally.answered += answer.lag_s > 0  # else it was not sent

    async def _ask(self, request: bytes, reply: Reply, listening: Listening, due_s: float) -> None:
        begun_s = time.monotonic()
        call = await connect(self._endpoints[reply.endpoint], listening.heard)
        try:
            ready_s = time.monotonic()
            await _until(due_s)
            call.send(request)
            # where connecting alone has taken all the time that there was, the player is not late
            since_s = max(due_s, ready_s) if ready_s - begun_s > CONNECT_S else due_s
            reply.answer.lag_s = (time.monotonic() - since_s) / self._options.dilation
            self.tally.sent += 1
            await call.over  # bounded by the patience
        finally:
            call.close()
            reply.status = call.status
        _judge(reply, call, listening)

    def _body(self, number: int, arrival: Arrival) -> dict[str, Any]:
        options = self._options
        body: dict[str, Any] = {"max_tokens": options.max_tokens}
        if self._alphabet is None:
            body["prompt"] = prompt_ids(options.seed, number, arrival)
        else:
            body |= self._worded(prompt_text(options.seed, number, arrival, self._alphabet))
        if options.seed_ends:
            body["seed"] = arrival.prompt_tokens + arrival.output_tokens
        return body

    def _worded(self, text: str) -> dict[str, Any]:
        if self._options.prompts == "chat":
            return {"messages": [{"role": "user", "content": text}]}
        return {"prompt": text}

    def _request(self, reply: Reply, body: dict[str, Any]) -> bytes:
        """Return a greedy streamed request, head and all."""
        options = self._options
        body |= {"model": options.model, "temperature": 0.0, "stream": True}
        body |= {"stream_options": {"include_usage": True}}
        if options.token_ids:
            body["return_token_ids"] = True
        content = orjson.dumps(body)
        path = "/chat/completions" if options.prompts == "chat" else "/completions"
        endpoint = self._endpoints[reply.endpoint]
        return endpoint.head(path, len(content), reply.request_id, options.api_key) + content

    async def _counted(self, text: str) -> int:
        """Return how many tokens an endpoint counts in a prompt. Raises BadAnswer."""
        reply = self._reply(0, Arrival(0.0, 1, 1))
        request = self._request(reply, {**self._worded(text), "max_tokens": 1})
        await self._answered(request, reply, time.monotonic())
        if reply.prompt_counted < 0:
            raise BadAnswer(reply.answer.error or "the endpoint counts no tokens of prompts")
        return reply.prompt_counted


def _judge(reply: Reply, call: Call, listening: Listening) -> None:
    """Say what became of a request whose answer has come to its end."""
    answer = reply.answer
    if call.status != 200:
        answer.outcome = "refused" if call.status in REFUSALS else "failed"
        answer.error = f"{call.status}: {_message(call.error_body)}"
    elif listening.error:
        answer.error = listening.error
    elif not reply.finish:
        answer.error = "the stream has ended without a finish_reason"
    else:
        answer.outcome = "ok"
    if split := call.headers.get(SPLIT_HEADER):
        answer.split = split.decode(errors="replace")


def _message(body: bytes) -> str:
    """Return what an error's body says, or its beginning."""
    try:
        return said(orjson.loads(body)["error"])
    except (ValueError, TypeError, LookupError):
        return said(body.decode(errors="replace"))


def _first_of(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what has ended a run, without the groups around it."""
    found: BaseException = several
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


async def _until(moment_s: float) -> None:
    """Sleep until a moment of `time.monotonic()`, not a bit less."""
    while (left_s := moment_s - time.monotonic()) > 0:  # noqa: ASYNC110  timers end a bit early
        await asyncio.sleep(left_s)
