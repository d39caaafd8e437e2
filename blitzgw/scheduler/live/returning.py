"""What becomes of a pipeline's requests when its lead is complete: moved to it, or computed anew.

What the stages have computed of a request is at each of them: its layers' KV. They send it back up
the chain, each what is behind it as well, while nothing of it is computed; or the lead computes the
whole of it again, all tokens being known. The quicker is done. A model of 8 thousand million
parameters has 128 KiB of KV a token, half of it behind the lead of two stages: at 1.25 GB/s that
are 19,000 tokens a second, about what a large GPU prefills; at 10 GB/s moving is eight times as
fast, and beside a CPU, which prefills some hundreds a second, a hundred times.
"""

from __future__ import annotations

from typing import Protocol

from blitzgw.core.live import Return, back_of
from blitzgw.core.parcels import Parcel
from blitzgw.core.span import Span
from blitzgw.core.step import BLOCK_TOKENS, Send
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.passages import Arrival, TakingSide
from blitzgw.scheduler.live.records import Course
from blitzgw.scheduler.live.relays import Back, Relay, Station
from blitzgw.scheduler.live.stagebooks import StageBooks
from blitzgw.scheduler.sequence import Phase

LATE = 2.0
"""What has not come within so many times as long as it was expected to take is computed anew."""

GRACE_S = 2.0
"""On top of that: messages, and steps that are posted already, at every stage."""


class ArrivalPort(Protocol):
    """What is wanted of those who take sequences in (arriving.py)."""

    sides: dict[str, TakingSide]
    arrivals: dict[str, Arrival]

    def give_up(self, arrival: Arrival, *, say: bool = True) -> None:
        """Compute a sequence anew that does not come."""

    def closed(self, side: TakingSide) -> None:
        """Expect nothing more by a road."""


