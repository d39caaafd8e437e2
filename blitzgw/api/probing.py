"""Measuring a link by hand.

    POST /admin/v1/probe  {"source": "a/p0", "target": "b/p0", "size_bytes": N, "class": "weights",
                           "seconds": null, "network": null, "rate_bytes_per_s": null,
                           "encrypt": false}

A class is weights, kv or activations; without `seconds` it ends when `size_bytes` have arrived, and
without `size_bytes` after `seconds`. Answered when it has ended with

    bytes_per_s, payload_bytes, seconds   by the target's clock, from the first byte
    network                               which was used; null: the one without a name
    yielded_s, delayed_s                  how long weights stood back for requests' traffic on the
                                          source's link, and how long that waited for weights
"""

from __future__ import annotations

import math
from typing import Final

import orjson
from aiohttp import web

from blitzgw.api.bodies import ProbeBody
from blitzgw.api.decode import decode
from blitzgw.api.exchange import Exchange, read_body
from blitzgw.api.limits import Limits
from blitzgw.api.respond import json_bytes
from blitzgw.api.status import ProbePort
from blitzgw.core.probe import ProbeFacts, ProbeWish
from blitzgw.core.transfer import MAX_PROBE_BYTES, TrafficClass
from blitzgw.errors import InvalidRequest

PROBE_PATH = "/admin/v1/probe"

SIZE_BYTES: Final = 256 << 20
"""Where nothing is said of size or time: some seconds on a slow link."""

MAX_SECONDS: Final = 60.0
"""As probeends.py has it."""

_LANES: Final = {lane.name.lower(): lane for lane in TrafficClass}


class Probing:
    """The handler of probes; the server has checked the admin key."""

    def __init__(self, port: ProbePort, limits: Limits) -> None:
        self._port, self._limits = port, limits

    async def probe(self, exchange: Exchange) -> web.StreamResponse:
        """Measure, and answer with what was found; a client that leaves ends it."""
        body = decode(await read_body(exchange.request, self._limits), ProbeBody)
        facts = await self._port.probe(_wish(body))  # bounded by the port
        return json_bytes(orjson.dumps(_told(facts)), exchange.headers)


def _wish(body: ProbeBody) -> ProbeWish:
    """Return what is asked for; raises InvalidRequest."""
    if not body.source or not body.target:
        missing = "target" if body.source else "source"
        raise InvalidRequest(f"{missing} is required, as NODE/DEVICE", param=missing)
    lane = _LANES.get(body.lane or "weights")
    if lane is None:
        raise InvalidRequest(f"class is one of {', '.join(sorted(_LANES))}", param="class")
    size_bytes = body.size_bytes
    if size_bytes is None:
        size_bytes = SIZE_BYTES if body.seconds is None else MAX_PROBE_BYTES
    if not 1 <= size_bytes <= MAX_PROBE_BYTES:
        raise InvalidRequest(f"size_bytes must be 1 to {MAX_PROBE_BYTES}", param="size_bytes")
    seconds = MAX_SECONDS if body.seconds is None else body.seconds
    if not 0 < seconds <= MAX_SECONDS:
        raise InvalidRequest(f"seconds must be above 0, at most {MAX_SECONDS:g}", param="seconds")
    rate = body.rate_bytes_per_s or 0.0
    if not (math.isfinite(rate) and rate >= 0):
        raise InvalidRequest("rate_bytes_per_s must not be negative", param="rate_bytes_per_s")
    return ProbeWish(
        body.source,
        body.target,
        size_bytes,
        seconds,
        lane,
        body.network,
        rate,
        bool(body.encrypt),
    )


def _told(facts: ProbeFacts) -> dict[str, float | int | str | None]:
    return {
        "bytes_per_s": facts.payload_bytes / facts.seconds if facts.seconds > 0 else None,
        "payload_bytes": facts.payload_bytes,
        "seconds": facts.seconds,
        "network": facts.network or None,
        "yielded_s": facts.yielded_s,
        "delayed_s": facts.delayed_s,
    }
