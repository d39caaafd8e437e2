"""What this node tells the owners of models: who waits here, what runs here, how long it took.

    router (held, arrived) ┐
    devices (loads)        ├──► Demands ── Demand ──► each model's owner, this node perhaps
    API (latencies)        ┘

At once when a request is held or comes, at most every TELL_S while anything changes, every REPEAT_S
as long as there is anything at all, and all of it when a model's owner changes. Where an operator
decides on a model's instances, nobody waits for it: then every REPEAT_S.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from blitzgw.core.clock import Clock, until_tick_s
from blitzgw.core.scale import Demand, ScaleMode
from blitzgw.core.view import ClusterView, LoadFacts
from blitzgw.gossip.catalogue import Definition
from blitzgw.router.arrivals import Arrived, Held
from blitzgw.scaling.ownership import owner_of

log = logging.getLogger(__name__)

TELL_S = 0.02
"""Between two demands for a model, and between two looks while anything is going on: a small part
of any target, and some hundred bytes each."""

IDLE_LOOK_S = 0.05
"""Between two looks while nothing goes on, for what comes from peers: what comes from this node's
own clients is looked at when it comes."""

LAZY_LOOK_S = 0.25
"""The same where operators decide on all models, or no instance is here, so that nothing comes from
peers: a part of REPEAT_S, and as often as a node ticks."""

REPEAT_S = 1.0
"""What has been told is told again after that, for an owner that began to listen after it."""


class RouterPort(Protocol):
    """What a node's router tells of its clients' requests, by model."""

    def queue(self, model: str) -> Held:
        """Return what is held."""

    def arrived(self, model: str) -> Arrived:
        """Return what has come since the start."""


class Latencies(Protocol):
    """Latencies of a model's clients that have not been told yet."""

    def __bool__(self) -> bool:
        """Tell whether there are any."""

    def take(self) -> dict[str, dict[int, int]]:
        """Return them by the names of `Demand`, and begin anew."""


Say = Callable[[str, Demand], None]
"""(boot, demand): sends it to a node, perhaps this one."""


@dataclass(frozen=True, slots=True)
class _Gauge:
    """What is compared between two looks."""

    held: Held
    requests: int
    tokens: int
    refused: int
    loads: tuple[LoadFacts, ...]

    @property
    def idle(self) -> bool:
        """Whether nothing waits or runs here."""
        busy = any(load.running or load.waiting or load.queued_tokens for load in self.loads)
        return not busy and not self.held.requests


NOTHING = _Gauge(Held(), 0, 0, 0, ())


@dataclass(slots=True)
class _Told:
    """What has been told of a model: to whom, when, and since when there is news to tell."""

    owner: str = ""
    at_s: float = -REPEAT_S
    gauge: _Gauge = NOTHING
    seen: _Gauge = NOTHING
    news_s: float | None = None


@dataclass(slots=True)
class _Course:
    """Whom a model's demand goes to, and how often it may. `digest` is the definition's."""

    digest: str
    owner: str
    pause_s: float


