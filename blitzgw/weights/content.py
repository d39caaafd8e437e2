"""Files from other nodes, kept in the cache folder under the digest of what they hold."""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from blitzgw.core.card import content_digest
from blitzgw.errors import CheckpointError
from blitzgw.weights.disk import cache_folder, disk_error, locked, remove_partial, write_whole

log = logging.getLogger(__name__)

UNUSED_S = 30 * 86400
"""Content that no process has read for so long is removed when some more is kept: a month covers
what is started now and then, and it can be fetched again."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def content_path(digest: str) -> Path:
    """Return where content is kept; raises CheckpointError for what cannot be a digest."""
    if not _DIGEST.fullmatch(digest):
        raise CheckpointError(f"{digest!r:.80} is not a digest of content")
    return cache_folder() / "content" / digest


def read_content(digest: str) -> bytes | None:
    """Return content that is kept, None where it is not.

    A file that does not hold what its name says is removed. Raises CheckpointError.
    """
    path = content_path(digest)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk_error("cannot be read", path, error) from error
    if content_digest(data) != digest:
        log.warning("content_damaged digest=%.12s", digest)
        drop_content(digest)
        return None
    with suppress(OSError):
        os.utime(path)  # it is in use
    return data


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
        _remove_unused(path)


def drop_content(digest: str) -> None:
    """Remove content that is of no use."""
    with suppress(OSError):
        content_path(digest).unlink()


def _remove_unused(newest: Path) -> None:
    """Remove what is UNUSED_S older than a file just written, by the file system's clock."""
    with suppress(OSError):
        oldest_s = newest.stat().st_mtime - UNUSED_S
        for path in newest.parent.iterdir():
            if _DIGEST.fullmatch(path.name) and path.stat().st_mtime < oldest_s:
                path.unlink()
