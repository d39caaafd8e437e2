"""What a worker can drive: each kind of device, warmed, with its facts and its engines.

Everything heavy is imported here and only for the kind that needs it: a paced worker never sees
torch, and one without a device no engine at all.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from blitzgw.core.instance import DeviceKind, DeviceSpec, ModelSpec
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.messages import Hello
from blitzgw.core.step import KvGeometry
from blitzgw.errors import BlitzError
from blitzgw.worker.executor import Engine


class Device(Protocol):
    """A warm device."""

    def engine(self, spec: ModelSpec, kv: KvGeometry, memory: memoryview | None) -> Engine:
        """Return an engine without weights; they will lie in `memory`, None: in its own.

        Raises MemoryError, BlitzError or the device's own error.
        """

    def hello(self) -> Hello:
        """Return the device's facts."""

    def reclaim(self) -> None:
        """Return what deleted engines have held to the operating system."""

    def is_broken(self, error: Exception) -> bool:
        """Say whether an error leaves the device unusable, so that only a new process helps."""


def open_device(spec: DeviceSpec, dilation: float) -> Device:
    """Warm a device: import what it needs and run it once."""
    if spec.kind is DeviceKind.HOST:
        return HostDevice(spec)
    if spec.kind is DeviceKind.PACED:
        return PacedDevice(spec, dilation)
    return TorchDevice(spec)


class HostDevice:
    """No device: the worker keeps and sends weights, and runs nothing."""

    def __init__(self, spec: DeviceSpec) -> None:
        self._spec = spec

    def engine(
        self,
        spec: ModelSpec,  # noqa: ARG002
        kv: KvGeometry,  # noqa: ARG002
        memory: memoryview | None,  # noqa: ARG002
    ) -> Engine:
        """Refuse: raises BlitzError."""
        raise BlitzError(f"device {self._spec.id} runs no models; it only keeps copies of weights")

    def hello(self) -> Hello:
        """Return the facts: memory is all it has."""
        return Hello(os.getpid(), cpu_name(), host_memory_bytes(), _software(self._spec.kind))

    def reclaim(self) -> None:
        """Do nothing: there is no allocator."""

    def is_broken(self, error: Exception) -> bool:  # noqa: ARG002
        """Say no: there is nothing to break."""
        return False


class PacedDevice:
    """No hardware: hashes in numpy, at the pace of the configured cost, times the dilation."""

    def __init__(self, spec: DeviceSpec, dilation: float) -> None:
        from blitzgw.engine.paced import PacedEngine  # noqa: PLC0415

        self._spec, self._dilation, self._new = spec, dilation, PacedEngine

    def engine(self, spec: ModelSpec, kv: KvGeometry, memory: memoryview | None) -> Engine:
        """Return a paced engine whose time is undilated, as its cost model is."""
        return self._new(
            spec,
            kv,
            self._spec.cost,
            sleep=lambda duration_s: time.sleep(duration_s * self._dilation),
            now=undilated(self._dilation),
            memory=memory,
        )

    def hello(self) -> Hello:
        """Return the facts: no other software matters for a paced device's tokens."""
        return Hello(os.getpid(), "paced", host_memory_bytes(), _software(self._spec.kind))

    def reclaim(self) -> None:
        """Do nothing: the memory was the engine's own."""

    def is_broken(self, error: Exception) -> bool:  # noqa: ARG002
        """Say no: there is nothing to break."""
        return False


