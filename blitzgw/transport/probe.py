"""What a probe sends and takes: bytes that mean nothing, as many as are asked for."""

from __future__ import annotations

import math
import mmap
import threading
from typing import Final

from blitzgw.core.transfer import (
    MAX_PROBE_BYTES,
    PROBE,
    PROBE_BLOB_BYTES,
    EdgeTerms,
    probe_blobs,
)
from blitzgw.errors import ProtocolError


class ProbeStore:
    """A core.transfer.BlobStore whose blobs share one piece of memory, that of one end of an edge.

    At the sender all is resident, and takes no memory: pages that were never written. At the
    receiver each blob overwrites the one before, once its pieces have been checked.
    """

    weights: Final = PROBE

    def __init__(self, size_bytes: int, *, sends: bool) -> None:
        whole, rest = divmod(size_bytes, PROBE_BLOB_BYTES)
        self._sizes = (PROBE_BLOB_BYTES,) * whole + ((rest,) if rest else ())
        self._memory = mmap.mmap(-1, max(self._sizes))
        self._resident = list(self._sizes) if sends else [0] * len(self._sizes)
        self._lock = threading.Lock()

    def size_bytes(self, index: int) -> int:
        """Return the size of a blob."""
        return self._sizes[index]

    def view(self, index: int) -> memoryview:
        """Return a blob's memory, which is that of all."""
        return memoryview(self._memory)[: self._sizes[index]]

    def resident_bytes(self, index: int) -> int:
        """Return how many bytes of a blob have been there."""
        return self._resident[index]

    def wait(self, index: int, beyond: int, timeout_s: float) -> int:  # noqa: ARG002
        """Return how many bytes of a blob have been there; nobody else fills it."""
        return self._resident[index]

    def begin(self, index: int, source: str = "") -> bool:  # noqa: ARG002
        """Say whether a blob lacks bytes; nobody else fills it."""
        return self._resident[index] < self._sizes[index]

    def end(self, index: int, source: str = "") -> None:
        """Do nothing."""

    def advance(self, index: int, start: int, stop: int, source: str = "") -> None:  # noqa: ARG002
        """Count `[start, stop)` of a blob."""
        with self._lock:
            if start != self._resident[index]:
                raise ValueError(f"{start} is not where blob {index} ends")
            self._resident[index] = stop


def probe_store(terms: EdgeTerms, *, sends: bool) -> ProbeStore | None:
    """Return a store for one end of an edge, None for one that is no probe.

    Raises ProtocolError for a size beyond its limits, blobs that do not fit it, or no rate.
    """
    if terms.weights != PROBE:
        return None
    if not 0 < terms.size_bytes <= MAX_PROBE_BYTES:
        raise ProtocolError(f"a probe of {terms.size_bytes} bytes")
    if terms.blobs != probe_blobs(terms.size_bytes):
        raise ProtocolError(f"blobs that are not those of a probe of {terms.size_bytes} bytes")
    if not 0 <= terms.rate_bytes_per_s < math.inf:
        raise ProtocolError(f"a probe at {terms.rate_bytes_per_s} bytes per second")
    try:
        return ProbeStore(terms.size_bytes, sends=sends)
    except OSError as e:
        raise ProtocolError(f"no memory for a probe: {e}") from e
