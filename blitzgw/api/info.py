"""Everything that does not generate: models, health, metrics, tokens."""

from __future__ import annotations

import math
from typing import Any

from aiohttp import web

from blitzgw.api import exposition
from blitzgw.api.bodies import DetokenizeBody, TokenizeBody
from blitzgw.api.decode import decode
from blitzgw.api.exchange import Exchange, read_body
from blitzgw.api.models import ModelEntry
from blitzgw.api.prompts import tokenize_prompt
from blitzgw.api.respond import json_response
from blitzgw.api.sampling import check_token
from blitzgw.api.services import Services
from blitzgw.api.status import ModelStatus
from blitzgw.errors import InvalidRequest, UnknownModel


class Info:
    """Handlers that tell about the node; `draining` makes it not ready."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.draining = False

    async def health(self, exchange: Exchange) -> web.StreamResponse:
        """Answer 200: the process lives."""
        return web.Response(headers=exchange.headers)

    async def ready(self, exchange: Exchange) -> web.StreamResponse:
        """Answer 200 where requests are accepted, else 503 and why."""
        status = self._services.status.status()
        reason = "draining" if self.draining else status.reason
        accepting = status.accepting and not self.draining
        body = {
            "ready": accepting,
            "reason": None if accepting else reason or "not accepting requests",
            "models": {model.name: _state(model) for model in status.models},
        }
        response = json_response(body, exchange.headers)
        response.set_status(200 if accepting else 503)
        return response

    async def load(self, exchange: Exchange) -> web.StreamResponse:
        """Answer how many requests run and wait."""
        models = self._services.status.status().models
        body = {
            "server_load": sum(model.running + model.waiting for model in models),
            "models": {
                model.name: {"running": model.running, "waiting": model.waiting} for model in models
            },
        }
        return json_response(body, exchange.headers)

    async def version(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the version of this software."""
        return json_response({"version": self._services.version}, exchange.headers)

    async def metrics(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the metrics in Prometheus' text format."""
        status = self._services.status.status().models
        body = await exposition.render(self._services.metrics, status)
        headers = {**exchange.headers, "Content-Type": exposition.CONTENT_TYPE}
        return web.Response(body=body, headers=headers)

    async def models(self, exchange: Exchange) -> web.StreamResponse:
        """Answer all configured models, those scaled to zero too."""
        states = self._states()
        names = self._services.models.names()
        items = [_item(name, entry, states.get(entry.name)) for name, entry in names]
        return json_response({"object": "list", "data": items}, exchange.headers)

    async def model(self, exchange: Exchange, name: str) -> web.StreamResponse:
        """Answer one model; raises UnknownModel."""
        entry = self._services.models.lookup(name)
        if name not in (known for known, _ in self._services.models.names()):
            raise UnknownModel("the model does not exist", param="model")
        return json_response(_item(name, entry, self._states().get(entry.name)), exchange.headers)

    async def tokenize(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the tokens of a prompt or a conversation."""
        body = decode(await read_body(exchange.request, self._services.limits), TokenizeBody)
        entry = await self._services.models.find(body.model)
        prompt = await tokenize_prompt(body, entry)
        answer = {
            "tokens": prompt.tokens,
            "count": len(prompt.tokens),
            "max_model_len": entry.spec.max_model_len,
        }
        return json_response(answer, exchange.headers)

    async def detokenize(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the text of tokens, special ones included."""
        body = decode(await read_body(exchange.request, self._services.limits), DetokenizeBody)
        entry = await self._services.models.find(body.model)
        if body.tokens is None:
            raise InvalidRequest("tokens is required", param="tokens")
        for token in {min(body.tokens, default=0), max(body.tokens, default=0)}:
            check_token(token, entry.spec.shape.vocab, "tokens")
        text = entry.text.decode(body.tokens, skip_special_tokens=False)
        return json_response({"prompt": text}, exchange.headers)

    def _states(self) -> dict[str, ModelStatus]:
        return {model.name: model for model in self._services.status.status().models}


def _item(name: str, entry: ModelEntry, status: ModelStatus | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": entry.created,
        "owned_by": "blitzgw",
        "root": entry.name,
        "parent": None,
        "max_model_len": entry.spec.max_model_len,
        "blitzgw": None if status is None else _state(status),
    }


def _state(status: ModelStatus) -> dict[str, Any]:
    eta_s = status.eta_s
    return {
        "state": status.state,
        "instances": status.instances,
        "layers_resident": status.layers_resident,
        "layers_total": status.layers_total,
        "wanted": status.wanted,
        "mode": status.mode,
        "eta_s": eta_s if eta_s is not None and math.isfinite(eta_s) else None,
    }
