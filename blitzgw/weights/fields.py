"""Typed look-ups in a configuration that somebody else wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from blitzgw.errors import CheckpointError


class Fields:
    """A mapping from outside, with the name of the place that mistakes are reported at.

    An absent key and a null are the same thing: the default, or CheckpointError without one.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, key: str) -> bool:
        """Say whether a key is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number."""
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(key, "a number")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.wrong(key, "a finite number")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """Return token ids, given as one number or a list; none where the key is absent."""
        value = self.values.get(key)
        found = value if isinstance(value, list) else [] if value is None else [value]
        for item in found:
            if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < vocab:
                raise self.wrong(key, f"a token id below {vocab}, or a list of them")
        return tuple(dict.fromkeys(found))

    def wrong(self, key: str, right: str) -> CheckpointError:
        """Return the error for a value that cannot be meant."""
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CheckpointError(f"{self.where}: {key} is {shown}; it must be {right}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.where}: {key} is missing")
        return value
