"""Who is a stage of a pipeline, and the memory of the requests there."""

from __future__ import annotations

from blitzgw.core.live import Withdraw, back_of
from blitzgw.core.request import GenerationRequest
from blitzgw.scheduler.lane import Lane
from blitzgw.scheduler.live.books import LiveBooks
from blitzgw.scheduler.live.relays import Relay, Station
from blitzgw.scheduler.sequence import Sequence


class StageBooks:
    """Stations by their instance, and by their pairings: `hosts` of those that come, `guests`."""

    def __init__(self, books: LiveBooks) -> None:
        self.live = books
        self.stations: dict[str, Station] = {}
        self.hosts: dict[str, Station] = {}
        self.guests: dict[str, Station] = {}

    def lane(self, station: Station) -> Lane:
        """Return a station's instance."""
        return self.live.planner.lanes[station.instance]

    def take(
        self, station: Station, request: GenerationRequest, tokens: int, seq: Sequence | None = None
    ) -> Relay | None:
        """Give a request memory for so many positions at a stage; None where there is none.

        `seq` is the lead's.
        """
        lane, planner = self.lane(station), self.live.planner
        if not 0 < len(request.tokens) <= tokens <= lane.context:
            return None
        if lane.n_running + len(lane.relays) >= lane.max_running:
            return None
        # what the lead goes on with by itself may be reused, by the same tenant
        reserved = planner.reserve(lane, tokens, seq.account.name if seq is not None else "")
        if reserved is None:
            return None
        number, blocks = reserved
        ticket = 0 if seq is not None else self.live.next_ticket()
        relay = Relay(station, request, number, tokens, blocks, station.up, ticket, seq)
        relay.onward_edge = station.down
        lane.relays[number] = station.relays[request.id] = relay
        if ticket:
            station.tickets[ticket] = relay
        lane.staged_total += 1
        return relay

    def grow(self, relay: Relay, tokens: int) -> bool:
        """Give a request memory for more positions; tell whether there was some."""
        lane = self.lane(relay.station)
        if tokens > lane.context:
            return False
        if tokens > relay.reserved:
            blocks = lane.allocator.extend(relay.number, tokens)
            if blocks is None:
                return False
            relay.blocks += blocks
            relay.reserved = tokens
        return True

    def free(self, relay: Relay, *, withdraw: bool = True) -> None:
        """Forget a request at a stage, and with `withdraw` at those behind it.

        What comes of it is dropped; not before posted steps have taken in what they were told to.
        """
        station, lane = relay.station, self.lane(relay.station)
        relay.over = True
        station.full = False
        del station.relays[relay.id], lane.relays[relay.number]
        station.tickets.pop(relay.ticket, None)
        lane.allocator.free(relay.number)
        if relay.introduced:
            lane.drops.append(relay.number)
        if withdraw and station.down:
            self.live.say(Withdraw(station.down, relay.id, relay.attempt))
        if relay.back is not None:
            self.live.drop(back_of(relay.edge), relay.back.ticket)  # what has not been sent
            station.backs.pop(relay.back.onward, None)
        self.drop_parcels(relay)

    def drop_parcels(self, relay: Relay) -> None:
        """Drop what is there or still comes of a request that is over, if that can be now."""
        if relay.steps:
            return
        if relay.ticket:
            self.live.drop(relay.edge, relay.ticket)
        if relay.back is not None and relay.back.onward:
            self.live.drop(back_of(relay.onward_edge), relay.back.onward)

    def part(self, station: Station, reason: str, *, gone: str = "") -> None:
        """Leave the neighbours, of whom one may be `gone` (its pairing); both are told."""
        for pairing in (station.up, station.down):
            if pairing and pairing != gone:
                self.live.end(pairing, reason)
        self.hosts.pop(station.up, None)
        self.guests.pop(station.down, None)
        station.up = station.down = ""
        station.behind, station.said, station.broken = None, (), True

    def quit(self, station: Station, pairing: str) -> None:
        """Leave one neighbour; the other one stays."""
        self.live.end(pairing, "another neighbour")
        self.hosts.pop(pairing, None)
        self.guests.pop(pairing, None)
        if pairing == station.down:
            station.down, station.behind, station.full = "", None, False
        else:
            station.up, station.said = "", ()


def found(station: Station, request_id: str, attempt: int) -> Relay | None:
    """Return what a message is about, unless that is over."""
    relay = station.relays.get(request_id)
    return relay if relay is not None and relay.attempt == attempt else None
