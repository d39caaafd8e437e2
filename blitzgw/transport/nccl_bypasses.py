"""NCCL on one GPU, as the edges of a worker use it beside TCP."""

from __future__ import annotations

from collections.abc import Callable

from blitzgw.core.transfer import BlobStore, TrafficClass
from blitzgw.transport.nccl import open_library
from blitzgw.transport.nccl_bypass import NcclBypass
from blitzgw.transport.nccl_device import DeviceStore
from blitzgw.transport.nccl_launcher import Launcher
from blitzgw.transport.nccl_library import Library, Role
from blitzgw.transport.nccl_pairs import Pairs


def open_bypasses(index: int) -> NcclBypasses | None:
    """Return the bypasses of a GPU of this process, None where NCCL cannot be had."""
    library = open_library(index)
    return None if library is None else NcclBypasses(library)


class NcclBypasses:
    """The bypasses of one GPU. `stop` and `join` it after the edges that use it."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._launcher = Launcher(library)
        self._pairs = Pairs(self._launcher)
        self._launcher.start()

    def open(
        self, store: BlobStore, kind: TrafficClass, lost: Callable[[], bool], *, sends: bool
    ) -> NcclBypass | None:
        """Return a bypass for one connection, None for a store that is not on the GPU.

        `lost` says whether the peer has ended the connection.
        """
        if not isinstance(store, DeviceStore) or self._launcher.wedged:
            return None
        role = Role.SENDS if sends else Role.RECEIVES
        return NcclBypass(role, store, kind, self._library.version, self._pairs, lost)

    @property
    def wedged(self) -> bool:
        """Whether the device has not heeded an abort, and may write where it should not.

        Edges go on by TCP; what lies on the device is only sure after a new worker has loaded it.
        """
        return self._launcher.wedged

    def stop(self) -> None:
        """Abort all pairs and end the launching thread."""
        self._launcher.stop()

    def join(self, timeout_s: float) -> bool:
        """Wait, after `stop`, for the thread to end; return whether it has."""
        return self._launcher.join(timeout_s)
