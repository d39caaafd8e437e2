"""The requests that wait for an instance."""

from __future__ import annotations

from blitzgw.router.arrivals import Held
from blitzgw.router.tokenlog import Entry


class WaitingRoom:
    """Held requests, by model. Its owner bounds how many new ones come in."""

    def __init__(self) -> None:
        self._rooms: dict[str, dict[str, Entry]] = {}

    def __contains__(self, entry: Entry) -> bool:
        return self._rooms.get(entry.request.model, {}).get(entry.request.id) is entry

    def count(self, model: str) -> int:
        """Return how many wait for a model."""
        return len(self._rooms.get(model, ()))

    def held(self, model: str) -> Held:
        """Return what the requests that wait for a model amount to."""
        room = self._rooms.get(model)
        if room is None:
            return Held()
        tokens = sum(len(entry.request.tokens) + len(entry.tokens) for entry in room.values())
        since = [entry.held_since for entry in room.values() if entry.held_since is not None]
        return Held(len(room), tokens, min(since, default=None))

    def models(self) -> list[str]:
        """Return the models that somebody waits for."""
        return list(self._rooms)

    def add(self, entry: Entry) -> None:
        """Let an entry wait."""
        self._rooms.setdefault(entry.request.model, {})[entry.request.id] = entry

    def discard(self, entry: Entry) -> None:
        """Let an entry wait no longer, if it did."""
        model = entry.request.model
        room = self._rooms.get(model)
        if room is not None and room.pop(entry.request.id, None) is not None and not room:
            del self._rooms[model]

    def of(self, model: str) -> list[Entry]:
        """Return those who wait for a model: who had a place before, then who came first."""
        room = self._rooms.get(model, {})
        return sorted(room.values(), key=lambda entry: (not entry.displaced, entry.number))

    def everybody(self) -> list[Entry]:
        """Return all who wait, in no particular order."""
        return [entry for room in self._rooms.values() for entry in room.values()]

    def overdue(self, limit: float) -> list[Entry]:
        """Return those who have waited since `limit` or longer, the earliest first."""
        late = [
            entry
            for entry in self.everybody()
            if entry.held_since is not None and entry.held_since <= limit
        ]
        return sorted(late, key=lambda entry: entry.number)
