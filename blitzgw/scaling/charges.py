"""Which models are in an owner's charge, and what is heard of them and of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from blitzgw.core.scale import Demand
from blitzgw.scaling.census import MAX_MODELS, Census
from blitzgw.scaling.charge import OWNER_SETTLE_S, Charge
from blitzgw.scaling.monitor import Monitor
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.scaling.tellings import STALE_S

MAX_SENDERS = 8192
"""Nodes that tell of demand: more than one gossip has members."""

DEFINE_PAUSE_S = 1.0
"""Between two looks for what is not defined yet: cards arrive unannounced."""


class Charges:
    """The charges of the process `boot`, by model. Iterating yields them."""

    def __init__(
        self,
        boot: str,
        census: Census,
        define: Callable[[str], ModelDefinition | None],
        unix_time: Callable[[], float],
    ) -> None:
        self._boot, self._census, self._define = boot, census, define
        self._unix_time = unix_time
        self._ours: dict[str, Charge] = {}
        self._models: Sequence[str] = ()
        self._overheard: dict[str, tuple[Monitor, float]] = {}
        self._senders: set[str] = set()
        self._living: Mapping[str, str] = {}
        self._unchecked: set[str] = set()
        """Senders since it was looked which of them live, by that book."""
        self._again_at: float | None = None

    def __iter__(self) -> Iterator[Charge]:
        return iter(self._ours.values())  # `follow` makes another book

    def get(self, model: str) -> Charge | None:
        """Return the charge of a model, None where it is not ours."""
        return self._ours.get(model)

    def definitions(self) -> list[ModelDefinition]:
        """Return all models of the cluster that are known here, ours or not."""
        found = (self._define(model) for model in self._models)
        return [definition for definition in found if definition is not None]

    def deadline(self) -> float | None:
        """Return when to look for definitions again; None: all are known."""
        return self._again_at

    def due(self, now: float) -> bool:
        """Whether it is time for that."""
        return self._again_at is not None and now >= self._again_at

    def follow(self, now: float) -> list[Charge]:
        """Follow the view: take charge of models, forget nodes; return what is ours no longer."""
        self._forget_dead(now)
        self._models = self._census.models()
        before, self._ours, unknown = self._ours, {}, False
        for model in self._census.owned(self._boot):
            definition = self._define(model)
            if definition is None:
                unknown = True
                continue
            self._ours[model] = self._take(definition, before.pop(model, None), now)
        for charge in before.values():
            self._overheard[charge.model] = charge.monitor, now
        self._again_at = now + DEFINE_PAUSE_S if unknown or self._overheard else None
        self._forget_overheard(now)
        return list(before.values())

    def hear(self, boot: str, demand: Demand, now: float) -> Charge | None:
        """Take a node's demand; return the charge of its model, if it is ours and this is news."""
        if boot not in self._senders and len(self._senders) >= MAX_SENDERS:
            return None
        charge = self._ours.get(demand.model)
        if charge is None:
            self._overhear(boot, demand, now)
            return None
        if demand.digest and demand.digest != charge.definition.digest:
            return None
        self._sent(boot)
        return charge if charge.monitor.take(boot, demand, now) else None

    def forget(self, boot: str, now: float) -> None:
        """Forget what a node has told."""
        self._senders.discard(boot)
        self._unchecked.discard(boot)
        for charge in self._ours.values():
            charge.monitor.forget(boot, now)
        for monitor, _ in self._overheard.values():
            monitor.forget(boot, now)

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert len(self._ours) <= MAX_MODELS, "too many models"
        assert len(self._senders) <= MAX_SENDERS, "too many senders"
        assert not self._ours.keys() & self._overheard.keys(), "ours, and only overheard"
        for model, charge in self._ours.items():
            assert model == charge.model, "a charge under another's name"
            charge.monitor.check_integrity()
            charge.reckoning.check_integrity()

    def _take(self, definition: ModelDefinition, known: Charge | None, now: float) -> Charge:
        """Return the charge of a model that is ours; one defined otherwise begins anew."""
        if known is not None and known.definition.digest == definition.digest:
            known.definition = definition
            return known
        overheard = self._overheard.pop(definition.name, None)
        monitor = overheard[0] if overheard is not None else Monitor(definition.name, now)
        charge = Charge(definition, monitor, now, self._unix_time(), now + OWNER_SETTLE_S)
        charge.look_soon(now, at_once=True)
        return charge

    def _overhear(self, boot: str, demand: Demand, now: float) -> None:
        """Keep what is told of a model that is not ours: its teller takes us for the owner."""
        known = self._overheard.get(demand.model)
        if known is None and (demand.model not in self._models or self._crowded()):
            return
        monitor = known[0] if known is not None else Monitor(demand.model, now)
        self._sent(boot)
        monitor.take(boot, demand, now)
        self._overheard[demand.model] = monitor, now
        if self._again_at is None:
            self._again_at = now + DEFINE_PAUSE_S

    def _crowded(self) -> bool:
        return len(self._overheard) >= MAX_MODELS

    def _forget_overheard(self, now: float) -> None:
        for model, (_, heard_s) in [*self._overheard.items()]:
            if now >= heard_s + STALE_S:
                del self._overheard[model]

    def _sent(self, boot: str) -> None:
        if boot not in self._senders:
            self._senders.add(boot)
            self._unchecked.add(boot)

    def _forget_dead(self, now: float) -> None:
        living = self._census.living()
        doubtful = self._unchecked if living is self._living else self._senders
        for boot in [boot for boot in doubtful if boot not in living]:
            self.forget(boot, now)
        self._living, self._unchecked = living, set()
