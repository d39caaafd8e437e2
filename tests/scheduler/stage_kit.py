"""A live world with pipelines: workers that relay, and pairings between stages."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise

from blitzgw.core.live import LivePolicy, Purpose, back_of
from blitzgw.core.messages import StepFailed
from blitzgw.core.parcels import Parcel, ParcelsSent
from blitzgw.core.span import Span
from blitzgw.core.step import Row, Send, StepResult
from blitzgw.scheduler.events import (
    InstanceRemoved,
    PairingOpened,
    RequestArrived,
    StageAssigned,
    StageResident,
)
from tests.scheduler.live_kit import LiveWorld, Node, Pairing
from tests.scheduler.live_toy import LayerToy, Outgoing


class StageToy(LayerToy):
    """Runs the span of its stage beside what is resident; takes tokens that others sampled."""

    stage = Span(0, 0)

    def close(self, edge: str) -> None:
        super().close(edge)
        super().close(back_of(edge))

    def run_next(self, *, fail: bool = False) -> StepResult | StepFailed:
        step = self.posted[0]
        here = set(self.sequences) - set(step.drop)
        lost = {seq for seq, _ in step.known} - here
        if fail or lost:
            for seq, _ in step.known:
                self.sequences.pop(seq, None)
            return super().run_next(fail=True)
        for seq, token in step.known:
            self.sequences[seq].tokens.append(token)
        return super().run_next()

    def _compute(self, span: Span, row: Row) -> int | None:
        resident = self.resident
        if self.stage.start <= span.start and span.stop <= self.stage.stop:
            self.resident = max(resident, span.stop)
        try:
            return super()._compute(span, row)
        finally:
            self.resident = resident

    def _send(self, instance: str, send: Send) -> None:
        if len(send.span):
            super()._send(instance, send)
            return
        sequence, layer = self.sequences[send.seq], send.span.stop
        if (send.edge, send.ticket) in self.dropped:
            return
        hidden = {p: sequence.frontier.pop(p) for p in range(send.start, send.stop)}
        assert {at for at, _ in hidden.values()} == {layer}
        out = Outgoing(send, (), hidden, instance)
        out.parcels.append(Parcel(send.ticket, Span(layer, layer), send.start, send.stop))
        self.outgoing.setdefault(send.edge, deque()).append(out)


class StageWorld(LiveWorld):
    """`chain` makes a pipeline of loading nodes; `serve` gives them their layers.

    A guest hears that what comes back to it comes at `back_bytes_per_s`.
    """

    back_bytes_per_s = 1e9

    def add(self, name: str, *, loading: bool = False, **options: object) -> Node:
        node = super().add(name, loading=loading, **options)
        toy = node.worker = StageToy(node.instance)
        toy.resident = 0 if loading else node.instance.n_layers
        return node

    def join(self, guest: str, host: str) -> str:
        name = f"p{len(self.pairings) + 1}"
        self.pairings[name] = Pairing(name, guest, host)
        self.mail[name, guest] = deque()
        self.mail[name, host] = deque()
        stage = Purpose.STAGE
        self.tell(host, PairingOpened(name, stage, host, guest, False, LivePolicy.PIPELINE))
        if self.pairings[name].alive:
            opened = PairingOpened(
                name, stage, guest, host, True, LivePolicy.PIPELINE, self.back_bytes_per_s
            )
            self.tell(guest, opened)
        return name

    def carry_back(self, pairing: str) -> None:
        """Carry a parcel over the road back, or say that all of a request's have gone."""
        pair, edge = self.pairings[pairing], back_of(pairing)
        read = self.nodes[pair.host].worker.read_next(edge)
        if isinstance(read, ParcelsSent):
            self.tell(pair.host, read)
        elif read is not None and pair.guest in self.nodes and pair.alive:
            arrived = self.nodes[pair.guest].worker.receive(edge, *read)
            if arrived is not None:
                self.tell(pair.guest, arrived)

    def choices(self) -> list[tuple]:
        found = [
            (self.carry_back, pair.id)
            for pair in self.pairings.values()
            if pair.host in self.nodes
            and self.nodes[pair.host].worker.outgoing.get(back_of(pair.id))
        ]
        return super().choices() + found

    def assign(self, names: list[str], cuts: list[int]) -> None:
        """Let the stages be `[0, cuts[0])`, `[cuts[0], cuts[1])` and so on."""
        for name, start, stop in zip(names, [0, *cuts], cuts, strict=False):
            self.tell(name, StageAssigned(name, Span(start, stop)))

    def chain(self, names: list[str], cuts: list[int]) -> list[str]:
        self.assign(names, cuts)
        return [self.join(a, b) for a, b in pairwise(names)]

    def stage_layers(self, name: str, span: Span) -> None:
        self.nodes[name].worker.stage = span
        if span.start == 0:
            self.layers(name, span.stop)
        self.tell(name, StageResident(name))

    def serve(self, names: list[str], cuts: list[int]) -> None:
        for name, start, stop in zip(names, [0, *cuts], cuts, strict=False):
            self.stage_layers(name, Span(start, stop))

    def remove(self, name: str) -> None:
        """An instance is unloaded; its node says so."""
        self.tell(name, InstanceRemoved(name))
        assert not self.nodes[name].scheduler.statistics().kv_used_bytes
        del self.nodes[name]
        for pairing in self.pairings.values():
            assert not pairing.alive or name not in (pairing.guest, pairing.host)
            if name in (pairing.guest, pairing.host):
                self.mail[pairing.id, name].clear()

    def retry(self) -> None:
        """Submit a lost request where it was sent, complete or not, or at any complete instance."""
        story = self.stories[self.resubmit[0]]
        if story.over or story.instance not in self.nodes or self.nodes[story.instance].complete:
            super().retry()
            return
        self.resubmit.popleft()
        request = story.request
        prompt = request.tokens[: request.prompt_length]
        story.request = replace(
            request, tokens=(*prompt, *story.outputs), attempt=request.attempt + 1
        )
        self.tell(story.instance, RequestArrived(story.instance, story.request))
