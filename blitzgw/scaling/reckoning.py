"""What a model will have when all that runs is through, so that no need is answered twice.

    the view        instances that serve or load, up to a second late
  + operations      instances claimed, and those that will be claimed yet
  + orders          given, and not to be seen among the operations yet
  + hindsight       what has just ended, until the view shows it

An operation's number is an absolute one. It is trusted while devices are claimed; from then on
only what has been claimed counts, because those that die meanwhile are not replaced by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from blitzgw.core.instance import InstanceState
from blitzgw.core.view import ClusterView, InstanceFacts
from blitzgw.scaling.autoevents import Coming, Underway
from blitzgw.scaling.standing import Standing

ORDER_PATIENCE_S = 2.0
"""For an order to appear among the operations: its shell begins it at once, or says that it is
refused, so that an order which is seen nowhere after that has been lost."""

CLAIMED_AFTER_S = 2.5
"""After its first claim an operation claims no more (claiming.py, CLAIM_PATIENCE_S = 2 s)."""

LAG_S = 1.0
"""How late a view may be: gossip's slowest round."""

MAX_ORDERS = 64
"""Not yet through, of a model: operations.py runs no more at once of all models together."""

UNKNOWN_S = -1.0
"""In place of a time that nobody has predicted."""


@dataclass(slots=True)
class Order:
    """What has been ordered: up to (`grows`) or down to so many instances.

    `void`: the contrary has been ordered since.
    """

    decision: int
    instances: int
    grows: bool
    given_s: float
    operation: str = ""
    void: bool = False


@dataclass(slots=True)
class _Running:
    """An operation, as it was seen last. `claimed_s`: when it first had a claim."""

    grows: bool
    wanted: int
    claimed_s: float | None = None
    settled: bool = False


@dataclass(slots=True)
class Outlook:
    """What a model will have: `serving` now and for good, and `coming`.

    `shown` is how many the view shows. `growths` and `retreats` are the operations that run,
    `growing` and `shrinking` whether one runs or is ordered. `astray` are those of `coming` that
    none of them has claimed: what they will claim yet, and what others have begun.
    """

    serving: int = 0
    coming: tuple[Coming, ...] = ()
    shown: int = 0
    growths: tuple[str, ...] = ()
    retreats: tuple[str, ...] = ()
    growing: bool = False
    shrinking: bool = False
    astray: int = 0

    @property
    def present(self) -> int:
        """How many it will have."""
        return self.serving + len(self.coming)

    @property
    def unclaimed(self) -> int:
        """How many of those coming have no device yet."""
        return sum(not each.instance for each in self.coming)


