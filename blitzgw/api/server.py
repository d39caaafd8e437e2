"""The HTTP server: routes, keys, errors; starting, draining and stopping.

aiohttp's low-level server under one handler of ours, without its router and middlewares: each of
those costs, and here every answer, a 404 too, takes the same path and form.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from blitzgw.api.admin import AdminGuard
from blitzgw.api.assets import PREFIX, assets
from blitzgw.api.auth import Keyring
from blitzgw.api.cluster import ClusterInfo
from blitzgw.api.completions import Completions
from blitzgw.api.connection import ConnectionServer
from blitzgw.api.exchange import Exchange, check_head, open_exchange
from blitzgw.api.failures import log_failure
from blitzgw.api.info import Info
from blitzgw.api.probing import PROBE_PATH, Probing
from blitzgw.api.respond import HttpError, error_response, internal_error, send_rest
from blitzgw.api.scaling import ADMIN_PREFIX, OPERATIONS, Scaling
from blitzgw.api.services import Services
from blitzgw.api.watching import PATH as WATCH_PATH
from blitzgw.api.watching import Watching
from blitzgw.errors import RequestError

logger = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]

PUBLIC_PATHS = frozenset({"/health", "/ready"})
"""Answered without an API key unless configured otherwise."""

MODELS_PREFIX = "/v1/models/"

BACKLOG = 1024
"""Connections that the kernel holds until they are accepted: a burst of clients at start-up."""

LAST_WORDS_S = 2.0
"""What cut-off streams get to send their error before their connections close."""

POLL_S = 0.05
"""How often `stop` looks whether the last request has finished."""


@dataclass(frozen=True, slots=True)
class Route:
    """What one method of one path does."""

    handler: Handler
    public: bool


class HttpServer:
    """Serves the API on one address."""

    def __init__(
        self,
        services: Services,
        *,
        api_keys: Iterable[str] = (),
        public_paths: frozenset[str] = PUBLIC_PATHS,
        admin: AdminGuard | None = None,
    ) -> None:
        self._services = services
        self._keys = Keyring(api_keys)
        self._public_paths = public_paths
        self._completions = Completions(services)
        self._info = Info(services)
        self._admin = admin
        self._watching: Watching | None = None
        self._scaling: Scaling | None = None
        if services.scaling is not None:
            self._scaling = Scaling(services.scaling, services.models, services.limits, admin)
        self._routes: dict[str, dict[str, Route]] = {}
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._add_all()

    def add_route(self, method: str, path: str, handler: Handler) -> None:
        """Serve one more path; before `start`. A GET answers HEAD too."""
        named = "/" if path.startswith(PREFIX) else path  # what the page consists of goes with it
        self._routes.setdefault(path, {})[method] = Route(handler, named in self._public_paths)

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listen, and return the port (which port 0 leaves to the kernel); raises OSError.

        With `reuse_port` other processes of this user may listen there, too.
        """
        server = ConnectionServer(self._handle, self._services.limits)
        self._runner = web.ServerRunner(server, shutdown_timeout=LAST_WORDS_S)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, host, port, backlog=BACKLOG, reuse_port=reuse_port)
        await self._site.start()
        return self._site.port

    @property
    def active(self) -> int:
        """Requests that generate now."""
        return self._completions.active

    def drain(self) -> None:
        """Turn `/ready` to 503 and close connections after their current answer.

        What still comes is served: load balancers take a while to look away. Who watches the
        cluster is sent away.
        """
        self._info.draining = True
        if self._watching is not None:
            self._watching.close()

    async def stop(
        self, grace_s: float = 30.0, *, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Let requests finish for `grace_s`, listen no more, end the rest with an error.

        Who still connects meanwhile is answered, `/ready` with 503. Looked at now and then,
        `enough` cuts the grace short.
        """
        self.drain()
        if self._runner is None or self._site is None:
            return
        clock = self._services.clock
        deadline = clock.now() + grace_s
        while self._completions.active and clock.now() < deadline and not enough():
            await clock.sleep(POLL_S)
        await self._site.stop()
        self._completions.fail_all("this node is shutting down")
        await self._runner.cleanup()
        self._runner = self._site = None

    def _add_all(self) -> None:
        info, completions = self._info, self._completions
        self.add_route("POST", "/v1/chat/completions", completions.chat)
        self.add_route("POST", "/v1/completions", completions.text)
        self.add_route("POST", "/tokenize", info.tokenize)
        self.add_route("POST", "/detokenize", info.detokenize)
        self.add_route("GET", "/v1/models", info.models)
        self.add_route("GET", "/health", info.health)
        self.add_route("GET", "/ready", info.ready)
        self.add_route("GET", "/load", info.load)
        self.add_route("GET", "/metrics", info.metrics)
        self.add_route("GET", "/version", info.version)
        self.add_route("GET", "/ping", info.health)
        self.add_route("POST", "/ping", info.health)
        if self._services.cluster is not None:
            cluster = ClusterInfo(self._services.cluster, self._services.clock)
            self.add_route("GET", "/cluster/nodes", cluster.nodes)
            self.add_route("GET", "/cluster/instances", cluster.instances)
            self.add_route("GET", "/cluster/models", cluster.models)
            self.add_route("GET", "/cluster/requests", cluster.requests)
            self._watching = Watching(self._services, self._services.cluster)
            self.add_route("GET", WATCH_PATH, self._for_own_page(self._watching.watch))
            for path, asset in assets().items():
                self.add_route("GET", path, self._for_own_page(asset.answer))

        if self._scaling is not None:
            self.add_route("GET", OPERATIONS, self._scaling.operations)
            if self._services.probing is not None:
                probing = Probing(self._services.probing, self._services.limits)
                self.add_route("POST", PROBE_PATH, probing.probe)

    def _for_own_page(self, handler: Handler) -> Handler:
        """Return a handler out of the reach of foreign pages, where no API key keeps them away."""
        guard = self._admin
        if guard is None or self._keys:
            return handler

        async def guarded(exchange: Exchange) -> web.StreamResponse:
            guard.check_site(exchange.request)
            return await handler(exchange)

        return guarded

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, come what may."""
        exchange = open_exchange(request, self._services.node, self._services.clock.now())
        exchange.closing = self._info.draining
        try:
            response = await self._find_handler(exchange)(exchange)
        except RequestError as error:
            response = self._refusal(exchange, error)
        except (ConnectionError, asyncio.CancelledError):
            raise  # the client is gone
        except Exception as error:
            log_failure("request_failed", exchange.request_id, error)
            response = error_response(internal_error(), exchange.headers)
        if not response.prepared:
            if exchange.closing:
                response.force_close()
            await response.prepare(request)
            await send_rest(response, request.transport)
        return response

    def _find_handler(self, exchange: Exchange) -> Handler:
        """Return what answers a request; raises RequestError where nothing does, or may."""
        request = exchange.request
        check_head(request, self._services.limits)
        path = request.path
        methods = self._find(path)
        method = "GET" if request.method == "HEAD" else request.method
        route = None if methods is None else methods.get(method)
        if route is None or not route.public:
            self._authenticate(exchange)
        if route is not None:
            return route.handler
        if path.startswith(MODELS_PREFIX) and method == "GET":
            return partial(self._info.model, name=path.removeprefix(MODELS_PREFIX))
        if methods is not None:
            exchange.headers["Allow"] = ", ".join(sorted(methods))
            raise HttpError(405, "method_not_allowed", "this path has no such method")
        raise HttpError(404, "not_found", "there is nothing at this path", "NotFoundError")

    def _find(self, path: str) -> dict[str, Route] | None:
        """Return what is at a path, by method."""
        routes = self._routes.get(path)
        if routes is None and self._scaling is not None:
            handlers = self._scaling.find(path)
            if handlers is not None:
                return {method: Route(h, public=False) for method, h in handlers.items()}
        return routes

    def _authenticate(self, exchange: Exchange) -> None:
        """Require an API key, or the admin key where things can be changed; raises RequestError."""
        request, scaling = exchange.request, self._scaling
        authorization = request.headers.get("Authorization")
        if scaling is not None and request.path.startswith(ADMIN_PREFIX):
            scaling.check(request)
        elif scaling is None or not scaling.admits(request.path, authorization):
            exchange.tenant = self._keys.tenant(authorization)
            if self._admin is not None and not self._keys and "Origin" in request.headers:
                self._admin.check_host(request)  # a page that has bound its name to this address

    def _refusal(self, exchange: Exchange, error: RequestError) -> web.StreamResponse:
        logger.info(
            "request_refused id=%s status=%d code=%s param=%s",
            exchange.request_id,
            error.status,
            error.code,
            error.param,
        )
        response = error_response(error, exchange.headers)
        if error.status in (408, 413) or not exchange.request.content.is_eof():
            response.force_close()  # the rest of the body is not read
        return response
