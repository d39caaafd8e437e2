"""Stores whose bytes lie on a GPU, as NCCL fills and reads them.

What "verified before forwarded" means there: a CPU would have to fetch a piece back to hash it, so
the head of a piece that goes by NCCL carries its *lane sum* instead of its xxh3, which torch takes
on the GPU (Σ w_i · odd_i mod 2⁶⁴ over 32-bit words, each odd factor by the word's place in the
piece). One flipped bit always changes it, so a damaged piece is found before it is forwarded, as on
TCP. Before a blob is announced and a layer runs, the lane sum of the whole is compared with the
manifest's, by whoever owns the store (worker/device_store.py); blake3 follows, off the path, from a
host read-back.

Tested with memory of the CPU and a fake NCCL that copies by address; unmeasured on a GPU.

A lane sum is not keyed and NCCL proves and hides nothing: whoever can forge packets on a network
can forge payloads there that pass until blake3 is taken. Where payloads are to be encrypted, or the
network is not trusted, no bypass is opened.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from blitzgw.core.transfer import BlobStore


@runtime_checkable
class DeviceStore(BlobStore, Protocol):
    """A BlobStore on a GPU; its `view` is a mirror on the host, which TCP fills and reads.

    "Resident" means that the device has the bytes: copies are over before `advance` moves the
    prefix, and what comes by `view` is copied to the device in `advance`. Thread-safe.
    """

    def pointer(self, index: int, offset: int) -> int:
        """Return where a byte of a blob is on the device. Raises StoreClosed.

        The memory stays for as long as anyone refers to the store.
        """

    def lane_sum(self, index: int, start: int, stop: int) -> int:
        """Return the lane sum of `[start, stop)` of a blob on the device, as of a blob of its own.

        It waits for the device, in microseconds: not for peers. Raises StoreClosed.
        """

    def landed(self, index: int, start: int, stop: int) -> None:
        """Note that `[start, stop)` is on the device and not in the view; `advance` follows."""

    def stage(self, index: int, start: int, stop: int) -> memoryview:
        """Return resident bytes in host memory, where they must be brought from the device first.

        They stay as they are for as long as somebody holds them. Raises StoreClosed.
        """
