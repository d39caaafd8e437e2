"""The live part of a scheduler: it knows the pairings, and whom what is said to them concerns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blitzgw.core import live
from blitzgw.core.live import (
    Finished,
    Handoff,
    Lend,
    Nothing,
    Offer,
    Pull,
    Purpose,
    Recall,
    Withdraw,
)
from blitzgw.core.parcels import ParcelArrived, ParcelsSent
from blitzgw.core.request import GenerationRequest, TokenEvent
from blitzgw.scheduler.batch import Batch
from blitzgw.scheduler.events import (
    Effect,
    LayersResident,
    PairingClosed,
    PairingOpened,
    Ticked,
)
from blitzgw.scheduler.lane import InstanceStatistics, Lane, PostedStep
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.figures import figures
from blitzgw.scheduler.live.helper import Helper
from blitzgw.scheduler.live.home import Home
from blitzgw.scheduler.live.kept import KeptSequences, continues
from blitzgw.scheduler.live.lending import Lending
from blitzgw.scheduler.live.moving import Build, Moving
from blitzgw.scheduler.live.passages import Arrival
from blitzgw.scheduler.live.pipelines import Pipelines
from blitzgw.scheduler.live.records import GuestSide, HomeSide, Keep, Loan, Passage, Task
from blitzgw.scheduler.live.sweep import compose
from blitzgw.scheduler.planning import Planner
from blitzgw.scheduler.sequence import Phase, Sequence

HOME_LAYERS = 2
"""Layers that a home posts at a time where nobody decodes: recalls wait for so many, and every step
costs its overhead."""

PATIENCE = 4.0
"""Of those who decode at a home, in steps: prefill gets four fifths of the time while there is a
queue. Without groups they would wait for a whole step, as they do at most with them."""

IN_FLIGHT = 4
"""Batches that a helper works on: enough for every layer that comes to find work, few enough for
the home to get them back before they are old (ALGORITHMS.md: 227 against 219 without a limit)."""


class Live:
    """Homes, helpers and kept sequences of the instances of one worker."""

    def __init__(
        self,
        planner: Planner,
        requests: dict[str, Sequence],
        build: Build,
        *,
        home_layers: int,
        patience: float,
        in_flight: int | None,
        end: Callable[[Sequence], None],
    ) -> None:
        self.books = LiveBooks(planner, requests)
        self.kept = KeptSequences()
        self._lending = Lending(self.books, home_layers)
        self.home = Home(self.books, self._lending)
        self.helper = Helper(self.books, self.kept, in_flight)
        self.pipelines = Pipelines(self.books, self.kept, end)
        self.pipelines.lead.helper = self.helper
        self.helper.lead = self.pipelines.lead
        self.moving = Moving(self.books, build, lambda name: name in requests or name in self.kept)
        self.pipelines.returning.arriving = self.moving.arriving
        self._planner = planner
        self._requests = requests
        self._build = build
        self._home_layers = home_layers
        self._patience = patience
        planner.layered = self
        handlers: dict[type, Callable[[Any, float], list[Effect]]] = {
            LayersResident: self._on_resident,
            PairingOpened: self._on_opened,
            PairingClosed: self._on_closed,
            ParcelArrived: self._on_arrived,
            ParcelsSent: self._on_sent,
            Ticked: self._on_ticked,
            Lend: self._on_lend,
            Withdraw: self._on_withdraw,
            Recall: self._at_helper(self.helper.recalled),
            Pull: self._at_home(self.home.pulled),
            Offer: self._at_home(self.home.offered),
            Handoff: self._at_home(self.home.handed),
            Nothing: self._at_home(self.home.nothing),
            Finished: self._at_home(self.home.finished),
            live.Keep: self._at_home(self.home.keeps),
        }
        self.handlers = self.pipelines.handlers(self.moving.handlers(handlers))

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to tell or to lend."""
        return bool(self.books.told or self.books.homes)

    @property
    def is_aside(self) -> bool:
        """Whether steps that only decode leave all of it as it is."""
        books, pipelines = self.books, self.pipelines
        busy = books.told or self.kept or self.moving.is_busy or pipelines.returning.leads
        return not (busy or any(side.loans for side in books.homes.values()))

    @property
    def is_still(self) -> bool:
        """Whether `pump` leaves all of it as it is."""
        return not (self.moving.is_busy or self.pipelines.returning.leads)

    @property
    def expects_ticks(self) -> bool:
        """Whether somebody may fail to come."""
        return bool(self.kept) or self.home.awaits_news or self.moving.is_busy

    def pump(self, now: float) -> None:
        """Go on with what moves, after an event and before steps are posted."""
        if self.moving.departing.sides:
            self.moving.departing.pump(now)
        if self.pipelines.returning.leads:
            self.pipelines.stages.pump()

    def conclude(self) -> list[Effect]:
        """Lend what is left, once steps have been posted; return what is to be told."""
        for name in {side.here for side in self.books.homes.values()}:
            self._lending.lend(self._planner.lanes[name])
        return self.books.drain()

    # For the planner.

    def compose(self, lane: Lane) -> Batch:
        """Put the next step of an instance together that is loading or shares requests."""
        batch = self.pipelines.compose(lane)
        if batch is not None:
            return batch
        if lane.loading:
            return self.helper.compose(lane)
        if lane.is_shared:
            self._lending.take(lane)
        return compose(lane, self._home_layers, self._patience)

    def evicted(self, seq: Sequence) -> bool:
        """Note that a sequence has lost its memory; tell whether it does not queue here."""
        role = seq.role
        if isinstance(role, Loan):
            self.home.evicted(role, withdraw=True)
        elif isinstance(role, Task):
            self.helper.evicted(role)
            return True
        elif isinstance(role, Passage):
            return self.moving.evicted(role)
        return False

    # For the scheduler: requests.

    def let_go(self, seq: Sequence) -> bool:
        """Note that a sequence with a role ends; tell whether that is all there is to do."""
        role = seq.role
        if isinstance(role, Loan):
            self.home.let_go(role)
        elif isinstance(role, Task):
            self.helper.failed(role)
            return True
        elif isinstance(role, Passage):
            self.moving.let_go(role)
        return False

    def failed(self, seq: Sequence) -> bool:
        """Note that a worker has lost a sequence; tell whether its ingress is another's affair."""
        if isinstance(seq.role, Task):
            self.helper.failed(seq.role)
            return True
        if isinstance(seq.role, Keep):
            self._drop(seq.role)
            return True
        return isinstance(seq.role, Passage) and self.moving.failed(seq.role)

    def adopt(
        self, instance: str, request: GenerationRequest, now: float
    ) -> tuple[bool, list[TokenEvent]]:
        """Let a submission take over what is kept of it; tell whether it has, and what it is told.

        What does not go together is dropped, and so is an older attempt that is only lent to this
        instance: its home has given it up.
        """
        keep = self.kept.get(request.id)
        if keep is not None and request.attempt > keep.seq.attempt:
            if keep.seq.instance == instance and continues(keep, request):
                event = self.kept.adopt(keep, request)
                return True, [event] if event is not None else []
            self._drop(keep)
        if self.moving.adopt(instance, request, now):
            return True, []
        former = self._requests.get(request.id)
        if former is not None and former.attempt < request.attempt:
            self.failed(former)
        return False, []

    def aborted(self, request_id: str, attempt: int) -> None:
        """Drop what is kept of an attempt."""
        keep = self.kept.get(request_id)
        if keep is not None and attempt >= keep.seq.attempt:
            self._drop(keep)

    def completed(self, posted: PostedStep, *, failed: bool = False) -> None:
        """Note that parcels have been taken in, or that a step has failed that should have."""
        for origin, number, computed in posted.imported:
            if isinstance(origin, Loan):
                self.home.taken_in(origin, number, -1 if failed else computed)
            elif isinstance(origin, Arrival):
                self.moving.arriving.taken_in(origin, failed=failed)
        if failed:
            self.pipelines.stages.carried_out(posted, None)

    def _drop(self, keep: Keep) -> None:
        seq = keep.seq
        self.kept.forget(seq.id)
        if seq.phase is Phase.ENDED:
            return
        lane = self._planner.lanes[seq.instance]
        if seq.phase is Phase.RUNNING:
            lane.take_back(seq)
        elif seq.phase is Phase.WAITING:
            lane.queue.remove(seq)
        elif seq.phase is Phase.STAGED:
            self.pipelines.lead.let_go(seq)
        self.books.forget(seq)

    # For the scheduler: instances.

    def ready(self, lane: Lane, now: float) -> None:
        """Let an instance that was loading go on as an ordinary one."""
        lane.loading = False
        lane.resident = lane.instance.n_layers
        self.pipelines.stages.completed(lane, now)
        self.helper.completed(lane, now)

    def removed(self, lane: Lane) -> None:
        """End the pairings of an instance that is going; what it keeps and helps with is gone."""
        name, books = lane.instance.id, self.books
        self.pipelines.stages.removed(lane)
        self.moving.removed(name)
        for guest in [side for side in books.guests.values() if side.here == name]:
            self.helper.closed(guest)
            books.end(guest.id, "the helper was removed")
        for home in [side for side in books.homes.values() if side.here == name]:
            home.finished = True
            for loan in list(home.loans.values()):
                books.close_loan(loan)
            del books.homes[home.id]
            books.end(home.id, "the home was removed")
        for keep in self.kept.all():
            if keep.seq.instance == name:
                self._drop(keep)

    def statistics(self, lane: Lane) -> InstanceStatistics:
        """Return an instance's figures."""
        station = self.pipelines.books.stations.get(lane.instance.id)
        return figures(lane, self.books, self.kept, station, self.moving)

    # Events.

    def _on_resident(self, event: LayersResident, _now: float) -> list[Effect]:
        lane = self._planner.lanes.get(event.instance)
        if lane is not None and lane.loading and event.layers > lane.resident:
            lane.resident = min(event.layers, lane.instance.n_layers)
            for side in self.books.guests.values():
                if side.here == event.instance:
                    self.helper.pull(side)
        return []

    def _on_opened(self, event: PairingOpened, now: float) -> list[Effect]:
        lane = self._planner.lanes.get(event.here)
        known = event.pairing in self.books.homes or event.pairing in self.books.guests
        if known:
            return []
        if lane is None or event.purpose is not Purpose.HELP or (lane.loading and not event.guest):
            self.books.end(event.pairing, f"instance {event.here} cannot take part")
        elif event.guest:
            guest = GuestSide(event.pairing, event.here, event.there, event.policy)
            self.books.guests[event.pairing] = guest
            if lane.loading:
                self.helper.pull(guest)
            else:
                self.helper.finish(guest, now)
        else:
            home = HomeSide(event.pairing, event.here, event.there, event.policy)
            self.books.homes[event.pairing] = home
        return []

    def _on_closed(self, event: PairingClosed, _now: float) -> list[Effect]:
        home, guest = self.books.homes.get(event.pairing), self.books.guests.get(event.pairing)
        if home is not None:
            self.home.closed(home)
        if guest is not None:
            self.helper.closed(guest)
        return []

    def _on_arrived(self, event: ParcelArrived, _now: float) -> list[Effect]:
        home = self.books.homes.get(event.edge)
        if home is not None:
            self.home.arrived(home, event.parcel)
        return []

    def _on_sent(self, event: ParcelsSent, _now: float) -> list[Effect]:
        guest = self.books.guests.get(event.edge)
        if guest is not None:
            self.helper.sent(guest, event)
        return []

    def _on_ticked(self, _event: Ticked, now: float) -> list[Effect]:
        for keep in self.kept.expired(now):
            self._drop(keep)
        self.home.ticked(now)
        return []

    def _on_lend(self, lend: Lend, now: float) -> list[Effect]:
        guest = self.books.guests.get(lend.pairing)
        if guest is not None:
            seq = None
            if lend.request.id not in self._requests and lend.request.id not in self.kept:
                seq = self._build(self.books.lane(guest), lend.request, now)
            self.helper.lent(guest, lend, seq)
        return []

    def _on_withdraw(self, withdraw: Withdraw, _now: float) -> list[Effect]:
        guest = self.books.guests.get(withdraw.pairing)
        if guest is not None:
            self.helper.withdrawn(guest, withdraw)
            keep = self.kept.get(withdraw.request_id)
            if keep is not None and keep.pairing == withdraw.pairing:
                self.aborted(withdraw.request_id, withdraw.attempt)
        return []

    def _at_home(
        self, act: Callable[[HomeSide, Any], None]
    ) -> Callable[[Any, float], list[Effect]]:
        def handle(message: Any, now: float) -> list[Effect]:
            side = self.books.homes.get(message.pairing)
            if side is not None:
                side.news_s = now
                act(side, message)
            return []

        return handle

    def _at_helper(
        self, act: Callable[[GuestSide, Any], None]
    ) -> Callable[[Any, float], list[Effect]]:
        def handle(message: Any, _now: float) -> list[Effect]:
            side = self.books.guests.get(message.pairing)
            if side is not None:
                act(side, message)
            return []

        return handle
