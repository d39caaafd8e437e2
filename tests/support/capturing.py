"""A CPU in a GPU's place: captures that replay recorded operations on the same memory.

A recorded operation reads the tensors that it has read and writes over what it has written, as in
a CUDA graph: no Python runs in a replay, and a value that has come from the host is that of the
capture. What a capture would not allow, a look at a tensor's value, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blitzgw.core.instance import ModelSpec
from blitzgw.engine.gpu.choice import Choice
from blitzgw.engine.torch_layer import TorchKernels
from blitzgw.engine.upload import refill


class Fetched:
    """Tokens that are there when the test says so; as if the device took its time."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers, self.ready = numbers.clone(), True

    def is_ready(self) -> bool:
        return self.ready

    def wait(self) -> list[int]:
        return self._numbers.tolist()


class NoFence:
    """Copies on a CPU are over when they return."""

    def mark(self) -> None:
        pass

    def wait(self) -> None:
        pass


class Recording(TorchDispatchMode):
    """Notes every operation; `undo` takes back what it has written to older tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a capture may not wait for a value")
        if func._schema.is_mutable:
            self._before.append((args[0], args[0].clone()))
        out = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        for tensor, value in reversed(self._before):
            tensor.copy_(value)

    @torch.inference_mode()
    def replay(self) -> None:
        for func, args, kwargs, out in self._operations:
            inputs = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
            for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in inputs:  # else it is a view, or there
                    old.copy_(new)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class RecordingShell:
    """`Shell` on a CPU."""

    def __init__(self) -> None:
        self.captures, self.replays, self.fail = 0, 0, False
        self.fetched: list[Fetched] = []
        self.slow = False

    def fence(self) -> NoFence:
        return NoFence()

    def fetch(self, numbers: torch.Tensor) -> Fetched:
        fetched = Fetched(numbers)
        fetched.ready = not self.slow
        self.fetched.append(fetched)
        return fetched

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        if self.fail:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        recording = Recording()
        with recording:
            work()
        recording.undo()
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            recording.replay()

        return replay


class GatherRows:
    """`PagedRows` by torch's attention over gathered slots: slow, and at fixed addresses."""

    def __init__(self, bucket: int, window: int) -> None:
        self._slots = torch.zeros(bucket, dtype=torch.long)
        self._stops = torch.zeros(bucket, dtype=torch.long)
        self._window = window

    def load(self, slots: Sequence[int], stops: Sequence[int]) -> None:
        refill(self._slots, slots)
        refill(self._stops, stops)

    def attend(self, q_BHD, cache_SKPD):
        keys, values = (cache[self._slots] for cache in cache_SKPD)
        positions = torch.arange(keys.shape[2])
        stops = self._stops[:, None]
        seen = positions < stops
        if self._window:
            seen = seen & (positions >= stops - self._window)
        q_BKGD = q_BHD.reshape(len(q_BHD), keys.shape[1], -1, q_BHD.shape[2])
        out = F.scaled_dot_product_attention(q_BKGD, keys, values, seen[:, None, None])
        return out.reshape(q_BHD.shape)


class GatherDecode:
    """`PagedDecode` by `GatherRows`."""

    def __init__(self, window: int) -> None:
        self._window = window

    def fixed(self, bucket: int) -> GatherRows:
        return GatherRows(bucket, self._window)

    def step(self, slots: Sequence[int], stops: Sequence[int]) -> GatherRows:
        rows = GatherRows(len(slots), self._window)
        rows.load(slots, stops)
        return rows


def gathered(spec: ModelSpec) -> Choice:
    """The choice of a machine that has nothing but torch's plain attention, and captures."""
    paged = GatherDecode(spec.shape.window)
    return Choice("gathered", TorchKernels(spec, paged), paged)
