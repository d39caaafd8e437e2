"""Server-sent events, pushed: one call per step writes a formatted chunk to the transport.

The first write takes the answer's head along, and the last one the end of HTTP/1.1's chunks.

    waiting ──first text, with the head──► live ──last text──► ended
       └───────error───────► ended: answered with a status, as nothing has been sent
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from blitzgw.api.chunks import DONE, ChoiceFormat, ChunkFormat, Extras, Tally
from blitzgw.api.generation import Generation, Options
from blitzgw.api.respond import error_object
from blitzgw.core.request import TokenEvent
from blitzgw.errors import RequestError

LAST_CHUNK = b"0\r\n\r\n"


class ChoiceLine:
    """One choice's chunks, and its way to the client, a `Line`.

    With a `transport`, text goes there at once: its headers have been sent, and it takes chunks.
    """

    __slots__ = ("_head", "_size", "_stream", "_tail", "chunks", "max_unsent", "transport")

    def __init__(self, chunks: ChoiceFormat, stream: EventStream) -> None:
        self.chunks = chunks
        self._head, self._tail, self._size = chunks.head, chunks.tail, chunks.size
        self._stream = stream
        self.max_unsent = 0
        self.transport: asyncio.Transport | None = None

    def write(self, body: bytes) -> None:
        """Write a chunk of nothing but text, as JSON has it. This runs for every token."""
        transport = self.transport
        if transport is None or transport.is_closing():
            self._stream.send(b"%b%b%b" % (self._head, body, self._tail))
            return
        size = self._size + len(body)
        transport.write(b"%x\r\n%b%b%b\r\n" % (size, self._head, body, self._tail))
        if transport.get_write_buffer_size() > self.max_unsent:
            self._stream.cut_off(transport)


class EventStream:
    """The stream of one response, all choices interleaved; an `Output` of its batch."""

    __slots__ = (
        "_chunks", "_framed", "_head", "_lines", "_max_unsent", "_open_choices", "_options",
        "_pending", "_plain", "_ready", "_tally", "_transport",
        "done", "error", "on_gone", "opened",
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
        self._lines: dict[int, ChoiceLine] = {}
        self._ready: list[tuple[ChoiceLine, bytes]] = []
        self._pending: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._head: Callable[[], bytes] | None = None
        self._framed = True
        self._max_unsent = max_unsent
        self._plain = options.plain
        self._open_choices = open_choices
        self.opened = False
        """Text has come: an error is an event of the stream from here on."""
        self.error: RequestError | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def deliver(self, generation: Generation, text: str, event: TokenEvent) -> None:
        """Write what one step added to one choice."""
        choice = generation.choice
        self.opened = True
        line = self._lines.get(choice.index)
        payload = b""
        if line is None:
            line, role = self._ready.pop() if self._ready else self._new_line(choice.index)
            self._lines[choice.index] = line
            self._connect(line)
            payload, text = self._opening(line.chunks, generation, text, role)
            if self._plain:
                generation.stream_to(line)
        payload += self._step(line.chunks, generation, text, event)
        if choice.finish is None:
            if payload:
                self.send(payload)
            return
        self._open_choices -= 1
        if self._open_choices:
            self.send(payload)
        else:
            self._end(payload + self._closing())

    def prepare(self) -> None:
        """Make what the first chunk begins with, while the device computes its text."""
        if self._open_choices == 1 and not self._lines:
            self._ready.append(self._new_line(0))

    def _new_line(self, index: int) -> tuple[ChoiceLine, bytes]:
        """Return a choice's line, and its role chunk where that says nothing else."""
        line = ChoiceLine(self._chunks.choice(index), self)
        return line, line.chunks.role() if self._options.chat and self._plain else b""

    def _connect(self, line: ChoiceLine) -> None:
        """Give a choice the way that there is now; none before the head has been sent."""
        line.transport = self._transport if self._framed and self._head is None else None
        line.max_unsent = self._max_unsent

    def fail(self, error: RequestError) -> None:
        """End the stream with an error: as a status while nothing was sent, else as an event."""
        if self.done.done():
            return
        self.error = error
        self._end(b"data: " + error_object(error) + b"\n\n")

    def go_through(
        self, transport: asyncio.Transport, head: Callable[[], bytes], *, framed: bool
    ) -> None:
        """Send all text there from now on, the first of it after what `head` returns by then.

        `framed`: in chunks.
        """
        self._transport, self._head, self._framed = transport, head, framed
        if self.opened and self._pending:
            events = b"".join(self._pending)
            self._pending.clear()
            self._write(events, last=self.done.done())

    def _step(
        self, known: ChoiceFormat, generation: Generation, text: str, event: TokenEvent
    ) -> bytes:
        """Return the chunks of one step of a choice."""
        return known.chunk(text, self._extras(generation, event))

    def _opening(
        self, known: ChoiceFormat, generation: Generation, text: str, role: bytes
    ) -> tuple[bytes, str]:
        """Return what comes before a choice's first chunk, and that chunk's text."""
        if role:
            return role, text
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

    def send(self, payload: bytes) -> None:
        """Send events, or keep them until there is a way."""
        if self._transport is None:
            self._pending.append(payload)
        else:
            self._write(payload)

    def _write(self, payload: bytes, *, last: bool = False) -> None:
        """Write events, after the head if that is still to go, and before the end."""
        transport = self._transport
        if transport is None or transport.is_closing():
            self._gone()
            return
        if self._framed:
            payload = b"%x\r\n%b\r\n%b" % (len(payload), payload, LAST_CHUNK if last else b"")
        if self._head is not None:
            payload = self._head() + payload
            self._head = None
            self._max_unsent += len(payload)
            for line in self._lines.values():
                self._connect(line)
        transport.write(payload)
        if transport.get_write_buffer_size() > self._max_unsent and not last:
            self.cut_off(transport)

    def cut_off(self, transport: asyncio.Transport) -> None:
        """Give a client up that does not read."""
        transport.abort()
        self._gone()

    def _gone(self) -> None:
        self.on_gone()
        if not self.done.done():
            self.done.set_result(None)

    def _end(self, payload: bytes) -> None:
        """Send the last events; without any text before, an error is left to be answered."""
        if self._transport is None or not self.opened:
            self._pending.append(payload)
        else:
            self._write(payload, last=True)
        if not self.done.done():
            self.done.set_result(None)
