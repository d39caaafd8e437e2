"""Clients that send at one moment, and note what comes back and when.

Connections are opened before, and requests written beforehand, so that sending is a few system
calls. A thread for each reads. Times are of the monotonic clock.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from typing import Any

from tests.support.gateways import HTTP_PORT, MODEL, Gateways

PATH = "/v1/completions"
SPLIT_HEADER = "x-blitzgw-split"
SPECIAL = 3
"""The first ids of the bench model's vocabulary, which prompts leave out."""


@dataclass
class Answer:
    """What became of a request. `status` 0: no answer, and `error` says why."""

    name: str
    sent_s: float
    ended_s: float = 0.0
    status: int = 0
    error: str = ""
    tokens: list[int] = field(default_factory=list)
    split: str = ""
    instance: str = ""
    token_times: list[float] = field(default_factory=list)
    """Of the chunks with content, where it was streamed."""

    @property
    def good(self) -> bool:
        return self.status == 200 and not self.error and bool(self.tokens)


class Client:
    """Sends to one node, from within it: over its loopback, not over its cable."""

    def __init__(self, made: Gateways, node: int, patience_s: float) -> None:
        self._made, self._node, self._patience_s = made, node, patience_s

    def prepare(self, bodies: Mapping[str, Mapping[str, Any]]) -> Volley:
        """Connect for requests, by name."""
        address = f"{self._made.bed.address(self._node)}:{HTTP_PORT}"
        shots = []
        for name, body in bodies.items():
            sock = self._made.bed.connect(self._node, HTTP_PORT, self._patience_s)
            shots.append((name, sock, _request(address, name, body)))
        return Volley(shots)


class Volley:
    """Requests that are ready to be sent."""

    def __init__(self, shots: Sequence[tuple[str, socket.socket, bytes]]) -> None:
        self._shots = shots
        self._pool = ThreadPoolExecutor(max(1, len(shots)), "answers")
        self.pending: list[Future[Answer]] = []
        self.intended_s = 0.0

    def send(self) -> float:
        """Send all at once; return when that was."""
        self.intended_s = time.monotonic()
        sent = []
        for name, sock, data in self._shots:
            sock.sendall(data)
            sent.append(Answer(name, time.monotonic()))
        for (_, sock, _), answer in zip(self._shots, sent, strict=True):
            self.pending.append(self._pool.submit(_read, sock, answer))
        return self.intended_s

    def answers(self) -> list[Answer]:
        """Wait for all, each bounded by its socket's time-out, in the order of sending."""
        try:
            return [one.result() for one in self.pending]
        finally:
            self.close()

    def close(self) -> None:
        """Leave: what has not been answered is given up."""
        for _, sock, _ in self._shots:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown(wait=True)  # threads end with their sockets
        for _, sock, _ in self._shots:
            sock.close()


def completion(
    prompt: Sequence[int], max_tokens: int = 1, *, stream: bool = False
) -> dict[str, Any]:
    """The body of a greedy completion that ends for length."""
    body: dict[str, Any] = {"model": MODEL, "prompt": list(prompt), "max_tokens": max_tokens}
    body |= {"temperature": 0.0, "ignore_eos": True, "return_token_ids": True}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def prompts(count: int, length: int, vocabulary: int, seed: int = 1) -> list[list[int]]:
    """Distinct prompts of token ids, the same for the same arguments."""
    made = []
    state = seed
    for _ in range(count):
        ids = []
        for _ in range(length):
            state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            ids.append(SPECIAL + (state >> 33) % (vocabulary - SPECIAL))
        made.append(ids)
    return made


def _request(address: str, name: str, body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: {name}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _read(sock: socket.socket, answer: Answer) -> Answer:
    try:
        reply = HTTPResponse(sock, method="POST")
        reply.begin()
        answer.split = reply.getheader(SPLIT_HEADER) or ""
        answer.instance = reply.getheader("x-blitzgw-instance") or ""
        if (reply.getheader("Content-Type") or "").startswith("text/event-stream"):
            _read_stream(reply, answer)
        else:
            _read_body(reply, answer)
        answer.status = reply.status
    except (OSError, HTTPException, ValueError, KeyError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended_s = time.monotonic()
    return answer


def _read_body(reply: HTTPResponse, answer: Answer) -> None:
    content = reply.read()
    if reply.status != 200:
        answer.error = content.decode(errors="replace")[:200]
        return
    body = json.loads(content)
    answer.tokens = body["choices"][0]["token_ids"]
    answer.split = answer.split or json.dumps(body["usage"].get("blitzgw_split", "")).strip('"')


def _read_stream(reply: HTTPResponse, answer: Answer) -> None:
    for line in reply:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            answer.error = str(chunk["error"])[:200]
        for choice in chunk.get("choices", ()):
            if choice.get("token_ids"):
                answer.token_times.append(time.monotonic())
                answer.tokens += choice["token_ids"]
        if usage := chunk.get("usage"):
            answer.split = answer.split or json.dumps(usage.get("blitzgw_split", "")).strip('"')
