"""The first stage of a pipeline: it takes requests from homes, and serves them by itself.

What a home lends is reserved on every stage or on none; then its ingress is told to submit it
here, and it is computed meanwhile. When the lead is complete the pipeline ends: what it serves goes
on there (returning.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from blitzgw.core.live import Keep, Kept, Lend, LivePolicy, NoRoom, Nothing, Reserve, Sampled
from blitzgw.core.live import Reserved as RoomReserved
from blitzgw.core.peer import Loss
from blitzgw.core.request import Stage, TokenEvent
from blitzgw.scheduler.events import Lose
from blitzgw.scheduler.fairness import OUTPUT_WEIGHT
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.kept import KeptSequences
from blitzgw.scheduler.live.records import GuestSide, Task
from blitzgw.scheduler.live.records import Keep as KeepRole
from blitzgw.scheduler.live.relays import Relay, Station
from blitzgw.scheduler.live.returning import Returning
from blitzgw.scheduler.live.stagebooks import StageBooks, found
from blitzgw.scheduler.sequence import Phase, Sequence
from blitzgw.scheduler.telling import event_of

HEADROOM_TOKENS = 128
"""Reserved beyond the prompt, and again when it is used up: asking costs a message a stage."""

MARGIN_TOKENS = 16
"""More is asked for so many tokens before it is needed: a way through the stages and back takes
less than as many decoding steps, which go that way."""

BATCHES_PER_STAGE = 2
"""Prompts that a lead takes, in batches: one for each stage to compute and one on its way there."""


class TaskPort(Protocol):
    """What the lead wants of the helper."""

    def pull(self, side: GuestSide) -> None:
        """Tell a home how much is taken, if that has changed."""

    def failed(self, task: Task) -> None:
        """Give a task back."""


class Lead:
    """Decides for the leads of a worker. `end` lets a sequence go that has its last token."""

    def __init__(
        self,
        books: StageBooks,
        returning: Returning,
        kept: KeptSequences,
        end: Callable[[Sequence], None],
    ) -> None:
        self._books, self._returning, self._kept, self._end = books, returning, kept, end
        self.helper: TaskPort | None = None
        self.headroom = HEADROOM_TOKENS

    # Asking.

    def leads(self, side: GuestSide) -> bool:
        """Tell whether a helper serves what it is lent, or will."""
        station = self._books.stations.get(side.here)
        if station is None or not station.is_lead or side.policy is not LivePolicy.PIPELINE:
            return False
        return not station.broken or bool(station.down)

    def room(self, lane: Lane) -> tuple[int, int]:
        """Return the requests and tokens that are taken beside those that are served.

        A prompt longer than a step counts as one batch: it keeps one stage busy at a time, and the
        next one has to be here when its last chunk has gone on.
        """
        station = self._books.stations[lane.instance.id]
        if not station.is_ready or (station.full and station.relays):
            return 0, 0
        n_stages = 1 + len(station.behind or ())
        batch = lane.instance.max_batched_tokens
        total = n_stages * BATCHES_PER_STAGE * batch
        served = [relay.seq for relay in station.relays.values() if relay.seq is not None]
        served = [seq for seq in served if seq.phase is Phase.STAGED]
        begun = [seq for seq in served if seq.first_step_s is not None]
        left = total - sum(min(len(seq.tokens), batch) for seq in begun)
        requests = lane.max_running - len(served)
        return (requests, left) if requests > 0 and left > 0 else (0, 0)

    def changed(self, instance: str) -> None:
        """Tell the homes of an instance how much is taken now."""
        for side in list(self._books.live.guests.values()):
            if side.here == instance and self.helper is not None:
                self.helper.pull(side)

    def is_open(self, lane: Lane) -> bool:
        """Tell whether an instance that is loading takes requests that nobody else does."""
        station = self._books.stations.get(lane.instance.id)
        if station is None or not station.is_lead or not station.is_ready:
            return False
        return not station.full and self.room(lane) != (0, 0)

    # Taking.

    def accept(self, seq: Sequence) -> bool:
        """Reserve memory for a request that has been submitted here; tell whether there is some.

        Where there is none behind, it is lost again.
        """
        station, tokens = self._books.stations[seq.instance], self._wanted(seq)
        relay = self._books.take(station, seq.request, tokens, seq)
        if relay is None:
            return False
        seq.move(Phase.STAGED)
        relay.passed = relay.sample_stop = len(seq.tokens)
        self._books.live.requests[seq.id] = seq
        self._books.live.say(Reserve(station.down, seq.request, tokens))
        self.changed(seq.instance)
        return True

    def lent(self, side: GuestSide, lend: Lend, seq: Sequence) -> None:
        """Reserve memory for a request here and at all stages behind, or give it back."""
        station, live = self._books.stations[side.here], self._books.live
        tokens = self._wanted(seq)
        relay = None
        if station.is_ready:
            relay = self._books.take(station, lend.request, tokens, seq)
        if relay is None:
            live.say(Nothing(side.id, seq.id, seq.attempt))
            return
        seq.move(Phase.LENT)
        seq.role = side.tasks[seq.id] = Task(seq, side, lend.ticket, limit=0)
        live.requests[seq.id] = seq
        relay.passed = relay.sample_stop = len(seq.tokens)
        live.say(Reserve(station.down, lend.request, tokens))

    def _wanted(self, seq: Sequence) -> int:
        """Return the positions to reserve; the last token of a sequence needs none."""
        return min(len(seq.tokens) + self.headroom, seq.limit - 1)

    def reserved(self, station: Station, said: RoomReserved, now: float) -> None:
        """Begin; its home is told that it is served here."""
        relay = found(station, said.request_id, said.attempt)
        if relay is None or relay.seq is None:
            return
        seq, first = relay.seq, not relay.granted
        relay.onward, relay.granted = said.ticket, relay.reserved
        if not first or station.span is None:
            return
        seq.route = (Stage(station.instance, station.span), *(station.behind or ()))
        self._books.live.planner.account_for(self._books.lane(station), seq, 0)
        if isinstance(seq.role, Task):
            self._keep(seq, seq.role.side, now)

    def _keep(self, seq: Sequence, side: GuestSide, now: float) -> None:
        """Take a request over from its home."""
        del side.tasks[seq.id]
        seq.move(Phase.STAGED)
        self._kept.keep(seq, side.id, now)
        self.changed(seq.instance)  # first, lest the home lend in its place before it knows
        self._books.live.say(Keep(side.id, (Kept(seq.id, seq.attempt),)))

    # Serving.

    def sampled(self, station: Station, said: Sampled) -> list[TokenEvent]:
        """Take a token, and pass it on if others follow; return what is told of it."""
        relay = found(station, said.request_id, said.attempt)
        if relay is None or relay.seq is None:
            return []
        seq = relay.seq
        if seq.phase is not Phase.STAGED or said.position != len(seq.tokens):
            return []
        seq.tokens.append(said.token)
        seq.account.charged += OUTPUT_WEIGHT
        is_first = seq.first_step_s is not None
        event = event_of(seq, said.token, said.logprobs, seq.finish_reason())
        if event.finish is not None:
            self._books.lane(station).outputs.record(seq)
            self._end(seq)
        else:
            self._extend(relay, seq)
        if is_first:
            self.changed(station.instance)
        return self._kept.hold([event])

    def _extend(self, relay: Relay, seq: Sequence) -> None:
        """Pass the next position on; ask for more room before it is used up."""
        relay.passed = relay.sample_stop = len(seq.tokens)
        relay.token = seq.tokens[-1]
        wanted = self._wanted(seq)
        if relay.reserved != relay.granted or len(seq.tokens) + MARGIN_TOKENS <= relay.reserved:
            return
        if wanted <= relay.reserved:
            return
        if self._books.grow(relay, wanted):
            self._books.live.say(Reserve(relay.station.down, relay.request, wanted))
        else:
            self.lost(relay, "there is no more memory")

    # Ends.

    def refused(self, relay: Relay, said: NoRoom) -> None:
        """Give back, or lose, what a stage behind has no room for, or has lost."""
        self._books.free(relay, withdraw=False)
        relay.station.full = not relay.granted
        self._lose(relay, said.reason, planned=relay.granted != relay.reserved)

    def lost(self, relay: Relay, reason: str, *, planned: bool = True) -> None:
        """Give back, or lose, what cannot go on; not `planned` if a step has failed with it."""
        self._books.free(relay)
        self._lose(relay, reason, planned=planned)

    def _lose(self, relay: Relay, reason: str, *, planned: bool) -> None:
        seq, live = relay.seq, self._books.live
        if seq is None:
            return
        if isinstance(seq.role, Task) and self.helper is not None:
            self.helper.failed(seq.role)
            return
        if isinstance(seq.role, KeepRole):
            self._kept.forget(seq.id)  # its ingress will be refused here, and go elsewhere
        else:
            live.told.append(Lose((Loss(seq.id, seq.attempt),), reason, planned=planned))
        live.forget(seq)
        self.changed(relay.station.instance)

    def let_go(self, seq: Sequence) -> None:
        """Free a request at all stages, if it is at any: its sequence ends, or is given back."""
        station = self._books.stations.get(seq.instance)
        relay = station.relays.get(seq.id) if station is not None else None
        if relay is not None and relay.seq is seq:
            self._books.free(relay)
            if seq.phase is Phase.STAGED:
                self.changed(seq.instance)

    def switch(self, station: Station, now: float) -> bool:
        """Go on by itself with what a lead serves that is complete; tell whether KV comes for it.

        Then the other stages are there until it is here. What does not come is computed anew.
        """
        lane = self._books.lane(station)
        moving = self._returning.choose(station)
        for relay in sorted(station.relays.values(), key=lambda one: -one.number):
            seq = relay.seq
            if seq is None or seq.phase is not Phase.STAGED or relay in moving:
                continue  # not begun: it is given back to its home
            self._books.free(relay, withdraw=bool(moving))
            seq.move(Phase.WAITING)
            seq.stays, seq.route = True, ()
            lane.queue.push(seq)
        self._returning.begin(station, moving, now)
        return bool(moving)
