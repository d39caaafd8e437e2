"""`GET /cluster/watch`: the cluster as it is and as it changes, for the page at `/`.

Server-sent events, each one line of JSON:

    {"whole": {PART: {KEY: ITEM}}}        at first, and where the reader fell behind
    {"changed": {PART: {KEY: ITEM}}}      null for an item that is gone
    {"alive": true}                       nothing new, every few seconds
    {"end": REASON}                       the last one: ask again, another node perhaps

`api/sight.py` tells what parts and items there are. All who watch share one look at the cluster:
it costs the same for one and for many, and nothing while nobody does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from blitzgw.api.board import Board
from blitzgw.api.enquiries import Enquiries
from blitzgw.api.exchange import Exchange
from blitzgw.api.failures import log_failure
from blitzgw.api.respond import SEND_TIMEOUT_S, send_rest
from blitzgw.api.services import Services
from blitzgw.api.sight import Sight, here, passing
from blitzgw.api.status import ClusterPort
from blitzgw.errors import Overloaded, Unavailable

PATH = "/cluster/watch"

MAX_WATCHERS = 64
"""Pages that are open at once: operators are fewer, and each costs a buffer."""

LOOK_S = 0.3
"""Between two looks: people see no more, and what happens in between is told as one change.

In people's time, whatever the node's dilation: a page that hears nothing for 15 s gives it up.
"""

ASK_LOOKS = 7
"""All nodes are asked what they own every so many looks, 2 s, and where an instance comes or goes;
the owners of operations that run are asked at each one."""

BEAT_LOOKS = 16
"""After so many looks without a change a sign of life is due: 5 s, less than proxies allow."""

RETRY_S = 5.0
"""After which one may ask again that was one too many."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}

ALIVE = b'{"alive":true}'
DRAINING = b'{"end":"this node is draining"}'
FAILED = b'{"end":"internal error"}'


@dataclass(slots=True)
class _Show:
    """What is shown while anybody watches. `end` is the last event, empty while there is none."""

    enquiries: Enquiries | None
    board: Board = field(default_factory=Board)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: int = 0
    passing: frozenset[str] = frozenset()
    end: bytes = b""
    task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Have all watchers look at the board."""
        woken, self.woken = self.woken, asyncio.Event()
        woken.set()


class Watching:
    """Shows the cluster to whoever watches, until it is closed."""

    def __init__(self, services: Services, cluster: ClusterPort) -> None:
        self._services = services
        self._cluster = cluster
        self._sight = Sight()
        self._show: _Show | None = None
        self._closed = False

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return 0 if self._show is None else self._show.watchers

    def close(self) -> None:
        """Tell all who watch that it is over, and show nothing any more: the node drains."""
        self._closed = True
        if self._show is not None:
            self._finish(self._show, DRAINING)

    async def watch(self, exchange: Exchange) -> web.StreamResponse:
        """Answer what there is and what changes; raises Unavailable, Overloaded."""
        if exchange.request.method == "HEAD":
            return web.Response(headers={**exchange.headers, **HEADERS})
        show = self._enter()
        try:
            return await self._tell(show, exchange)
        finally:
            self._leave(show)

    def _enter(self) -> _Show:
        if self._closed:
            raise Unavailable("this node is draining: watch another one", retry_after_s=RETRY_S)
        if self.watchers >= MAX_WATCHERS:
            raise Overloaded(
                f"{MAX_WATCHERS} pages watch this node already: watch another one, or close some",
                retry_after_s=RETRY_S,
            )
        if self._show is None:
            scaling = self._services.scaling
            show = _Show(None if scaling is None else Enquiries(scaling))
            self._look(show)
            show.task = asyncio.get_running_loop().create_task(self._run(show))
            self._show = show
        self._show.watchers += 1
        return self._show

    def _leave(self, show: _Show) -> None:
        show.watchers -= 1
        if not show.watchers:
            self._finish(show, show.end)

    def _finish(self, show: _Show, end: bytes) -> None:
        """Look no more, and let those go that still watch."""
        show.end = end
        show.wake()
        if show.task is not None:
            show.task.cancel()
        if self._show is show:
            self._show = None

    async def _tell(self, show: _Show, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        response = web.StreamResponse(headers={**exchange.headers, **HEADERS})
        await response.prepare(request)
        seen = 0
        while not show.end:
            woken, version = show.woken, show.board.version
            told = ALIVE if version == seen else show.board.since(seen)
            seen = version
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await response.write(_event(told))
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the watcher does not read") from None
            await woken.wait()  # bounded by the next sign of life
        response.force_close()
        await send_rest(response, request.transport, _event(show.end))
        return response

    async def _run(self, show: _Show) -> None:
        """Look and ask until cancelled; a mistake of ours ends what is shown."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._looking(show))
                if show.enquiries is not None:
                    group.create_task(self._asking(show, show.enquiries))
        except* Exception as errors:
            log_failure("watch_failed", self._services.node, errors.exceptions[0])
            self._finish(show, FAILED)

    async def _looking(self, show: _Show) -> None:
        quiet = 0
        while True:
            await asyncio.sleep(LOOK_S)
            quiet = 0 if self._look(show) else quiet + 1
            if quiet % BEAT_LOOKS == 0:
                show.wake()

    def _look(self, show: _Show) -> bool:
        """Put on the board what there is; tell whether that is anything new."""
        services, enquiries = self._services, show.enquiries
        seen = self._sight.parts(self._cluster.view())
        show.passing = passing(seen)
        status = services.status.status()
        missing = sorted(enquiries.missing) if enquiries else []
        own = here(services.node, services.version, status, missing)
        asked = enquiries.parts if enquiries else {}
        return show.board.show({"here": {"": own}, **seen, **asked})

    async def _asking(self, show: _Show, enquiries: Enquiries) -> None:
        looks, known = 0, show.passing
        while True:
            if looks % ASK_LOOKS == 0 or show.passing != known:
                known = show.passing
                await enquiries.ask()
            else:
                await enquiries.follow()
            looks += 1
            await asyncio.sleep(LOOK_S)


def _event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data
