"""NCCL by cupy: the only module that imports cupy, and only when it is asked for.

Communicators are non-blocking (`NCCL_COMM_BLOCKING=0`), so that no call waits for a peer and
`abort` is safe at any time. ncclInProgress is then what most calls return, and cupy has no name for
that status: it raises KeyError(7). The object is to be kept nevertheless, so it is made before it
is initialised. Its destructor calls ncclCommDestroy, which waits for the peer: abort comes first.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from blitzgw.transport.nccl_library import NcclFailed, Role

log = logging.getLogger(__name__)

_IN_PROGRESS: Final = 7
"""ncclInProgress."""

_N_RANKS: Final = 2


def open_library(index: int) -> CupyNccl | None:
    """Return NCCL on a GPU of this process, None where cupy, its NCCL or the GPU is not there."""
    os.environ.setdefault("NCCL_COMM_BLOCKING", "0")  # read at the first communicator
    try:
        import cupy  # noqa: PLC0415

        library = CupyNccl(cupy.cuda, index)
        if not cupy.cuda.is_available():
            return None
        library.use()
    except Exception as e:
        log.info("nccl_absent gpu=%d error=%r", index, str(e))
        return None
    return library


def versions() -> dict[str, str]:
    """Return the versions of "cupy" and "nccl" as a worker tells its node; empty without them."""
    try:
        import cupy  # noqa: PLC0415
        from cupy.cuda import nccl  # noqa: PLC0415

        return {"cupy": str(cupy.__version__), "nccl": version_name(nccl.get_version())}
    except Exception as e:
        log.info("nccl_absent error=%r", str(e))
        return {}


def version_name(number: int) -> str:
    """Return NCCL's version as people write it: 22809 is 2.28.9."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class CupyNccl:
    """A Library over `cupy.cuda`, which is handed in so that a fake can take its place."""

    def __init__(self, cuda: Any, index: int) -> None:
        self._cuda, self._index = cuda, index
        self._version = int(cuda.nccl.get_version())

    @property
    def version(self) -> int:
        """NCCL's version as its own number."""
        return self._version

    def use(self) -> None:
        """Make the GPU that of the calling thread."""
        try:
            self._cuda.Device(self._index).use()
        except Exception as e:
            raise NcclFailed(f"the GPU cannot be used: {e}") from e

    def unique_id(self) -> bytes:
        """Return a name for a new pair."""
        try:
            return bytes(self._cuda.nccl.get_unique_id())
        except Exception as e:
            raise NcclFailed(f"no name for a pair: {e}") from e

    def link(self, unique_id: bytes, role: Role) -> CupyLink:
        """Begin to make an end of a link."""
        return CupyLink(self._cuda, unique_id, role)


class CupyLink:
    """A Link by cupy's communicator, stream and events."""

    def __init__(self, cuda: Any, unique_id: bytes, role: Role) -> None:
        self._cuda, self._role = cuda, role
        self._aborted = False
        self._stream = cuda.Stream(non_blocking=True)
        kind = cuda.nccl.NcclCommunicator
        self._comm = kind.__new__(kind)
        try:
            _started(lambda: self._comm.__init__(_N_RANKS, unique_id, int(role)))
        except NcclFailed:
            self.abort()
            raise

    def settled(self) -> bool:
        """Whether the last call has taken effect."""
        return _started(self._comm.check_async_error)

    def launch(self, pointer: int, size_bytes: int) -> None:
        """Send or receive bytes on the device."""
        kind, stream = self._cuda.nccl.NCCL_UINT8, self._stream.ptr
        call = self._comm.send if self._role is Role.SENDS else self._comm.recv
        _started(lambda: call(pointer, size_bytes, kind, 1 - int(self._role), stream))

    def mark(self) -> _EventMark:
        """Mark the place behind what has been launched."""
        try:
            event = self._cuda.Event(disable_timing=True)
            event.record(self._stream)
        except Exception as e:
            raise NcclFailed(f"no event: {e}") from e
        return _EventMark(event)

    def abort(self) -> None:
        """End what is under way and free the communicator."""
        if self._aborted:
            return
        self._aborted = True
        try:
            self._comm.abort()
        except Exception as e:
            log.warning("nccl_abort_failed error=%r", str(e))


class _EventMark:
    """A Mark by a CUDA event: asked, never waited for."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def passed(self) -> bool:
        """Whether all that was launched before it has ended."""
        try:
            return bool(self._event.done)
        except Exception as e:
            raise NcclFailed(f"the device: {e}") from e


def _started(call: Any) -> bool:
    """Call NCCL; return False where it is still in progress. Raises NcclFailed."""
    try:
        call()
    except KeyError as e:  # a status that cupy has no name for
        if e.args == (_IN_PROGRESS,):
            return False
        raise NcclFailed(f"status {e.args[0] if e.args else '?'}") from e
    except Exception as e:
        if getattr(e, "status", None) == _IN_PROGRESS:
            return False
        raise NcclFailed(str(e) or type(e).__name__) from e
    return True
