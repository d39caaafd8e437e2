"""The stages of a pipeline: receivers that together have all layers serve whole requests.

Each stage runs what has come to it, of all requests in one step, and sends the hidden states on;
the last one samples, and the tokens go up to the lead. Whatever breaks a link of the chain ends the
pipeline: each stage leaves its other neighbour, and the lead gives its requests away.
"""

from __future__ import annotations

from blitzgw.core.live import (
    NoRoom,
    Pass,
    Reserve,
    Reserved,
    Return,
    Sampled,
    StageReady,
    Withdraw,
    back_of,
    pairing_of,
)
from blitzgw.core.parcels import Parcel, ParcelsSent
from blitzgw.core.request import Stage, TokenEvent
from blitzgw.core.span import Span
from blitzgw.core.step import StepResult
from blitzgw.scheduler.events import PairingOpened, StageAssigned
from blitzgw.scheduler.lane import ASIDE, TAKEN_IN, Lane, PostedStep
from blitzgw.scheduler.live.lead import Lead
from blitzgw.scheduler.live.relaying import RelayBatch
from blitzgw.scheduler.live.relays import Relay, Station
from blitzgw.scheduler.live.returning import Returning
from blitzgw.scheduler.live.stagebooks import StageBooks, found


class Stages:
    """Decides for the instances of a worker that are stages."""

    def __init__(self, books: StageBooks, lead: Lead, returning: Returning) -> None:
        self._books, self._lead, self._returning = books, lead, returning

    # The chain.

    def assigned(self, event: StageAssigned) -> None:
        """Note an instance's span; one that it had before is over."""
        lane = self._books.live.planner.lanes.get(event.instance)
        station = self._station(event.instance)
        if lane is None or not _may_be(event.span, lane):
            self._leave(station, "no such stage")
            del self._books.stations[event.instance]
            return
        if station.span not in (None, event.span):
            self._leave(station, "another pipeline")
            station.resident = False
        station.span, station.n_layers = event.span, lane.instance.n_layers
        station.resident = station.resident or not lane.loading
        self._advance(station)

    def resident(self, instance: str) -> None:
        """Note that an instance has what its stage needs."""
        station = self._books.stations.get(instance)
        if station is not None:
            station.resident = True
            self._advance(station)

    def opened(self, event: PairingOpened) -> None:
        """Join a stage to a neighbour; one that it had in that place is left, the other is not."""
        station = self._station(event.here)
        self._quit(station, station.down if event.guest else station.up)
        if event.guest:
            station.down, self._books.guests[event.pairing] = event.pairing, station
            station.back_bytes_per_s = event.back_bytes_per_s
        else:
            station.up, self._books.hosts[event.pairing] = event.pairing, station
        station.broken = False
        self._advance(station)

    def _quit(self, station: Station, pairing: str) -> None:
        """Leave one neighbour, if there is one, and give up what both had a part in."""
        if not pairing:
            return
        was_ready = station.is_ready
        if pairing == station.down:
            self._returning.close(station)
        self._books.quit(station, pairing)
        if was_ready and not station.is_ready:
            self._advance(station)  # first, for those before: so they know that nothing has failed
        self._lose_all(station, "another neighbour")

    def ready(self, said: StageReady) -> None:
        """Note that all stages behind one have their layers, or that they are not there any more.

        Who is behind may change while this stage keeps its place: those before are told.
        """
        station = self._books.guests.get(said.pairing)
        if station is None or station.behind == (said.stages or None):
            return
        station.behind = said.stages or None
        if station.behind is None:
            self._lose_all(station, "a stage behind is not there any more")
        self._advance(station)

    def _advance(self, station: Station) -> None:
        """Tell those before a stage who can serve from here on, if that is news to them."""
        if station.span is None:
            return
        if station.is_lead:
            self._lead.changed(station.instance)
            return
        here: tuple[Stage, ...] = ()
        if station.is_ready:
            here = (Stage(station.instance, station.span), *(station.behind or ()))
        if station.up and here != station.said:
            station.said = here
            self._books.live.say(StageReady(station.up, here))

    def _station(self, instance: str) -> Station:
        return self._books.stations.setdefault(instance, Station(instance))

    # Ends.

    def closed(self, pairing: str, reason: str) -> None:
        """End a pipeline, of which a link is gone."""
        station = self._books.hosts.get(pairing) or self._books.guests.get(pairing)
        if station is not None:
            self._leave(station, reason, gone=pairing)

    def _leave(self, station: Station, reason: str, *, gone: str = "") -> None:
        self._returning.close(station)
        self._books.part(station, reason, gone=gone)
        self._lose_all(station, reason)

    def _lose_all(self, station: Station, reason: str) -> None:
        for relay in list(station.relays.values()):
            self._lose(relay, reason)

    def completed(self, lane: Lane, now: float) -> None:
        """End the pipeline of an instance that is complete now, if it leads it.

        It is over when all that comes back to it is there.
        """
        station = self._books.stations.get(lane.instance.id)
        if station is None:
            return
        if not station.is_lead:
            self.resident(lane.instance.id)
            return
        if self._lead.switch(station, now):
            self._lose_all(station, "the lead is complete")
        else:
            self.removed(lane, "the lead is complete")

    def pump(self) -> None:
        """End the pipelines whose lead is complete and has all that it takes over."""
        for station in self._returning.over():
            self.removed(self._books.lane(station), "the lead is complete")

    def removed(self, lane: Lane, reason: str = "the instance was removed") -> None:
        """End the pipeline of an instance that is none of its stages any more."""
        station = self._books.stations.get(lane.instance.id)
        if station is not None:
            self._leave(station, reason)
            del self._books.stations[lane.instance.id]

    def _lose(self, relay: Relay, reason: str, *, planned: bool = True) -> None:
        """Give a request up at this stage and at all others."""
        station = relay.station
        if relay.seq is not None:
            self._lead.lost(relay, reason, planned=planned)
            return
        self._books.free(relay)
        if station.up:
            self._books.live.say(NoRoom(station.up, relay.id, relay.attempt, reason))

    # Requests, from before.

    def reserve(self, said: Reserve) -> None:
        """Make room for a request, or more of it, here and behind."""
        station, request = self._books.hosts.get(said.pairing), said.request
        if station is None:
            return
        relay = station.relays.get(request.id)
        if relay is not None and relay.attempt != request.attempt:
            self._books.free(relay)
            relay = None
        if relay is not None:
            if not self._books.grow(relay, said.tokens):
                self._lose(relay, f"stage {station.instance} has no more memory")
                return
        elif station.is_ready:
            relay = self._books.take(station, request, said.tokens)
        if relay is None:
            reason = f"stage {station.instance} has no room"
            self._books.live.say(NoRoom(station.up, request.id, request.attempt, reason))
        elif station.is_last:
            self._grant(relay)
        else:
            self._books.live.say(Reserve(station.down, request, said.tokens))

    def passed(self, said: Pass) -> None:
        """Note that positions are to be run."""
        relay = self._found(said)
        if relay is None:
            return
        if said.start != relay.passed or not said.start < said.stop <= relay.granted:
            self._lose(relay, f"positions [{said.start}, {said.stop}) after {relay.passed}")
            return
        relay.passed, relay.token = said.stop, said.token
        if said.sample:
            relay.sample_stop = said.stop

    def returned(self, said: Return) -> None:
        """Send back what has been computed of a request, or say that it is not here."""
        station, relay = self._books.hosts.get(said.pairing), self._found(said)
        if station is None:
            return
        if relay is None:
            reason = f"stage {station.instance} has not got it"
            self._books.live.say(NoRoom(station.up, said.request_id, said.attempt, reason))
        elif not self._returning.asked(relay, said):
            self._lose(relay, f"stage {station.instance} has not got {said.tokens} positions")

    def withdrawn(self, said: Withdraw) -> None:
        """Forget a request that nobody wants."""
        relay = self._found(said)
        if relay is not None:
            self._books.free(relay)

    def _found(self, said: Pass | Return | Withdraw) -> Relay | None:
        station = self._books.hosts.get(said.pairing)
        return found(station, said.request_id, said.attempt) if station is not None else None

    def arrived(self, edge: str, parcel: Parcel) -> None:
        """Note that hidden states are here, or KV that goes back."""
        behind = self._books.guests.get(pairing_of(edge))
        if behind is not None and edge == back_of(behind.down):
            self._returning.arrived(behind, parcel)
            return
        station = self._books.hosts.get(edge)
        relay = station.tickets.get(parcel.ticket) if station is not None else None
        if relay is not None and parcel.is_hidden:
            relay.arrive(parcel.start, parcel.stop)

    # Requests, from behind.

    def reserved(self, said: Reserved, now: float) -> None:
        """Note that there is room behind."""
        station = self._books.guests.get(said.pairing)
        if station is None:
            return
        if station.is_lead:
            self._lead.reserved(station, said, now)
            return
        relay = found(station, said.request_id, said.attempt)
        if relay is not None:
            relay.onward = said.ticket
            self._grant(relay)

    def _grant(self, relay: Relay) -> None:
        relay.granted = relay.reserved
        up = relay.station.up
        self._books.live.say(Reserved(up, relay.id, relay.attempt, relay.ticket))

    def refused(self, said: NoRoom) -> None:
        """Give up what a stage behind has no room for, or has lost."""
        station = self._books.guests.get(said.pairing)
        relay = found(station, said.request_id, said.attempt) if station is not None else None
        if station is not None and relay is None:
            self._returning.refused(station, said.request_id, said.attempt)
        if relay is None:
            return
        if relay.seq is not None:
            self._lead.refused(relay, said)
            return
        self._books.free(relay, withdraw=False)
        up = relay.station.up
        self._books.live.say(NoRoom(up, relay.id, relay.attempt, said.reason))

    def sampled(self, said: Sampled) -> list[TokenEvent]:
        """Tell the stage before of a token; return what the lead tells its client."""
        station = self._books.guests.get(said.pairing)
        if station is None:
            return []
        if station.is_lead:
            return self._lead.sampled(station, said)
        if found(station, said.request_id, said.attempt) is not None:
            self._tell(station, said.request_id, said.attempt, said)
        return []

    def sent(self, sent: ParcelsSent) -> None:
        """Give up what could not be sent, in either direction."""
        if not sent.reason:
            return
        station = self._books.guests.get(sent.edge)
        relays = list(station.relays.values()) if station is not None else []
        lost = [relay for relay in relays if relay.onward == sent.ticket]
        station = self._books.hosts.get(pairing_of(sent.edge))
        if station is not None and sent.edge == back_of(station.up):
            backs = [(relay, relay.back) for relay in station.relays.values()]
            lost += [relay for relay, back in backs if back and back.ticket == sent.ticket]
        for relay in lost:
            self._lose(relay, sent.reason)

    # Steps.

    def compose(self, lane: Lane) -> RelayBatch:
        """Put the next step of a stage together."""
        station = self._books.stations[lane.instance.id]
        batch = RelayBatch(lane, station)
        for relay in lane.relays.values():
            if relay.back is not None and relay.back.fresh:
                batch.take_back(relay)
        ready = [relay for relay in lane.relays.values() if relay.at < relay.ready]
        for relay in sorted(ready, key=lambda relay: relay.rank):
            if not batch.room:
                break
            token = -1 if relay.is_prompt else relay.token
            start, stop = batch.relay(relay)
            if not station.is_last:
                self._books.live.say(
                    Pass(
                        station.down,
                        relay.id,
                        relay.attempt,
                        start,
                        stop,
                        stop == relay.sample_stop,
                        token,
                    )
                )
        return batch

    def carried_out(self, posted: PostedStep, result: StepResult | None) -> None:
        """Tell of the tokens that a step has sampled; without a result it has failed."""
        tokens = iter(result.tokens if result is not None else ())
        logprobs = iter((result.logprobs if result is not None else None) or ())
        for relay, position in posted.relays:
            relay.steps -= position != ASIDE
            token = next(tokens, None) if position >= 0 else None
            prob = next(logprobs, None) if position >= 0 else None
            if relay.over:
                self._books.drop_parcels(relay)
            elif result is None:
                reason = f"a step failed at stage {relay.station.instance}"
                self._lose(relay, reason, planned=False)
            elif position == TAKEN_IN:
                self._returning.taken_in(relay)
            elif token is not None:
                said = Sampled("", relay.id, relay.attempt, position, token, prob)
                self._tell(relay.station, relay.id, relay.attempt, said)

    def _tell(self, station: Station, request_id: str, attempt: int, said: Sampled) -> None:
        if station.up:
            up = Sampled(station.up, request_id, attempt, said.position, said.token, said.logprobs)
            self._books.live.say(up)


def _may_be(span: Span, lane: Lane) -> bool:
    """Tell whether an instance can run a span for a pipeline; a complete one leads none."""
    return (
        len(span) > 0 and span.stop <= lane.instance.n_layers and (span.start > 0 or lane.loading)
    )
