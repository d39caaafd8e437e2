"""Why models have as many instances as they have: what their owners tell, as JSON.

    GET /cluster/models/NAME/why      why one has
    GET /cluster/why                  {"models": […]}, by name, of all owners that answer
    GET /cluster/decisions            {"decisions": […], "truncated": false}, the newest first

Why a model has what it has, always with all of these keys; null is what is not known or does not
apply:

    model, owner                    who decides
    mode                            auto, advise, manual
    wish                            N or "auto", as an operator has said; null: nothing
    terms                           {"mode", "ttft_s", "tpot_s", "min_instances", "max_instances",
                                    "patience_s", "idle_to_zero_s", "keep_s", "priority",
                                    "host_cache_s"}, as configured; null for max_instances: as
                                    devices take, for idle_to_zero_s: never to zero
    now                             the decision that this moment's figures give
    quantiles                       measured, in seconds, by name: "ttft_p90_s", …
    past                            the last decisions that changed something, the newest first

A decision, likewise: {"model", "owner", "at" (Unix time), "action", "present", "wanted", "acted"
(false: it was advice), "reason", "formula", "inputs" (figures by name, the unit last in it),
"operation"}.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import Any

import orjson
from aiohttp import web

from blitzgw.api.exchange import Exchange
from blitzgw.api.models import ModelTable
from blitzgw.api.respond import json_bytes
from blitzgw.api.status import ScalePort
from blitzgw.core.scale import DecisionFacts, WhyFacts
from blitzgw.core.view import ScaleTerms
from blitzgw.errors import RequestError, Unavailable, UnknownModel

ALL = "/cluster/why"
DECISIONS = "/cluster/decisions"
PREFIX = "/cluster/models/"
SUFFIX = "/why"

MAX_LISTED = 256
"""Decisions that are listed: each owner keeps some dozens of each model, and nobody reads more."""

RETRY_S = 1.0
"""After which an owner that did not answer is asked again: by then it is known to have died."""

AUTO = "auto"
"""In place of a number of instances."""

Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]


class Explaining:
    """Handlers that tell why."""

    def __init__(self, port: ScalePort, models: ModelTable) -> None:
        self._port = port
        self._models = models

    def find(self, path: str) -> dict[str, Handler] | None:
        """Return the handlers of a path, by method; None where there are none."""
        if path == DECISIONS:
            return {"GET": self.decisions}
        if path == ALL:
            return {"GET": self.all}
        named = len(path) > len(PREFIX) + len(SUFFIX)
        if named and path.startswith(PREFIX) and path.endswith(SUFFIX):
            return {"GET": self.one}
        return None

    async def one(self, exchange: Exchange) -> web.StreamResponse:
        """Answer why one model has what it has; raises UnknownModel, Unavailable."""
        name = exchange.request.path.removeprefix(PREFIX).removesuffix(SUFFIX)
        facts = await self._port.why(own_name(self._models, name))  # bounded by the port
        if facts is None:
            raise Unavailable(
                "the node that decides for this model does not answer: ask again in a moment",
                retry_after_s=RETRY_S,
            )
        return json_bytes(orjson.dumps(why(facts)), exchange.headers)

    async def all(self, exchange: Exchange) -> web.StreamResponse:
        """Answer why all models have what they have."""
        found = await self._port.whys()  # bounded by the port
        return json_bytes(
            orjson.dumps({"models": [why(facts) for facts in found]}), exchange.headers
        )

    async def decisions(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the decisions about all models, the newest first."""
        found = newest_first(await self._port.whys())  # bounded by the port
        items = [decision(facts) for facts in found[:MAX_LISTED]]
        body = {"decisions": items, "truncated": len(found) > MAX_LISTED}
        return json_bytes(orjson.dumps(body), exchange.headers)

    async def at_once(self, model: str) -> dict[str, Any] | None:
        """Return why a model (its own name) has what it has, None where nobody tells for now."""
        try:
            facts = await self._port.why(model)  # bounded by the port
        except RequestError:
            return None
        return None if facts is None else why(facts)


def own_name(models: ModelTable, name: str) -> str:
    """Return the own name of a model that is named in a path; raises UnknownModel.

    An alias that stands for every name stands for none here.
    """
    entry = models.lookup(name)
    if name not in (known for known, _ in models.names()):
        raise UnknownModel("the model does not exist", param="model")
    return entry.name


def newest_first(whys: Iterable[WhyFacts]) -> list[DecisionFacts]:
    """Return all past decisions in the order in which they are listed."""
    found = (facts for told in whys for facts in told.past)
    return sorted(found, key=lambda facts: (-facts.at_s, facts.model))


def why(facts: WhyFacts) -> dict[str, Any]:
    """Return what an owner tells of a model."""
    return {
        "model": facts.model,
        "owner": facts.owner,
        "mode": facts.mode,
        "wish": wish(facts.wish),
        "terms": terms(facts.terms),
        "now": decision(facts.now),
        "quantiles": dict(facts.quantiles),
        "past": [decision(past) for past in facts.past],
    }


def decision(facts: DecisionFacts) -> dict[str, Any]:
    """Return one decision."""
    return {
        "model": facts.model,
        "owner": facts.owner,
        "at": facts.at_s,
        "action": facts.action,
        "present": facts.present,
        "wanted": facts.wanted,
        "acted": facts.acted,
        "reason": facts.reason or None,
        "formula": facts.formula or None,
        "inputs": dict(facts.inputs),
        "operation": facts.operation or None,
    }


def terms(facts: ScaleTerms) -> dict[str, Any]:
    """Return what is configured of a model's scaling."""
    return asdict(facts) | {
        "max_instances": facts.max_instances or None,
        "idle_to_zero_s": facts.idle_to_zero_s or None,
    }


def wish(wanted: int | None) -> int | str | None:
    """Return what an operator has said: any negative number leaves it to the policy."""
    return wanted if wanted is None or wanted >= 0 else AUTO
