"""What the page shows and only the owners of models and operations know: they are asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from blitzgw.api.operations import ENDED
from blitzgw.api.sight import measured, operations
from blitzgw.api.status import ScalePort
from blitzgw.core.operation import OperationFacts
from blitzgw.errors import RequestError

MAX_FOLLOWED = 8
"""Operations whose progress is asked for: each asks its owner, over the network mostly."""

T = TypeVar("T")


class Enquiries:
    """The last answers, as parts of what is shown; `missing` are those that did not come."""

    def __init__(self, port: ScalePort) -> None:
        self._port = port
        self._listed: tuple[OperationFacts, ...] = ()
        self._followed: dict[str, OperationFacts] = {}
        self.parts: dict[str, dict[str, Any]] = {"measured": {}, "operations": {}}
        self.missing: set[str] = set()

    async def ask(self) -> None:
        """Ask all nodes what they own; bounded by the port, as what follows is."""
        whys = await self._answer("measured", self._port.whys())
        if whys is not None:
            self.parts["measured"] = measured(whys)
        listed = await self._answer("operations", self._port.operations())
        if listed is not None:
            self._listed = listed
        await self.follow()

    async def follow(self) -> None:
        """Ask the owners of operations that run how these get on."""
        running = [facts for facts in self._listed if facts.state not in ENDED][:MAX_FOLLOWED]
        asked = (self._answer("operations", self._port.operation(facts.id)) for facts in running)
        found = {facts.id: facts for facts in await asyncio.gather(*asked) if facts is not None}
        self._listed = tuple(found.get(facts.id, facts) for facts in self._listed)
        self.parts["operations"] = operations(self._listed, found)

    async def _answer(self, part: str, asked: Awaitable[T]) -> T | None:
        """Return an answer, None where it is refused; note which."""
        try:
            answer = await asked
        except RequestError:
            self.missing.add(part)
            return None
        self.missing.discard(part)
        return answer
