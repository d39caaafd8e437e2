"""The files of a folder of host copies: which names are copies, and whom to trust.

Folders are descriptors, below 0 where there is none; what others put there is left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blitzgw.errors import HostCopyError

_SUFFIX = ".blobs"
_WEIGHTS = re.compile(r"[0-9A-Za-z_-]{1,128}")


def copy_name(weights: str) -> str:
    """Return the name of the copy of these weights. Raises ValueError for what names none."""
    if not _WEIGHTS.fullmatch(weights):
        raise ValueError(f"{weights!r:.80} does not name weights")
    return weights + _SUFFIX


def open_trusted(folder: int, name: str, flags: int) -> int | None:
    """Open a file of the folder that can be trusted; None where there is none."""
    if folder < 0:
        return None
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostCopyError(f"{name}: cannot be opened ({error.strerror}); remove it") from error
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid():
        os.close(fd)
        raise HostCopyError(f"{name}: is not a file of this user; remove it")
    return fd


def copies_in(folder: int) -> Iterator[tuple[str, int]]:
    """Yield the files of the folder, by name, each with a descriptor that is closed after."""
    for name in sorted(os.listdir(folder)) if folder >= 0 else ():
        weights = name.removesuffix(_SUFFIX)
        if name == weights or not _WEIGHTS.fullmatch(weights):
            continue
        fd = None
        with suppress(HostCopyError):  # a name that is no copy is left alone
            fd = open_trusted(folder, name, os.O_RDONLY | os.O_NONBLOCK)
        if fd is not None:
            try:
                yield weights, fd
            finally:
                os.close(fd)


def try_lock(fd: int, kind: int) -> bool:
    """Lock an open file if nobody else has; return whether it is locked."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_linked(folder: int, name: str, fd: int) -> bool:
    """Tell whether a name still leads to an open file, rather than to none or to a newer one."""
    try:
        linked = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(linked, os.fstat(fd))


def unlink(folder: int, name: str) -> bool:
    """Remove a file; return whether there was one."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def translated(path: Path, what: str) -> Iterator[None]:
    """Raise HostCopyError, which says `what` could not be done, for what the system refuses."""
    try:
        yield
    except OSError as error:
        raise HostCopyError(f"{path}: {what} ({error.strerror or error})") from error
