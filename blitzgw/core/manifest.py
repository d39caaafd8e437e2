"""What a model's weights are, byte for byte: the sizes and digests of its blobs.

Two checkpoints with the same manifest are the same weights, whatever files they came from. Its root
names them in the whole cluster, in caches and in plans.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from blitzgw.core.model import Dtype, ModelShape


@dataclass(frozen=True, slots=True)
class BlobDigest:
    """One blob. `blake3` has 32 bytes; `lanes` is its lane sum (see `weights/digests.py`)."""

    size_bytes: int
    blake3: bytes
    lanes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """All blobs of a model, in blob order, under a version of the layout (core/layout.py)."""

    layout: int
    shape: ModelShape
    dtype: Dtype
    blobs: tuple[BlobDigest, ...]

    def root(self) -> str:
        """Return the name of these weights: 256 bits of BLAKE2b in hexadecimal.

        The hash is over one line of JSON (layout, dtype, shape, number of blobs; sorted keys), then
        for each blob its size and lane sum (64 bits each, little endian) and its BLAKE3.
        """
        head = {
            "blobs": len(self.blobs),
            "dtype": self.dtype.value,
            "layout": self.layout,
            "shape": asdict(self.shape),
        }
        digest = hashlib.blake2b(digest_size=32)
        digest.update(json.dumps(head, sort_keys=True).encode() + b"\n")
        for blob in self.blobs:
            digest.update(blob.size_bytes.to_bytes(8, "little"))
            digest.update(blob.lanes.to_bytes(8, "little"))
            digest.update(blob.blake3)
        return digest.hexdigest()
