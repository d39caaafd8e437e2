"""The steps of a stage: rows of many requests share one, whatever positions they are at."""

from __future__ import annotations

from dataclasses import replace

from blitzgw.core.live import back_of
from blitzgw.core.span import Span
from blitzgw.core.step import Import, NewSequence, Row, Send, Step
from blitzgw.scheduler.batch import Batch
from blitzgw.scheduler.lane import TAKEN_IN, Lane, PostedStep
from blitzgw.scheduler.live.relays import Relay, Station


class RelayBatch(Batch):
    """The next step of a stage, over its span; what it computes goes on to the next stage."""

    __slots__ = ("_known", "_relays", "_station")

    def __init__(self, lane: Lane, station: Station) -> None:
        super().__init__(lane, station.span)
        self._station = station
        self._known: list[tuple[int, int]] = []
        self._relays: list[tuple[Relay, int]] = []

    def relay(self, relay: Relay) -> tuple[int, int]:
        """Add a row for what may be posted of a request; return its positions `[start, stop)`."""
        start = relay.at
        stop = start + min(self.room, relay.ready - start)
        last = self._station.is_last
        self._prepare(relay, known=not last)
        sample = last and stop == relay.sample_stop
        self.rows.append(Row(relay.number, start, stop - start, sample, relay.blocks))
        self._relays.append((relay, stop if sample else -1))
        if not last:
            end = Span(self.span.stop, self.span.stop)
            to = self._station.down
            self.sends.append(Send(to, relay.onward, relay.number, end, start, stop, hidden=True))
        relay.blocks = ()
        self._decode_rows += not relay.is_prompt
        self.work += (stop - start) * len(self.span) * relay.is_prompt
        relay.at = stop
        relay.steps += 1
        self.room -= stop - start
        return start, stop

    def take_back(self, relay: Relay) -> None:
        """Take in the KV that has come from the stages behind."""
        back = relay.back
        assert back is not None
        edge = back_of(relay.onward_edge)
        self._imports.append(Import(edge, back.onward, relay.number, relay.blocks))
        self._relays.append((relay, TAKEN_IN))
        relay.blocks = ()
        relay.steps += 1
        back.fresh = False
        back.importing += 1

    def _prepare(self, relay: Relay, *, known: bool) -> None:
        """Tell the worker what it has to know before the row."""
        if not relay.introduced:
            request = relay.request
            self._new.append(
                NewSequence(
                    relay.number,
                    request.tokens,
                    request.prompt_length,
                    request.choice,
                    request.sampling,
                )
            )
            relay.introduced = True
        if relay.fresh:
            self._imports.append(Import(relay.edge, relay.ticket, relay.number))
            relay.fresh = False
        if known and relay.token >= 0:
            self._known.append((relay.number, relay.token))

    def post(self, step_id: int) -> tuple[Step, PostedStep]:
        """Return the step and the record of it."""
        step, posted = super().post(step_id)
        posted.relays = self._relays
        return replace(step, known=tuple(self._known)), posted
