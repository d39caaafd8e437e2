"""What a node tells of itself: to its own directory, to all by gossip, to its users by reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from blitzgw.core.clock import Clock
from blitzgw.core.view import Fact, InstanceFacts, LoadFacts
from blitzgw.gossip.directory import Directory, changed, key_of
from blitzgw.network import Network
from blitzgw.wire import encode_fact

GOSSIP_LOAD_S = 1.0
"""Between two publications of loads by gossip, which takes them to everybody. Who uses an instance
hears of its load over the peer link at every refresh."""

EARLY_S = 0.02
"""So much sooner it may be: looks come by timers, which are late, and not always as late. Who looks
a few times in that period would leave out every other look that it is to be told at."""


class Publisher:
    """Tells what has changed since the last time, and nothing else."""

    def __init__(self, directory: Directory, network: Network, clock: Clock) -> None:
        self._directory, self._network, self._clock = directory, network, clock
        self._published: dict[str, Fact] = {}
        self._loads: dict[str, Fact] = {}
        self._load_news: dict[str, Fact | None] = {}
        self._load_gossip_s = 0.0
        self._instances = False
        self._number = 0

    @property
    def pending(self) -> bool:
        """Whether there are instances, whose loads change untold, or news that has to go out."""
        return self._instances or bool(self._loads or self._load_news)

    def stable(self, facts: Iterable[Fact]) -> bool:
        """Publish what seldom changes; return whether more than figures has changed."""
        present: dict[str, Fact] = {key_of(fact): fact for fact in facts}
        news = changed(self._published, present)
        if not news:
            return False
        self._published = present
        self._instances = any(isinstance(fact, InstanceFacts) for fact in present.values())
        self._network.publish(_encoded(news))
        return self._directory.published(news, self._clock.now())

    def loads(self, loads: Iterable[LoadFacts]) -> None:
        """Publish loads: to users at once, to all others now and then."""
        present: dict[str, Fact] = {key_of(load): load for load in loads}
        news = changed(self._loads, present)
        if news:
            self._loads = present
            self._tell(news)
        now = self._clock.now()
        if self._load_news and now >= self._load_gossip_s:
            self._load_gossip_s = now + GOSSIP_LOAD_S - EARLY_S
            self._network.publish(_encoded(self._load_news))
            self._load_news = {}

    def _tell(self, news: Mapping[str, Fact | None]) -> None:
        self._number += 1
        numbered = {
            key: replace(load, number=self._number) if isinstance(load, LoadFacts) else None
            for key, load in news.items()
        }
        self._load_news |= numbered
        self._directory.published(numbered, self._clock.now())
        self._network.report([load for load in numbered.values() if load is not None])


def _encoded(news: Mapping[str, Fact | None]) -> dict[str, bytes | None]:
    """Return news as entries of the directory."""
    return {key: None if fact is None else encode_fact(fact) for key, fact in news.items()}
