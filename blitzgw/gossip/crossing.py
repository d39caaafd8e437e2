"""What waits to cross from one thread to the other; each side merges, so neither can pile up.

News of one member or one entry replaces older news of the same, and keeps its order towards the
rest of that member: a boot is changed, then has state, then is forgotten, perhaps changed again.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from blitzgw.core.rumours import Update
from blitzgw.gossip.events import (
    Departed,
    Event,
    LinkBroke,
    MemberChanged,
    MemberForgotten,
    StateChanged,
    StatePublished,
)

News = MemberChanged | MemberForgotten | StateChanged | Departed
"""The effects that are for the node."""

_Key = tuple[str, ...]


class ToNode:
    """News for the node, from gossip's thread. Holds one item per member and entry at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: dict[_Key, News | Update] = {}

    def put(self, news: News) -> bool:
        """Add news; return whether there was none before, so that somebody must be called."""
        with self._lock:
            first = not self._items
            self._merge(news)
            return first

    def take(self) -> list[News]:
        """Return all news in order, and hold none."""
        with self._lock:
            items, self._items = self._items, {}
        news: list[News] = []
        updates: list[Update] = []
        for item in items.values():
            if isinstance(item, Update):
                updates.append(item)
                continue
            if updates:
                news.append(StateChanged(tuple(updates)))
                updates = []
            news.append(item)
        return [*news, StateChanged(tuple(updates))] if updates else news

    def _merge(self, news: News) -> None:
        items = self._items
        match news:
            case MemberChanged(member):
                items["member", member.boot] = news
            case StateChanged(updates):
                for update in updates:
                    entry: _Key = ("entry", update.boot, update.key)
                    items.pop(entry, None)  # versions of one member must come in their order
                    items[entry] = update
            case MemberForgotten(boot):
                for key in [k for k in items if k[1] == boot]:
                    del items[key]
                items["forgotten", boot] = news
            case Departed():
                items["departed", ""] = news


class ToGossip:
    """What the node tells gossip, from any thread. Holds one value per key and one per link."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, bytes | None] = {}
        self._broken: dict[str, None] = {}

    def publish(self, entries: Mapping[str, bytes | None]) -> bool:
        """Add entries; return whether nothing was waiting, so that gossip must be called."""
        with self._lock:
            first = self._empty()
            self._entries.update(entries)
            return first and bool(entries)

    def link_broke(self, boot: str) -> bool:
        """Add a link that broke; return as `publish` does."""
        with self._lock:
            first = self._empty()
            self._broken[boot] = None
            return first

    def take(self) -> list[Event]:
        """Return everything as events, and hold nothing."""
        with self._lock:
            entries, self._entries = self._entries, {}
            broken, self._broken = self._broken, {}
        events: list[Event] = [LinkBroke(boot) for boot in broken]
        return [StatePublished(entries), *events] if entries else events

    def _empty(self) -> bool:
        return not self._entries and not self._broken
