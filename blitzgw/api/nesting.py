"""How deep the JSON of a client may be where something goes through it recursively."""

from __future__ import annotations

MAX_LEVELS = 64
"""Levels of objects and arrays: no tool and no call has as many. A template that writes JSON has a
limit of some hundreds, and compiling a schema takes 8 KB of stack for each."""


def too_deep(value: object, levels: int = MAX_LEVELS) -> bool:
    """Tell whether a value has containers below that many levels."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return not levels or any(too_deep(item, levels - 1) for item in value)
