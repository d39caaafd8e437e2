"""Host copies: weights kept in shared memory, one file each, in a folder of a tmpfs.

A copy outlives workers and nodes; what is not wanted any more is removed by the node. Every worker
of the machine maps the same pages. One worker at a time fills a copy, holding the file's lock,
which the kernel frees when it dies; the next one goes on with what is there.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blitzgw.core.layout import BlobLayout
from blitzgw.core.manifest import BlobDigest
from blitzgw.errors import HostCopyError
from blitzgw.weights.copyfiles import (
    copies_in,
    copy_name,
    is_linked,
    open_trusted,
    translated,
    try_lock,
    unlink,
)
from blitzgw.weights.hostcopy import CHECKED, CopyForm, HostCopy, states

LOCK_PATIENCE_S = 0.5
"""How long `create` tries to get a file's lock: `list` and `sweep` hold it for microseconds, a
filler for as long as a transfer takes."""

LOCK_POLL_S = 0.01

NO_ROOM = "make the tmpfs larger (mount -o remount,size=…)"
"""In what HostCopyError says where memory is lacking, and in that case alone."""

_OWNER = ".owner"


def default_folder() -> Path:
    """Return `blitzgw-UID` in shared memory."""
    return Path(f"/dev/shm/blitzgw-{os.geteuid()}")  # noqa: S108  its owner and mode are checked


@dataclass(frozen=True, slots=True)
class CopyFile:
    """A file in the folder. `size_bytes` is the memory it takes; `filling`: a process is at it."""

    weights: str
    size_bytes: int
    complete: bool
    filling: bool


class HostCopies:
    """The folder. Safe to use from several threads and processes; only `own` holds anything open.

    The folder is made with the first copy; the one above it must be there. Every call raises
    HostCopyError for a folder that is not this user's own, or that others may write to, and for
    operations that the system refuses.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._owned = -1

    def own(self) -> bool:
        """Make this process the one that decides what is in the folder; return whether it is.

        It is until `disown` or its end: one of two nodes that share a folder. Workers need not.
        """
        while self._owned < 0:  # again only where a former owner has just removed the file
            self._make()
            with self._opened() as folder, translated(self.folder / _OWNER, "cannot be made"):
                fd = os.open(_OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
                locked = try_lock(fd, fcntl.LOCK_EX)
                if locked and os.fstat(fd).st_nlink:
                    self._owned = fd
                    break
                os.close(fd)
                if not locked:
                    return False
        return True

    def disown(self) -> None:
        """Let another process decide; an empty folder goes."""
        fd, self._owned = self._owned, -1
        if fd < 0:
            return
        with suppress(OSError):  # there are copies, or another process is about to own it
            if not any(file.name != _OWNER for file in self.folder.iterdir()):
                (self.folder / _OWNER).unlink()
                self.folder.rmdir()
        os.close(fd)

    def open(
        self,
        weights: str,
        layouts: Sequence[BlobLayout],
        digests: Sequence[BlobDigest],
        *,
        private: bool = True,
    ) -> HostCopy | None:
        """Map a complete copy; None where there is none. What is written stays in this process.

        `private=False` maps the very pages, as pinning for a GPU needs: of a private map it would
        copy every page. Raises ValueError for digests that are not of that layout.
        """
        form = CopyForm(weights, layouts, digests)
        with self._opened() as folder:
            fd = open_trusted(folder, copy_name(weights), os.O_RDWR)
            if fd is None:
                return None
            if not form.fits(fd) or not _complete(states(fd)):
                os.close(fd)
                return None
            with translated(self.folder / copy_name(weights), "cannot be mapped"):
                return HostCopy(form, fd, private=private)

    def create(
        self, weights: str, layouts: Sequence[BlobLayout], digests: Sequence[BlobDigest]
    ) -> HostCopy:
        """Make a copy, or go on with one that is not complete, alone in doing so.

        All its memory is taken here, so that a lack of it shows here. Blobs in `checked` are from
        a filler that went before: fill a store with them, which checks them again, and `mark` or
        `unmark` them. A copy that is complete is returned as it is. Waits for another filler
        LOCK_PATIENCE_S. Raises HostCopyError where that is not enough or there is no room, and
        ValueError for digests that are not of that layout.
        """
        form = CopyForm(weights, layouts, digests)
        path = self.folder / copy_name(weights)
        self._make()
        with self._opened() as folder, translated(path, "cannot be made"):
            fd = self._locked(folder, form)
            try:
                if not form.fits(fd):
                    self._take(folder, form, fd)
            except BaseException:
                os.close(fd)
                raise
            return HostCopy(form, fd, private=False)

    def list(self) -> builtins.list[CopyFile]:
        """Return what is in the folder, by name; nothing where it was not made yet."""
        found = []
        with self._opened() as folder:
            for weights, fd in copies_in(folder):
                filling = not try_lock(fd, fcntl.LOCK_SH)
                size = os.fstat(fd).st_blocks * 512
                found.append(CopyFile(weights, size, _complete(states(fd)), filling))
        return found

    def remove(self, weights: str) -> bool:
        """Remove a copy, complete or not; return whether there was one.

        Who has it mapped, or fills it, keeps it until they unmap it.
        """
        name = copy_name(weights)
        with self._opened() as folder, translated(self.folder / name, "cannot be removed"):
            return folder >= 0 and unlink(folder, name)

    def sweep(self, wanted: Collection[str]) -> builtins.list[str]:
        """Remove all copies but those wanted and those being filled; return what was removed."""
        removed = []
        with self._opened() as folder:
            for weights, fd in copies_in(folder):
                # Under the lock: who waits for it finds the file gone and makes another.
                free = weights not in wanted and try_lock(fd, fcntl.LOCK_EX)
                if free and unlink(folder, copy_name(weights)):
                    removed.append(weights)
        return removed

    def _make(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise HostCopyError(
                f"{self.folder}: cannot be made ({error.strerror}); set copies_dir to a folder "
                "of a tmpfs"
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Give a descriptor of the folder, looked at first; -1 where there is no folder."""
        try:
            fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = -1
        except OSError as error:
            raise HostCopyError(
                f"{self.folder}: not a folder that host copies can be kept in "
                f"({error.strerror}; a symbolic link is not followed); remove it, or set copies_dir"
            ) from error
        try:
            if fd >= 0:
                self._check(os.fstat(fd))
            yield fd
        finally:
            if fd >= 0:
                os.close(fd)

    def _check(self, facts: os.stat_result) -> None:
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise HostCopyError(
                f"{self.folder}: belongs to user {facts.st_uid} and has mode "
                f"{stat.S_IMODE(facts.st_mode):o}; host copies are kept only where this user "
                "alone may write: remove it, or set copies_dir"
            )

    def _locked(self, folder: int, form: CopyForm) -> int:
        """Return the file of some weights, locked: empty, or of the right form."""
        name = copy_name(form.weights)
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            fd = open_trusted(folder, name, os.O_RDWR | os.O_CREAT)
            if fd is not None:
                if try_lock(fd, fcntl.LOCK_EX) and is_linked(folder, name, fd):
                    if os.fstat(fd).st_size == 0 or form.fits(fd):
                        return fd
                    unlink(folder, name)  # never emptied: somebody may have it mapped
                os.close(fd)
            if time.monotonic() > deadline:
                raise HostCopyError(
                    f"{self.folder / name}: another worker is filling it; wait for that, or end it"
                )
            time.sleep(LOCK_POLL_S)

    def _take(self, folder: int, form: CopyForm, fd: int) -> None:
        try:
            form.take(fd)
        except OSError as error:
            unlink(folder, copy_name(form.weights))
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
                raise
            free = os.fstatvfs(folder)
            raise HostCopyError(
                f"a host copy of {form.weights:.12} needs {form.file_bytes / 1e6:,.0f} MB in "
                f"{self.folder}, which has {free.f_bavail * free.f_frsize / 1e6:,.0f} MB left: "
                f"{NO_ROOM}, lower host_copies, or set copies_dir"
            ) from error


def _complete(blobs: bytes) -> bool:
    return len(blobs) > 0 and blobs.count(CHECKED) == len(blobs)
