"""What this machine has: GPUs that torch will see, and memory that is really available.

Asked by the parent, before any worker: nothing here imports torch. A machine without a driver, or
with a torch that was built without CUDA, has no GPUs; neither is an error.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from blitzgw.core.instance import DeviceKind, DeviceSpec

log = logging.getLogger(__name__)


def discover() -> list[DeviceSpec]:
    """Return the GPUs that torch can use, as `cuda0`, `cuda1`, … in torch's own numbering."""
    uuids = _gpu_uuids()
    if not uuids:
        return []
    if torch_cuda_version() is None:
        log.warning("gpus_unused count=%d reason=torch_built_without_cuda", len(uuids))
        return []
    count = count_visible(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return [DeviceSpec(f"cuda{i}", DeviceKind.CUDA, index=i) for i in range(count)]


def count_visible(uuids: list[str], visible: str | None) -> int:
    """Return how many GPUs CUDA_VISIBLE_DEVICES leaves: entries before the first invalid one.

    An entry is an index, a UUID or the unambiguous beginning of one, or a MIG slice, of which a
    process can use one only (CUDA C++ programming guide, environment variables).
    """
    if visible is None:
        return len(uuids)
    count = 0
    for entry in (part.strip() for part in visible.split(",")):
        if entry.startswith("MIG-"):
            return max(count, 1)
        by_index = entry.isdecimal() and int(entry) < len(uuids)
        by_uuid = entry.startswith("GPU-") and sum(u.startswith(entry) for u in uuids) == 1
        if not (by_index or by_uuid):
            break
        count += 1
    return count


def torch_cuda_version() -> str | None:
    """Return the CUDA version that torch was built for, such as "13.0". Does not import torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text("utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=\n]*= *'([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that this process can still take: of the machine and of every cgroup.

    A cgroup's page cache that was not used lately counts as free, as it does for the machine.
    `root` is where proc and sys are found.
    """
    amounts = [_machine_memory(root)]
    amounts += [limit - used for limit, used in _cgroup_memory(root)]
    return max(0, min(amounts))


def device_memory_bytes(index: int) -> int:
    """Return the free memory of a GPU; 0 where the driver does not tell."""
    import pynvml  # noqa: PLC0415

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).free)
    except pynvml.NVMLError:
        return 0


def _gpu_uuids() -> list[str]:
    import pynvml  # noqa: PLC0415  it costs 20 ms and only automatic devices need it

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except pynvml.NVMLError as error:
        log.warning("gpus_unused reason=%s", error)
        return []
    finally:
        pynvml.nvmlShutdown()


def _machine_memory(root: Path) -> int:
    try:
        text = (root / "proc/meminfo").read_text("ascii")
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _cgroup_memory(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, used without idle page cache) of each limited cgroup above this process."""
    for folder, limit_name, usage_name, idle_name in _cgroup_folders(root):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is None or usage is None:
            continue
        try:
            stat = (folder / "memory.stat").read_text("ascii")
        except OSError:
            stat = ""
        idle = re.search(rf"^{idle_name} (\d+)$", stat, re.MULTILINE)
        yield limit, max(0, usage - (int(idle[1]) if idle else 0))


def _cgroup_folders(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield the folder of each memory cgroup, own one and ancestors, and its files' names.

    In a container, /proc/self/cgroup may name a path of the host: what is not there is skipped,
    and the mount itself comes last.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = mount / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):
            if ".." not in folder.parts:
                yield (top / folder, *names)


def _number(path: Path) -> int | None:
    """Return the number in a file; None where there is no file, or it says `max`."""
    try:
        text = path.read_text("ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
