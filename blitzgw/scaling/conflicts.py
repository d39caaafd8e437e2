"""What an order means while operations of the same model run.

    who has ordered     what runs                          the order
    an operator         an operator's                      refused, unless it is the same
    anybody             whatever brings that number about  answered with that
    anybody             fewer are to be                    that ends; begun from what there is
    anybody, more       more are to be                     begun besides, for what is lacking
    the owner, fewer    more are to be                     refused: asked again at the end of that
    an operator, fewer  more are to be                     that is undone; begun from what there is

"Anybody" is the owner by itself, or an operator while nothing runs that another operator has
ordered. A model's operations are growths, side by side, or one retreat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blitzgw.core.operation import ScaleOrder
from blitzgw.scaling.growth import Growth
from blitzgw.scaling.operation import Operation
from blitzgw.scaling.retreat import Retreat

MAX_BESIDE = 16
"""Growths of a model at once: each answers a rise of demand that came during those before it. Where
a loading takes long there are many before the first is through; they get their blobs from each
other, and what all of a node's operations may be is bounded besides (operations.py)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done: `answer` with an operation, or refuse for a `reason`, or begin.

    Before it begins, `undone` are cancelled.
    """

    answer: Operation | None = None
    reason: str = ""
    undone: tuple[Operation, ...] = ()


def judge(order: ScaleOrder, running: Sequence[Operation], n_shown: int) -> Verdict:
    """Return what an order means to the operations that run for its model, the oldest first.

    `n_shown` are the instances that there are, and those that are claimed.
    """
    if not running:
        return Verdict()
    if not (order.automatic or all(operation.automatic for operation in running)):
        return _repeated(order, running)
    n_expected = expected(running, n_shown)
    if order.instances == n_expected:
        return Verdict(answer=running[-1])
    if any(isinstance(operation, Retreat) for operation in running):
        return Verdict(undone=tuple(running))
    if order.instances > n_expected:
        return Verdict() if len(running) < MAX_BESIDE else _refused(order, running[-1])
    return _refused(order, running[-1]) if order.automatic else Verdict(undone=tuple(running))


def expected(running: Sequence[Operation], n_shown: int) -> int:
    """Return how many instances there will be if all goes well.

    One that has claimed nothing yet, or has no answers yet, may get all that it wants.
    """
    numbers = [n_shown]
    for operation in running:
        if isinstance(operation, Retreat):
            return operation.wanted
        if operation.state == "claiming":
            numbers.append(operation.wanted)
    return max(numbers)


def _repeated(order: ScaleOrder, running: Sequence[Operation]) -> Verdict:
    """Answer an operator's order with another operator's operation if it is the same one."""
    for operation in running:
        how = ("", "")
        if isinstance(operation, Growth):
            how = operation.strategy, operation.policy
        if operation.wanted == order.instances and how == (order.strategy, order.policy):
            return Verdict(answer=operation)
    return _refused(order, running[-1])


def _refused(order: ScaleOrder, operation: Operation) -> Verdict:
    return Verdict(
        reason=f"operation {operation.id} is scaling {order.model!r} to {operation.wanted}"
        " instances; cancel it or wait for its end"
    )
