"""One picture of the cluster for all who look at it, and what follows from it, worked out once.

    Picture ── after(changes) ──► Picture ── after(changes) ──► Picture
       │                             │                             │
    Derived: living nodes, owners, instances by model …: carried on, or brought up to date

Nearly all changes are figures: loads, how much of an instance is there. What rests on something
else is kept through them; what has to follow a change looks only at the nodes that have changed.
So the cost of a look grows with what is new, not with the nodes that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from blitzgw.core.view import InstanceFacts, NodeView

T = TypeVar("T")

MEMBERS, MODELS, PLACES, WISHES, FIGURES = 1, 2, 4, 8, 16
"""What of a node can change, one bit each: whether it is there, lives, drains, its name and
address; its definitions; its devices and instances; its wishes; anything at all."""

STRUCTURE = MEMBERS | MODELS | PLACES | WISHES
"""All but figures."""

MAX_STALE, STALE_SHARE = 64, 1 / 8
"""Nodes that something carried on may have to catch up with, or this part of all of them if that is
more: with more still it is made anew."""

NOTHING: frozenset[str] = frozenset()


class Picture:
    """What is known of each node, by boot id, at one moment. Immutable; share it.

    `former` is the picture that it follows, if there is one: what differs between the two is found
    by comparing nodes (a node that is the same object has not changed).
    """

    __slots__ = ("_book", "_kept", "_line", "_passing", "nodes")

    def __init__(
        self, nodes: Mapping[str, NodeView] = MappingProxyType({}), former: Picture | None = None
    ) -> None:
        self.nodes = nodes
        self._book: dict[str, NodeView] | None = None
        self._line: object = object() if former is None else former._line
        self._passing: dict[Derived[Any], tuple[Any, frozenset[str]]] = {}
        self._kept: dict[Derived[Any], tuple[Any, frozenset[str]]] = {}
        if former is not None and former.nodes:
            self._carry_on(former, _differing(former.nodes, nodes))

    def after(self, changes: Mapping[str, NodeView | None]) -> Picture:
        """Return the picture with these nodes as they are now; None: forgotten."""
        nodes = dict(self.nodes) if self._book is None else self._book.copy()
        for boot, node in changes.items():
            if node is None:
                nodes.pop(boot, None)
            else:
                nodes[boot] = node
        made = Picture(MappingProxyType(nodes))
        made._book = nodes  # which is copied much more quickly than what keeps others from writing
        made._line = self._line
        made._carry_on(self, changes)
        return made

    def continues(self, other: Picture) -> bool:
        """Whether both come from one picture, by changes."""
        return self._line is other._line

    def resembles(self, other: Picture) -> bool:
        """Whether nothing but figures has changed between two of which one came from the other."""
        return self._kept is other._kept

    def _carry_on(self, former: Picture, boots: Iterable[str]) -> None:
        """Keep what has been worked out of a former picture, of which these nodes have changed."""
        before, after = former.nodes, self.nodes
        boots, most = [*boots], max(MAX_STALE, int(STALE_SHARE * len(self.nodes)))
        for derived, known in former._passing.items():
            stale = known[1].union(boots)
            if len(stale) <= most:
                self._passing[derived] = known[0], stale
        changed: dict[str, int] = {}
        aspects = 0
        for boot in boots:
            what = what_changed(before.get(boot), after.get(boot))
            if what:
                changed[boot] = what
                aspects |= what
        if not changed:
            self._kept = former._kept  # one for both: what is worked out of either holds for both
            return
        for derived, known in former._kept.items():
            if not aspects & derived.aspects:
                self._kept[derived] = known
                continue
            late = [boot for boot, what in changed.items() if what & derived.aspects]
            stale = known[1].union(late)
            if len(stale) <= most:
                self._kept[derived] = known[0], stale

    def recall(self, derived: Derived[T]) -> T:
        """Return what follows from this picture."""
        book = self._passing if derived.aspects & FIGURES else self._kept
        known = book.get(derived)
        if known is not None and not known[1]:
            return cast("T", known[0])
        former, stale = known or (None, NOTHING)
        value = derived.make(self, former, stale)
        book[derived] = value, NOTHING
        return value


class Derived(Generic[T]):
    """Something that follows from a picture, and rests on some `aspects` of nodes only.

    `make(picture, former, stale)` works it out: anew where `former` is None, else from what it was
    before these nodes changed in one of the aspects. It must leave `former` as it is. What rests on
    `FIGURES` has to catch up with every node that is another object.
    """

    __slots__ = ("aspects", "make")

    def __init__(
        self, aspects: int, make: Callable[[Picture, T | None, frozenset[str]], T]
    ) -> None:
        self.aspects, self.make = aspects, make


def what_changed(before: NodeView | None, after: NodeView | None) -> int:
    """Return what of a node is different, but for figures: aspects, or'ed."""
    if before is after:
        return 0
    if before is None or after is None:
        return STRUCTURE
    found = 0 if _same_member(before, after) else MEMBERS
    if before.models is not after.models and before.models != after.models:
        found |= MODELS
    if before.wishes is not after.wishes and before.wishes != after.wishes:
        found |= WISHES
    if _places_differ(before, after):
        found |= PLACES
    return found


def _same_member(before: NodeView, after: NodeView) -> bool:
    return (
        (before.facts is after.facts or before.facts == after.facts)
        and (before.status is after.status or before.living == after.living)
        and before.name == after.name
        and before.host == after.host
        and before.port == after.port
        and before.started_s == after.started_s
    )


def _places_differ(before: NodeView, after: NodeView) -> bool:
    if before.devices is not after.devices and before.devices != after.devices:
        return True
    if before.instances is after.instances:
        return False
    return _shapes(before.instances) != _shapes(after.instances)


def _shapes(instances: Mapping[str, InstanceFacts]) -> dict[str, tuple[object, ...]]:
    """Return of instances what is no figure: not how much of them is there."""
    return {
        name: (facts.model, facts.digest, facts.device, facts.claim, facts.state, facts.weights)
        for name, facts in instances.items()
    }


def _differing(before: Mapping[str, NodeView], after: Mapping[str, NodeView]) -> list[str]:
    """Return the nodes that are other objects in one than in the other, or in one only."""
    if before is after:
        return []
    found = [boot for boot, node in after.items() if before.get(boot) is not node]
    return found + [boot for boot in before if boot not in after]
