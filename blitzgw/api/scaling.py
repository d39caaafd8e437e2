"""Scaling by hand: `POST /admin/v1/models/NAME/scale`, what became of it, and how to give it up.

    POST /admin/v1/models/NAME/scale      {"instances": N, "dry_run": false, "strategy": "",
                                           "policy": ""}
                                          {"instances": "auto"}
    GET  /cluster/operations              {"operations": […], "truncated": false}
    GET  /cluster/operations/ID           the operation
    POST /admin/v1/operations/ID/cancel   the operation

A scale to N is answered with the operation: 202 where it has begun, 200 where it was only planned
or there was nothing to do. N holds until the next order; "auto" leaves it to the policy again and
is answered with 200 and {"model", "instances": "auto", "why"}, the last null where nobody tells.
`api/operations.py` tells how an operation is formed, `api/why.py` the reasons, which are served
here too. What is under /admin/ needs the admin key.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import orjson
from aiohttp import web

from blitzgw.api.admin import AdminGuard
from blitzgw.api.bodies import CancelBody, ScaleBody
from blitzgw.api.decode import decode
from blitzgw.api.exchange import Exchange, read_body
from blitzgw.api.limits import Limits
from blitzgw.api.models import ModelTable
from blitzgw.api.operations import newest_first, summary, whole
from blitzgw.api.respond import HttpError, json_bytes
from blitzgw.api.status import ScalePort
from blitzgw.api.why import AUTO, Explaining, own_name
from blitzgw.core.live import LivePolicy
from blitzgw.core.operation import OperationFacts
from blitzgw.core.scale import AUTOMATIC
from blitzgw.errors import InvalidRequest

ADMIN_PREFIX = "/admin/"
MODELS_PREFIX = "/admin/v1/models/"
SCALE_SUFFIX = "/scale"
OPERATIONS = "/cluster/operations"
ADMIN_OPERATIONS_PREFIX = "/admin/v1/operations/"
CANCEL_SUFFIX = "/cancel"

MAX_INSTANCES = 4096
"""The largest cluster that one gossip carries; more is a slip of the keyboard."""

MAX_LISTED = 256
"""Operations that are listed: of more, nobody looks at the oldest."""

_STRATEGY = re.compile(r"[a-z0-9-]{0,64}")

POLICIES = ("auto", *(policy.value for policy in LivePolicy))
"""What instances can be told to do while they load; `auto`: what is predicted to be best."""

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]


class Scaling:
    """Handlers of operations. Without a guard nothing can be changed here."""

    def __init__(
        self, port: ScalePort, models: ModelTable, limits: Limits, guard: AdminGuard | None
    ) -> None:
        self._port = port
        self._models = models
        self._limits = limits
        self._guard = guard
        self._explaining = Explaining(port, models)

    def find(self, path: str) -> dict[str, Handler] | None:
        """Return the handlers of a path that names a model or an operation, by method."""
        if path.startswith(f"{OPERATIONS}/"):
            return {"GET": self.operation}
        if path.startswith(MODELS_PREFIX) and path.endswith(SCALE_SUFFIX):
            return {"POST": self.scale}
        if path.startswith(ADMIN_OPERATIONS_PREFIX) and path.endswith(CANCEL_SUFFIX):
            return {"POST": self.cancel}
        return self._explaining.find(path)

    def admits(self, path: str, authorization: str | None) -> bool:
        """Tell whether the admin key opens a path that an API key would: what scaling is about."""
        reading = path == OPERATIONS or path.startswith(f"{OPERATIONS}/")
        reading = reading or self._explaining.find(path) is not None
        return reading and self._guard is not None and self._guard.knows(authorization)

    def check(self, request: web.BaseRequest) -> None:
        """Refuse a request under /admin/ that may not change things; raises RequestError."""
        if self._guard is None:
            raise HttpError(
                403, "no_admin_key", "this node has no admin key", "PermissionDeniedError"
            )
        self._guard.check(request)

    async def operations(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the operations of the cluster, the newest first."""
        found = newest_first(await self._port.operations())  # bounded by the port
        items = [summary(facts) for facts in found[:MAX_LISTED]]
        body = {"operations": items, "truncated": len(found) > MAX_LISTED}
        return json_bytes(orjson.dumps(body), exchange.headers)

    async def operation(self, exchange: Exchange) -> web.StreamResponse:
        """Answer one operation with its plan, its progress and its events."""
        name = exchange.request.path.removeprefix(f"{OPERATIONS}/")
        facts = await self._port.operation(name)  # bounded by the port
        if facts is None:
            raise unknown_operation()
        return await _answer(facts, exchange)

    async def scale(self, exchange: Exchange) -> web.StreamResponse:
        """Begin or plan an operation, or leave a model to the policy."""
        name = exchange.request.path.removeprefix(MODELS_PREFIX).removesuffix(SCALE_SUFFIX)
        body = decode(await read_body(exchange.request, self._limits), ScaleBody)
        model = own_name(self._models, name)
        facts = await self._port.scale(  # bounded by the port
            model,
            _instances(body),
            dry_run=bool(body.dry_run),
            strategy=_strategy(body),
            policy=_policy(body),
        )
        if facts is None or body.instances == AUTO:
            answer = {
                "model": model,
                "instances": AUTO,
                "why": await self._explaining.at_once(model),
            }
            return json_bytes(orjson.dumps(answer), exchange.headers)
        begun = facts.state not in ("planned", "done")
        if begun:
            exchange.headers["Location"] = f"{OPERATIONS}/{quote(facts.id, safe='')}"
        return await _answer(facts, exchange, 202 if begun else 200)

    async def cancel(self, exchange: Exchange) -> web.StreamResponse:
        """Give up an operation."""
        name = exchange.request.path.removeprefix(ADMIN_OPERATIONS_PREFIX)
        if exchange.request.can_read_body:
            decode(await read_body(exchange.request, self._limits), CancelBody)
        facts = await self._port.cancel(name.removesuffix(CANCEL_SUFFIX))  # bounded by the port
        return await _answer(facts, exchange)


