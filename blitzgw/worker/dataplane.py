"""How a worker meets others: its edges, and on a GPU NCCL beside TCP.

Stores whose bytes lie on the GPU (worker/device_store.py) are what NCCL serves. What was mapped
from a host copy lies on the host and goes by TCP, also from a worker with a GPU. All of it has been
tested with a fake NCCL; unmeasured on a GPU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.core.messages import Start
from blitzgw.core.transfer import BlobStore
from blitzgw.errors import BlitzError
from blitzgw.transport.base import Bypasses
from blitzgw.transport.edges import Edges
from blitzgw.worker.parcels import Inbox

log = logging.getLogger(__name__)

END_S = 1.0
"""Longest wait for edges and NCCL at the end of the process, together: whoever has told us to end
kills what takes long, and peers notice either way."""


class DeviceBypasses(Bypasses, Protocol):
    """Bypasses of a device, with a thread of their own."""

    def stop(self) -> None:
        """Abort all that is under way, and end the thread."""

    def join(self, timeout_s: float) -> bool:
        """Wait, after `stop`, for the thread to end; return whether it has."""


class DataPlane:
    """The edges of a worker, and the bypasses that they use."""

    def __init__(
        self,
        start: Start,
        stores: Callable[[str], BlobStore | None],
        tell: Callable[[Any], None],
        inbox: Inbox | None = None,
    ) -> None:
        self._bypasses = _open_bypasses(start.device)
        self.edges = _open_edges(start, stores, tell, self._bypasses, inbox)

    def close(self) -> None:
        """Abort what a device does for others, so that none of it outlives the process' memory.

        For the end of the process, which ends everything else. Returns within END_S.
        """
        if self._bypasses is None:
            return
        deadline = time.monotonic() + END_S
        self.edges.stop()
        self.edges.join(END_S / 2)
        self._bypasses.stop()
        if not self._bypasses.join(max(0.0, deadline - time.monotonic())):
            log.warning("bypasses_not_ended")


def _open_bypasses(device: DeviceSpec) -> DeviceBypasses | None:
    """Return the bypasses of a GPU; None of anything else, and where they cannot be had."""
    if device.kind is not DeviceKind.CUDA:
        return None
    try:
        from blitzgw.transport.nccl_bypasses import open_bypasses  # noqa: PLC0415  only here

        return open_bypasses(device.index)
    except Exception as error:  # whatever a library does when it is loaded: TCP is always there
        log.warning("no_bypasses device=%s error=%r", device.id, error)
        return None


def _open_edges(
    start: Start,
    stores: Callable[[str], BlobStore | None],
    tell: Callable[[Any], None],
    bypasses: Bypasses | None,
    inbox: Inbox | None,
) -> Edges:
    """Listen; without a data plane where an address cannot be had: the worker can still serve."""
    edges = partial(
        Edges,
        stores=stores,
        tell=tell,
        weight_bytes_per_s=start.weight_bytes_per_s,
        bypasses=bypasses,
        parcels=inbox.put if inbox else None,
        road_ended=inbox.end if inbox else None,
    )
    try:
        return edges(start.networks)
    except (BlitzError, OSError) as error:
        names = ",".join(network.name for network in start.networks)
        log.warning("no_data_plane networks=%s error=%s", names, error)
        return edges(())
