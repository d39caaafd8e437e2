"""Files that are read at offsets, by several threads, and never trusted to keep their size."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from blitzgw.errors import CheckpointError

JSON_LIMIT_BYTES = 64 << 20
"""Largest configuration file or index that is parsed; indexes of the largest models have 10 MB."""


class DataFile:
    """A regular file open for reading. `read_into` may be called from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        try:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise CheckpointError(f"{path}: not a regular file")
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            facts = os.fstat(self._fd)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror})") from error
        except ValueError as error:
            raise CheckpointError(f"{str(path)!r}: not a file name ({error})") from error
        self.size_bytes = facts.st_size
        self.mtime_ns = facts.st_mtime_ns

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with the bytes at `offset`; raise CheckpointError where the file ends."""
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self._fd, [out[done:]], offset + done)
            except (OSError, OverflowError) as error:
                raise CheckpointError(
                    f"{self.path}: reading at byte {offset + done} failed ({error})"
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: ends at byte {offset + done}, "
                    f"{len(out) - done} bytes short; fetch it again"
                )
            done += count

    def read(self, offset: int, count: int) -> bytearray:
        """Return `count` bytes from `offset`."""
        data = bytearray(count)
        self.read_into(offset, memoryview(data))
        return data

    def stamp(self) -> tuple[int, int, int]:
        """Return size, time of the last change (ns) and inode, as they are now."""
        try:
            facts = os.fstat(self._fd)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be looked at ({error.strerror})") from error
        return facts.st_size, facts.st_mtime_ns, facts.st_ino

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def read_text(path: Path) -> str:
    """Return a UTF-8 file of at most JSON_LIMIT_BYTES."""
    file = DataFile(path)
    try:
        if file.size_bytes > JSON_LIMIT_BYTES:
            raise CheckpointError(
                f"{path}: {file.size_bytes} bytes, more than the {JSON_LIMIT_BYTES} that are read"
            )
        return file.read(0, file.size_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error})") from error
    finally:
        file.close()


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file that holds an object."""
    return parse_object(read_text(path), str(path))


def parse_object(text: str | bytes | bytearray, where: str) -> dict[str, Any]:
    """Return the JSON object in `text`; a key that is given twice is refused."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: must hold a JSON object, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is given twice")
    return found
