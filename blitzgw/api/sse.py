"""Server-sent events, pushed: one call per step writes a formatted chunk to the transport.

The first write goes through aiohttp, which sends the headers with it; from then on chunks go to the
transport directly, in HTTP/1.1's chunked framing. HTTP/1.0 knows no chunks: there the end of the
connection is the end of the stream. The last write is aiohttp's again.

    waiting ──first text──► opening ──headers sent──► live ──last text──► ended
       └───────error───────► ended: answered with a status, as nothing has been sent
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
from aiohttp import HttpVersion11, web

from blitzgw.api.chunks import DONE, ChoiceFormat, ChunkFormat, Extras, Tally
from blitzgw.api.generation import Generation, Options
from blitzgw.api.respond import error_object, send_rest
from blitzgw.core.request import TokenEvent
from blitzgw.errors import RequestError


class EventResponse(web.StreamResponse):
    """A response whose headers wait for its first text: one write, and one wake of the client."""

    _send_headers_immediately = False


class EventStream:
    """The stream of one response, all choices interleaved; an `Output` of its batch."""

    __slots__ = (
        "_chunks", "_formats", "_framed", "_max_unsent", "_open_choices", "_options", "_pending",
        "_plain", "_tally", "_transport", "done", "error", "first", "on_gone", "opened",
    )  # fmt: skip

    def __init__(
        self,
        options: Options,
        chunks: ChunkFormat,
        tally: Tally,
        open_choices: int,
        max_unsent: int,
    ) -> None:
        """`max_unsent` is the bytes above which a client that does not read counts as gone."""
        self._options = options
        self._chunks = chunks
        self._tally = tally
        self.on_gone: Callable[[], None] = lambda: None
        """Aborts all generations: the client has left, or reads too slowly."""
        self._formats: dict[int, ChoiceFormat] = {}
        self._pending: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._framed = True
        self._max_unsent = max_unsent
        self._plain = options.plain
        self._open_choices = open_choices
        self.opened = False
        """Text has come: an error is an event of the stream from here on."""
        self.error: RequestError | None = None
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()

    def deliver(self, generation: Generation, text: str, event: TokenEvent) -> None:
        """Write what one step added to one choice."""
        choice = generation.choice
        self.opened = True
        known = self._formats.get(choice.index)
        if known is not None and self._plain and choice.finish is None:
            self._send(b"%b%b%b" % (known.head, orjson.dumps(text), known.tail))
            return
        payload = b""
        if known is None:
            known = self._formats[choice.index] = self._chunks.choice(choice.index)
            payload, text = self._opening(known, generation, text)
        payload += known.chunk(text, self._extras(generation, event))
        if choice.finish is None:
            self._send(payload)
            return
        self._open_choices -= 1
        if self._open_choices:
            self._send(payload)
        else:
            self._end(payload + self._closing())

    def fail(self, error: RequestError) -> None:
        """End the stream with an error: as a status while nothing was sent, else as an event."""
        if self.done.done():
            return
        self.error = error
        self._end(b"data: " + error_object(error) + b"\n\n")

    async def run(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Send headers and the first text, wait for the end, send it. `first` has come."""
        if request.version < HttpVersion11:
            self._framed = False
            response.force_close()
        await response.prepare(request)
        if not self.done.done():
            opening = b"".join(self._pending)
            self._pending.clear()
            self._max_unsent += len(opening)
            self._transport = request.transport
            await response.write(opening)  # bounded by the sends that follow it: see _send
            await self.done  # bounded by the generator: each generation ends or fails
        self._transport = None
        await send_rest(response, request.transport, b"".join(self._pending))

    def _opening(self, known: ChoiceFormat, generation: Generation, text: str) -> tuple[bytes, str]:
        """Return what comes before a choice's first chunk, and that chunk's text."""
        if self._options.chat:
            ids = generation.prompt.tokens if self._options.token_ids else None
            return known.role(Extras(prompt_token_ids=ids, usage=self._running_usage())), text
        if self._options.echo:
            return b"", (generation.prompt.text or "") + text
        return b"", text

    def _extras(self, generation: Generation, event: TokenEvent) -> Extras:
        choice, options = generation.choice, self._options
        first = options.token_ids and not options.chat and choice.count == choice.used
        return Extras(
            logprobs=generation.logprobs(event),
            token_ids=event.tokens[: choice.used] if options.token_ids else None,
            prompt_token_ids=generation.prompt.tokens if first else None,
            finish=choice.finish,
            stop_reason=choice.stop_reason,
            usage=self._running_usage(),
        )

    def _running_usage(self) -> dict[str, object] | None:
        return self._tally.usage() if self._options.continuous_usage else None

    def _closing(self) -> bytes:
        usage = self._chunks.usage(self._tally) if self._options.include_usage else b""
        return usage + DONE

    def _send(self, payload: bytes) -> None:
        transport = self._transport
        if transport is None:
            self._pending.append(payload)
            if not self.first.done():
                self.first.set_result(None)
            return
        if transport.is_closing():
            self._gone()
            return
        transport.write(b"%x\r\n%b\r\n" % (len(payload), payload) if self._framed else payload)
        if transport.get_write_buffer_size() > self._max_unsent:
            transport.abort()
            self._gone()

    def _gone(self) -> None:
        self.on_gone()
        self._end(b"")

    def _end(self, payload: bytes) -> None:
        self._pending.append(payload)
        if not self.first.done():
            self.first.set_result(None)
        if not self.done.done():
            self.done.set_result(None)
