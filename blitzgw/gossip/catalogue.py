"""Which definition of a model's name holds in the cluster.

Every node that defines a name publishes the digest of its card and since when. Of several digests
the one that has been defined longest holds, by the clock of whoever defines it; equal times are
decided by the digest. All nodes see the same facts, so all decide alike, and a definition that
loses is served by nobody until the last node that defines the other one has gone.

A node that comes to define what others define already does so since they do (`first_since`): else
a definition would grow young while its nodes are restarted one by one, and lose to a rival.

What nobody defines any more is kept for KEPT_S, unless somebody defines its name differently:

    held ── its last node has gone ──► kept ── KEPT_S ──► unknown
      ▲                                 │
      └── some node defines the name ───┘
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from blitzgw.core.view import ClusterView, ModelFacts

KEPT_S = 120.0
"""How long a definition outlives the last node that has it: a restart with the loading of a large
model, and longer than a request is held (hold_timeout_s, 60 s unless configured otherwise). More
lets names linger that were taken away on purpose."""

MAX_KEPT = 256
"""Most definitions kept at once; more is a member that makes names up."""


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of a name that holds. `sources` are the boots that have it, sorted.

    `rivals` are the boots that define the name differently. One that is kept has neither.
    """

    name: str
    digest: str
    layers: int
    since_s: int
    aliases: tuple[str, ...]
    sources: tuple[str, ...]
    rivals: tuple[str, ...] = ()


class Catalogue:
    """The definitions that hold, those included that are kept. Times are seconds of one clock."""

    def __init__(self, kept: Iterable[Definition] = (), now: float = 0.0) -> None:
        """Begin with definitions that are kept from now on."""
        self._held = {definition.name: definition for definition in kept}
        self._ends_s = dict.fromkeys(self._held, now + KEPT_S)

    def settle(self, view: ClusterView, now: float) -> dict[str, Definition]:
        """Return the definition of each name that holds or is kept, by name."""
        living = settle(view)
        for name in self._held.keys() - living.keys():
            self._ends_s.setdefault(name, now + KEPT_S)
        ends = [(end_s, name) for name, end_s in self._ends_s.items() if name not in living]
        latest = sorted(entry for entry in ends if now < entry[0])[-MAX_KEPT:]
        self._ends_s = {name: end_s for end_s, name in latest}
        kept = {name: replace(self._held[name], sources=(), rivals=()) for name in self._ends_s}
        held = living | kept
        self._held = {name: held[name] for name in sorted(held)}
        return dict(self._held)

    @property
    def due_s(self) -> float | None:
        """When the next definition is kept no more; None where none is kept."""
        return min(self._ends_s.values(), default=None)


def settle(view: ClusterView) -> dict[str, Definition]:
    """Return the definition of each name that living nodes define, by name."""
    offers: dict[str, dict[str, list[tuple[str, ModelFacts]]]] = {}
    for node in view.living():
        for name, facts in node.models.items():
            if name == facts.name:  # else it is an entry that contradicts itself
                offers.setdefault(name, {}).setdefault(facts.digest, []).append((node.boot, facts))
    return {name: _choose(name, offers[name]) for name in sorted(offers)}


def first_since(view: ClusterView, name: str, digest: str) -> int | None:
    """Return since when other living nodes define a name like this; None where none does."""
    found = [
        node.models[name].since_s
        for node in view.living()
        if node.boot != view.local and name in node.models and node.models[name].digest == digest
    ]
    return min(found, default=None)


def _choose(name: str, digests: dict[str, list[tuple[str, ModelFacts]]]) -> Definition:
    def age(digest: str) -> tuple[int, str]:
        return min(facts.since_s for _, facts in digests[digest]), digest

    digest = min(digests, key=age)
    sources = sorted(boot for boot, _ in digests[digest])
    aliases = sorted({alias for _, facts in digests[digest] for alias in facts.aliases})
    rivals = [boot for other in digests if other != digest for boot, _ in digests[other]]
    return Definition(
        name=name,
        digest=digest,
        layers=digests[digest][0][1].layers,
        since_s=age(digest)[0],
        aliases=tuple(aliases),
        sources=tuple(sources),
        rivals=tuple(sorted(rivals)),
    )
