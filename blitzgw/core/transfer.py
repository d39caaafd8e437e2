"""The data plane as a node and its workers speak of it: edges, classes of traffic, stores.

An edge is one direction from a store of one worker to a store of another. The receiver dials, both
prove that they know the edge's one-time key, the receiver says how many bytes of each blob it has,
and the sender streams the rest, piece by piece, as it becomes resident at its end. A lost
connection is dialled again within the same edge and goes on where it was cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from blitzgw.core.instance import ModelSpec
from blitzgw.core.manifest import BlobDigest
from blitzgw.core.record import record

PIECE_BYTES = 1 << 20
"""The unit of cut-through forwarding. Smaller: less delay per hop; larger: less work per byte."""


PROBE = "probe"
"""In place of the root of a manifest: bytes that mean nothing, which every worker can send and
take. An edge of them measures what a link carries."""

PROBE_BLOB_BYTES = 64 << 20
"""The blobs of a probe; all of them share one piece of memory at either end."""

MAX_PROBE_BYTES = 64 << 30
"""Of one probe: a second or more of the fastest links that there are."""


def probe_blobs(size_bytes: int) -> tuple[int, ...]:
    """Return the blobs of a probe of that size; all but the last are of PROBE_BLOB_BYTES."""
    return tuple(range(-(-size_bytes // PROBE_BLOB_BYTES)))


class TrafficClass(IntEnum):
    """What bytes are for; the lower goes first where they share a link."""

    ACTIVATIONS = 0
    KV = 1
    WEIGHTS = 2


@dataclass(frozen=True, slots=True)
class DataNetwork:
    """A network of a node's workers: its name, the address to listen on, its rate where known.

    `rate_bytes_per_s` is of payload, in each direction.
    """

    name: str
    host: str
    rate_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EdgeTerms:
    """What both ends of an edge are told. `key` (32 bytes) is used for this edge only.

    `weights` is the root of the manifest, `blobs` go in this order. `seed` keys the digests of
    pieces; all edges of an operation share it, so that a relay passes on the digest it has checked.
    `lane` is the class of the traffic; with `encrypt` payloads are sealed as control is.
    `size_bytes` and `rate_bytes_per_s`, at which it is sent at most (0: as fast as it goes), are
    those of a probe, whose blobs are of PROBE_BLOB_BYTES.
    """

    id: str
    operation: str
    weights: str
    blobs: tuple[int, ...]
    key: bytes = field(repr=False)
    seed: int = field(default=0, repr=False)
    network: str = ""
    lane: TrafficClass = TrafficClass.WEIGHTS
    encrypt: bool = False
    size_bytes: int = 0
    rate_bytes_per_s: float = 0.0


# Node → worker.


@dataclass(frozen=True, slots=True)
class OpenSend:
    """Expect the receiver of an edge, and stream to it what it lacks."""

    edge: EdgeTerms


@dataclass(frozen=True, slots=True)
class OpenReceive:
    """Dial the sender of an edge, and take what the store of those weights lacks."""

    edge: EdgeTerms
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class CloseEdge:
    """End an edge, at whichever end this is; `EdgeClosed` follows unless it had ended before."""

    edge: str


@dataclass(frozen=True, slots=True)
class ReadBlobs:
    """Read blobs of a store from disk (`model.path`), in this order, beside what arrives."""

    weights: str
    model: ModelSpec
    blobs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class HoldCopy:
    """Keep the weights of a model in shared memory: a store without an engine.

    What is there already of the file is checked and kept. `reads` are read from disk, the rest
    comes over edges. `CopyHeld` follows when all of it is there and checked, or `CopyFailed`; both
    say the number of the latest order. `load` counts on with the numbers of `LoadModel`.
    """

    weights: str
    model: ModelSpec
    blobs: tuple[BlobDigest, ...]
    reads: tuple[int, ...]
    load: int = 0


@dataclass(frozen=True, slots=True)
class DropCopy:
    """Remove a host copy, whole or not; edges from it end."""

    weights: str


@dataclass(frozen=True, slots=True)
class CapWeights:
    """Send weights at most at this rate, over all edges of the worker; 0: as fast as it goes."""

    bytes_per_s: float


# Worker → node.


@dataclass(frozen=True, slots=True)
class EdgeProgress:
    """The first byte has come, or so many bytes have by now; told a few times a second.

    `resumed` counts connections after the first one, `damaged` pieces whose digest was wrong.
    """

    edge: str
    received_bytes: int
    resumed: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True)
class EdgeClosed:
    """An edge has ended at this end. `reason` is empty where all of it has been sent or received.

    `payload_bytes` counts what this end has sent or received, `seconds` from the first byte.
    `yielded_s` is how long weights stood back for requests' traffic on the same link, and
    `delayed_s` how long requests' traffic waited for weights: what the transfer cost both.
    """

    edge: str
    reason: str
    payload_bytes: int
    seconds: float
    yielded_s: float = 0.0
    delayed_s: float = 0.0


@record(frozen=True, slots=True)
class BlobChecked:
    """Blob `index` of the store of `weights` is complete and has the digest of the manifest.

    `load` is the number of the `LoadModel` or `HoldCopy` that the store was made for: weights may
    be let go and asked for again while news of the former store are on their way.
    """

    weights: str
    index: int
    load: int = 0


@dataclass(frozen=True, slots=True)
class BlobDamaged:
    """Blob `index` was complete and was not what the manifest says; it has been emptied.

    `source` is the edge that brought it, empty where it was read here; `load` as in `BlobChecked`.
    """

    weights: str
    index: int
    source: str = ""
    load: int = 0


@dataclass(frozen=True, slots=True)
class CopyHeld:
    """A host copy is complete. `load` is the number of its `HoldCopy`."""

    weights: str
    size_bytes: int
    load: int = 0


@dataclass(frozen=True, slots=True)
class CopyFailed:
    """A host copy could not be made; nothing of it is left. `load` as in `CopyHeld`."""

    weights: str
    message: str
    load: int = 0


@dataclass(frozen=True, slots=True)
class TrafficReport:
    """Bytes per second that a worker sends to peers, by class; told when it changes much.

    `disk` is what reading a checkpoint has come to the last time, 0: it has not read any.
    """

    activations: float
    kv: float
    weights: float
    disk: float = 0.0


class StoreClosed(Exception):
    """The store that somebody waits for is given up."""


class BlobStore(Protocol):
    """The bytes of one model's weights on a worker, and how many of each blob are there.

    Of every blob a prefix is resident: its pieces have been checked by their digests and may be
    forwarded. Thread-safe. Whoever fills a blob is alone in doing so, from `begin` to its last byte
    or `end`: two operations, or an edge and a disk, may want the same blob of the same store.
    """

    @property
    def weights(self) -> str:
        """The root of the manifest."""

    def size_bytes(self, index: int) -> int:
        """Return the size of a blob."""

    def view(self, index: int) -> memoryview:
        """Return a blob's bytes, writable.

        Only those behind the resident prefix may be written, and only by whom `begin` has let.
        """

    def resident_bytes(self, index: int) -> int:
        """Return how many bytes of a blob are resident, from its start."""

    def wait(self, index: int, beyond: int, timeout_s: float) -> int:
        """Wait until more than `beyond` bytes of a blob are resident; return how many there are.

        Returns the same number after `timeout_s`. Raises StoreClosed.
        """

    def begin(self, index: int, source: str = "") -> bool:
        """Let `source` fill a blob, from the end of its prefix; return whether it may.

        It may not where somebody else does, or all of it is resident. From its last byte on nobody
        fills it; found damaged and emptied, it is free again. Raises StoreClosed.
        """

    def end(self, index: int, source: str = "") -> None:
        """Let others fill a blob, where `source` does; its prefix stays. Never raises."""

    def advance(self, index: int, start: int, stop: int, source: str = "") -> None:
        """Make `[start, stop)` of a blob resident; `start` is where the prefix ends.

        With the last byte the blob is checked against the manifest, on the store's own thread.
        `source` is the edge it came over. Raises ValueError for any other `start`, and where it is
        not `source` that fills the blob, StoreClosed.
        """
