"""Tool calls in an answer's text, found while it grows: text in, deltas out.

    lead ──marker──► opening ──"{"──► object ──arguments──► announced, and streamed
     │  ▲               │               │                        │
     │  └───────────────┼───────────────┼────────────"}"─────────┘
     └─other─► text ◄───┴────no call────┘        what was held back is text after all

Only what may be a call's beginning is held back. As each character is looked at once, the outcome
does not depend on where pieces of text begin and end. White space before a call is not text, and
neither is what follows the last one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from blitzgw.api.callobject import SPACE, Balance, CallObject, Step
from blitzgw.api.dialects import Dialect

_HEADER = re.compile(r"([\w.-]{1,128})(?:\[CALL_ID\][\w-]{0,128})?(?:\[ARGS\])?\s{0,8}")
"""What stands before the arguments in the newer of Mistral's forms."""

_HEADER_SO_FAR = re.compile(r"[\w.-]{1,128}(?:\[[\w\[\]-]{0,160})?\s{0,8}")


@dataclass(frozen=True, slots=True)
class Delta:
    """What came next: text (`call` None), a call's `name`, or more of its arguments.

    `call` counts from 0. All `text` of a call together is the JSON text of its arguments.
    """

    call: int | None
    text: str = ""
    name: str | None = None


class CallParser:
    """Takes one answer apart. `names` are the tools that may be called without a marker."""

    def __init__(self, dialect: Dialect, names: frozenset[str]) -> None:
        self._dialect, self._names = dialect, names
        self._marker, self._closer = dialect.marker, dialect.closer
        self.calls = 0
        self.cut = False
        """The text has ended within a call's arguments."""
        self._pieces: list[tuple[int | None, str | None, list[str]]] = []
        self._held: list[str] = []
        self._partial = ""
        self._in_list = self._closes = self._announced = False
        self._object = CallObject()
        self._balance = Balance()
        self._header = ""
        self._state: Callable[[str], None] = self._lead
        self._plain = False
        """The state is `_text`, and nothing is held back."""

    def feed(self, text: str) -> list[Delta]:
        """Return what more text adds; neighbours of one kind come as one."""
        position = 0
        while position < len(text):
            if self._plain:
                found = text.find(self._marker[0], position)
                stop = len(text) if found < 0 else found
                self._put(None, text[position:stop])
                position = stop
                if found < 0:
                    break
            self._state(text[position])
            position += 1
        return self._taken()

    def finish(self) -> list[Delta]:
        """Return what was held back; the text ends here."""
        in_object = self._state == self._in_object and self._announced
        self.cut = self._state == self._in_arguments or (in_object and not self._object.whole)
        rest = "".join(self._held) + self._partial
        if rest.strip() or not self.calls:
            self._put(None, rest)
        self._held, self._partial = [], ""
        return self._taken()

    def _lead(self, char: str) -> None:
        """Take a character before any text: at the start, or after a call."""
        if not self._partial:
            if char in SPACE or char in self._separators():
                self._held.append(char)
                return
            if char == "{" and (self._dialect.bare or self._in_list):
                self._open(char, None if self._in_list else self._names)
                return
        self._partial += char
        if self._partial == self._marker:
            self._held.append(self._partial)
            self._partial = ""
            self._state = self._opening
        elif self._closes and self._partial == self._closer:
            self._held, self._partial = [], ""
            self._closes = self._in_list = False
        elif not self._expects(self._partial):
            self._no_call(self._partial)

    def _separators(self) -> str:
        if not self.calls:
            return ""
        if self._in_list:
            return ","
        return ",;" if self._dialect.bare else ""

    def _expects(self, begun: str) -> bool:
        closes = self._closes and self._closer.startswith(begun)
        return closes or self._marker.startswith(begun)

    def _text(self, char: str) -> None:
        """Take a character where only a marker can begin a call."""
        self._partial += char
        while not self._marker.startswith(self._partial):
            self._put(None, self._partial[0])
            self._partial = self._partial[1:]
        if self._partial == self._marker:
            self._held = [self._partial]
            self._partial = ""
            self._state = self._opening
        self._plain = not self._partial and self._state == self._text

    def _opening(self, char: str) -> None:
        """Take a character after a marker."""
        if char == "{":
            self._open(char, None)
        elif char in SPACE:
            self._held.append(char)
        elif self._dialect.lists and char == "[" and not self._in_list:
            self._held.append(char)
            self._in_list = True
        elif self._dialect.lists and not self._in_list and _HEADER_SO_FAR.fullmatch(char):
            self._held.append(char)
            self._header = char
            self._state = self._in_header
        else:
            self._no_call(char)

    def _in_header(self, char: str) -> None:
        """Take a character of `name[ARGS]`, or the brace that follows it."""
        known = _HEADER.fullmatch(self._header) if char == "{" else None
        if known is not None:
            self._begin(known[1])
            self._balance = Balance()
            self._state = self._in_arguments
            self._in_arguments(char)
        elif _HEADER_SO_FAR.fullmatch(self._header + char):
            self._held.append(char)
            self._header += char
        else:
            self._no_call(char)

    def _in_arguments(self, char: str) -> None:
        """Take a character of arguments that no object surrounds."""
        self._put(self.calls - 1, char)
        if self._balance.take(char):
            self._end()

    def _open(self, char: str, names: frozenset[str] | None) -> None:
        self._held.append(char)
        self._object = CallObject(names)
        self._announced = False
        self._state = self._in_object

    def _in_object(self, char: str) -> None:
        """Take a character of `{"name": …, "arguments": …}`."""
        known = self._object
        step = known.take(char)
        if step is Step.BROKEN:
            self._break(char)
            return
        if not self._announced and known.name and (known.began or step is Step.DONE):
            self._begin(known.name)
            self._announced = True
        elif step is not Step.ARGUMENT or not self._announced:
            self._held.append(char)
        if self._announced and known.arguments:
            self._put(self.calls - 1, "".join(known.arguments))
            known.arguments.clear()
        if step is Step.DONE:
            self._close(char)

    def _close(self, char: str) -> None:
        """End an object; without a name it was no call."""
        if not self._announced:
            self._held.pop()
            self._no_call(char)
            return
        if not self._object.began:
            self._put(self.calls - 1, "{}")
        self._end()

    def _break(self, char: str) -> None:
        """Leave an object that is none; a call that was announced ends here."""
        rest = "".join(self._held)
        if self._announced and not rest.strip():  # only its last brace is missing
            self._end()
            self._state(char)
        else:
            self._no_call(char)

    def _begin(self, name: str) -> None:
        self._held = []
        self._pieces.append((self.calls, name, []))
        self.calls += 1

    def _end(self) -> None:
        """Expect another call after one, or what closes it."""
        self._held, self._partial = [], ""
        self._closes = bool(self._closer) and (self._in_list or not self._dialect.lists)
        self._state = self._lead

    def _no_call(self, rest: str) -> None:
        """Release what was held back as text, and look for a marker from `rest` on."""
        self._put(None, "".join(self._held))
        self._held, self._partial = [], ""
        self._in_list = self._closes = False
        self._state = self._text
        for char in rest:
            self._state(char)

    def _put(self, call: int | None, text: str) -> None:
        if not text:
            return
        last = self._pieces[-1] if self._pieces else None
        if last is None or last[0] != call or last[1] is not None:
            self._pieces.append((call, None, [text]))
        else:
            last[2].append(text)

    def _taken(self) -> list[Delta]:
        pieces, self._pieces = self._pieces, []
        return [Delta(call, "".join(parts), name) for call, name, parts in pieces]
