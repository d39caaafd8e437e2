"""What an owner asks of a view: who owns models, which instances they have, what is wished.

A view is new with every figure. What does not rest on figures is worked out when it is asked for,
once for all who see the same picture, and holds until something else has changed
(core/picture.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from blitzgw.core.membership import DEFINITIONS, MEMBERSHIP, Definitions
from blitzgw.core.picture import MEMBERS, MODELS, WISHES, Derived, Picture
from blitzgw.core.view import ClusterView, ScaleFacts, ScaleTerms, ScaleWish
from blitzgw.scaling.ownership import ELECTORATE, Electorate, draining, heirs, owner_of
from blitzgw.scaling.standing import PLACES_OF, Here, Standing
from blitzgw.scaling.survey import ModelDefinition, speaks

MAX_MODELS = 1024
"""That are looked after, by name: a node's memory must not depend on what others define."""


class Census:
    """Follows a view; `refresh` before anything else is asked."""

    def __init__(self, view: Callable[[], ClusterView]) -> None:
        self._told = view
        self.view = ClusterView("", {})

    def refresh(self) -> bool:
        """Look at the view; return whether more than figures has changed since the last time."""
        before, view = self.view.picture, self._told()
        if before.nodes and not view.picture.continues(before):
            view = ClusterView(view.local, view.nodes, before)
        self.view = view
        return not view.picture.resembles(before)

    # Models.

    def models(self) -> Sequence[str]:
        """Return the names of the models that living nodes define, the first `MAX_MODELS`."""
        return self.view.picture.recall(_ESTATES).models

    def terms(self, model: str, digest: str) -> ScaleTerms:
        """Return what is wanted of a model's scaling by whoever has defined it for longest."""
        oldest = self.view.oldest_definition(model, digest)
        return oldest.scaling if oldest is not None else ScaleTerms()

    def wishes(self) -> Sequence[ScaleWish]:
        """Return all wishes that nodes publish, those of dead nodes too.

        They are the same object for as long as there are no others.
        """
        return self.view.picture.recall(_WISHES)

    # Owners.

    def owned(self, boot: str) -> Sequence[str]:
        """Return the models that a node owns, by name."""
        estates = self.view.picture.recall(_ESTATES)
        if not estates.electorate.boots:
            return estates.models if boot == self.view.local else ()
        return estates.owned.get(boot, ())

    def heirs(self, model: str, n: int) -> Sequence[str]:
        """Return the owner of a model and those that would own it next."""
        return heirs(model, self.view, n)

    def owner(self, model: str) -> str:
        """Return the boot id of a model's owner."""
        return owner_of(model, self.view)

    def told(self, model: str) -> tuple[str, ScaleFacts] | None:
        """Return what a model's owner tells of it, and the owner's boot id."""
        boot = self.owner(model)
        node = self.view.nodes.get(boot)
        facts = node.scaling.get(model) if node is not None and node.living else None
        return (boot, facts) if facts is not None else None

    def living(self) -> Mapping[str, str]:
        """Return the names of the nodes that are believed to run, by boot id.

        They are the same object for as long as nobody comes or goes.
        """
        return self.view.picture.recall(MEMBERSHIP).living

    # Instances and devices.

    def standing(self, model: str) -> Standing:
        """Return what a model has."""
        return self.view.picture.recall(PLACES_OF).standing(model)

    def room(self, definition: ModelDefinition) -> frozenset[str]:
        """Return the workers that could have an instance: free ones, and those to be revived.

        Which of them is best is asked by operations (freedevices.py).
        """
        return self.view.picture.recall(PLACES_OF).room(definition).workers

    def next_kind(self, definition: ModelDefinition) -> str:
        """Return of which kind a device is that could be taken, empty where there is none."""
        return self.view.picture.recall(PLACES_OF).room(definition).kind

    def could_take(self, here: Here, size_bytes: int) -> bool:
        """Whether a model of that size could run where an instance is, were it gone."""
        node = self.view.nodes.get(here.boot)
        device = node.devices.get(here.facts.device) if node is not None else None
        if node is None or device is None or draining(node):
            return False
        return speaks(device) and device.memory_bytes >= size_bytes


class _Estates:
    """The models that are looked after, and who owns which."""

    __slots__ = ("definitions", "electorate", "models", "owned")

    def __init__(self, definitions: Definitions, electorate: Electorate) -> None:
        self.definitions, self.electorate = definitions, electorate
        self.models = definitions.names[:MAX_MODELS]
        self.owned: dict[str, list[str]] = {}
        for model in self.models:
            for owner in electorate.heirs(model)[:1]:
                self.owned.setdefault(owner, []).append(model)


def _estates(picture: Picture, former: _Estates | None, _stale: frozenset[str]) -> _Estates:
    found = picture.recall(DEFINITIONS), picture.recall(ELECTORATE)
    if former is not None and (former.definitions, former.electorate) == found:
        return former
    return _Estates(*found)


_ESTATES = Derived(MEMBERS | MODELS, _estates)


def _wishes(picture: Picture, _former: object, _stale: frozenset[str]) -> tuple[ScaleWish, ...]:
    return tuple(wish for node in picture.nodes.values() for wish in node.wishes.values())


_WISHES: Derived[tuple[ScaleWish, ...]] = Derived(WISHES, _wishes)
