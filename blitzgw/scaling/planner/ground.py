"""What a plan can build on: who lacks and who has which blobs, and who reaches whom how fast."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blitzgw.core.plan import Holder, Links, Port, Task, Tier, node_of

BUSY_SHARE = 0.05
"""A port that spends this part of its tx on requests is avoided: below it the traffic is tokens and
the odd handoff, which no transfer delays for long."""

WORTH_WAITING = 0.5
"""A busy source is avoided while a free one gives at least this part of its rate: half as fast is
a fair price for requests that are not slowed down, a crawl is not."""

LEAST_SHARE = 0.02
"""What a port's tx leaves to weights however much it serves: they yield, but not for ever, and a
prediction stays finite."""

SAME_RATE = 0.9
"""Rates within this factor count as equal in an order of preference: measured rates never are."""

DISK_BYTES_PER_S = 1e9
"""Of a disk whose rate nobody has measured: what one thread reads from an ordinary one
(TRANSPORT.md)."""


@dataclass(frozen=True, slots=True)
class Path:
    """How two workers are joined: the network ("" within a node) and what it gives at most."""

    network: str
    bytes_per_s: float


def usable_tx(port: Port) -> float:
    """Return what serving leaves of a port's tx, in bytes per second."""
    return max(port.tx_bytes_per_s - port.serving_tx_bytes_per_s, LEAST_SHARE * port.tx_bytes_per_s)


def disk_rate(links: Links, node: str) -> float:
    """Return the rate of a node's disk in bytes per second, assumed where it is not known."""
    return links.disks.get(node, 0.0) or DISK_BYTES_PER_S


def host_rate(links: Links, node: str) -> float:
    """Return how fast a node's host copy is read, in bytes per second."""
    return links.hosts.get(node, 0.0) or links.local_bytes_per_s


def read_rate(links: Links, node: str, tier: Tier) -> float:
    """Return how fast a node reads from a tier, in bytes per second."""
    return host_rate(links, node) if tier is Tier.HOST else disk_rate(links, node)


