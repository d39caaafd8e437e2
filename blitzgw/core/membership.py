"""What follows from a picture of the cluster by itself: who lives, who is who, what is defined."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blitzgw.core.picture import FIGURES, MEMBERS, MODELS, Derived, Picture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blitzgw.core.view import ModelFacts, NodeView


@dataclass(frozen=True, slots=True)
class Membership:
    """The nodes that are believed to run.

    `living` are their names, by boot id, in the order of the picture, where one that had been
    forgotten may stand where it stood before; `sharing` the boot ids of
    each name, `namesakes` of those that several have, who are distinct, the eldest first. `named`
    are those whose facts are known and whose name is theirs alone: boot ids by name, sorted;
    `ranks` says of these where in the order of the picture they stand, by boot id.
    """

    living: dict[str, str] = field(default_factory=dict)
    sharing: dict[str, tuple[str, ...]] = field(default_factory=dict)
    namesakes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)


def _membership(picture: Picture, former: Membership | None, stale: frozenset[str]) -> Membership:
    nodes = picture.nodes
    if former is None:
        former, stale = Membership(), frozenset(nodes)
    here = {boot: nodes[boot].name for boot in stale if boot in nodes and nodes[boot].living}
    living = _follow_living(nodes, former.living, stale, here)
    touched = {*here.values()} | {former.living[boot] for boot in stale if boot in former.living}
    sharing, namesakes, named = {**former.sharing}, {**former.namesakes}, {**former.named}
    for name, boots in _sharing(touched, living, former.sharing, here).items():
        for book in (sharing, namesakes):
            book.pop(name, None)
        distinct = _distinct([nodes[boot] for boot in boots])
        known = [boot for boot in boots if nodes[boot].facts is not None]
        if boots:
            sharing[name] = boots
        if len(distinct) > 1:
            namesakes[name] = distinct
        if known and len(distinct) == 1:
            named[name] = known[-1]
        else:
            named.pop(name, None)
    if named.keys() != former.named.keys():
        named = {name: named[name] for name in sorted(named)}
    return Membership(living, sharing, namesakes, named, _ranks(living, named, former))


def _follow_living(
    nodes: Mapping[str, NodeView],
    before: dict[str, str],
    stale: frozenset[str],
    here: dict[str, str],
) -> dict[str, str]:
    """Return who lives, in the order of `nodes`, when of the `stale` ones these do."""
    if here.keys() <= before.keys():  # nobody new: the order is as it was
        after = {**before, **here}
        for boot in stale - here.keys():
            after.pop(boot, None)
        return after
    others = before.keys() - stale
    return {
        boot: here[boot] if boot in here else before[boot]
        for boot in nodes
        if boot in here or boot in others
    }


def _sharing(
    touched: set[str],
    living: dict[str, str],
    before: dict[str, tuple[str, ...]],
    here: dict[str, str],
) -> dict[str, tuple[str, ...]]:
    """Return who has each of these names, in the order of the living."""
    found: dict[str, set[str]] = {name: {*before.get(name, ())} for name in touched}
    for boot, name in here.items():
        found[name].add(boot)
    shared = {name: [b for b in boots if living.get(b) == name] for name, boots in found.items()}
    if any(len(boots) > 1 for boots in shared.values()):
        order = {boot: number for number, boot in enumerate(living)}
        for boots in shared.values():
            boots.sort(key=order.__getitem__)
    return {name: tuple(boots) for name, boots in shared.items()}


def _ranks(living: dict[str, str], named: dict[str, str], former: Membership) -> dict[str, int]:
    members, ranks = {*named.values()}, former.ranks
    if members <= ranks.keys():
        return {boot: rank for boot, rank in ranks.items() if boot in members}
    return {boot: rank for rank, boot in enumerate(living) if boot in members}


def _distinct(nodes: list[NodeView]) -> tuple[str, ...]:
    """Return the youngest of nodes at each address, the eldest first."""
    if len(nodes) == 1:
        return (nodes[0].boot,)
    found: dict[tuple[str, int], str] = {}
    for node in sorted(nodes, key=lambda node: (node.started_s, node.boot)):
        found.pop((node.host, node.port), None)
        found[node.host, node.port] = node.boot
    return tuple(found.values())


MEMBERSHIP = Derived(MEMBERS, _membership)
"""Who is there."""


def _living(picture: Picture, _former: object, _stale: frozenset[str]) -> tuple[NodeView, ...]:
    nodes = picture.nodes
    return tuple(nodes[boot] for boot in picture.recall(MEMBERSHIP).living)


LIVING: Derived[tuple[NodeView, ...]] = Derived(MEMBERS | FIGURES, _living)
"""The nodes that are believed to run."""


@dataclass(slots=True, eq=False)
class Definitions:
    """What living nodes define; of what several do, what the one says that has had it longest."""

    _told: dict[str, Mapping[str, ModelFacts]] = field(default_factory=dict)
    _oldest: dict[tuple[str, str], tuple[int, str, ModelFacts]] = field(default_factory=dict)
    _names: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        if self._names is None:
            self._names = tuple(sorted({name for name, _ in self._oldest}))
        return self._names

    def oldest(self, name: str, digest: str) -> ModelFacts | None:
        """Return what is said of a definition by whoever has had it for longest."""
        found = self._oldest.get((name, digest))
        return found[2] if found is not None else None

    def after(self, news: Mapping[str, Mapping[str, ModelFacts]]) -> Definitions:
        """Return what is defined when these nodes define that, and nothing else."""
        made = Definitions({**self._told}, {**self._oldest})
        lost: set[tuple[str, str]] = set()
        for boot, models in news.items():
            for facts in made._told.pop(boot, {}).values():
                key = facts.name, facts.digest
                if self._oldest.get(key, (0, ""))[1] == boot:
                    lost.add(key)
            if models:
                made._told[boot] = models
        for key in lost:
            made._oldest.pop(key, None)
        for boot, models in (made._told if lost else news).items():
            made._count(boot, models)
        return made

    def _count(self, boot: str, models: Mapping[str, ModelFacts]) -> None:
        for facts in models.values():
            key = facts.name, facts.digest
            known = self._oldest.get(key)
            if known is None or (facts.since_s, boot) < known[:2]:
                self._oldest[key] = facts.since_s, boot, facts


def _definitions(
    picture: Picture, former: Definitions | None, stale: frozenset[str]
) -> Definitions:
    nodes = picture.nodes
    found = former or Definitions()
    news: dict[str, Mapping[str, ModelFacts]] = {}
    for boot in stale if former is not None else nodes:
        node = nodes.get(boot)
        models = node.models if node is not None and node.living else {}
        if models != found._told.get(boot, {}):
            news[boot] = models
    return found.after(news) if news else found


DEFINITIONS = Derived(MEMBERS | MODELS, _definitions)
"""What living nodes define."""
