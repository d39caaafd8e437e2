"""What a view says of models that changes seldom: who owns them, which instances they have.

A view is new with every figure; nodes that have not changed are the same objects in it. What is
computed here holds until something other than figures has changed, each part for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum

from blitzgw.core.view import (
    ClusterView,
    InstanceFacts,
    ModelFacts,
    NodeView,
    ScaleFacts,
    ScaleTerms,
    ScaleWish,
)
from blitzgw.scaling.ownership import draining, eligible, first_of
from blitzgw.scaling.standing import Here, Place, Standing, place_of
from blitzgw.scaling.survey import ModelDefinition, members, speaks

MAX_MODELS = 1024
"""That are looked after, by name: a node's memory must not depend on what others define."""

MAX_HEIRS = 3
"""That are ever asked for."""


class Aspect(Enum):
    """What of a node has changed."""

    MEMBER = 1
    """Whether it is there, lives, drains; its name."""
    MODELS = 2
    PLACES = 3
    """Its devices and instances."""
    WISHES = 4


class Census:
    """Follows a view; `refresh` before anything else is asked."""

    def __init__(self, view: Callable[[], ClusterView]) -> None:
        self._told = view
        self.view = ClusterView("", {})
        self._members: frozenset[str] | None = None
        self._places: dict[str, Place] = {}
        self._standing: dict[str, Standing] | None = None
        self._free: dict[str, tuple[int, str]] = {}
        self._rooms: dict[ModelDefinition, tuple[frozenset[str], str]] = {}
        self._eligible: tuple[str, ...] | None = None
        self._electors: tuple[str, ...] = ()
        self._heirs: dict[str, tuple[str, ...]] = {}
        self._oldest: dict[tuple[str, str], ModelFacts] | None = None
        self._wishes: list[ScaleWish] | None = None

    def refresh(self) -> bool:
        """Look at the view; return whether more than figures has changed since the last time."""
        before, self.view = self.view.nodes, self._told()
        after = self.view.nodes
        if before is after:
            return False
        aspects: set[Aspect] = set()
        for boot, node in after.items():
            known = before.get(boot)
            if known is not node:
                changed = _changed(known, node)
                if not changed.isdisjoint((Aspect.MEMBER, Aspect.PLACES)):
                    self._places[boot] = place_of(node)
                aspects |= changed
        for boot in before.keys() - after.keys():
            self._places.pop(boot, None)
            aspects.add(Aspect.MEMBER)
        self._forget(aspects)
        return bool(aspects)

    def _forget(self, aspects: set[Aspect]) -> None:
        """Forget what follows from what has changed."""
        member = Aspect.MEMBER in aspects
        if member:
            self._members = self._eligible = None
        if member or Aspect.MODELS in aspects:
            self._oldest = None
        if member or Aspect.PLACES in aspects:
            self._standing = None
        if member or Aspect.WISHES in aspects:
            self._wishes = None

    # Models.

    def models(self) -> list[str]:
        """Return the names of the models that living nodes define, the first `MAX_MODELS`."""
        return sorted({name for name, _ in self._definitions()})[:MAX_MODELS]

    def terms(self, model: str, digest: str) -> ScaleTerms:
        """Return what is wanted of a model's scaling by whoever has defined it for longest."""
        oldest = self._definitions().get((model, digest))
        return oldest.scaling if oldest is not None else ScaleTerms()

    def _definitions(self) -> dict[tuple[str, str], ModelFacts]:
        if self._oldest is None:
            self._oldest = _oldest_definitions(self.view.living())
        return self._oldest

    def wishes(self) -> list[ScaleWish]:
        """Return all wishes that nodes publish, those of dead nodes too."""
        if self._wishes is None:
            nodes = self.view.nodes.values()
            self._wishes = [wish for node in nodes for wish in node.wishes.values()]
        return self._wishes

    # Owners.

    def heirs(self, model: str, n: int) -> Sequence[str]:
        """Return the owner of a model and those that would own it next, `MAX_HEIRS` at most."""
        if self._eligible is None:
            self._eligible = eligible(self.view)
            if self._eligible != self._electors:
                self._electors = self._eligible
                self._heirs.clear()
        found = self._heirs.get(model)
        if found is None:
            if len(self._heirs) >= MAX_MODELS:
                self._heirs.clear()
            found = tuple(first_of(model, self._eligible, MAX_HEIRS)) or (self.view.local,)
            self._heirs[model] = found
        return found[:n]

    def owner(self, model: str) -> str:
        """Return the boot id of a model's owner."""
        return self.heirs(model, 1)[0]

    def told(self, model: str) -> tuple[str, ScaleFacts] | None:
        """Return what a model's owner tells of it, and the owner's boot id."""
        boot = self.owner(model)
        node = self.view.nodes.get(boot)
        facts = node.scaling.get(model) if node is not None and node.living else None
        return (boot, facts) if facts is not None else None

    # Instances and devices.

    def standing(self, model: str) -> Standing:
        """Return what a model has."""
        return self._count().get(model) or Standing()

    def room(self, definition: ModelDefinition) -> frozenset[str]:
        """Return the workers that could have an instance: free ones, and those to be revived.

        Which of them is best is asked by operations (freedevices.py).
        """
        return self._room(definition)[0]

    def next_kind(self, definition: ModelDefinition) -> str:
        """Return of which kind a device is that could be taken, empty where there is none."""
        return self._room(definition)[1]

    def could_take(self, here: Here, size_bytes: int) -> bool:
        """Whether a model of that size could run where an instance is, were it gone."""
        node = self.view.nodes.get(here.boot)
        device = node.devices.get(here.facts.device) if node is not None else None
        if node is None or device is None or draining(node):
            return False
        return speaks(device) and device.memory_bytes >= size_bytes

    def _room(self, definition: ModelDefinition) -> tuple[frozenset[str], str]:
        standing = self._count().get(definition.name)
        found = self._rooms.get(definition)
        if found is None:
            size = definition.size_bytes
            free = {worker: kind for worker, (room, kind) in self._free.items() if room >= size}
            revivable = standing.revivable(definition) if standing is not None else set()
            kind = next(iter(free.values()), "")
            found = self._rooms[definition] = frozenset(revivable | free.keys()), kind
        return found

    def _count(self) -> dict[str, Standing]:
        if self._standing is not None:
            return self._standing
        if self._members is None:
            self._members = frozenset(node.boot for node in members(self.view).values())
        self._standing, self._free = {}, {}
        self._rooms.clear()
        for boot, place in self._places.items():
            if boot not in self._members:
                continue
            self._free.update(place.free)
            for here in place.instances:
                standing = self._standing.get(here.facts.model)
                if standing is None:
                    standing = self._standing[here.facts.model] = Standing()
                standing.add(here, stays=place.stays)
        return self._standing


