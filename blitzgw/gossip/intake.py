"""What to do with entries that arrive: apply what is news, pass it on, count what cannot be."""

from __future__ import annotations

from collections.abc import Iterable

from blitzgw.core.rumours import Update
from blitzgw.gossip.desk import Desk
from blitzgw.gossip.events import StateChanged
from blitzgw.gossip.statebook import is_sound


class Intake:
    """Applies updates of other members' states. Effects go to the post."""

    def __init__(self, desk: Desk) -> None:
        self._me = desk.members.me.boot
        self._members = desk.members
        self._states = desk.states
        self._post = desk.post
        self._tally = desk.tally

    def take(self, updates: Iterable[Update], *, synced: bool) -> None:
        """Apply updates; what came by a sync is not passed on, for others get it by theirs."""
        news = []
        for update in updates:
            if not self._is_welcome(update):
                continue
            state = self._states.state(update.boot)
            old = state.entries.get(update.key)
            if not state.apply(update):
                self._tally.dropped["state_full"] += 1
                continue
            if update.value is not None or (old is not None and old.value is not None):
                news.append(update)
            if synced:
                self._post.updates.drop((update.boot, update.key))  # what is older than this
            else:
                self._post.tell_update(update)
        if news:
            self._post.out.append(StateChanged(tuple(news)))

    def _is_welcome(self, update: Update) -> bool:
        """Whether an update is news of a member, within the limits; counts what must not be."""
        if update.boot == self._me:
            if update.version > self._states.own.version:
                self._tally.dropped["forged_update"] += 1
            return False
        if not self._states.is_news(update):
            return False
        if update.boot not in self._members.by_boot:
            self._tally.dropped["update_of_stranger"] += 1
            return False
        if not is_sound(update):
            self._tally.dropped["unsound_update"] += 1
            return False
        return True
