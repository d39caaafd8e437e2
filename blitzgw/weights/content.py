"""Files from other nodes, kept in the cache folder under the digest of what they hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from blitzgw.errors import CheckpointError
from blitzgw.weights.card import content_digest
from blitzgw.weights.disk import cache_folder, locked, remove_partial, write_whole


def content_path(digest: str) -> Path:
    """Return where content is kept; raises CheckpointError for what cannot be a digest."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CheckpointError(f"{digest!r:.80} is not a digest of content")
    return cache_folder() / "content" / digest


def keep_content(digest: str, data: bytes) -> None:
    """Keep content; raises CheckpointError where it is not what its digest says."""
    path = content_path(digest)
    if content_digest(data) != digest:
        raise CheckpointError(f"content that should have the digest {digest:.12} has another one")

    def write(out: BinaryIO) -> None:
        out.write(data)

    with locked(path.parent):
        remove_partial(path.parent)
        write_whole(path, write)
