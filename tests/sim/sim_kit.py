"""Deciders for tests of the simulation: one that only takes notes, and broken ones."""

from __future__ import annotations

from math import inf
from typing import Any

from blitzgw.core.rumours import Digest, Packet, PacketKind
from blitzgw.gossip.events import Effect, Event, TimePassed
from blitzgw.sim.heap import EventHeap
from blitzgw.sim.network import Network
from blitzgw.sim.process import Process
from blitzgw.sim.streams import Streams


class Notes:
    """A decider that notes what it is told and when, and answers what `answers` says."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, Event]] = []
        self.answers: dict[type[Any], list[Effect]] = {}
        self.due_s = inf
        self.interval_s = inf

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.taken.append((now, event))
        if isinstance(event, TimePassed):
            self.due_s = now + self.interval_s
        return self.answers.pop(type(event), [])

    def deadline(self) -> float:
        return self.due_s

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for _, event in self.taken]


def address(index: int) -> tuple[str, int]:
    return f"10.0.0.{index}", 7077


def packet(seq: int = 0) -> Packet:
    return Packet(PacketKind.PING, seq, Digest("", 0, 0))


def process(heap: EventHeap, index: int = 0, notes: Notes | None = None, **options: Any) -> Process:
    options = {"origin_s": 0.0, "perform": lambda *_: None} | options
    decider: Any = notes or Notes()
    return Process(heap, decider, f"boot{index}", address(index), **options)


class Wires:
    """Two hosts with a process each, and streams between them."""

    def __init__(self, network: Network) -> None:
        self.heap = EventHeap()
        self.notes = [Notes(), Notes()]
        self.off = False
        self.streams = Streams(self.heap, network, self.find, lambda _: self.off)
        self.processes = [
            process(self.heap, index, notes, perform=self.perform)
            for index, notes in enumerate(self.notes)
        ]

    def find(self, where: tuple[str, int]) -> Process | None:
        found = [p for p in self.processes if p.address == where and p.running]
        return found[0] if found else None

    def perform(self, sender: Process, effect: Any) -> None:
        name = {"StartSync": "start", "AnswerSync": "answer", "FinishSync": "finish"}
        getattr(self.streams, name[type(effect).__name__])(sender, effect)
