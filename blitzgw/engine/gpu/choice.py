"""Which kernels a GPU's engine uses: the fastest of those that are installed and compute alike.

    FlashInfer ──fails──► torch's, with varlen_attn for decode rows ──fails──► torch's, eagerly only

Each is tried on a layer of few numbers and the model's heads, against torch's plain kernels. What
is not installed, cannot be compiled or computes something else costs speed and nothing else; why
it was not taken is logged. FlashInfer may compile for a minute when it meets a kind of head for the
first time on a machine: so all this has a thread of its own, and an instance serves meanwhile.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch

from blitzgw.core.instance import ModelSpec
from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import ModelShape
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry
from blitzgw.engine.attention import Extent
from blitzgw.engine.gpu.decode import DecodeInputs, FixedAttention
from blitzgw.engine.gpu.flash import FlashDecode, FlashKernels
from blitzgw.engine.gpu.shell import Shell
from blitzgw.engine.gpu.varlen import PAGE_MULTIPLE, VarlenDecode
from blitzgw.engine.kv import KvArena
from blitzgw.engine.memory import TORCH_DTYPES
from blitzgw.engine.paged import PagedDecode
from blitzgw.engine.rope import rope_table
from blitzgw.engine.torch_layer import TorchKernels
from blitzgw.engine.upload import on_device

log = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Largest difference from torch's answer: bf16 leaves about a tenth of it."""

TRIED = (21, 5, 15)
"""Lengths of the prompts that are tried: pages are left partly full, are filled and begun."""

SMALL_POSITIONS, SMALL_WINDOW = PAGE_MULTIPLE, 9
"""Positions of a slot that is tried, and those that a model with a window sees there at most."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Kernels, and those for decode rows; without the latter no step can be captured."""

    name: str
    kernels: TorchKernels
    paged: PagedDecode | None


class Chooser:
    """Chooses for one model and slots of so many positions, on a thread of its own."""

    def __init__(self, choose: Callable[[], Choice]) -> None:
        self._choice: Choice | None = None
        self._choose = choose
        threading.Thread(target=self._run, name="kernel-choice", daemon=True).start()

    def __call__(self) -> Choice | None:
        """Return what was chosen; None: not yet."""
        return self._choice

    def _run(self) -> None:
        with torch.inference_mode():
            self._choice = self._choose()


@functools.cache
def flashinfer() -> Any:
    """Return the library, after seconds. Raises ImportError, and what it raises itself.

    BLITZGW_FLASHINFER=0 does without.
    """
    if os.environ.get("BLITZGW_FLASHINFER") == "0":
        raise ImportError("BLITZGW_FLASHINFER=0")
    return importlib.import_module("flashinfer")


def import_ahead() -> None:
    """Import the library beside whatever else is done: it takes seconds."""

    def run() -> None:
        with suppress(Exception):  # who wants to use it is told
            flashinfer()

    threading.Thread(target=run, name="flashinfer", daemon=True).start()


def choose(
    spec: ModelSpec,
    positions: int,
    device: torch.device,
    shell: Shell,
    library: Callable[[], Any] = flashinfer,
) -> Choice:
    """Return the best that works for a model and its slots; takes seconds, or compiles."""

    def flash(spec: ModelSpec, positions: int) -> Choice:  # noqa: ARG001
        paged = FlashDecode(library(), spec, device, shell)
        return Choice("flashinfer", FlashKernels(library(), spec, paged), paged)

    def varlen(spec: ModelSpec, positions: int) -> Choice:
        paged = VarlenDecode(positions, spec.shape.window, device)
        return Choice("torch, varlen", TorchKernels(spec, paged), paged)

    for make in (flash, varlen):
        try:
            wrong = difference(make, spec, device)
            choice = make(spec, positions)
        except Exception as error:  # a library that was built for something else
            name = make.__name__
            log.info("kernels_not_taken model=%s kernels=%s error=%s", spec.name, name, error)
            continue
        if wrong <= TOLERANCE:
            log.info("kernels model=%s kernels=%s", spec.name, choice.name)
            return choice
        log.warning(
            "kernels_wrong model=%s kernels=%s difference=%.3f", spec.name, choice.name, wrong
        )
    log.info("kernels model=%s kernels=torch captures=none", spec.name)
    return Choice("torch", TorchKernels(spec), None)


def difference(
    make: Callable[[ModelSpec, int], Choice], spec: ModelSpec, device: torch.device
) -> float:
    """Return how far kernels are from torch's plain ones, in the answers' own deviations.

    That is of the worst token, root mean square.
    """
    small = replace(spec, shape=_small(spec.shape))
    choice = make(small, SMALL_POSITIONS)
    plain = Choice("torch", TorchKernels(small), None)
    worst = 0.0
    for ours, theirs in zip(
        _answers(choice, small, device), _answers(plain, small, device), strict=True
    ):
        errors = (ours - theirs).float().square().mean(-1).sqrt() / theirs.float().std()
        error = float(errors.max())
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _small(shape: ModelShape) -> ModelShape:
    """Return a model with these heads, few of them, and little else."""
    group = shape.n_heads // shape.n_kv_heads
    small = replace(shape, n_layers=2, hidden=128, intermediate=256, vocab=8)
    window = min(shape.window, SMALL_WINDOW)
    return replace(small, n_heads=2 * group, n_kv_heads=2, window=window)


def _answers(choice: Choice, spec: ModelSpec, device: torch.device) -> list[torch.Tensor]:
    """Return what a layer makes of prompts, of a step after them, and of fixed rows after that."""
    shape, dtype, kernels = spec.shape, TORCH_DTYPES[spec.dtype], choice.kernels
    generator = torch.Generator().manual_seed(7)

    def drawn(*size: int) -> torch.Tensor:
        scale = size[-1] ** -0.5 if len(size) > 1 else 1.0
        return (torch.randn(size, generator=generator) * scale).to(device, dtype)

    slots = blob_layouts(shape, spec.dtype)[1].tensors
    layer = kernels.layer({slot.name: drawn(*slot.shape) for slot in slots})
    geometry = KvGeometry(len(TRIED), SMALL_POSITIONS // BLOCK_TOKENS, 0)
    cache = KvArena(shape, spec.dtype, geometry, device).layer(1)
    cos, sin = (t.to(device) for t in rope_table(shape.rope, shape.head_dim, SMALL_POSITIONS))

    def step(spans: Sequence[range], fixed: bool) -> torch.Tensor:
        offsets = accumulate(map(len, spans), initial=0)
        extents = [
            Extent(slot, span.start, span.stop, offset)
            for slot, (span, offset) in enumerate(zip(spans, offsets, strict=False))
        ]
        at = on_device([p for span in spans for p in span], device)
        n_decode = len(spans) if len(at) == len(spans) else 0
        plan = kernels.plan(extents, n_decode, cos[at], sin[at])
        if fixed and choice.paged is not None:
            order = list(range(len(spans)))
            rows = choice.paged.fixed(len(spans))
            rows.load(order, [span.stop for span in spans])
            inputs = DecodeInputs(torch.stack((at, on_device(order, device), at)))
            plan = kernels.plan_of(FixedAttention(inputs, rows, dry=False), cos[at], sin[at])
        hidden = drawn(len(at), shape.hidden) * shape.hidden**0.5
        return kernels.run([layer], hidden, plan, [cache])

    prompts = [range(count) for count in TRIED]
    return [
        step(prompts, fixed=False),
        step([range(n, n + 1) for n in TRIED], fixed=False),
        step([range(n + 1, n + 2) for n in TRIED], fixed=True),
    ]
