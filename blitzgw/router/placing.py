"""In which order a request asks instances; remembers where requests went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from blitzgw.router.affinity import PrefixMemory, SessionMemory, name_prefixes
from blitzgw.router.choice import Dice, assess, choose
from blitzgw.router.fleet import Seat
from blitzgw.router.tokenlog import Entry


class Placing:
    """Choices by what is cached where (affinity.py), which it learns from what became of them."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._prefixes = PrefixMemory()
        self._sessions = SessionMemory()

    @property
    def prefixes(self) -> int:
        """Return how many prefixes are remembered."""
        return len(self._prefixes)

    @property
    def sessions(self) -> int:
        """Return how many sessions are remembered."""
        return len(self._sessions)

    def options(
        self, entry: Entry, seats: Sequence[Seat], *, reluctant: bool = False
    ) -> Iterator[Seat]:
        """Yield instances that are open, the best first: another is asked for where one refuses.

        Either those that take requests gladly, or the `reluctant` ones.
        """
        if len(seats) == 1:  # there is nothing to compare
            outlook = seats[0].port.outlook()
            if outlook.open and outlook.reluctant == reluctant:
                yield seats[0]
            return
        n_tokens = len(entry.request.tokens) + len(entry.tokens)
        prospects = assess(seats, n_tokens, self._cached(entry), reluctant=reluctant)
        while prospects:
            chosen = choose(prospects, entry.request.session, self._dice)
            yield chosen.seat
            prospects.remove(chosen)

    def likely(self, entry: Entry) -> Iterable[int]:
        """Return the serials of instances that are believed to have some of a prompt."""
        return self._cached(entry)

    def placed(self, entry: Entry, seat: Seat) -> None:
        """Learn that an instance has taken a request."""
        self._prefixes.note(_names(entry), seat.serial)
        self._note_session(entry, seat)

    def finished(self, entry: Entry, seat: Seat) -> None:
        """Learn that an instance has answered a request: the answer is cached there, too."""
        self._note_session(entry, seat)

    def _cached(self, entry: Entry) -> dict[int, int]:
        request = entry.request
        cached = self._prefixes.cached(_names(entry))
        if request.session:
            serial, tokens = self._sessions.place(request.model, request.session) or (0, 0)
            cached[serial] = max(cached.get(serial, 0), tokens)
        return cached

    def _note_session(self, entry: Entry, seat: Seat) -> None:
        request = entry.request
        if request.session:
            n_tokens = len(request.tokens) + len(entry.tokens)
            self._sessions.note(request.model, request.session, seat.serial, n_tokens)


def _names(entry: Entry) -> list[int]:
    """Return the names of the prompt's prefixes, which only its tenant's requests share."""
    if entry.prefixes is None:
        request = entry.request
        entry.prefixes = name_prefixes(request.tokens, (request.model, request.tenant))
    return entry.prefixes
