"""What a plan can build on: who lacks and who has which blobs, and who reaches whom how fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import product
from typing import NamedTuple

from blitzgw.core.plan import Holder, Links, Task, Tier, node_of
from blitzgw.scaling.planner.rates import host_rate, is_busy, read_rate, weights_tx

WORTH_WAITING = 0.5
"""A busy source is avoided while a free one gives at least this part of its rate: half as fast is
a fair price for requests that are not slowed down, a crawl is not."""

SAME_RATE = 0.9
"""Rates within this factor count as equal in an order of preference: measured rates never are."""


class Path(NamedTuple):
    """How two workers are joined: the network ("" within a node) and what it gives at most."""

    network: str
    bytes_per_s: float


class _Nodes(dict[str, str]):
    """The node of each worker, cut out of its name once."""

    def __missing__(self, worker: str) -> str:
        node = self[worker] = node_of(worker)
        return node


class Ground:
    """A task and the links, seen as the strategies ask about them. Nothing in it changes."""

    def __init__(self, task: Task, links: Links, groups: Sequence[Sequence[int]] = ()) -> None:
        """Take in who has what; raises ValueError for blobs that the model does not have.

        `groups`: what the task's blobs are called where each stands for several (coarse.py).
        """
        self.task = task
        self.groups = groups
        self.links = links
        self.blobs = range(len(task.blob_bytes))
        self.targets = tuple(dict.fromkeys(task.targets))
        self.resident: dict[str, frozenset[int]] = {}
        self.due_s: dict[str, tuple[float, ...]] = {}
        """Of resident blobs that other operations bring: the seconds until they are there."""
        self.behind: dict[str, dict[Tier, frozenset[int]]] = {}
        self._node_tiers: dict[tuple[str, Tier], frozenset[int]] = {}
        self._every = frozenset(self.blobs)
        for holder in task.holders:
            self._take(holder)
        self._nodes = _Nodes()
        self._tx: dict[str, dict[str, float]] = {}
        self._rx: dict[str, dict[str, float]] = {}
        self._serving: set[tuple[str, str]] = set()
        workers = (*self.targets, *(holder.worker for holder in task.holders))
        for place in product(sorted({self._nodes[w] for w in workers}), links.networks):
            if (port := links.ports.get(place)) is not None:
                self._tx.setdefault(place[0], {})[place[1]] = weights_tx(port)
                self._rx.setdefault(place[0], {})[place[1]] = port.rx_bytes_per_s
                if is_busy(port):
                    self._serving.add(place)
        self._paths: dict[tuple[str, str], Path | None] = {}
        self._lacks: dict[str, Sequence[int]] = {}
        self._holdings: dict[str, frozenset[int]] = {}
        self._needy = [target for target in self.targets if self.lacks(target)]

    def _take(self, holder: Holder) -> None:
        if not holder.blobs <= self._every:
            raise ValueError(f"{holder.worker} holds blobs that the model does not have")
        if not holder.blobs:
            return
        worker, tier = holder.worker, holder.tier
        if tier is None:
            self.resident[worker] = self.resident.get(worker, frozenset()) | holder.blobs
            if holder.awaits:
                self.due_s[worker] = holder.due_s
            return
        tiers = self.behind.setdefault(worker, {})
        tiers[tier] = tiers.get(tier, frozenset()) | holder.blobs
        place = (node_of(worker), tier)
        self._node_tiers[place] = self._node_tiers.get(place, frozenset()) | holder.blobs

    # Blobs.

    def size(self, blobs: Iterable[int]) -> int:
        """Return the bytes of some blobs."""
        return sum(self.task.blob_bytes[blob] for blob in blobs)

    def lacks(self, target: str) -> Sequence[int]:
        """Return the blobs that are not resident at a target, in order."""
        if target not in self._lacks:
            has = self.resident.get(target)
            self._lacks[target] = [b for b in self.blobs if b not in has] if has else self.blobs
        return self._lacks[target]

    def needy(self) -> list[str]:
        """Return the targets that lack anything."""
        return list(self._needy)

    def called(self, blobs: Iterable[int]) -> list[int]:
        """Return the numbers by which people know these blobs."""
        if not self.groups:
            return list(blobs)
        return [blob for group in blobs for blob in self.groups[group]]

    def own(self, worker: str, tier: Tier) -> frozenset[int]:
        """Return what a worker can read from a tier of its own machine."""
        return self._node_tiers.get((node_of(worker), tier), frozenset())

    def tier_with(self, worker: str, blob: int) -> Tier | None:
        """Return the tier behind which a worker has a blob for others; None: behind none."""
        tiers = self.behind.get(worker, {})
        return next((tier for tier in Tier if blob in tiers.get(tier, frozenset())), None)

    def holdings(self, worker: str) -> frozenset[int]:
        """Return all that a worker can give: what is resident and what it can read."""
        if worker not in self._holdings:
            tiers = self.behind.get(worker, {}).values()
            self._holdings[worker] = self.resident.get(worker, frozenset()).union(*tiers)
        return self._holdings[worker]

    # Links.

    def path(self, source: str, target: str) -> Path | None:
        """Return the fastest way from one worker to another; None: they share no network."""
        nodes = (self._nodes[source], self._nodes[target])
        if nodes in self._paths:
            return self._paths[nodes]
        path = self._paths[nodes] = self._fastest(*nodes)
        return path

    def _fastest(self, source: str, target: str) -> Path | None:
        if source == target:
            return Path("", self.links.local_bytes_per_s)
        there = self._rx.get(target, {})
        fastest, best = 0.0, ""
        for network, tx in self._tx.get(source, {}).items():
            if network in there:
                rate = min(tx, there[network])
                if rate > fastest:
                    fastest, best = rate, network
        return Path(best, fastest) if fastest else None

    def rate(self, source: str, target: str) -> float:
        """Return what the fastest way between two workers gives at most; 0: there is none."""
        path = self.path(source, target)
        return path.bytes_per_s if path else 0.0

    def near(self, one: str, other: str) -> int:
        """Return how near two workers are: 2 on one node, 1 in one zone, else 0."""
        a, b = self._nodes[one], self._nodes[other]
        if a == b:
            return 2
        zone = self.links.zones.get(a, "")
        return 1 if zone and zone == self.links.zones.get(b, "") else 0

    def speed(self, worker: str) -> float:
        """Return at what rate a worker could relay over its best network, in bytes per second."""
        node = self._nodes[worker]
        pairs = zip(self._tx.get(node, {}).values(), self._rx.get(node, {}).values(), strict=True)
        return max(map(min, pairs), default=0.0)

    def most(self, worker: str) -> float:
        """Return a rate that no network exceeds both to and from a worker, in bytes per second."""
        node = self._nodes[worker]
        ways = (self._tx.get(node, {}).values(), self._rx.get(node, {}).values())
        return min(max(way, default=0.0) for way in ways)

    def busy(self, source: str, target: str) -> bool:
        """Return whether the port from which a source would send has requests to serve."""
        path = self.path(source, target)
        node = self._nodes[source]
        if path is None or node == self._nodes[target]:
            return False
        return (node, path.network) in self._serving

    @cached_property
    def self_served(self) -> frozenset[str]:
        """The targets whose own machine's memory has all that they lack, at no slow rate.

        From there others can be sent it at once.
        """
        return frozenset(
            target
            for target in self._needy
            if self.own(target, Tier.HOST).issuperset(self.lacks(target))
            and host_rate(self.links, self._nodes[target]) >= SAME_RATE * self.speed(target)
        )

    # Sources.

    def givers(self) -> list[str]:
        """Return all workers that have something to give and lack nothing themselves, by name.

        A target that still lacks blobs is none of them, though others may get from it what it has.
        """
        return self._givers

    @cached_property
    def _givers(self) -> list[str]:
        return sorted({*self.resident, *self.behind} - set(self._needy))

    def giving_rate(self, source: str, target: str) -> float:
        """Return how fast a source could give a target what it has, its own reads included.

        Of one that waits for blobs itself: all of them in their order, the waiting included.
        """
        rate = self.rate(source, target)
        if source in self.due_s and rate > 0.0:
            rate = self.size(self.blobs) / self._last_s(source, rate)
        missing = self.holdings(source) - self.resident.get(source, frozenset())
        if missing:
            tiers = self.behind[source]
            rate = min([rate, *(read_rate(self.links, node_of(source), tier) for tier in tiers)])
        return rate

    def _last_s(self, source: str, rate: float) -> float:
        """Return when a source has sent its last blob at a rate, each as soon as it is there."""
        at_s = 0.0
        for size, due_s in zip(self.task.blob_bytes, self.due_s[source], strict=True):
            at_s = max(at_s + max(1, size) / rate, due_s)
        return at_s

    def ranked(self, sources: Sequence[str], target: str, wanted: Iterable[int]) -> list[str]:
        """Return the sources that reach a target and have something wanted, the best one first.

        Complete before partial, undisturbed before busy, fast before slow, what is there before
        what is coming, near before far, resident before what is to be read.
        """
        blobs = frozenset(wanted)
        useful = [
            source
            for source in sources
            if source != target
            and self.rate(source, target) > 0.0
            and self.holdings(source) & blobs
        ]
        if not useful:
            return []
        most = max(len(self.holdings(source) & blobs) for source in useful)
        rates = {source: self.giving_rate(source, target) for source in useful}
        fastest = max(rates.values())
        spared = max((rates[s] for s in useful if not self.busy(s, target)), default=0.0)
        avoid = spared >= WORTH_WAITING * fastest

        def preference(source: str) -> tuple[bool, bool, bool, bool, int, bool, float, str]:
            return (
                avoid and self.busy(source, target),
                len(self.holdings(source) & blobs) < most,
                rates[source] < SAME_RATE * fastest,
                source in self.due_s,
                -self.near(source, target),
                not blobs & self.resident.get(source, frozenset()),
                -rates[source],
                source,
            )

        return sorted(useful, key=preference)

    def sources(self) -> list[str]:
        """Return the givers worth using side by side, the best one first."""
        return list(self._sources)

    @cached_property
    def _sources(self) -> list[str]:
        """The givers worth using side by side, the best one first.

        Those that give much slower than the best are left out, and so are busy ones unless all are
        busy. What only these have, they still give (`ranked`).
        """
        needy = self.needy()
        wanted = frozenset(blob for target in needy for blob in self.lacks(target))
        rates: dict[str, float] = {}
        for source in self.givers():
            if self.holdings(source) & wanted:
                rates[source] = max(self.giving_rate(source, target) for target in needy)
        enough = WORTH_WAITING * max(rates.values(), default=0.0)
        good = [source for source, rate in rates.items() if rate >= enough and rate > 0.0]
        free = [s for s in good if not any(self.busy(s, target) for target in needy)]
        chosen = free or good
        fastest = max((rates[source] for source in chosen), default=0.0)

        def merit(source: str) -> tuple[int, bool, bool, int, bool, str]:
            return (
                -self.size(self.holdings(source) & wanted),
                rates[source] < SAME_RATE * fastest,
                source in self.due_s,
                -max(self.near(source, target) for target in needy),
                bool(wanted - self.resident.get(source, frozenset())),
                source,
            )

        return sorted(chosen, key=merit)

    def by_speed(self, targets: Iterable[str], source: str) -> list[str]:
        """Return targets in the order of a chain: fast before slow, near the source before far.

        Those of one node, and of one zone, stay together.
        """
        speeds = {target: self.speed(target) for target in targets}
        classes: list[float] = []
        for speed in sorted(speeds.values(), reverse=True):
            if not classes or speed < SAME_RATE * classes[-1]:
                classes.append(speed)

        def place(target: str) -> tuple[int, int, str, str, str]:
            node = node_of(target)
            slower = sum(1 for head in classes if speeds[target] < SAME_RATE * head)
            zone = self.links.zones.get(node, "")
            return (slower, -self.near(source, target), zone, node, target)

        return sorted(speeds, key=place)