def _oldest_definitions(nodes: Iterable[NodeView]) -> dict[tuple[str, str], ModelFacts]:
    """Return what `ClusterView.oldest_definition` would, of all definitions at once."""
    found: dict[tuple[str, str], tuple[int, str, ModelFacts]] = {}
    for node in nodes:
        for facts in node.models.values():
            key = facts.name, facts.digest
            known = found.get(key)
            if known is None or (facts.since_s, node.boot) < known[:2]:
                found[key] = facts.since_s, node.boot, facts
    return {key: facts for key, (_, _, facts) in found.items()}


def _changed(before: NodeView | None, after: NodeView) -> set[Aspect]:
    """Return what of a node is different, but for figures."""
    if before is None:
        return set(Aspect)
    found = set()
    if (before.status, before.name, before.facts) != (after.status, after.name, after.facts):
        found.add(Aspect.MEMBER)
    if before.models != after.models:
        found.add(Aspect.MODELS)
    if before.devices != after.devices or _shapes(before.instances) != _shapes(after.instances):
        found.add(Aspect.PLACES)
    if before.wishes != after.wishes:
        found.add(Aspect.WISHES)
    return found


def _shapes(instances: Mapping[str, InstanceFacts]) -> dict[str, tuple[object, ...]]:
    """Return of instances what is no figure: not how much of them is there."""
    return {
        name: (facts.model, facts.digest, facts.device, facts.claim, facts.state, facts.weights)
        for name, facts in instances.items()
    }
