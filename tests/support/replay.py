"""Open-loop replay of arrivals against nodes of a testbed: who asks does not wait for who answers.

Every request has a connection of its own, made some time before. Its times are of the monotonic
clock; latencies count from the *intended* send, and how late the generator itself was is kept.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.arrivals import Arrival
from tests.support.gateways import HTTP_PORT, MODEL, Gateways
from tests.support.live_client import PATH, SPECIAL, SPLIT_HEADER

CONNECT_S = 1.0
"""So long before its time a request is connected: far longer than that takes."""

PREPARE_S = 5.0
"""For all requests to be written down before the first is sent."""

MAX_LINE = 1 << 20


@dataclass(slots=True)
class Reply:
    """What became of a request. Seconds are undilated, from its intended send; -1: never."""

    arrival: Arrival
    late_s: float = 0.0
    first_s: float = -1.0
    last_s: float = -1.0
    tokens: list[int] = field(default_factory=list)
    status: int = 0
    error: str = ""
    finish: str = ""
    split: str = ""

    @property
    def answered(self) -> bool:
        return self.status == 200 and not self.error and bool(self.finish)

    @property
    def tpot_s(self) -> float:
        """Return the time of each token after the first, 0 where there is none."""
        further = len(self.tokens) - 1
        return (self.last_s - self.first_s) / further if further > 0 else 0.0


class Replay:
    """Sends arrivals to nodes in turns, as a load balancer would."""

    def __init__(
        self,
        made: Gateways,
        arrivals: Sequence[Arrival],
        *,
        dilation: float,
        max_tokens: int,
        vocabulary: int,
        seed: int,
        patience_s: float = 120.0,
    ) -> None:
        self._made, self._arrivals = made, arrivals
        self._dilation, self._max_tokens = dilation, max_tokens
        self._vocabulary, self._seed, self._patience_s = vocabulary, seed, patience_s
        self._begun_s = 0.0
        self.done = 0

    @property
    def now_s(self) -> float:
        """Undilated seconds since the first moment at which something could arrive."""
        return (time.monotonic() - self._begun_s) / self._dilation

    def run(self, watch: Callable[[float], None], every_s: float) -> list[Reply]:
        """Send everything and wait for the answers; `watch(undilated s)` is called meanwhile."""
        return asyncio.run(self._run(watch, every_s))

    async def _run(self, watch: Callable[[float], None], every_s: float) -> list[Reply]:
        self._begun_s = time.monotonic() + PREPARE_S + 2 * CONNECT_S
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch(watch, every_s))
            tasks = [
                group.create_task(self._one(number, one))
                for number, one in enumerate(self._arrivals)
            ]
            await asyncio.wait(tasks)  # each has its patience
            watching.cancel()
        return [task.result() for task in tasks]

    async def _watch(self, watch: Callable[[float], None], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s * self._dilation)
            await asyncio.to_thread(watch, self.now_s)

    async def _one(self, number: int, arrival: Arrival) -> Reply:
        intended = self._begun_s + arrival.at_s * self._dilation
        reply = Reply(arrival)
        node = number % len(self._made.nodes)
        data = self._request(node, number, arrival)
        await asyncio.sleep(max(0.0, intended - CONNECT_S - time.monotonic()))
        try:
            sock = self._made.bed.connect(node, HTTP_PORT, self._patience_s)
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock, limit=MAX_LINE)
            await asyncio.sleep(max(0.0, intended - time.monotonic()))
            writer.write(data)
            reply.late_s = (time.monotonic() - intended) / self._dilation
            async with asyncio.timeout(self._patience_s * self._dilation):
                await self._read(reader, reply, intended)
            writer.close()
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError) as error:
            reply.error = reply.error or f"{type(error).__name__}: {error}"
        self.done += 1
        return reply

    async def _read(self, reader: asyncio.StreamReader, reply: Reply, intended: float) -> None:
        reply.status = int((await reader.readline()).split()[1])
        while (line := await reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            if name.lower() == SPLIT_HEADER:
                reply.split = value.strip()
        while line := await reader.readline():
            if reply.status != 200 and line.startswith(b"{"):
                reply.error = line.decode(errors="replace")[:200]
                return
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: {"):
                self._take(json.loads(line[6:]), reply, intended)

    def _take(self, chunk: dict[str, Any], reply: Reply, intended: float) -> None:
        now_s = (time.monotonic() - intended) / self._dilation
        if "error" in chunk:
            reply.error = str(chunk["error"])[:200]
        for choice in chunk.get("choices", ()):
            if choice.get("token_ids"):
                reply.first_s = now_s if reply.first_s < 0 else reply.first_s
                reply.last_s = now_s
                reply.tokens += choice["token_ids"]
            reply.finish = choice.get("finish_reason") or reply.finish
        if usage := chunk.get("usage"):
            reply.split = reply.split or str(usage.get("blitzgw_split", ""))

    def prompt(self, number: int, arrival: Arrival) -> tuple[int, ...]:
        """Return the prompt of a request, always the same one."""
        dice = random.Random(f"{self._seed} {number}")
        data = dice.randbytes(arrival.prompt_tokens)
        return tuple(SPECIAL + byte % (self._vocabulary - SPECIAL) for byte in data)

    def _request(self, node: int, number: int, arrival: Arrival) -> bytes:
        """A greedy completion whose seed says to the paced device at which position it ends."""
        body = {
            "model": MODEL,
            "prompt": list(self.prompt(number, arrival)),
            "max_tokens": self._max_tokens,
            "temperature": 0.0,
            "seed": arrival.prompt_tokens + arrival.output_tokens,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        content = json.dumps(body).encode()
        address = f"{self._made.bed.address(node)}:{HTTP_PORT}"
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: r{self._seed}-{number}\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content