class TorchDevice:
    """A CPU share or a GPU."""

    def __init__(self, spec: DeviceSpec) -> None:
        import torch  # noqa: PLC0415

        self._spec, self._torch = spec, torch
        torch.set_num_threads(spec.threads or usable_cores())
        where = "cpu"
        if spec.kind is DeviceKind.CUDA:
            torch.cuda.set_device(spec.index)
            where = f"cuda:{spec.index}"
        self._new = _gpu_engines(spec) if spec.kind is DeviceKind.CUDA else _cpu_engines(spec)
        # The first product starts the thread pool and, on a GPU, creates the context and cuBLAS.
        ones = torch.ones(64, 64, dtype=torch.bfloat16, device=where)
        (ones @ ones).sum().item()

    def engine(self, spec: ModelSpec, kv: KvGeometry, memory: memoryview | None) -> Engine:
        """Return a torch engine on this device."""
        return self._new(spec, kv, memory)

    def hello(self) -> Hello:
        """Return the facts: tokens depend on torch's version, what GPUs exchange on NCCL's."""
        name, memory_bytes = cpu_name(), host_memory_bytes()
        software = _software(self._spec.kind) | {"torch": str(self._torch.__version__)}
        if self._spec.kind is DeviceKind.CUDA:
            from blitzgw.transport.nccl import versions  # noqa: PLC0415

            facts = self._torch.cuda.get_device_properties(self._spec.index)
            name, memory_bytes = facts.name, facts.total_memory
            software |= versions()
        return Hello(os.getpid(), name, memory_bytes, software)

    def reclaim(self) -> None:
        """Empty the GPU allocator's cache; host memory is the engine's own."""
        if self._spec.kind is DeviceKind.CUDA:
            self._torch.cuda.empty_cache()

    def is_broken(self, error: Exception) -> bool:
        """Say yes to CUDA errors other than a lack of memory: they poison the context."""
        return self._spec.kind is DeviceKind.CUDA and poisons_context(str(error))


def poisons_context(message: str) -> bool:
    """Tell a CUDA error that only a new process gets over, by the words that torch has for it."""
    is_lack = "out of memory" in message or "_ALLOC_FAILED" in message  # pinned memory, cuBLAS
    return ("CUDA error" in message or "CUDA driver error" in message) and not is_lack


NewEngine = Callable[[ModelSpec, KvGeometry, memoryview | None], Engine]


def _cpu_engines(device: DeviceSpec) -> NewEngine:
    from blitzgw.engine.decoder import TorchEngine  # noqa: PLC0415
    from blitzgw.engine.native import build  # noqa: PLC0415

    build.library()  # on a new machine compiled now, before anybody waits for a model

    return lambda spec, kv, memory: TorchEngine(spec, kv, device, memory)


def _gpu_engines(device: DeviceSpec) -> NewEngine:
    import torch  # noqa: PLC0415

    from blitzgw.engine.gpu.choice import Choice, Chooser, choose, import_ahead  # noqa: PLC0415
    from blitzgw.engine.gpu.engine import GpuEngine  # noqa: PLC0415
    from blitzgw.engine.gpu.shell import CudaShell  # noqa: PLC0415

    where = torch.device("cuda", device.index)
    shell = CudaShell(where)
    import_ahead()

    def chosen_for(spec: ModelSpec, kv: KvGeometry) -> Choice:
        torch.cuda.set_device(where)  # which every thread has its own of
        return choose(spec, kv.slot_tokens, where, shell)

    def new(spec: ModelSpec, kv: KvGeometry, memory: memoryview | None) -> Engine:
        chosen = Chooser(lambda: chosen_for(spec, kv))
        return GpuEngine(spec, kv, device, memory, time.perf_counter, shell, chosen)

    return new


def undilated(dilation: float) -> Callable[[], float]:
    """Return a clock in the units of `core/clock.py`: seconds divided by the dilation.

    Raises ValueError unless the dilation is positive.
    """
    if dilation <= 0:
        raise ValueError(f"dilation must be positive, not {dilation}")
    return lambda: time.perf_counter() / dilation


def usable_cores() -> int:
    """Return the cores that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_memory_bytes() -> int:
    """Return the memory that this process may use: the host's, or its control group's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def cpu_name() -> str:
    """Return the processor's name as Linux tells it, else the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def _software(kind: DeviceKind) -> dict[str, str]:
    return {"layout": str(LAYOUT_VERSION), "device": kind.value}
