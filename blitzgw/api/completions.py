"""`/v1/chat/completions` and `/v1/completions`: runs generations and sends what they give."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from functools import partial

from aiohttp import web

from blitzgw.api.bodies import ChatBody, CompletionBody
from blitzgw.api.choice import Choice
from blitzgw.api.chunks import ChunkFormat
from blitzgw.api.collect import Collector
from blitzgw.api.decode import decode
from blitzgw.api.eventresponse import EventResponse
from blitzgw.api.exchange import Exchange, read_body
from blitzgw.api.generation import Batch, Generation, Output
from blitzgw.api.intake import Work, understand
from blitzgw.api.logprobs import ChatLogprobs, CompletionLogprobs
from blitzgw.api.metrics import Meter
from blitzgw.api.prompts import Prompt
from blitzgw.api.respond import json_response
from blitzgw.api.services import Services
from blitzgw.api.sse import EventStream
from blitzgw.api.tooloutput import ToolCollector, ToolStream
from blitzgw.core.request import GenerationRequest
from blitzgw.errors import Overloaded, RequestError, Unavailable

logger = logging.getLogger(__name__)

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would pass tokens on in bunches of 4 KiB
}


class Completions:
    """The two generating endpoints, and the requests that they are busy with."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._active: set[Batch] = set()

    @property
    def active(self) -> int:
        """Requests that generate now."""
        return len(self._active)

    def fail_all(self, message: str) -> None:
        """End everything that runs with an error that its clients see."""
        for batch in list(self._active):
            batch.fail(Unavailable(message))

    def chat(self, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        """Answer `POST /v1/chat/completions`."""
        return self._answer(exchange, ChatBody)

    def text(self, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        """Answer `POST /v1/completions`."""
        return self._answer(exchange, CompletionBody)

    async def _answer(
        self, exchange: Exchange, kind: type[ChatBody | CompletionBody]
    ) -> web.StreamResponse:
        services = self._services
        rejections = services.metrics.rejections
        try:
            body = decode(await read_body(exchange.request, services.limits), kind)
            entry = await services.models.find(body.model)
            rejections = services.metrics.model(entry.name, entry.spec.max_model_len).rejections
            if len(self._active) >= services.limits.max_active:
                raise Overloaded("too many requests in flight", retry_after_s=1.0)
            services.generator.turn_away(entry.name, entry.digest)
            work = await understand(services, exchange, body, entry)
            del body  # streams are long, and bodies can be large
            if work.options.stream:
                return await self._stream(work)
            return await self._collect(work)
        except RequestError as error:
            rejections[error.code] += 1
            raise

    async def _stream(self, work: Work) -> web.StreamResponse:
        chunks = ChunkFormat(
            work.response_id, work.entry.name, work.created, chat=work.options.chat
        )
        make = EventStream if work.tools is None else partial(ToolStream, work.tools)
        stream = make(
            work.options, chunks, work.tally, len(work.requests), self._services.limits.max_unsent
        )
        batch = self._begin(work, stream)
        try:
            stream.on_gone = batch.abort
            batch.start()
            response = self._open(work, batch, stream)
            await stream.done  # bounded by the generator: each generation ends or fails
            if stream.error is not None and not stream.opened:
                raise stream.error
            await response.drained()
            return response
        finally:
            self._finish(work, batch)

    def _open(self, work: Work, batch: Batch, stream: EventStream) -> EventResponse:
        """Make ready what goes out with the first text, while the device computes it."""
        request = work.exchange.request
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        response = EventResponse(request, closing=work.exchange.closing)
        stream.prepare()

        def make() -> bytes:
            return response.head(self._headers(work, batch) | STREAM_HEADERS, work.created)

        served, made = batch.served(), make()
        stream.go_through(
            request.transport,
            lambda: made if batch.served() == served else make(),
            framed=response.framed,
        )
        return response

    async def _collect(self, work: Work) -> web.StreamResponse:
        make = Collector if work.tools is None else partial(ToolCollector, work.tools)
        collector = make(work.options, len(work.requests))
        batch = self._begin(work, collector)
        try:
            batch.start()
            await collector.done  # bounded by the generator: each generation ends or fails
            if collector.error is not None:
                raise collector.error
            answer = collector.body(
                {"id": work.response_id, "created": work.created, "model": work.entry.name},
                batch.generations,
                work.tally,
            )
            return json_response(answer, self._headers(work, batch))
        finally:
            self._finish(work, batch)

    def _begin(self, work: Work, output: Output) -> Batch:
        services = self._services
        batch = Batch(services.generator, services.status, output, work.tally)
        for index, (request, prompt) in enumerate(work.requests):
            batch.generations.append(self._generation(work, batch, index, request, prompt))
        self._active.add(batch)
        return batch

    def _generation(
        self, work: Work, batch: Batch, index: int, request: GenerationRequest, prompt: Prompt
    ) -> Generation:
        entry, sampling = work.entry, request.sampling
        choice = Choice(
            index,
            entry.text,
            work.stopping,
            eos_ids=entry.spec.eos_ids,
            stop_token_ids=sampling.stop_token_ids,
            min_tokens=sampling.min_tokens,
            mute=work.mute,
        )
        leads = index == 0 or work.requests[index - 1][1] is not prompt
        meter = Meter(
            work.metrics, self._services.clock, work.exchange.arrival, len(prompt.tokens), leads
        )
        formatter: ChatLogprobs | CompletionLogprobs | None = None
        if work.options.logprobs:
            formatter = (ChatLogprobs if work.options.chat else CompletionLogprobs)(entry.text)
        return Generation(batch, request, prompt, choice, meter, formatter)

    def _headers(self, work: Work, batch: Batch) -> dict[str, str]:
        headers = dict(work.exchange.headers)
        served = batch.served()
        if served is not None:
            headers["x-blitzgw-instance"] = served.instance
            if served.split:
                headers["x-blitzgw-split"] = served.split
        return headers

    def _finish(self, work: Work, batch: Batch) -> None:
        """Leave nothing running, whatever ended the request; tell it in one line."""
        batch.abort()
        self._active.discard(batch)
        meters = [generation.meter for generation in batch.generations]
        logger.info(
            "request_finished id=%s model=%s tenant=%s stream=%d choices=%d prompt_tokens=%d "
            "completion_tokens=%d cached_tokens=%d ttft_ms=%.1f duration_ms=%.1f finish=%s",
            work.response_id,
            work.entry.name,
            work.exchange.tenant or "-",
            work.options.stream,
            len(meters),
            work.tally.prompt_tokens,
            work.tally.completion_tokens,
            work.tally.cached_tokens,
            1e3 * meters[0].ttft_s,
            1e3 * (self._services.clock.now() - work.exchange.arrival),
            batch.generations[0].choice.finish or "abort",
        )
