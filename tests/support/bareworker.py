"""A worker process without a gateway: what the device itself takes, just as often woken."""

from __future__ import annotations

import asyncio
from typing import Any

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.messages import LoadModel, ModelLoaded, Start
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, NewSequence, Row, Step, StepResult
from blitzgw.worker.handle import WorkerHandle
from tests.support.gateway import CONTEXT


class BareWorker:
    """One paced device of no cost; `prefill_s` after `load`."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._steps = 0

    async def __aenter__(self) -> BareWorker:
        device = DeviceSpec("paced0", DeviceKind.PACED)
        self._handle = await WorkerHandle.start(
            Start(device), MonotonicClock(), on_message=self._take, on_death=print
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._handle.close()

    def _take(self, message: Any) -> None:
        if isinstance(message, ModelLoaded | StepResult):
            self._arrived.put_nowait(message)

    async def load(self, spec: ModelSpec) -> None:
        """Load the model of the node."""
        self._layers = spec.shape.n_layers
        self._handle.post(LoadModel("m", spec, KvGeometry(1, CONTEXT // BLOCK_TOKENS, 1)))
        while not isinstance(await self._arrived.get(), ModelLoaded):
            pass

    async def prefill_s(self, n_tokens: int) -> float:
        """Prefill a prompt and sample; return the seconds that the worker computed."""
        self._steps = n = self._steps + 1
        blocks = tuple(range(CONTEXT // BLOCK_TOKENS))
        new = NewSequence(n, tuple(range(n_tokens)), n_tokens, 0, SamplingParams(max_tokens=1))
        row = Row(n, 0, n_tokens, sample=True, blocks=blocks)
        self._handle.post(Step(n, "m", Span(0, self._layers), (row,), (new,), drop=(n - 1,)))
        result: StepResult = await self._arrived.get()
        return result.duration_s
