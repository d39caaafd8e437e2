"""A checkpoint's manifest: computed blob by blob, and kept in the cache folder.

What is kept is believed for as long as the checkpoint's files look as they did: their sizes, times
of change and inodes. It is checked against the model's layout and its own root whenever it is read,
and computed anew where anything does not fit.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from hashlib import blake2b
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from blitzgw.core.layout import LAYOUT_VERSION, blob_layouts
from blitzgw.core.manifest import BlobDigest, Manifest
from blitzgw.core.model import Dtype, ModelShape
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import Checkpoint
from blitzgw.weights.digests import MODULUS, blob_digest
from blitzgw.weights.disk import cache_folder, locked, remove_partial, write_whole
from blitzgw.weights.files import read_json
from blitzgw.weights.loader import load_blobs

log = logging.getLogger(__name__)

READER_VERSION = 1
"""Of what is kept; any change to the bytes that reading a checkpoint gives needs the next one."""

UNUSED_S = 90 * 86400
"""A manifest that nobody has asked for so long is removed when another is kept. One has some
100 bytes for each layer and takes a few seconds for each gigabyte of weights to compute."""

MAX_THREADS = 4
"""Blobs that are digested at the same time; as many and one more are in memory."""

DIGEST_BYTES = 32
"""Of BLAKE3."""

Progress = Callable[[str, int, int], None]
"""Told (what, bytes done, bytes in all)."""


def manifest_of(checkpoint: Checkpoint, dtype: Dtype, progress: Progress | None = None) -> Manifest:
    """Return a checkpoint's manifest from the cache folder; compute and keep it where it is not.

    A cache folder that cannot be used is only logged. Raises CheckpointError where the checkpoint
    cannot be read, or changes meanwhile.
    """
    facts = _facts(checkpoint, dtype)
    kept = kept_manifest(checkpoint, dtype)
    if kept is not None:
        return kept
    log.info("manifest_computing path=%s dtype=%s", checkpoint.path, dtype.value)
    manifest = compute_manifest(checkpoint, dtype, progress)
    if _facts(checkpoint, dtype) != facts:
        raise CheckpointError(f"{checkpoint.path}: has changed while it was read")
    try:
        _keep(facts, manifest)
    except (CheckpointError, OSError) as error:
        log.warning("manifest_not_kept path=%s error=%s", checkpoint.path, error)
    return manifest


def kept_manifest(checkpoint: Checkpoint, dtype: Dtype) -> Manifest | None:
    """Return a checkpoint's manifest where it is in the cache folder and fits; else None."""
    facts = _facts(checkpoint, dtype)
    try:
        path = _path(facts)
        if not path.exists():
            return None
        kept = read_json(path)
        if kept.get("facts") != facts:
            return None  # of other files that were at this path
        manifest = _decode(kept, checkpoint.shape, dtype)
    except (CheckpointError, OSError) as error:
        log.warning("manifest_not_usable path=%s error=%s", checkpoint.path, error)
        return None
    with suppress(OSError):
        os.utime(path)  # it is in use
    return manifest