@dataclass(slots=True)
class Demands:
    """Call it from the event loop; `follow` tells it of views, `open` starts it.

    `loads` returns those of this node's instances by model, `latencies` those of a model's clients,
    None where there have been none. `dilation` is the clock's. `published` returns the number under
    which an instance's load was last told to all: what an owner hears from here is newer than that.
    """

    local: str
    router: RouterPort
    loads: Callable[[], Mapping[str, Sequence[LoadFacts]]]
    settled: Callable[[], Mapping[str, Definition]]
    say: Say
    clock: Clock
    dilation: float = 1.0
    latencies: Callable[[str], Latencies | None] = field(default=lambda _: None)
    published: Callable[[str], int] = field(default=lambda _: 0)
    _courses: dict[str, _Course] = field(default_factory=dict)
    _told: dict[str, _Told] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _timer: asyncio.TimerHandle | None = None
    _due_s: float = 0.0
    _looked_s: float = 0.0
    _open: bool = False

    def open(self) -> None:
        """Begin to tell."""
        self._open = True
        self._arm(self.clock.now())

    def close(self) -> None:
        """Tell nothing any more."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()

    def follow(self, view: ClusterView) -> None:
        """Learn who owns the models by now, and which of them are scaled by their demand."""
        wished = {name for node in view.living() for name in node.wishes}
        self._courses = {
            name: _Course(
                digest=definition.digest,
                owner=owner_of(name, view),
                pause_s=_pause_s(name, definition.digest, view, name in wished),
            )
            for name, definition in self.settled().items()
        }
        for name in self._told.keys() - self._courses.keys():
            del self._told[name]
        owners = {name: course.owner for name, course in self._courses.items()}
        if any(told.owner != owners[name] for name, told in self._told.items()):
            self._hurry(self.clock.now())
        if any(course.pause_s <= TELL_S for course in self._courses.values()):
            self._hurry(self.clock.now() + IDLE_LOOK_S)  # it may have looked lazily until now

    def stirred(self, model: str) -> None:
        """Look as soon as may be: a request has come, or is held. Runs for every request."""
        told = self._told.get(model)
        if told is None:
            told = self._told[model] = _Told()
        if told.news_s is None:
            told.news_s = now = self.clock.now()
            course = self._courses.get(model)
            self._hurry(max(now, told.at_s + (course.pause_s if course else 0.0)))

    def _hurry(self, due_s: float) -> None:
        if self._open and due_s < self._due_s:
            self._arm(due_s)

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        delay_s = max(0.0, due_s - self.clock.now()) * self.dilation
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._go_off)

    def _go_off(self) -> None:
        self._timer = None
        pause_s = TELL_S
        try:
            pause_s = self.look()
        except Exception:  # the next look may do better; requests do not need it
            log.exception("demand_not_told")
        if self._open:
            now = self.clock.now()
            lazy = pause_s == LAZY_LOOK_S
            self._arm(now + (until_tick_s(now, LAZY_LOOK_S) if lazy else pause_s))

    def look(self) -> float:
        """Tell what is due of each model; return the seconds until the next look."""
        now, loads = self.clock.now(), self.loads()
        pause_s = LAZY_LOOK_S
        for name, course in self._courses.items():
            gauge = self._gauge(name, loads.get(name, ()))
            told = self._told.get(name)
            if course.pause_s <= TELL_S:  # somebody waits for it
                busy = not gauge.idle or (told is not None and gauge != told.seen)
                rest_s = IDLE_LOOK_S if gauge.loads else LAZY_LOOK_S
                pause_s = min(pause_s, TELL_S if busy else rest_s)
            if told is None:
                if gauge == NOTHING and not self._measured(name):
                    continue
                told = self._told[name] = _Told()
            if gauge != told.seen and told.news_s is None:
                told.news_s = max(self._looked_s, now - LAZY_LOOK_S)
            told.seen = gauge
            if self._is_due(told, course, gauge, name, now):
                self._tell(name, told, course, gauge, now)
        self._looked_s = now
        return pause_s

    def _gauge(self, model: str, loads: Sequence[LoadFacts]) -> _Gauge:
        arrived, held = self.router.arrived(model), self.router.queue(model)
        return _Gauge(held, arrived.requests, arrived.tokens, arrived.refused, tuple(loads))

    def _is_due(self, told: _Told, course: _Course, gauge: _Gauge, model: str, now: float) -> bool:
        waited_s = now - told.at_s
        if told.owner != course.owner:
            return gauge != NOTHING or self._measured(model)
        if gauge != told.gauge or gauge.held.requests or self._measured(model):
            return waited_s >= course.pause_s - TELL_S / 4  # timers are not exact
        told.news_s = None  # all is as it was told
        return not gauge.idle and waited_s >= REPEAT_S

    def _numbered(self, load: LoadFacts) -> LoadFacts:
        return replace(load, number=self.published(load.instance))

    def _measured(self, model: str) -> bool:
        return bool(self.latencies(model))

    def _tell(self, model: str, told: _Told, course: _Course, gauge: _Gauge, now: float) -> None:
        held, latencies = gauge.held, self.latencies(model)
        demand = Demand(
            model=model,
            digest=course.digest,
            number=next(self._numbers),
            held=held.requests,
            held_tokens=held.tokens,
            held_s=0.0 if held.since_s is None else max(0.0, now - held.since_s),
            arrived=gauge.requests,
            arrived_tokens=max(0, gauge.tokens),
            refused=gauge.refused,
            loads=tuple(
                replace(each, number=self.published(each.instance)) for each in gauge.loads
            ),
            news_s=0.0 if told.news_s is None else max(0.0, now - told.news_s),
            **(latencies.take() if latencies else {}),
        )
        told.owner, told.at_s, told.gauge, told.news_s = course.owner, now, gauge, None
        self.say(course.owner, demand)


def _pause_s(name: str, digest: str, view: ClusterView, wished: bool) -> float:
    """Return how long to wait between two demands for a model, in seconds."""
    definition = view.oldest_definition(name, digest)
    manual = definition is None or definition.scaling.mode == ScaleMode.MANUAL
    return REPEAT_S if manual and not wished else TELL_S