class Returning:
    """Decides for leads that are complete, and for the stages behind them."""

    def __init__(self, books: StageBooks) -> None:
        self._books = books
        self.arriving: ArrivalPort | None = None
        self.leads: dict[str, Station] = {}
        """Complete, and still taking KV in, by instance."""

    # At the lead.

    def choose(self, station: Station) -> list[Relay]:
        """Return the requests whose KV is to come: all that can, or none where that takes longer.

        Of one that has a token from this pipeline everything before that has been computed at
        every stage. What its ingress has not submitted here is computed anew.
        """
        lane, span = self._books.lane(station), station.span
        relays = [relay for relay in station.relays.values() if _can_return(relay)]
        if not relays or span is None or self.arriving is None or not station.down:
            return []
        tokens = sum(relay.passed for relay in relays)
        rate = lane.pace.prefill_tokens_per_s or 0.0
        moving_s = self._moving_s(station, tokens)
        return relays if cheaper(moving_s, tokens, rate) else []

    def _moving_s(self, station: Station, tokens: int) -> float:
        """Return how long KV of so many tokens takes up the chain."""
        lane, span = self._books.lane(station), station.span
        if span is None or station.back_bytes_per_s <= 0:
            return float("inf")
        n_layers = lane.instance.n_layers
        a_token = lane.instance.kv.block_bytes / BLOCK_TOKENS * (n_layers - span.stop) / n_layers
        return tokens * a_token / station.back_bytes_per_s

    def begin(self, station: Station, relays: list[Relay], now: float) -> None:
        """Have KV come, and each request go on when all of its own is here."""
        if not relays or self.arriving is None:
            return
        lane, edge = self._books.lane(station), back_of(station.down)
        late_s = GRACE_S + LATE * self._moving_s(station, sum(relay.passed for relay in relays))
        side = TakingSide(edge, station.instance, "")
        self.arriving.sides[edge] = side
        self.leads[station.instance] = station
        for relay in relays:
            arrival = self._expect(lane, station, relay, side)
            arrival.until_s = now + late_s
            said = Return(station.down, relay.id, relay.attempt, arrival.ticket, arrival.moved or 0)
            self._books.live.say(said)

    def _expect(self, lane: Lane, station: Station, relay: Relay, side: TakingSide) -> Arrival:
        """Make a sequence that is on its way of a request; what is computed here is there."""
        seq, number, live = relay.seq, relay.number, self._books.live
        assert seq is not None
        assert station.span is not None
        assert self.arriving is not None
        del station.relays[relay.id], lane.relays[number]
        relay.over = True
        n_layers, known = lane.instance.n_layers, len(seq.tokens) - 1
        arrival = Arrival(
            seq,
            side.id,
            live.next_ticket(),
            side=side,
            asked=relay.request,
            blocks=lane.allocator.blocks(number),
            reach=[known if layer < station.span.stop else 0 for layer in range(n_layers)],
            moved=known,
            parked=True,
        )
        seq.role = self.arriving.arrivals[seq.id] = side.tickets[arrival.ticket] = arrival
        seq.move(Phase.RUNNING)
        seq.number, seq.new_blocks = number, relay.blocks
        seq.capacity = len(arrival.blocks) * BLOCK_TOKENS
        seq.stays, seq.route = True, ()
        lane.allocator.withhold(number)
        lane.courses[number] = Course(
            seq, number, layer=n_layers, ready=False, introduced=True, done=True, passage=arrival
        )
        return arrival

    def refused(self, station: Station, request_id: str, attempt: int) -> None:
        """Compute a request anew that a stage has lost."""
        for arrival in list(self._tickets(station).values()):
            if (arrival.asked.id, arrival.asked.attempt) == (request_id, attempt):
                assert self.arriving is not None
                self.arriving.give_up(arrival, say=False)

    def over(self) -> list[Station]:
        """Return the leads that expect nothing more, and expect it no longer of them."""
        done = [station for station in self.leads.values() if not self._tickets(station)]
        for station in done:
            self.close(station)
        return done

    def takes(self, edge: str) -> bool:
        """Tell whether what comes by a road is for sequences that a complete lead goes on with."""
        return any(edge == back_of(station.down) for station in self.leads.values())

    def _tickets(self, station: Station) -> dict[int, Arrival]:
        side = self.arriving.sides.get(back_of(station.down)) if self.arriving is not None else None
        return side.tickets if side is not None else {}

    def close(self, station: Station) -> None:
        """Expect nothing more at a lead: the next stage is left, or gone."""
        if self.leads.pop(station.instance, None) is None or self.arriving is None:
            return
        side = self.arriving.sides.get(back_of(station.down))
        if side is not None:
            self.arriving.closed(side)

    # At the other stages.

    def asked(self, relay: Relay, said: Return) -> bool:
        """Send a request's KV back, and have that from behind come; False if it is not here."""
        station = relay.station
        if relay.back is not None or station.span is None or not 0 < said.tokens <= relay.at:
            return False
        relay.back = back = Back(said.ticket, said.tokens)
        self._send(relay, station.span)
        if not station.is_last:
            back.onward, back.first = self._books.live.next_ticket(), station.span.stop
            back.reach = [0] * (station.n_layers - station.span.stop)
            station.backs[back.onward] = relay
            again = Return(station.down, relay.id, relay.attempt, back.onward, back.tokens)
            self._books.live.say(again)
        return True

    def arrived(self, station: Station, parcel: Parcel) -> None:
        """Note that KV has come from behind; it is taken in with the next step."""
        relay = station.backs.get(parcel.ticket)
        if relay is not None and relay.back is not None:
            relay.back.arrive(parcel)

    def taken_in(self, relay: Relay) -> None:
        """Pass on what has come from behind, once that is all there is."""
        back, station = relay.back, relay.station
        if back is None:
            return
        back.importing -= 1
        if back.may_pass_on and station.span is not None:
            back.passed_on = True
            self._send(relay, Span(station.span.stop, station.n_layers))

    def _send(self, relay: Relay, span: Span) -> None:
        back, edge = relay.back, back_of(relay.station.up)
        assert back is not None
        lane = self._books.lane(relay.station)
        lane.sends.append(Send(edge, back.ticket, relay.number, span, 0, back.tokens))


def _can_return(relay: Relay) -> bool:
    seq = relay.seq
    if seq is None or seq.phase is not Phase.STAGED or seq.role is not None:
        return False
    return len(seq.tokens) > len(relay.request.tokens)


def cheaper(moving_s: float, tokens: int, tokens_per_s: float) -> bool:
    """Tell whether KV that comes within `moving_s` is here before it could be computed anew.

    What has not been measured is not relied upon: then it is computed.
    """
    return tokens_per_s > 0 and moving_s * tokens_per_s < tokens
