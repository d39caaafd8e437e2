"""Prompts of exact lengths that are made up: the same ones for the same seed, number and arrival.

    ids     numbers from 3 to 255: every vocabulary has them, and the special ones are elsewhere
    text    one unit for each token; which units are one token each the endpoint itself is asked

A prompt with blocks is made block by block, each from its id alone: equal blocks are equal tokens,
so that prefixes are shared where the trace says so. One without is like no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.traces import BLOCK_TOKENS

FIRST_ID, IDS = 3, 253
_AS_ID = bytes(FIRST_ID + byte % IDS for byte in range(256))

WORDS = tuple(
    f" {word}"
    for word in (  # noqa: SIM905  a list of them would be a page
        "time year people way day man thing woman life child world school state family student"
        " group country problem hand part place case week company system program question work"
        " government number night point home water room mother area money story fact month lot"
        " right study book eye job word business issue side kind head house service friend father"
        " power hour game line end member law car"
    ).split()
)
"""Each is one token of nearly every vocabulary that has been learnt from English."""

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
"""Each is one token where tokens are bytes."""

PROBE_UNITS = (8, 40)
"""Of two prompts that tell what an endpoint adds, and what it makes of a unit."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Units of one token each, and how many tokens an endpoint adds to a prompt."""

    units: Sequence[str]
    overhead: int

    def spell(self, digits: bytes) -> str:
        """Return a unit for each digit."""
        return "".join(self.units[digit % len(self.units)] for digit in digits)


async def alphabet_of(counted: Callable[[str], Awaitable[int]]) -> Alphabet:
    """Find units that an endpoint, which counts tokens, takes for one each.

    Raises ValueError where none are.
    """
    few, many = PROBE_UNITS
    for units in (WORDS, LETTERS):
        alphabet = Alphabet(units, 0)
        first = await counted(alphabet.spell(_stream("few", few)))
        second = await counted(alphabet.spell(_stream("many", many)))
        if second - first == many - few and first >= few:
            return Alphabet(units, first - few)
    raise ValueError("this endpoint's tokens are neither words nor letters; ask it with token ids")


def prompt_ids(seed: int, number: int, arrival: Arrival) -> list[int]:
    """Return the token ids of request `number`."""
    return list(_digits(seed, number, arrival).translate(_AS_ID))


def prompt_text(seed: int, number: int, arrival: Arrival, alphabet: Alphabet) -> str:
    """Return a text with a unit for each token but those that the endpoint adds; at least one."""
    digits = _digits(seed, number, arrival)
    return alphabet.spell(digits[: max(1, arrival.prompt_tokens - alphabet.overhead)])


def _digits(seed: int, number: int, arrival: Arrival) -> bytes:
    """Return a number from 0 to 255 for each token."""
    tokens = arrival.prompt_tokens
    if not arrival.blocks:
        return _stream(f"{seed} request {number}", tokens)
    whole = b"".join(_stream(f"{seed} block {one}", BLOCK_TOKENS) for one in arrival.blocks)
    rest = max(0, tokens - len(whole))
    return whole[:tokens] + _stream(f"{seed} rest {number}", rest)


def _stream(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)
