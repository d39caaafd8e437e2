"""Which definition of a model's name holds in the cluster.

Every node that defines a name publishes the digest of its card and since when. Of several digests
the one that has been defined longest holds, by the clock of whoever defines it; equal times are
decided by the digest. All nodes see the same facts, so all decide alike, and a definition that
loses is served by nobody until the last node that defines the other one has gone.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.view import ClusterView, ModelFacts


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of a name that holds. `sources` are the boots that have it, sorted.

    `rivals` are the boots that define the name differently.
    """

    name: str
    digest: str
    layers: int
    since_s: int
    aliases: tuple[str, ...]
    sources: tuple[str, ...]
    rivals: tuple[str, ...] = ()


def settle(view: ClusterView) -> dict[str, Definition]:
    """Return the definition of each name that living nodes define, by name."""
    offers: dict[str, dict[str, list[tuple[str, ModelFacts]]]] = {}
    for node in view.living():
        for facts in node.models.values():
            offers.setdefault(facts.name, {}).setdefault(facts.digest, []).append(
                (node.boot, facts)
            )
    return {name: _choose(name, offers[name]) for name in sorted(offers)}


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
