"""The store of weights that lie on a GPU: what NCCL, TCP and disks bring there, and what is sent.

    NCCL ──────────────────────► device ──► NCCL
    TCP, disk ─► mirror ─advance──►│ └─stage─► mirror ─► TCP, a host copy, another engine
                                   └─ lane sum: may run ── BLAKE3, read back: is proven

A blob of which any byte came by NCCL is announced once the device's lane sum of all of it is the
manifest's, so that no layer waits for bytes to come back to the host. BLAKE3 follows, from a
read-back a few megabytes at a time; where that differs, the blob is damaged after all: it is
emptied and told of as any other, and is brought again into the very memory that the engine uses.
Blobs that came through the host alone are announced by BLAKE3, as on a CPU, but of the bytes that
are on the device.

Tested with memory of the CPU in place of the device's; unmeasured on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from blitzgw.core.manifest import BlobDigest
from blitzgw.core.transfer import StoreClosed
from blitzgw.weights.blobstate import HASH_BYTES
from blitzgw.weights.store import WeightStore
from blitzgw.worker.device_memory import DeviceMemory
from blitzgw.worker.mirrors import Key, Mirror, Mirrors


class DeviceWeightStore(WeightStore):
    """A WeightStore whose bytes lie on a device: a transport.nccl_device.DeviceStore.

    `device` returns the engine's memory; it may wait for the engine, and raises StoreClosed. The
    memory stays for as long as this store does, also beyond `close`: a transfer that is under way
    keeps the store, and may write until it has been aborted.
    """

    def __init__(
        self,
        weights: str,
        blobs: Sequence[BlobDigest],
        device: Callable[[], DeviceMemory],
        on_checked: Callable[[int], None],
        on_damaged: Callable[[int, str], None],
    ) -> None:
        self._find = device
        self._memory: DeviceMemory | None = None
        self._mirrors = Mirrors(self._new_mirror)
        self._landed: dict[int, tuple[int, int]] = {}
        """What NCCL has brought of a blob since its prefix moved; its filler alone knows."""
        self._bounce: Tensor | None = None
        super().__init__(weights, blobs, self._host_bytes, on_checked, on_damaged)

    def pointer(self, index: int, offset: int) -> int:
        """Return where a byte of a blob is on the device. Raises StoreClosed."""
        return self._device().pointer(index, offset)

    def lane_sum(self, index: int, start: int, stop: int) -> int:
        """Return the lane sum of `[start, stop)` of a blob on the device. Raises StoreClosed."""
        return self._device().lane_sum(index, start, stop)

    def landed(self, index: int, start: int, stop: int) -> None:
        """Note that `[start, stop)` is on the device and not in the view; `advance` follows."""
        self._landed[index] = (start, stop)
        self._gate_first(index)

    def stage(self, index: int, start: int, stop: int) -> memoryview:
        """Return resident bytes of a blob on the host, fetched from the device where they must be.

        They stay as they are for as long as somebody holds them. Raises StoreClosed.
        """
        device = self._device()
        mirror = self._mirrors.find(self._key(index))
        mirror.bring(start, stop, lambda at, into: device.fetch(index, at, into))
        return mirror.view[start:stop]

    def begin(self, index: int, source: str = "", *, anew: bool = False) -> bool:
        """Let `source` fill a blob; see WeightStore."""
        begun = super().begin(index, source, anew=anew)
        if begun:
            self._landed.pop(index, None)  # it may not have come to `advance`
        return begun

    def end(self, index: int, source: str = "") -> None:
        """Let others fill a blob, where `source` does; its prefix stays."""
        if self._blobs[index].filler == source:
            self._landed.pop(index, None)
            self._mirrors.arrived(self._key(index))
        super().end(index, source)

    def advance(self, index: int, start: int, stop: int, source: str = "") -> None:
        """Make `[start, stop)` resident: copy it to the device, unless it has landed there."""
        self._check_move(index, start, stop, source)
        key = self._key(index)
        if self._landed.pop(index, None) != (start, stop):
            self._bring(index, start, stop)
        super().advance(index, start, stop, source)
        if stop == self.size_bytes(index):
            self._mirrors.arrived(key)

    def filled(self, index: int, source: str = "", *, checked: bool = False) -> None:
        """Make a whole blob resident that was written to its view in any order."""
        self._check_filled(index, source)
        key = self._key(index)
        self._bring(index, 0, self.size_bytes(index))
        super().filled(index, source, checked=checked)
        self._mirrors.arrived(key)

    def close(self) -> None:
        """Give up the store; see WeightStore. The device's memory goes with the last user of it."""
        super().close()
        self._find = _nowhere
        self._mirrors.close()

    def _device(self) -> DeviceMemory:
        if self._closed:
            raise StoreClosed(self.weights)
        if self._memory is None:
            self._memory = self._find()
        return self._memory

    def _key(self, index: int) -> Key:
        return index, self._blobs[index].round

    def _new_mirror(self, key: Key) -> Mirror:
        return Mirror(self._device().host_bytes(self.size_bytes(key[0])))

    def _host_bytes(self, index: int) -> memoryview:
        """Return the mirror of a blob: all its bytes where it is whole, else the place to fill."""
        if self._blobs[index].is_whole:
            return self.stage(index, 0, self.size_bytes(index))
        return self._mirrors.arriving(self._key(index)).view

    def _bring(self, index: int, start: int, stop: int) -> None:
        """Copy what its filler has written to the view to the device."""
        mirror = self._mirrors.arriving(self._key(index))
        self._device().put(index, start, mirror.host[start:stop])
        mirror.wrote(start, stop)

    def _passes_gate(self, index: int) -> bool:
        digest = self._blobs[index].digest
        return self.lane_sum(index, 0, digest.size_bytes) == digest.lanes

    def _read_back(self, index: int, start: int, stop: int) -> memoryview:
        """Fetch what is to be hashed from the device; valid until the next call."""
        device = self._device()
        if self._bounce is None:
            self._bounce = device.host_bytes(HASH_BYTES)
        part = self._bounce[: stop - start]
        device.fetch(index, start, part)
        view: memoryview = part.numpy().data
        return view


def _nowhere() -> DeviceMemory:
    raise StoreClosed