@dataclass(slots=True)
class Reckoning:
    """The book of one model's orders and operations."""

    orders: dict[int, Order] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _void: set[str] = field(default_factory=set)
    _least: tuple[int, float] | None = None
    _most: tuple[int, float] | None = None
    _shown: int = 0

    # What happens.

    def ordered(self, decision: int, instances: int, grows: bool, now: float) -> None:
        """Note that so many instances have been ordered."""
        while len(self.orders) >= MAX_ORDERS:
            del self.orders[next(iter(self.orders))]
        for order in self.orders.values():
            order.void |= order.grows != grows
        self.orders[decision] = Order(decision, instances, grows, now)
        self._least = self._most = None

    def cancelled(self, operation: str) -> None:
        """Note that an operation is given up: it counts no more, whether it still shows or not."""
        self._void.add(operation)

    def given_up(self, operation: str) -> bool:
        """Whether an operation has been given up, and not by an operator."""
        return operation in self._void

    def taken(self, decision: int, operation: str) -> None:
        """Note which operation carries an order out."""
        if decision in self.orders:
            self.orders[decision].operation = operation

    def refused(self) -> Order | None:
        """Forget the newest order that nobody has taken on, and return it."""
        open_ones = [order for order in self.orders.values() if not order.operation]
        return self.orders.pop(open_ones[-1].decision) if open_ones else None

    def over(
        self, operation: str, done: bool, *, short: bool, now: float
    ) -> tuple[bool, list[Order]]:
        """Forget an operation; return whether it grew, and the orders that it carried out.

        What one that is `done` has done views may not show yet. A growth may fall `short`.
        """
        orders = [order for order in self.orders.values() if order.operation == operation]
        for order in orders:
            del self.orders[order.decision]
        known = self._running.pop(operation, None)
        grows = known.grows if known is not None else any(order.grows for order in orders)
        wanted = (
            known.wanted if known is not None else max((o.instances for o in orders), default=-1)
        )
        if done and wanted >= 0 and grows:
            self._least = None if short else (wanted, now + LAG_S)
        elif done and wanted >= 0:
            self._most = wanted, now + LAG_S
        return grows, orders

    def shaken(self) -> None:
        """Note that instances may have died: numbers promised before that hold no more."""
        self._least = None
        for running in self._running.values():
            running.settled |= running.claimed_s is not None

    # What is to be expected.

    def outlook(
        self, standing: Standing, view: ClusterView, underway: Iterable[Underway], now: float
    ) -> Outlook:
        """Return what the model will have."""
        running = list(underway)
        self._void &= {each.operation for each in running}
        operations = [each for each in running if each.operation not in self._void]
        shown = len(standing.counted)
        if shown < self._shown and not any(not each.grows for each in operations):
            self.shaken()
        self._shown = shown
        self._follow(operations, now)
        self._expire(now)
        coming = _coming(operations, standing, view)
        present = standing.serving + len(coming)
        least, most = self._promised(operations, present)
        coming += [Coming("", 0.0, UNKNOWN_S, False)] * (least - present)
        if most < standing.serving + len(coming):
            coming = coming[: max(0, most - standing.serving)]
        claimed = {each.instance for one in operations for each in one.coming}
        return Outlook(
            serving=min(standing.serving, most),
            coming=tuple(coming),
            shown=shown,
            growths=tuple(each.operation for each in operations if each.grows),
            retreats=tuple(each.operation for each in operations if not each.grows),
            growing=self._any(operations, grows=True),
            shrinking=self._any(operations, grows=False),
            astray=sum(each.instance not in claimed for each in coming),
        )

    def deadline(self) -> float | None:
        """Return when something that was promised ceases to count."""
        times = [order.given_s + ORDER_PATIENCE_S for order in self.orders.values()]
        times += [until for _, until in filter(None, (self._least, self._most))]
        return min(times, default=None)

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        assert len(self.orders) <= MAX_ORDERS, "too many orders"
        assert all(order.instances >= 0 for order in self.orders.values())

    def _follow(self, operations: Sequence[Underway], now: float) -> None:
        known, self._running = self._running, {}
        for each in operations:
            running = known.get(each.operation) or _Running(each.grows, each.wanted)
            if running.claimed_s is None and each.coming:
                running.claimed_s = now
            if running.claimed_s is not None and now >= running.claimed_s + CLAIMED_AFTER_S:
                running.settled = True
            running.wanted = each.wanted
            self._running[each.operation] = running

    def _expire(self, now: float) -> None:
        for order in [*self.orders.values()]:
            late = now >= order.given_s + ORDER_PATIENCE_S
            if late and order.operation not in self._running:
                del self.orders[order.decision]
        if self._least is not None and (now >= self._least[1] or self._shown >= self._least[0]):
            self._least = None
        if self._most is not None and (now >= self._most[1] or self._shown <= self._most[0]):
            self._most = None

    def _waiting(self) -> list[Order]:
        """Return the orders that no operation shows yet."""
        return [
            order
            for order in self.orders.values()
            if not order.void and order.operation not in self._running
        ]

    def _promised(self, operations: Sequence[Underway], present: int) -> tuple[int, int]:
        """Return how many there will be at least, and at most."""
        waiting = self._waiting()
        least = [order.instances for order in waiting if order.grows]
        least += [
            each.wanted
            for each in operations
            if each.grows and not self._running[each.operation].settled
        ]
        most = [order.instances for order in waiting if not order.grows]
        most += [each.wanted for each in operations if not each.grows]
        if self._least is not None:
            least.append(self._least[0])
        if self._most is not None:
            most.append(self._most[0])
        upper = max([present, *least])
        bound = min([upper, *most])
        contradicted = bool(least) and max(least) > bound  # what shrinks is about to be cancelled
        return upper, upper if contradicted else bound

    def _any(self, operations: Sequence[Underway], *, grows: bool) -> bool:
        waiting = any(order.grows == grows for order in self._waiting())
        return waiting or any(each.grows == grows for each in operations)


def _coming(operations: Sequence[Underway], standing: Standing, view: ClusterView) -> list[Coming]:
    """Return what is on its way: as operations of this node say, and others that views show."""
    told = [coming for each in operations if each.grows for coming in each.coming]
    found: dict[str, Coming] = {}
    if told:
        counted = [here.facts for here in standing.counted]
        serving = {each.id for each in counted if each.state is InstanceState.SERVING}
        found = {coming.instance: coming for coming in told if coming.instance not in serving}
    for facts in standing.loading(view):
        found.setdefault(facts.id, _loading(facts))
    return list(found.values())


def _loading(facts: InstanceFacts) -> Coming:
    total = max(1, facts.layers_total)
    fraction = min(1.0, max(0.0, facts.layers_resident / total))
    computes = bool(facts.helps) or facts.stage is not None
    return Coming(facts.id, fraction, UNKNOWN_S, computes)
