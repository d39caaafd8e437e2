"""The client plane of a node: its HTTP server, joined with what answers there."""

from __future__ import annotations

import errno
import logging
import os
import socket

from blitzgw.api.admin import admin_guard
from blitzgw.api.limits import Limits
from blitzgw.api.server import HttpServer
from blitzgw.api.services import Services
from blitzgw.api.status import StatusPort
from blitzgw.cluster import Cluster
from blitzgw.clustermetrics import ClusterCollector
from blitzgw.config import Config
from blitzgw.core.clock import Clock
from blitzgw.errors import BlitzError
from blitzgw.router.router import Router

log = logging.getLogger(__name__)

_TAKEN = "; choose another http.port, or set http.reuse_port in all nodes that are to share it"


def http_server(
    config: Config, cluster: Cluster, router: Router, status: StatusPort, clock: Clock
) -> HttpServer:
    """Return a server that does not listen yet; raises ConfigError for the admin key's file."""
    http, scaling = config.http, cluster.scaling
    limits = Limits(
        max_body=http.max_body_bytes,
        max_connections=http.max_connections,
        body_timeout_s=http.body_timeout_s,
        max_unsent=http.max_stream_buffer_bytes,
    )
    services = Services(
        node=config.node.name,
        models=cluster.definitions.table,
        generator=router,
        status=status,
        clock=clock,
        limits=limits,
        cluster=cluster,
        scaling=scaling.orders,
        probing=scaling.probes,
    )
    pairings = scaling.pairings
    collector = ClusterCollector(cluster.view, cluster.network, router, lambda: pairings.sent_bytes)
    services.metrics.registry.register(collector)
    scaling.numbers.demands.latencies = services.metrics.recent
    scaling.metrics.register(services.metrics.registry)
    return HttpServer(
        services,
        api_keys=http.api_keys,
        public_paths=frozenset(http.public_routes),
        admin=admin_guard(config),
    )


async def listen(server: HttpServer, config: Config) -> int:
    """Listen, and return the port; raises BlitzError."""
    http = config.http
    try:
        port = await server.start(http.host, http.port, reuse_port=http.reuse_port)
    except OSError as error:
        where = f"{http.host}:{http.port}"
        reason = _reason(error) + (_TAKEN if error.errno == errno.EADDRINUSE else "")
        raise BlitzError(f"cannot listen on {where}: {reason}") from error
    log.info("listening url=http://%s:%d node=%s", http.host, port, config.node.name)
    return port


def _reason(error: OSError) -> str:
    """Return the system's words, without asyncio's around them."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)
