"""What those who watch are told: all of it at first, then what has changed since.

What there is to see has parts, each of items by key. A watcher that has seen the version before the
present one gets the changes; any other, because it is new or was slow, gets the whole: so nothing
is kept for anybody, however many watch and however slowly they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

Parts = Mapping[str, Mapping[str, Any]]
"""Items by key, by part. No item is None: that stands for one that is gone."""


class Board:
    """The present version of the parts; 0 is before the first."""

    def __init__(self) -> None:
        self.version = 0
        self._parts: Parts = {}
        self._changes: Parts = {}
        self._written: dict[bool, bytes] = {}

    def show(self, parts: Parts) -> bool:
        """Take what there is now; tell whether that is a new version."""
        changes = differences(self._parts, parts)
        if not changes and self.version:
            return False
        self.version += 1
        self._parts, self._changes = parts, changes
        self._written.clear()
        return True

    def since(self, version: int) -> bytes:
        """Return the JSON that brings who has seen a version to the present one."""
        follows = version == self.version - 1 and version > 0
        written = self._written.get(follows)
        if written is None:
            told = {"changed": self._changes} if follows else {"whole": self._parts}
            written = self._written[follows] = orjson.dumps(told)
        return written


def differences(old: Parts, new: Parts) -> dict[str, dict[str, Any]]:
    """Return the items that differ, by part, None for those that are gone."""
    found: dict[str, dict[str, Any]] = {}
    for part in old.keys() | new.keys():
        before, now = old.get(part, {}), new.get(part, {})
        changed: dict[str, Any] = {
            key: item
            for key, item in now.items()
            if (known := before.get(key)) is not item and known != item
        }
        changed.update(dict.fromkeys(before.keys() - now.keys()))
        if changed:
            found[part] = changed
    return found
