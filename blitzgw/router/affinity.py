"""Where a prompt's beginning has been computed before: what routing gains from prefix caches.

A router only remembers where it has sent what; what an instance really kept, it does not know. A
wrong guess costs some time, nothing else, so the memories are small and forget the oldest. They
name instances by serial (fleet.py): what a lost one held is forgotten by its serial's meaning
nothing any more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from blitzgw.core.step import BLOCK_TOKENS

SPAN_TOKENS = 4 * BLOCK_TOKENS
"""A prefix is remembered at multiples of this: what is lost in between is a few milliseconds'."""

MAX_SPANS = 256
"""Of a prompt, so much is looked at: 16 Ki tokens, for 0.2 ms. Two prompts that share as much are
the same for routing."""

MAX_PREFIXES = 65_536
"""Spans remembered: 4 Mi tokens, more than the KV of dozens of devices, for about 15 MB."""

MAX_HOLDERS = 8
"""Instances remembered for each prefix. What all prompts begin with is soon everywhere, and then
it matters little which of them are known."""

MAX_SESSIONS = 32_768
"""Sessions remembered, for at most 20 MB: those of hours, at several a second."""


def name_prefixes(tokens: Sequence[int], salt: tuple[str, ...]) -> list[int]:
    """Return a name for each prefix of 1, 2, … spans: a hash chained from the salt.

    The names stay in this process, so Python's own hash will do: a collision misleads one choice,
    and only among the prompts of one tenant.
    """
    names = []
    name = hash(salt)
    for stop in range(SPAN_TOKENS, min(len(tokens), MAX_SPANS * SPAN_TOKENS) + 1, SPAN_TOKENS):
        name = hash((name, tokens[stop - SPAN_TOKENS : stop]))
        names.append(name)
    return names


class PrefixMemory:
    """Which instances have been sent a prefix, the latest first."""

    def __init__(self, capacity: int = MAX_PREFIXES) -> None:
        self._capacity = capacity
        self._holders: OrderedDict[int, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def cached(self, names: Sequence[int]) -> dict[int, int]:
        """Return how many tokens of a prompt each instance may have, by serial."""
        found: list[tuple[int, ...]] = []
        for name in names:
            holders = self._holders.get(name)
            if holders is None:
                break
            found.append(holders)
        tokens: dict[int, int] = {}
        former: tuple[int, ...] = ()
        for spans in range(len(found), 0, -1):
            holders = found[spans - 1]
            if holders is not former:
                for serial in holders:
                    tokens.setdefault(serial, spans * SPAN_TOKENS)
                former = holders
        return tokens

    def note(self, names: Sequence[int], serial: int) -> None:
        """Remember that a prompt has gone to an instance.

        The longest prefix is touched first, so that it is forgotten before those it builds on.
        """
        former: tuple[int, ...] | None = None
        holders: tuple[int, ...] = ()
        for name in reversed(names):
            known = self._holders.get(name, ())
            if known is not former:  # neighbours share their holders, as one object
                former, holders = known, _with(known, serial)
            self._holders[name] = holders
            self._holders.move_to_end(name)
        while len(self._holders) > self._capacity:
            self._holders.popitem(last=False)


class SessionMemory:
    """Where each session has been last, and how many tokens of it are there."""

    def __init__(self, capacity: int = MAX_SESSIONS) -> None:
        self._capacity = capacity
        self._places: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def place(self, model: str, session: str) -> tuple[int, int] | None:
        """Return (serial, tokens) of a session's last request."""
        return self._places.get((model, session))

    def note(self, model: str, session: str, serial: int, tokens: int) -> None:
        """Remember that an instance has these many tokens of a session."""
        key = (model, session)
        self._places[key] = (serial, tokens)
        self._places.move_to_end(key)
        if len(self._places) > self._capacity:
            self._places.popitem(last=False)


def _with(holders: tuple[int, ...], serial: int) -> tuple[int, ...]:
    if holders and holders[0] == serial:
        return holders
    return (serial, *[other for other in holders if other != serial][: MAX_HOLDERS - 1])