def unknown_operation() -> HttpError:
    """Return what is said of an id that nobody knows."""
    return HttpError(
        404,
        "operation_not_found",
        "no living node knows this operation; ended ones are remembered for a while only",
        "NotFoundError",
    )


async def _answer(
    facts: OperationFacts, exchange: Exchange, status: int = 200
) -> web.StreamResponse:
    """Answer an operation: thousands of blobs' times take longer to write than streams can wait."""
    body = await asyncio.to_thread(lambda: orjson.dumps(whole(facts)))
    return json_bytes(body, exchange.headers, status)


def _instances(body: ScaleBody) -> int:
    if body.instances is None:
        raise InvalidRequest("instances is required", param="instances")
    if body.instances == AUTO:
        _check_automatic(body)
        return AUTOMATIC
    if isinstance(body.instances, str) or not 0 <= body.instances <= MAX_INSTANCES:
        text = f'instances must be 0 to {MAX_INSTANCES}, or "{AUTO}"'
        raise InvalidRequest(text, param="instances")
    return body.instances


def _check_automatic(body: ScaleBody) -> None:
    """Refuse what goes with a number only: the policy's operations are planned as they begin."""
    if body.dry_run:
        text = "dry_run goes with a number: GET /cluster/models/NAME/why tells what is decided"
        raise InvalidRequest(text, param="dry_run")
    for field in ("strategy", "policy"):
        if getattr(body, field):
            raise InvalidRequest(f'{field} goes with a number, not with "{AUTO}"', param=field)


def _strategy(body: ScaleBody) -> str:
    strategy = body.strategy or ""
    if not _STRATEGY.fullmatch(strategy):
        raise InvalidRequest("strategy is no name of one, such as chain", param="strategy")
    return strategy


def _policy(body: ScaleBody) -> str:
    policy = body.policy or ""
    if policy and policy not in POLICIES:
        raise InvalidRequest(f"policy must be one of {', '.join(POLICIES)}", param="policy")
    return policy
