"""What operators wish: a register of models, the last one given holds, passed on by its heirs.

A wish outlives who wrote it: the nodes that would own the model next publish the newest one that
they see, each on its own, so that it is lost only with all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from blitzgw.core.scale import AUTOMATIC
from blitzgw.core.view import ScaleWish
from blitzgw.scaling.census import MAX_MODELS
from blitzgw.scaling.ownership import MAX_HEIRS

HEIRS = MAX_HEIRS
"""Nodes that publish a wish: the owner and the next two, so that it survives two deaths at once."""

MAX_WANTED = 4096
"""Instances of a model (operations.py, MAX_INSTANCES): a wish for more is a mistake."""

MAX_STAMP = 1 << 53
"""A stamp beyond is nobody's count: it would keep operators from ever being newer."""


def newer(wish: ScaleWish, than: ScaleWish | None) -> bool:
    """Whether a wish holds in place of another; the same everywhere, whatever comes first."""
    return than is None or _rank(wish) > _rank(than)


def _rank(wish: ScaleWish) -> tuple[int, str, int]:
    return wish.stamp, wish.writer, wish.wanted


class Wishes:
    """The newest wish of each model, `MAX_MODELS` at most, and what this node has published."""

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._newest: dict[str, ScaleWish] = {}
        self._published: dict[str, ScaleWish] = {}

    def learn(self, told: Iterable[ScaleWish]) -> list[str]:
        """Take what nodes publish; return the models of which there is a newer wish."""
        changed = []
        for wish in told:
            known = self._newest.get(wish.model)
            if not _sound(wish) or not newer(wish, known):
                continue
            if known is None and len(self._newest) >= MAX_MODELS:
                continue
            self._newest[wish.model] = wish
            changed.append(wish.model)
        return changed

    def of(self, model: str) -> ScaleWish | None:
        """Return the newest wish of a model."""
        return self._newest.get(model)

    def wanted(self, model: str) -> int:
        """Return how many instances an operator wants, `AUTOMATIC` where that is left to policy."""
        wish = self._newest.get(model)
        return wish.wanted if wish is not None else AUTOMATIC

    def give(self, model: str, wanted: int) -> ScaleWish | None:
        """Take a wish in place of all before it; None where it cannot be one. Publish it."""
        known = self._newest.get(model)
        stamp = known.stamp + 1 if known is not None else 1
        wish = ScaleWish(model, wanted, stamp, self._boot)
        if not _sound(wish) or (known is None and len(self._newest) >= MAX_MODELS):
            return None
        self._newest[model] = self._published[model] = wish
        return wish

    def to_pass_on(self, heirs: Callable[[str], Collection[str]]) -> list[ScaleWish]:
        """Return the wishes that this node has to publish now, being among a model's `heirs`."""
        due = [
            wish
            for model, wish in self._newest.items()
            if self._published.get(model) != wish and self._boot in heirs(model)
        ]
        self._published.update((wish.model, wish) for wish in due)
        return due

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert len(self._newest) <= MAX_MODELS, "more wishes than models"
        for model, wish in self._published.items():
            assert wish.model == model, "a wish under another model's name"
            newest = self._newest[model]
            assert not newer(wish, newest), "published what is newer than the newest"


def _sound(wish: ScaleWish) -> bool:
    """Whether a wish is one: what nodes publish are their own words."""
    return AUTOMATIC <= wish.wanted <= MAX_WANTED and 0 < wish.stamp <= MAX_STAMP