def compute_manifest(
    checkpoint: Checkpoint,
    dtype: Dtype,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Manifest:
    """Read all blobs and return their digests: the same for any files of the same weights.

    At most `threads` + 1 blobs are in memory (None: one for each CPU core, MAX_THREADS at most).
    Raises CheckpointError.
    """
    layouts = blob_layouts(checkpoint.shape, dtype)
    total, done = sum(layout.size_bytes for layout in layouts), 0
    n_threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
    digests: list[BlobDigest] = []
    hashing: deque[tuple[memoryview, Future[BlobDigest]]] = deque()
    spare = memoryview(b"")
    with ThreadPoolExecutor(n_threads, "digest") as pool:
        for layout in layouts:
            if len(hashing) == n_threads:
                spare = _finish(hashing, digests)
            blob = spare if len(spare) == layout.size_bytes else _memory(layout.size_bytes)
            load_blobs(checkpoint, (layout,), dtype, lambda _, blob=blob: blob, _ignore)  # type: ignore[misc]
            hashing.append((blob, pool.submit(blob_digest, blob)))
            done += layout.size_bytes
            if progress is not None:
                progress("digesting", done, total)
        while hashing:
            _finish(hashing, digests)
    return Manifest(LAYOUT_VERSION, checkpoint.shape, dtype, tuple(digests))


def check_manifest(manifest: Manifest) -> None:
    """Raise ValueError where the blobs of a manifest are not those of its shape and dtype."""
    if manifest.layout != LAYOUT_VERSION:
        raise ValueError(f"layout {manifest.layout}; this is layout {LAYOUT_VERSION}")
    sizes = _blob_sizes(manifest.shape, manifest.dtype)
    if len(manifest.blobs) != len(sizes):
        raise ValueError(f"{len(manifest.blobs)} blobs; the model has {len(sizes)}")
    for n, (size_bytes, blob) in enumerate(zip(sizes, manifest.blobs, strict=True)):
        if blob.size_bytes != size_bytes:
            raise ValueError(f"blob {n} has {blob.size_bytes} bytes, not {size_bytes}")
        if len(blob.blake3) != DIGEST_BYTES or not 0 <= blob.lanes < MODULUS:
            raise ValueError(f"blob {n} has a digest that is none")


def _blob_sizes(shape: ModelShape, dtype: Dtype) -> list[int]:
    """Return the sizes of all blobs; layers are alike, and laid out once for all of them."""
    ends = blob_layouts(replace(shape, n_layers=1), dtype)
    embedding, layer, head = (layout.size_bytes for layout in ends)
    return [embedding, *[layer] * shape.n_layers, head]


def _finish(
    hashing: deque[tuple[memoryview, Future[BlobDigest]]], digests: list[BlobDigest]
) -> memoryview:
    """Wait for the oldest digest, bounded by the hashing of one blob; return its memory."""
    blob, future = hashing.popleft()
    digests.append(future.result())
    return blob


def _memory(size_bytes: int) -> memoryview:
    return np.empty(size_bytes, np.uint8).data


def _ignore(_: int) -> None:
    """Have nothing to do when a blob is there."""


# What is kept.


def _facts(checkpoint: Checkpoint, dtype: Dtype) -> dict[str, Any]:
    """Return all that a kept manifest depends on, as JSON has it."""
    return {
        "reader": READER_VERSION,
        "layout": LAYOUT_VERSION,
        "dtype": dtype.value,
        "path": checkpoint.path,
        "shape": asdict(checkpoint.shape),
        "files": [[str(file.path), *file.stamp()] for file in checkpoint.files()],
    }


def _path(facts: dict[str, Any]) -> Path:
    """Return the one place for a path, a dtype and a layout: what is new replaces what was."""
    key = json.dumps([facts["path"], facts["dtype"], facts["layout"]])
    return (
        cache_folder() / "manifests" / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.json"
    )


def _keep(facts: dict[str, Any], manifest: Manifest) -> None:
    blobs = [[blob.size_bytes, blob.blake3.hex(), blob.lanes] for blob in manifest.blobs]
    content = json.dumps({"facts": facts, "root": manifest.root(), "blobs": blobs})

    def write(out: BinaryIO) -> None:
        out.write(content.encode() + b"\n")

    path = _path(facts)
    with locked(path.parent):
        remove_partial(path.parent)
        write_whole(path, write)
        _remove_unused(path)


def _decode(kept: dict[str, Any], shape: ModelShape, dtype: Dtype) -> Manifest:
    """Return what was kept; raises CheckpointError where it cannot be what was written."""
    try:
        blobs = tuple(
            BlobDigest(index(size_bytes), bytes.fromhex(blake3), index(lanes))
            for size_bytes, blake3, lanes in kept["blobs"]
        )
        manifest = Manifest(LAYOUT_VERSION, shape, dtype, blobs)
        check_manifest(manifest)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"a kept manifest is damaged ({error!r:.200})") from error
    if manifest.root() != kept.get("root"):
        raise CheckpointError("a kept manifest is damaged (its root is another)")
    return manifest


def _remove_unused(newest: Path) -> None:
    """Remove what is UNUSED_S older than a file just written, by the file system's clock."""
    with suppress(OSError):
        oldest_s = newest.stat().st_mtime - UNUSED_S
        for path in newest.parent.glob("*.json"):
            if path.stat().st_mtime < oldest_s:
                path.unlink()
