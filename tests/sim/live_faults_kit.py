"""Live scaling in which helpers die and clients leave."""

from __future__ import annotations

from dataclasses import replace

from blitzgw.scheduler.events import (
    Effect,
    EmitTokens,
    Event,
    Lose,
    PairingClosed,
    RequestAborted,
    RequestArrived,
    Say,
    Ticked,
)
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.sim.live import HOME, LiveSetup, LiveWorld, MakeScheduler

NOWHERE = -1
"""A request that has been given away, and is not submitted again yet."""

MUCH_LATER = 60_000
"""Units: a minute as schedulers count, when nobody comes any more for what is kept."""


class Checked(Scheduler):
    """One whose books are checked after every event."""

    def handle(self, event: Event, now: float) -> list[Effect]:
        effects = super().handle(event, now)
        self.check_integrity()
        return effects


class Posting(Checked):
    """One that posts steps ahead, of several layers, as in production."""

    def __init__(self, kv_bytes: int, **options: int) -> None:
        super().__init__(kv_bytes, **options | {"max_in_flight": 2, "home_layers": 2})


class Disturbed(LiveWorld):
    """`deaths` are (moment, helper), `partings` (moment, number of the request).

    With `links_only` a helper lives on, but its pairing ends. What is at a dead one is submitted
    at the home again, as the router would. Messages and submissions take `latency`, so they cross.
    """

    def __init__(
        self,
        setup: LiveSetup,
        deaths: list[tuple[float, int]],
        partings: list[tuple[float, int]],
        *,
        links_only: bool = False,
        latency: float = 0,
        make: MakeScheduler = Checked,
    ) -> None:
        super().__init__(setup, make)
        self.cut: set[int] = set()
        self.dead: set[int] = set()
        self.gone: set[str] = set()
        self.where = dict.fromkeys(self.requests, HOME)
        self._links_only = links_only
        self._latency = latency
        self.agenda.at(MUCH_LATER, 0, self._tick)
        for moment, helper in deaths:
            self.agenda.at(moment, 0, self._die, helper)
        for moment, number in partings:
            self.agenda.at(moment, 0, self._leave, f"r{number}")

    def _tick(self) -> None:
        for worker in range(len(self.workers)):
            self._tell(worker, Ticked())

    def _die(self, helper: int) -> None:
        if helper in self.cut:
            return
        self.cut.add(helper)
        closed = PairingClosed(str(helper), "gone")
        super()._tell(HOME, closed)
        if self._links_only:
            super()._tell(helper, closed)
            return
        self.dead.add(helper)
        lost = [name for name, at in self.where.items() if at == helper]
        for name in lost:
            if name not in self.completion:
                self._resubmit(name, HOME)

    def _leave(self, name: str) -> None:
        if name not in self.completion:
            self.gone.add(name)
            self.completion[name] = self.agenda.now
            if self.where[name] != NOWHERE:
                self._tell(self.where[name], RequestAborted(name, self.requests[name].attempt))

    def _resubmit(self, name: str, worker: int) -> None:
        known = self.requests[name]
        request = self.requests[name] = replace(known, attempt=known.attempt + 1)
        self.where[name] = worker
        self._tell(worker, RequestArrived(str(worker), request))

    def _submit_again(self, lost: Lose) -> None:
        for loss in lost.losses:
            self.where[loss.request_id] = NOWHERE
            at = self.agenda.now + self._latency
            self.agenda.at(at, 0, self._submit_to, loss.request_id, int(loss.instance or HOME))

    def _submit_to(self, name: str, worker: int) -> None:
        if name not in self.gone:
            self._resubmit(name, HOME if worker in self.dead else worker)

    def _tell(self, worker: int, event: Event) -> None:
        """Tell it, unless the worker is dead or the pairing that it came by is."""
        pairing = getattr(event, "pairing", None) or getattr(event, "edge", None)
        if worker not in self.dead and not (pairing and int(pairing) in self.cut):
            super()._tell(worker, event)

    def _perform(self, worker: int, effect: Effect) -> None:
        if worker in self.dead:
            return
        if isinstance(effect, EmitTokens):
            for event in effect.events:
                again = event.request_id in self.completion and event.request_id not in self.gone
                assert not again, f"{event.request_id} is answered twice"
                if event.attempt == self.requests[event.request_id].attempt:
                    assert worker == self.where[event.request_id]
            effect = EmitTokens([e for e in effect.events if e.request_id not in self.gone])
        if isinstance(effect, Say):
            pairing = int(effect.message.pairing)
            other = pairing if worker == HOME else HOME
            at = self.agenda.now + self._latency
            self.agenda.at(at, 0, self._tell, other, effect.message)
        else:
            super()._perform(worker, effect)
