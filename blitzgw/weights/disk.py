"""The user's cache folder, and files in it that are either whole or not there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from blitzgw.core.paths import cache_dir
from blitzgw.errors import CheckpointError

TEMPORARY = ".partial-"
"""Prefix of everything that is not whole yet; whoever holds the lock may remove it."""


def cache_folder() -> Path:
    """Return the cache folder, made where it was missing."""
    try:
        folder = cache_dir().absolute()
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"no cache folder ({error}); set BLITZGW_CACHE") from error
    make_folder(folder)
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder and those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("cannot be made", folder, error) from error


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a new file and move it to `path` once it is on the disk.

    Whatever happens, `path` holds what it held before or all of the new content, and nothing else
    is left in the folder (after a kill: until the next `remove_partial`).
    """
    temporary: str | None = None
    try:
        fd, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise disk_error("cannot be written", path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; other processes wait, and the kernel frees it when we die."""
    make_folder(folder)
    path = folder / ".lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise disk_error("cannot be opened", path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process has left. Only for the holder of the folder's lock."""
    for entry in folder.glob(f"{TEMPORARY}*"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()


def need_space(folder: Path, size_bytes: int, what: str) -> None:
    """Raise CheckpointError where a folder's disk has less room than that."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error("cannot be looked at", folder, error) from error
    if free < size_bytes:
        raise CheckpointError(
            f"{what} needs {_megabytes(size_bytes)} in {folder}, which has {_megabytes(free)} "
            "left; free some, or set BLITZGW_CACHE to another disk"
        )


def disk_error(what: str, path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file operation that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"{path}: {what}: the disk is full; free some space, or set BLITZGW_CACHE to another "
            "disk"
        )
    return CheckpointError(f"{path}: {what} ({error.strerror or error})")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
