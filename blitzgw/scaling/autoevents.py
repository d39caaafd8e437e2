"""What decides on numbers of instances is told, and what it answers with.

`Autoscaler` (autoscaler.py) speaks for the models that this node owns; what carries its orders out
is `Operations`. Past tense in, imperative out.
"""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.record import record
from blitzgw.core.scale import Cede, DecisionFacts, Demand
from blitzgw.core.view import ScaleFacts, ScaleWish
from blitzgw.scaling.events import NodeDied, TimePassed

# Events.


@record(frozen=True, slots=True)
class DemandCame:
    """A node, perhaps this one, tells what it knows of a model."""

    boot: str
    demand: Demand


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """Members, models, devices or instances have changed: more than figures."""


@dataclass(frozen=True, slots=True)
class WishGiven:
    """An operator wants so many instances of a model, or `core.scale.AUTOMATIC`.

    `ordered`: an operation has been begun for it already.
    """

    model: str
    wanted: int
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class CedeAsked:
    """Another owner wants a device of a model."""

    boot: str
    cede: Cede


@dataclass(frozen=True, slots=True)
class OperationOver:
    """An operation of a model's instances that this node owns has ended: done, failed, cancelled.

    `asked`: an operator has cancelled it. A growth that is done has a `reason` if it falls short.
    Without an `operation`: an order was refused, `state` is failed.
    """

    model: str
    operation: str
    state: str
    reason: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class OrderTaken:
    """`Operations` has taken an `OrderInstances` on: `operation` carries that decision out.

    One that is refused is told by `OperationOver` instead, without an operation.
    """

    model: str
    decision: int
    operation: str


AutoEvent = (
    TimePassed
    | DemandCame
    | ViewChanged
    | WishGiven
    | CedeAsked
    | OrderTaken
    | OperationOver
    | NodeDied
)

# What it asks of `Operations`.


@dataclass(frozen=True, slots=True)
class Coming:
    """An instance that an operation of this node brings up, claimed already.

    `fraction` of its weights is there; `left_s` is the time until it is complete, as predicted;
    negative: not known. `computes`: it works for others meanwhile.
    """

    instance: str
    fraction: float
    left_s: float
    computes: bool


@dataclass(frozen=True, slots=True)
class Underway:
    """An operation of a model that runs: up to (`grows`) or down to `wanted` instances."""

    operation: str
    grows: bool
    wanted: int
    coming: tuple[Coming, ...] = ()


# Effects.


@dataclass(frozen=True, slots=True)
class OrderInstances:
    """Have so many instances: `Operations` begins what is needed besides what runs already.

    `decision` numbers the decision (`Decided.number`), so that it can be told what carries it out.
    """

    model: str
    instances: int
    reason: str
    decision: int


@dataclass(frozen=True, slots=True)
class CancelOperation:
    """Give an operation up: it works against what is wanted now. What is ready stays."""

    operation: str
    reason: str


@dataclass(frozen=True, slots=True)
class PublishWish:
    """Publish a wish among this node's facts, in place of its former one for the model."""

    wish: ScaleWish


@dataclass(frozen=True, slots=True)
class PublishScale:
    """Publish what is told of a model's scaling; None: this node owns it no longer."""

    model: str
    facts: ScaleFacts | None


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision to be logged and counted; those that only hold are not told."""

    number: int
    decision: DecisionFacts


@dataclass(frozen=True, slots=True)
class SendCede:
    """Ask another owner for a device."""

    boot: str
    cede: Cede


AutoEffect = OrderInstances | CancelOperation | PublishWish | PublishScale | Decided | SendCede
