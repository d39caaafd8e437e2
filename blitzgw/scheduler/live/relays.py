"""What is remembered of a pipeline at one of its stages. Data only.

A `Station` is an instance as a stage, a `Relay` one request there: its hidden states come by the
ticket of the stage, and go on by that of the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from blitzgw.core.parcels import Parcel
from blitzgw.core.request import GenerationRequest, Stage
from blitzgw.core.span import Span
from blitzgw.scheduler.live.records import Task
from blitzgw.scheduler.sequence import Sequence


@dataclass(slots=True, eq=False)
class Station:
    """An instance that runs a span for a pipeline, as soon as it has been told which.

    `up` is the pairing by which hidden states come, `down` the one by which they go on; empty
    where there is none. `behind` is who runs the layers after its own, once all of them can.
    `said` is what the stage before has been told of this one and them. `broken`: a neighbour has
    been lost, and none has come since. `full`: there was no room behind, and nothing has ended
    since.
    """

    instance: str
    span: Span | None = None
    n_layers: int = 0
    resident: bool = False
    up: str = ""
    down: str = ""
    behind: tuple[Stage, ...] | None = None
    said: tuple[Stage, ...] = ()
    broken: bool = False
    full: bool = False
    relays: dict[str, Relay] = field(default_factory=dict)
    tickets: dict[int, Relay] = field(default_factory=dict)
    backs: dict[int, Relay] = field(default_factory=dict)
    """Those whose KV comes back from behind, by their tickets."""
    back_bytes_per_s: float = 0.0
    """The rate of the road by which it does."""

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
class Back:
    """The KV of `[0, tokens)` goes back to the lead: to the stage before by its `ticket`.

    Of those behind it comes by `onward` (0: there are none); of each layer from `first` on it has
    come as far as `reach`. `fresh`: parcels wait to be taken in. `passed_on`: it is on its way.
    """

    ticket: int
    tokens: int
    onward: int = 0
    first: int = 0
    reach: list[int] = field(default_factory=list)
    fresh: bool = False
    importing: int = 0
    passed_on: bool = False

    def arrive(self, parcel: Parcel) -> None:
        """Note what has come from behind."""
        self.fresh = True
        for layer in parcel.span.layers():
            at = layer - self.first
            if 0 <= at < len(self.reach) and parcel.start <= self.reach[at]:
                self.reach[at] = max(self.reach[at], parcel.stop)

    @property
    def may_pass_on(self) -> bool:
        """Whether all that comes from behind is in place, and has not been sent yet."""
        here = not self.fresh and not self.importing and bool(self.reach)
        return here and not self.passed_on and min(self.reach) >= self.tokens


@dataclass(slots=True, eq=False)
class Relay:
    """A request at a stage, with memory for `reserved` positions; all stages have `granted`.

    Positions before `at` are posted here; what may be is told by `passed`, and has come as far as
    `arrived` (for the lead both are what it knows). The token after `sample_stop` is to be sampled.
    `token` is the sampled one at the last position passed, until it is posted; else -1. `blocks`
    the worker has not been told of; `introduced`: it knows the sequence, by `number`. `edge` and
    `ticket` say how hidden states come (0 for the lead), `onward_edge` and `onward` how they go on.
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
    onward_edge: str = ""
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
    back: Back | None = None
    """Set when the lead goes on with it by itself: nothing more is computed here."""

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
        if self.back is not None:
            return self.at
        if self.seq is not None:
            return min(self.passed, self.granted)
        return min(self.passed, self.arrived)

    @property
    def is_prompt(self) -> bool:
        """Whether the next position is one of those that it came with."""
        return self.at < len(self.request.tokens)

    @property
    def prefill_left(self) -> int:
        """Return the tokens to compute before its first one, at the lead; none while it is lent."""
        n_given = len(self.request.tokens)
        if self.seq is None or isinstance(self.seq.role, Task) or len(self.seq.tokens) > n_given:
            return 0
        return n_given

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
