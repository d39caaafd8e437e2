"""What a model has: its instances by state, and the devices that it could have besides.

As nodes say, members only (survey.py). Both are kept for as long as no node says anything new of
its devices, so that an owner looks at the instances of its models and not at all nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from blitzgw.core.instance import InstanceState
from blitzgw.core.membership import MEMBERSHIP
from blitzgw.core.picture import MEMBERS, PLACES, Derived, Picture
from blitzgw.core.view import ClusterView, InstanceFacts, LoadFacts, NodeView
from blitzgw.scaling.ownership import draining
from blitzgw.scaling.residents import NONE, RESIDENTS
from blitzgw.scaling.survey import COUNTED, ModelDefinition
from blitzgw.scaling.vacancies import free_on

REVIVABLE = (InstanceState.DRAINING, InstanceState.KEPT)
"""States of instances that can be had again at no cost."""


@dataclass(frozen=True, slots=True)
class Here:
    """An instance of a model, and where it is. `device` says of which kind its device is."""

    worker: str
    boot: str
    facts: InstanceFacts
    device: str


def _kind(node: NodeView, device: str) -> str:
    facts = node.devices.get(device)
    return f"{facts.kind} {facts.name}" if facts is not None else ""


@dataclass(slots=True)
class Standing:
    """What a model has, by state: `counted` are those it is said to have."""

    counted: list[Here] = field(default_factory=list)
    serving: int = 0
    leaving: list[Here] = field(default_factory=list)
    """Those that drain or are kept on nodes that stay."""
    working: list[Here] = field(default_factory=list)
    """Those that serve or drain, and so have loads."""
    incomplete: list[Here] = field(default_factory=list)
    """Those that load."""

    def add(self, here: Here, *, stays: bool) -> None:
        """Count an instance; `stays`: its node does."""
        state = here.facts.state
        if state in COUNTED:
            self.counted.append(here)
        if state is InstanceState.SERVING:
            self.serving += 1
        if state is InstanceState.LOADING:
            self.incomplete.append(here)
        if state in (InstanceState.SERVING, InstanceState.DRAINING):
            self.working.append(here)
        if stays and state in REVIVABLE:
            self.leaving.append(here)

    def revivable(
        self, definition: ModelDefinition, states: tuple[InstanceState, ...] = REVIVABLE
    ) -> set[str]:
        """Return the workers where an instance of just this definition is in one of the states."""
        same = definition.digest, definition.weights
        return {
            here.worker
            for here in self.leaving
            if here.facts.state in states and (here.facts.digest, here.facts.weights) == same
        }

    def devices(self) -> dict[str, str]:
        """Return the kind of device of each instance that works, by id."""
        return {here.facts.id: here.device for here in self.working}

    def loading(self, view: ClusterView) -> list[InstanceFacts]:
        """Return those that load, as a view has them."""
        found = []
        for here in self.incomplete:
            node = view.nodes.get(here.boot)
            found.append((node and node.instances.get(here.facts.id)) or here.facts)
        return found

    def loads(self, view: ClusterView) -> list[LoadFacts]:
        """Return the loads of those that work, as a view has them."""
        found = []
        for here in self.working:
            node = view.nodes.get(here.boot)
            load = node.loads.get(here.facts.id) if node is not None else None
            if load is not None:
                found.append(load)
        return found


NOTHING = Standing()
"""What a model has of which no node has an instance."""


@dataclass(frozen=True, slots=True)
class Room:
    """Where an instance of a model could be: workers; and of which kind a free device is."""

    workers: frozenset[str]
    kind: str


class Places:
    """The devices of all members, and what is on them. `free` are those of each node, by boot id.

    `fits` and `standings` are known already: the workers with room for so many bytes; and what a
    model has, with the nodes that had it when that was worked out.
    """

    __slots__ = (
        "_fits",
        "_free",
        "_frees",
        "_membership",
        "_nodes",
        "_residents",
        "_rooms",
        "_standings",
    )

    def __init__(
        self,
        picture: Picture,
        free: dict[str, FreeHere],
        fits: dict[int, frozenset[str]],
        standings: dict[str, _Known],
    ) -> None:
        self._nodes = picture.nodes
        self._membership = picture.recall(MEMBERSHIP)
        self._residents = picture.recall(RESIDENTS)
        self._free, self._fits, self._standings = free, fits, standings
        self._frees: dict[int, Room] = {}
        self._rooms: dict[str, tuple[ModelDefinition, Room]] = {}

    def standing(self, model: str) -> Standing:
        """Return what a model has: the same object until that changes. Leave it as it is."""
        known = self._standings.get(model)
        if known is None:
            having = self._residents.boots.get(model, NONE)
            if not having:
                return NOTHING
            known = self._standings[model] = having, self._count(model, having)
        return known[1]

    def _count(self, model: str, having: Collection[str]) -> Standing:
        standing, ranks = Standing(), self._membership.ranks
        for boot in sorted((boot for boot in having if boot in ranks), key=ranks.__getitem__):
            node = self._nodes[boot]
            stays = not draining(node)
            for _, facts in sorted(node.instances.items()):
                if facts.model == model:
                    worker = f"{node.name}/{facts.device}"
                    here = Here(worker, boot, facts, _kind(node, facts.device))
                    standing.add(here, stays=stays)
        return standing

    def room(self, definition: ModelDefinition) -> Room:
        """Return where an instance could be: on free devices, and on those to be revived."""
        known = self._rooms.get(definition.name)
        if known is None or (known[0] is not definition and known[0] != definition):
            known = definition, self._room(definition)
            self._rooms[definition.name] = known
        return known[1]

    def _room(self, definition: ModelDefinition) -> Room:
        size = definition.size_bytes
        free = self._frees.get(size)
        if free is None:
            free = self._frees[size] = self._free_for(size)
        revivable = self.standing(definition.name).revivable(definition)
        return Room(free.workers | revivable, free.kind) if revivable else free

    def _free_for(self, size_bytes: int) -> Room:
        """Return the free devices that have room for so much: the same ones for most models."""
        fits = self._fits.get(size_bytes)
        if fits is None:
            fits = self._fits[size_bytes] = _fitting(self._free.values(), size_bytes)
        kind = ""
        if fits:
            name, _, device = min(fits).partition("/")
            boot = self._membership.named.get(name)  # a peer's name may be anything
            kind = _kind(self._nodes[boot], device) if boot is not None else ""
        return Room(fits, kind)

    def after(self, picture: Picture, stale: frozenset[str]) -> Places:
        """Return the devices as they are when these nodes have changed."""
        membership, boots = picture.recall(MEMBERSHIP), picture.recall(RESIDENTS).boots
        standings: dict[str, _Known] = {}
        if membership is self._membership:
            known = self._standings.items()
            standings = {model: each for model, each in known if boots.get(model) is each[0]}
        else:
            stale |= self._membership.ranks.keys() ^ membership.ranks.keys()
        free, before = {**self._free}, []
        for boot in stale:
            before.append(free.pop(boot, ()))
            found = _free_here(picture.nodes[boot]) if boot in membership.ranks else ()
            if found:
                free[boot] = found
        now = [free[boot] for boot in stale if boot in free]
        fits = {
            size: (workers - _fitting(before, 0)) | _fitting(now, size)
            for size, workers in self._fits.items()
        }
        return Places(picture, free, fits, standings)


FreeHere = tuple[tuple[str, int], ...]
"""The free devices of a node: worker, memory in bytes."""

_Known = tuple[Collection[str], Standing]


def _free_here(node: NodeView) -> FreeHere:
    if draining(node):
        return ()
    return tuple((f"{node.name}/{device.id}", device.memory_bytes) for device in free_on(node, 0))


def _fitting(free: Iterable[FreeHere], size_bytes: int) -> frozenset[str]:
    """Return which of these devices have room for so much."""
    return frozenset(worker for each in free for worker, room in each if room >= size_bytes)


def _places(picture: Picture, former: Places | None, stale: frozenset[str]) -> Places:
    if former is not None:
        return former.after(picture, stale)
    ranks = picture.recall(MEMBERSHIP).ranks
    found = {boot: _free_here(picture.nodes[boot]) for boot in ranks}
    return Places(picture, {boot: free for boot, free in found.items() if free}, {}, {})


PLACES_OF = Derived(MEMBERS | PLACES, _places)
"""All devices."""
