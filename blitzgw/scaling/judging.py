"""What the owner thinks of one model at one moment: how many there will be, how many it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from blitzgw.core.instance import InstanceState
from blitzgw.core.scale import AUTOMATIC, ScaleMode
from blitzgw.core.view import ScaleTerms
from blitzgw.scaling.autoevents import Underway
from blitzgw.scaling.census import Census
from blitzgw.scaling.charge import COMING_TICK_S, Charge
from blitzgw.scaling.figures import Figures
from blitzgw.scaling.policy import Fleet, PolicyState, Verdict, decide
from blitzgw.scaling.reckoning import Outlook
from blitzgw.scaling.wishes import Wishes


@dataclass(slots=True)
class Judgement:
    """What is known and wanted of a model. `devices` could have an instance besides those present.

    `room` are the workers that could, by the view alone. `wish` is what an operator has
    said, `AUTOMATIC` where that leaves the number to the policy; None: nothing.
    """

    mode: ScaleMode
    wish: int | None
    terms: ScaleTerms
    outlook: Outlook
    room: frozenset[str]
    devices: int
    figures: Figures
    verdict: Verdict

    @property
    def decides(self) -> bool:
        """Whether there is a number to be kept, the policy's or an operator's."""
        return self.mode is not ScaleMode.MANUAL or self.fixed is not None

    @property
    def fixed(self) -> int | None:
        """How many an operator wants; None where that is left to the policy."""
        return None if self.wish == AUTOMATIC else self.wish

    @property
    def least(self) -> int:
        """How many there are to be in any case."""
        return max(0, self.terms.min_instances)

    @property
    def short(self) -> bool:
        """Whether it is devices that are lacking."""
        most = 0 if self.fixed is not None else self.terms.max_instances
        wanted = self.verdict.wanted
        capped = 0 < most <= wanted
        return self.verdict.needed > wanted and not capped and self.devices <= wanted - self.present

    @property
    def present(self) -> int:
        """How many there will be when all that runs is through."""
        return self.outlook.present


class Judge:
    """Judges models; `underway` returns the operations of one that this node owns."""

    def __init__(
        self,
        census: Census,
        wishes: Wishes,
        underway: Callable[[str, float], tuple[Underway, ...]],
    ) -> None:
        self._census, self._wishes, self._underway = census, wishes, underway

    def mode_of(self, charge: Charge, terms: ScaleTerms) -> tuple[ScaleMode, int | None]:
        """Return who decides, and what an operator has said; None: nothing."""
        wish = self._wishes.of(charge.model)
        if wish is None:
            return _mode(terms.mode), None
        if wish.wanted == AUTOMATIC:
            return ScaleMode.AUTO, AUTOMATIC
        return ScaleMode.MANUAL, wish.wanted

    def follow(self, charge: Charge, former: Judgement | None) -> bool:
        """Return whether what is new in the view may change a judgement.

        Most of it is about other models' instances: of these only who lacks devices wants to know.
        """
        definition, census = charge.definition, self._census
        before, charge.standing = charge.standing, census.standing(definition.name)
        if former is None or charge.standing is not before:
            return True
        terms = census.terms(definition.name, definition.digest)
        return former.verdict.needed > former.verdict.wanted or former.terms != terms

    def judge(self, charge: Charge, now: float) -> Judgement:
        """Look at a model. The charge's policy state stays as it is: take the verdict's."""
        definition, census = charge.definition, self._census
        terms = census.terms(definition.name, definition.digest)
        mode, wish = self.mode_of(charge, terms)
        if charge.mode is not mode:
            charge.mode, charge.state = mode, PolicyState()
        standing = census.standing(definition.name)
        self._show(charge, now)
        underway = self._underway(definition.name, now)
        outlook = charge.reckoning.outlook(standing, census.view, underway, now)
        room = census.room(definition)
        devices = 0 if now < charge.held_until else _left(room, outlook)
        figures = charge.monitor.figures(
            terms,
            outlook.serving,
            outlook.coming,
            now,
            census.next_kind(definition),
            charge.load_s,
        )
        figures.idle_s = _idle_s(figures, charge, outlook.serving, now)
        fleet = Fleet(
            serving=outlook.serving,
            draining=len(standing.revivable(definition, (InstanceState.DRAINING,))),
            kept=len(standing.revivable(definition, (InstanceState.KEPT,))),
            coming=outlook.coming,
            least=max(0, terms.min_instances),
            most=max(0, terms.max_instances),
            devices=devices,
            load_s=charge.load_s,
            fixed=None if wish == AUTOMATIC else wish,
        )
        verdict = _verdict(mode, figures, terms, fleet, charge, now)
        return Judgement(mode, wish, terms, outlook, room, devices, figures, verdict)

    def _show(self, charge: Charge, now: float) -> None:
        """Show the monitor what the view says of loads, which demands tell sooner."""
        if charge.viewed_s is None or now >= charge.viewed_s + COMING_TICK_S:
            charge.viewed_s = now
            standing = self._census.standing(charge.model)
            charge.monitor.look(standing.devices(), standing.loads(self._census.view), now)


def _idle_s(figures: Figures, charge: Charge, serving: int, now: float) -> float:
    """Return how long a model has idled, which it only does since it serves: for somebody.

    Whoever was told to come back while it loaded, longer than requests are held, comes then.
    """
    if not serving:
        charge.serves_since_s = None
        return figures.idle_s
    if charge.serves_since_s is None:
        charge.serves_since_s = now
    return min(figures.idle_s, now - charge.serves_since_s)


def _left(room: frozenset[str], outlook: Outlook) -> int:
    """Return how many devices are left when all that is coming has one."""
    taken = {each.instance.rpartition("@")[2] for each in outlook.coming}
    return max(0, len(room) - len(taken & room) - outlook.unclaimed)


_MODES: dict[str, ScaleMode] = {mode.value: mode for mode in ScaleMode}


def _mode(told: str) -> ScaleMode:
    """Return a mode as nodes tell it; of one that does not exist, that in which nothing is done."""
    return _MODES.get(told, ScaleMode.MANUAL)


def _verdict(
    mode: ScaleMode, figures: Figures, terms: ScaleTerms, fleet: Fleet, charge: Charge, now: float
) -> Verdict:
    """Return what the policy says, in the owner's words: it knows what was wanted before."""
    if mode is ScaleMode.MANUAL and fleet.fixed is None:
        reason = "an operator decides, and has not said how many"
        return Verdict(fleet.present, fleet.present, "hold", reason, PolicyState())
    verdict = decide(figures, terms, fleet, charge.state, now)
    if verdict.changes and fleet.fixed is not None:
        return replace(verdict, action="order" if charge.commanded else "mend")
    if verdict.action == "grow" and charge.aim is not None and verdict.wanted <= charge.aim:
        return replace(verdict, action="mend")
    return verdict
