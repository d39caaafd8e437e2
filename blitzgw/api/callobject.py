"""One call as JSON, `{"name": …, "arguments": {…}}`, followed character by character.

    key ──":"──► value ──","──► key …                    the object's own level only
                   └────"}"────► done                    what is in a value is balanced, not read

A character that cannot be there is found at once, and not when the text has ended: what was held
back for this object can then be shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum

SPACE = " \t\r\n"

ARGUMENT_KEYS = ("arguments", "parameters")
"""What models call a call's arguments: the former in most templates, the latter in Llama's."""

MAX_NAME_CHARS = 256
"""Longest name or key that is waited for; tools have names of 128 characters at most."""

_SCALAR = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.")


class Step(Enum):
    """What one more character has brought."""

    MORE = "more"
    ARGUMENT = "argument"
    """It belongs to the arguments."""
    DONE = "done"
    BROKEN = "broken"
    """It cannot be part of a call."""


class Balance:
    """Finds the end of a JSON object or array: where all its brackets are closed, each by its own.

    One that closes nothing is passed over: the text is none then, and whoever reads it will see.
    """

    __slots__ = ("_escaped", "_open", "_quoted")

    def __init__(self) -> None:
        self._open: list[str] = []
        self._quoted = self._escaped = False

    def take(self, char: str) -> bool:
        """Tell whether this character is the last; the first is the opening bracket."""
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._open.append("}" if char == "{" else "]")
        elif self._open and char == self._open[-1]:
            self._open.pop()
        return not self._open


class CallObject:
    """A call's object after its `{`. `name` and `arguments`, a JSON text, grow as they are read.

    With `names` the first key must be `name`, and its value one of them: whatever else begins with
    a brace is no call then.
    """

    __slots__ = (
        "_balance", "_escaped", "_key", "_names", "_state", "_string",
        "arguments", "began", "name", "whole",
    )  # fmt: skip

    def __init__(self, names: frozenset[str] | None = None) -> None:
        self._names = names
        self.name = ""
        self.arguments: list[str] = []
        """The characters of the arguments; who takes them away may."""
        self.began = self.whole = False
        """Arguments have begun; they have ended."""
        self._key = ""
        self._string: list[str] = []
        self._escaped = False
        self._balance = Balance()
        self._state: Callable[[str], Step] = self._before_key

    def take(self, char: str) -> Step:
        """Follow one character."""
        return self._state(char)

    def _before_key(self, char: str) -> Step:
        if char == "}":
            return Step.DONE
        if char != '"':
            return Step.MORE if char in SPACE else Step.BROKEN
        return self._goes_on(self._in_key)

    def _in_key(self, char: str) -> Step:
        text = self._read(char)
        if text is None:
            return Step.BROKEN if self._too_long() else Step.MORE
        strange = self._names is not None and not self.name and text != "name"
        twice = (text == "name" and self.name) or (text in ARGUMENT_KEYS and self.began)
        if strange or twice:
            return Step.BROKEN
        self._key = text
        return self._goes_on(self._before_colon)

    def _before_colon(self, char: str) -> Step:
        if char == ":":
            return self._goes_on(self._before_value)
        return Step.MORE if char in SPACE else Step.BROKEN

    def _before_value(self, char: str) -> Step:
        if char in SPACE:
            return Step.MORE
        if self._key == "name":
            return self._goes_on(self._in_name) if char == '"' else Step.BROKEN
        if self._key in ARGUMENT_KEYS:
            if char != "{":
                return Step.BROKEN
            self.began = True
            self._state = self._in_arguments
            return self._in_arguments(char)
        return self._before_other(char)

    def _before_other(self, char: str) -> Step:
        """Begin a value that no call needs, such as an id."""
        if char == '"':
            return self._goes_on(self._in_other_string)
        if char in "{[":
            self._balance = Balance()
            self._state = self._in_other
            return self._in_other(char)
        return self._goes_on(self._in_scalar) if char in _SCALAR else Step.BROKEN

    def _in_name(self, char: str) -> Step:
        text = self._read(char)
        if text is None:
            return Step.BROKEN if self._too_long() or self._unknown() else Step.MORE
        if not text or (self._names is not None and text not in self._names):
            return Step.BROKEN
        self.name = text
        return self._goes_on(self._after_value)

    def _in_arguments(self, char: str) -> Step:
        self.arguments.append(char)
        if self._balance.take(char):
            self.whole = True
            self._balance = Balance()
            self._state = self._after_value
        return Step.ARGUMENT

    def _in_other(self, char: str) -> Step:
        return self._goes_on(self._after_value) if self._balance.take(char) else Step.MORE

    def _in_other_string(self, char: str) -> Step:
        if self._read(char) is not None:
            return self._goes_on(self._after_value)
        return Step.BROKEN if self._too_long() else Step.MORE

    def _in_scalar(self, char: str) -> Step:
        return Step.MORE if char in _SCALAR else self._after_value(char)

    def _after_value(self, char: str) -> Step:
        if char == "}":
            return Step.DONE
        if char == ",":
            return self._goes_on(self._before_key)
        if char not in SPACE:
            return Step.BROKEN
        return self._goes_on(self._after_value)

    def _goes_on(self, state: Callable[[str], Step]) -> Step:
        self._state = state
        return Step.MORE

    def _read(self, char: str) -> str | None:
        """Take one character of a string; return its value once it is complete."""
        if char == '"' and not self._escaped:
            raw = "".join(self._string)
            self._string = []
            try:
                return str(json.loads(f'"{raw}"', strict=False))
            except ValueError:  # an escape that JSON does not know: it stands for itself
                return raw
        self._escaped = char == "\\" and not self._escaped
        self._string.append(char)
        return None

    def _too_long(self) -> bool:
        return len(self._string) > MAX_NAME_CHARS

    def _unknown(self) -> bool:
        if self._names is None:
            return False
        begun = "".join(self._string)
        return not any(name.startswith(begun) for name in self._names)
