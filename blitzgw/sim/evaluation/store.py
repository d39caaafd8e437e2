"""Records in files: a folder of cells, each written whole or not at all, and found again.

    DIR/about.json                 what all cells have in common, and what has become of each
    DIR/cells/SYSTEM-SEED.json.gz  a record
    DIR/cells/SYSTEM-SEED.part-K-of-N.json.gz  a part of one that is simulated in parts
    DIR/cells/SYSTEM-SEED.void-N.json.gz   one that another has taken the place of, for it was void

Cells of other settings are never mixed: a folder that was begun with others is refused.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from blitzgw.sim.evaluation.record import Record

CELLS, ABOUT, SETTINGS, PART, VOID = "cells", "about.json", "settings", ".part-", ".void-"
LEVEL = 6
"""Of gzip: records are some megabytes of digits, a tenth of that when packed."""

_UNSAFE = re.compile(r"[^A-Za-z0-9+_.-]")
_decoder = msgspec.json.Decoder(Record)


class OtherSettings(ValueError):
    """A folder holds cells of other settings, or does not tell of which; says what differs."""


def write_record(file: Path, record: Record) -> None:
    """Write a record, packed where the file's name ends in `.gz`. Raises OSError."""
    data = msgspec.json.encode(record)
    write_bytes(file, gzip.compress(data, LEVEL, mtime=0) if file.suffix == ".gz" else data)


def read_record(file: Path) -> Record:
    """Read a record back. Raises OSError, and ValueError for what is none."""
    data = file.read_bytes()
    try:
        return _decoder.decode(gzip.decompress(data) if file.suffix == ".gz" else data)
    except (msgspec.DecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is no record: {error}") from None


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file whole or not at all: a full disk leaves the former one. Raises OSError."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


class Store:
    """A folder of an evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder, or go on in it. Raises OtherSettings, OSError.

        `settings` are what results depend on; how many seeds or which systems is not among them.
        """
        wanted = json.loads(json.dumps(settings))
        (self.folder / CELLS).mkdir(parents=True, exist_ok=True)
        former = self.about().get(SETTINGS)
        if former is None:
            self.tell({SETTINGS: wanted})
            return
        differ = [
            f"{key}: {former.get(key)!r}, not {wanted.get(key)!r}"
            for key in sorted({*former, *wanted})
            if former.get(key) != wanted.get(key)
        ]
        if differ:
            raise OtherSettings(f"{self.folder} is of other settings: {'; '.join(differ)}")

    def about(self) -> dict[str, Any]:
        """Return what is told of the whole; empty where there is nothing yet.

        Raises OtherSettings for what cannot be understood, OSError.
        """
        file = self.folder / ABOUT
        try:
            found = json.loads(file.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise OtherSettings(f"{file} is damaged: {error}; cells may be of anything") from None
        if not isinstance(found, dict):
            raise OtherSettings(f"{file} is damaged: no object; cells may be of anything")
        return found

    def tell(self, more: Mapping[str, Any]) -> None:
        """Add to what is told of the whole. Raises OSError."""
        self.write(ABOUT, json.dumps({**self.about(), **more}, indent=1) + "\n")

    def file(self, system: str, seed: int, part: str = "") -> Path:
        """Where a cell is kept, or a part of one."""
        name = f"{_UNSAFE.sub('_', system)}-{seed}{PART + part if part else ''}"
        return self.folder / CELLS / f"{name}.json.gz"

    def put(self, record: Record, part: str = "") -> None:
        """Keep a record. Raises OSError."""
        write_record(self.file(record.system, record.seed, part), record)

    def set_aside(self, system: str, seed: int) -> None:
        """Keep a cell's record, if there is one, beside those that count. Raises OSError."""
        file = self.file(system, seed)
        number = 1
        while (
            beside := file.with_name(file.name.replace(".json", f"{VOID}{number}.json"))
        ).exists():
            number += 1
        if file.exists():
            file.rename(beside)

    def get(self, system: str, seed: int, part: str = "") -> Record | None:
        """Return a record that is there and can be read."""
        try:
            return read_record(self.file(system, seed, part))
        except (OSError, ValueError):
            return None

    def records(self) -> Iterator[Record]:
        """Yield all that count and can be read, one at a time, in the order of their names."""
        for file in sorted((self.folder / CELLS).glob("*.json*")):
            if VOID in file.name or PART in file.name:
                continue
            try:
                yield read_record(file)
            except (OSError, ValueError):
                continue  # whoever runs the cells runs such a one again

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the folder. Raises OSError."""
        data = content.encode() if isinstance(content, str) else content
        write_bytes(self.folder / name, data)