class Ground:
    """A task and the links, seen as the strategies ask about them. Nothing in it changes."""

    def __init__(self, task: Task, links: Links) -> None:
        """Take in who has what; raises ValueError for blobs and sizes that make no sense."""
        self.task = task
        self.links = links
        self.blobs = range(len(task.blob_bytes))
        self.targets = tuple(dict.fromkeys(task.targets))
        self.resident: dict[str, frozenset[int]] = {}
        self.behind: dict[str, dict[Tier, frozenset[int]]] = {}
        self._node_tiers: dict[tuple[str, Tier], frozenset[int]] = {}
        for holder in task.holders:
            self._take(holder)
        self._networks: dict[str, dict[str, Port]] = {}
        for (node, network), port in links.ports.items():
            self._networks.setdefault(node, {})[network] = port
        self._paths: dict[tuple[str, str], Path | None] = {}

    def _take(self, holder: Holder) -> None:
        if not holder.blobs <= frozenset(self.blobs):
            raise ValueError(f"{holder.worker} holds blobs that the model does not have")
        if not holder.blobs:
            return
        worker, tier = holder.worker, holder.tier
        if tier is None:
            self.resident[worker] = self.resident.get(worker, frozenset()) | holder.blobs
            return
        tiers = self.behind.setdefault(worker, {})
        tiers[tier] = tiers.get(tier, frozenset()) | holder.blobs
        place = (node_of(worker), tier)
        self._node_tiers[place] = self._node_tiers.get(place, frozenset()) | holder.blobs

    # Blobs.

    def size(self, blobs: Iterable[int]) -> int:
        """Return the bytes of some blobs."""
        return sum(self.task.blob_bytes[blob] for blob in blobs)

    def lacks(self, target: str) -> list[int]:
        """Return the blobs that are not resident at a target, in order."""
        has = self.resident.get(target, frozenset())
        return [blob for blob in self.blobs if blob not in has]

    def needy(self) -> list[str]:
        """Return the targets that lack anything."""
        return [target for target in self.targets if self.lacks(target)]

    def own(self, worker: str, tier: Tier) -> frozenset[int]:
        """Return what a worker can read from a tier of its own machine."""
        return self._node_tiers.get((node_of(worker), tier), frozenset())

    def tier_with(self, worker: str, blob: int) -> Tier | None:
        """Return the tier behind which a worker has a blob for others; None: behind none."""
        tiers = self.behind.get(worker, {})
        return next((tier for tier in Tier if blob in tiers.get(tier, frozenset())), None)

    def holdings(self, worker: str) -> frozenset[int]:
        """Return all that a worker can give: what is resident and what it can read."""
        return self.resident.get(worker, frozenset()).union(*self.behind.get(worker, {}).values())

    # Links.

    def path(self, source: str, target: str) -> Path | None:
        """Return the fastest way from one worker to another; None: they share no network."""
        nodes = (node_of(source), node_of(target))
        if nodes not in self._paths:
            self._paths[nodes] = self._fastest(*nodes)
        return self._paths[nodes]

    def _fastest(self, source: str, target: str) -> Path | None:
        if source == target:
            return Path("", self.links.local_bytes_per_s)
        there = self._networks.get(target, {})
        best: Path | None = None
        for network, port in sorted(self._networks.get(source, {}).items()):
            if network in there:
                rate = min(usable_tx(port), there[network].rx_bytes_per_s)
                if rate > (best.bytes_per_s if best else 0.0):
                    best = Path(network, rate)
        return best

    def rate(self, source: str, target: str) -> float:
        """Return what the fastest way between two workers gives at most; 0: there is none."""
        path = self.path(source, target)
        return path.bytes_per_s if path else 0.0

    def near(self, one: str, other: str) -> int:
        """Return how near two workers are: 2 on one node, 1 in one zone, else 0."""
        a, b = node_of(one), node_of(other)
        if a == b:
            return 2
        zone = self.links.zones.get(a, "")
        return 1 if zone and zone == self.links.zones.get(b, "") else 0

    def speed(self, worker: str) -> float:
        """Return at what rate a worker could relay over its best network, in bytes per second."""
        ports = self._networks.get(node_of(worker), {}).values()
        return max((min(usable_tx(port), port.rx_bytes_per_s) for port in ports), default=0.0)

    def busy(self, source: str, target: str) -> bool:
        """Return whether the port from which a source would send has requests to serve."""
        path = self.path(source, target)
        if path is None or node_of(source) == node_of(target):
            return False
        port = self.links.ports[node_of(source), path.network]
        return port.serving_tx_bytes_per_s > BUSY_SHARE * port.tx_bytes_per_s

    # Sources.

    def givers(self) -> list[str]:
        """Return all workers that have something to give and lack nothing themselves, by name.

        A target that still lacks blobs is none of them, though others may get from it what it has.
        """
        needy = set(self.needy())
        return sorted({*self.resident, *self.behind} - needy)

    def giving_rate(self, source: str, target: str) -> float:
        """Return how fast a source could give a target what it has, its own reads included."""
        rate = self.rate(source, target)
        missing = self.holdings(source) - self.resident.get(source, frozenset())
        if missing:
            tiers = self.behind[source]
            rate = min([rate, *(read_rate(self.links, node_of(source), tier) for tier in tiers)])
        return rate

    def ranked(self, sources: Sequence[str], target: str, wanted: Iterable[int]) -> list[str]:
        """Return the sources that reach a target and have something wanted, the best one first.

        Complete before partial, undisturbed before busy, fast before slow, near before far,
        resident before what is to be read.
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

        def preference(source: str) -> tuple[bool, bool, bool, int, bool, float, str]:
            return (
                avoid and self.busy(source, target),
                len(self.holdings(source) & blobs) < most,
                rates[source] < SAME_RATE * fastest,
                -self.near(source, target),
                not blobs & self.resident.get(source, frozenset()),
                -rates[source],
                source,
            )

        return sorted(useful, key=preference)

    def sources(self) -> list[str]:
        """Return the givers worth using side by side, the best one first.

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

        def merit(source: str) -> tuple[int, bool, int, bool, str]:
            return (
                -self.size(self.holdings(source) & wanted),
                rates[source] < SAME_RATE * fastest,
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
