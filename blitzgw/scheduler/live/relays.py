"""What is remembered of a pipeline at one of its stages. Data only.

A `Station` is an instance as a stage, a `Relay` one request there: its hidden states come by the
ticket of the stage, and go on by that of the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.request import GenerationRequest, Stage
from blitzgw.core.span import Span
from blitzgw.scheduler.sequence import Sequence


@dataclass(slots=True, eq=False)
class Station:
    """An instance that runs a span for a pipeline, as soon as it has been told which.

    `up` is the pairing by which hidden states come, `down` the one by which they go on; empty
    where there is none. `behind` is who runs the layers after its own, once all of them can.
    `said`: the stage before has been told so. `broken`: a neighbour has been lost, and none has
    come since. `full`: there was no room behind, and nothing has ended since.
    """

    instance: str
    span: Span | None = None
    n_layers: int = 0
    resident: bool = False
    up: str = ""
    down: str = ""
    behind: tuple[Stage, ...] | None = None
    said: bool = False
    broken: bool = False
    full: bool = False
    relays: dict[str, Relay] = field(default_factory=dict)
    tickets: dict[int, Relay] = field(default_factory=dict)

    @property
    def is_lead(self) -> bool:
        """Whether it is the first stage."""
        return self.span is not None and self.span.start == 0

    @property
    def is_last(self) -> bool:
        """Whether it samples."""
        return self.span is not None and self.span.stop == self.n_layers

    @property
    def is_ready(self) -> bool:
        """Whether it and all behind it have their layers."""
        return self.resident and (self.is_last or self.behind is not None)


@dataclass(slots=True, eq=False)
class Relay:
    """A request at a stage, with memory for `reserved` positions; all stages have `granted`.

    Positions before `at` are posted here; what may be is told by `passed`, and has come as far as
    `arrived` (for the lead both are what it knows). The token after `sample_stop` is to be sampled.
    `token` is the sampled one at the last position passed, until it is posted; else -1. `blocks`
    the worker has not been told of; `introduced`: it knows the sequence, by `number`. `edge` and
    `ticket` say how hidden states come (0 for the lead), `onward` by which ticket they go on.
    """

    station: Station
    request: GenerationRequest
    number: int
    reserved: int
    blocks: tuple[int, ...]
    edge: str
    ticket: int
    seq: Sequence | None = None
    """The lead's."""
    onward: int = 0
    granted: int = 0
    at: int = 0
    passed: int = 0
    arrived: int = 0
    parcels: dict[int, int] = field(default_factory=dict)
    """Where those end that have come before others, by their starts."""
    sample_stop: int = 0
    token: int = -1
    fresh: bool = False
    introduced: bool = False
    steps: int = 0
    """Those posted of it that are in flight."""
    over: bool = False

    @property
    def id(self) -> str:
        """The request's id."""
        return self.request.id

    @property
    def attempt(self) -> int:
        """The attempt by which the stages know it."""
        return self.request.attempt

    @property
    def ready(self) -> int:
        """How far it may be posted."""
        if self.seq is not None:
            return min(self.passed, self.granted)
        return min(self.passed, self.arrived)

    @property
    def is_prompt(self) -> bool:
        """Whether the next position is one of those that it came with."""
        return self.at < len(self.request.tokens)

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Who goes first into a step: the smaller rank; those that decode, then the earliest."""
        return self.is_prompt, self.request.priority, self.number

    def arrive(self, start: int, stop: int) -> None:
        """Note that hidden states of `[start, stop)` are here."""
        self.fresh = True
        self.parcels[start] = stop
        while self.arrived in self.parcels:
            self.arrived = self.parcels.pop(self.arrived)
