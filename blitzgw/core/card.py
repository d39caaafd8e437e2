"""A model's card: what any node needs in order to answer for a model that it does not have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.manifest import BlobDigest, Manifest
from blitzgw.core.model import Dtype, ModelShape


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The definition of a model, the same on every node that defines it.

    The digest of its encoding is the model's identity in the cluster. `weights` is the root of the
    manifest that `blobs` belong to, `tokenizer` the digest of the tokenizer.json; neither says
    where they are.
    """

    name: str
    shape: ModelShape
    dtype: Dtype
    max_model_len: int
    eos_ids: tuple[int, ...]
    weights: str
    tokenizer: str
    chat_template: str | None
    bos_token: str
    eos_token: str
    blobs: tuple[BlobDigest, ...] = ()

    def manifest(self) -> Manifest:
        """Return the manifest; its root is `weights` where the card is consistent."""
        return Manifest(LAYOUT_VERSION, self.shape, self.dtype, self.blobs)


def content_digest(data: bytes) -> str:
    """Return the name of content in the cluster: 256 bits of BLAKE2b in hexadecimal."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()
