"""A cluster in virtual time: hosts, the processes on them, and the network between.

The processes run the production deciders. The world only carries out their effects, and does to
them what it is told: start, crash, leave, pause, publish.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blitzgw.core.rumours import Rumour, Status
from blitzgw.gossip.events import (
    Address,
    AnswerSync,
    Departed,
    Effect,
    Event,
    FinishSync,
    LeaveRequested,
    MemberChanged,
    MemberForgotten,
    PacketArrived,
    SeedsFound,
    SendPacket,
    StartSync,
    StateChanged,
    StatePublished,
)
from blitzgw.gossip.knobs import Knobs
from blitzgw.gossip.membership import Membership
from blitzgw.sim.heap import EventHeap
from blitzgw.sim.network import Network
from blitzgw.sim.process import Process, Traffic
from blitzgw.sim.streams import Streams
from blitzgw.sim.watch import Watch
from blitzgw.wire import dump

PORT = 7077
"""Where every node listens, each on a host of its own."""

SEAL_BYTES = 46
"""What sealing adds to a datagram (crypto/datagrams.py)."""

DATAGRAM_BYTES = 28 + SEAL_BYTES
"""What IPv4, UDP and the sealing add to a packet."""

EPOCH_S = 1_800_000_000
"""When the simulation begins, in seconds of the Unix epoch."""

ORIGINS_S = 1e6
"""Monotonic clocks begin somewhere in this range: no node may compare its own with another's."""

LEAVE_TIMEOUT_S = 5.0
"""How long a process that leaves waits for `Departed` before it ends all the same."""

MakeMembership = Callable[[Rumour, Knobs, random.Random], Membership]
"""How a process gets its decider; tests put a broken one here."""


@dataclass(slots=True, eq=False)
class Host:
    """A place for a process, of whom there may be several one after another."""

    name: str
    address: Address
    off: bool = False
    process: Process | None = None


class World:
    """`nodes` hosts, of which the first `seeds` are the addresses that all know from the start."""

    def __init__(
        self,
        nodes: int,
        *,
        seed: int,
        knobs: Knobs,
        seeds: int = 3,
        network: Network | None = None,
        make: MakeMembership = Membership,
    ) -> None:
        self.rng = random.Random(f"world {seed}")  # noqa: S311  a simulation is to repeat
        self.heap = EventHeap()
        self.network = network or Network(random.Random(f"network {seed}"))  # noqa: S311
        self.watch = Watch(self.heap, self.network)
        self.hosts = [Host(f"node{i}", _address(i), False) for i in range(nodes)]
        self.knobs = knobs
        self._seeds = tuple(host.address for host in self.hosts[:seeds])
        self._at = {host.address: host for host in self.hosts}
        self._make = make
        self._past = Traffic()
        self._past_s = 0.0
        self._streams = Streams(self.heap, self.network, self._process_at, self._is_off)
        self._effects: dict[type[Any], Callable[[Process, Any], None]] = {
            SendPacket: self._send,
            StartSync: self._streams.start,
            AnswerSync: self._streams.answer,
            FinishSync: self._streams.finish,
            MemberChanged: lambda process, effect: self.watch.changed(process, effect.member),
            MemberForgotten: lambda process, effect: self.watch.forgot(process, effect.boot),
            StateChanged: lambda process, effect: self.watch.received(process, effect.updates),
            Departed: lambda process, _: self._end(process),
        }

    @property
    def now(self) -> float:
        """The present, in virtual seconds from the beginning."""
        return self.heap.now

    def running(self) -> list[Process]:
        """Return the processes that run, those that are leaving included, by age."""
        return list(self.watch.processes.values())

    def start(self, index: int) -> Process | None:
        """Start a process on a host, and let it join; None where one runs already."""
        host = self.hosts[index]
        if host.process is not None:
            return None
        boot = f"{self.rng.getrandbits(64):016x}"
        started_s = EPOCH_S + int(self.now)
        me = Rumour(boot, host.name, *host.address, started_s, 0, Status.ALIVE)
        process = Process(
            self.heap,
            self._make(me, self.knobs, random.Random(f"{boot} {host.name}")),  # noqa: S311
            boot,
            host.address,
            origin_s=self.rng.random() * ORIGINS_S,
            perform=self._perform,
        )
        host.process, host.off = process, False
        self.watch.began(process)
        process.take(SeedsFound(tuple(seed for seed in self._seeds if seed != host.address)))
        return process

    def crash(self, index: int, *, off: bool = False) -> None:
        """End a process without a word; `off`: its host goes too, and refuses no connection."""
        host = self.hosts[index]
        if host.process is not None:
            host.off = off
            self._end(host.process)

    def leave(self, index: int) -> None:
        """Let a process tell the others that it goes, and end."""
        process = self.hosts[index].process
        if process is not None and not process.leaving:
            process.leaving = True
            process.take(LeaveRequested())
            self.heap.after(LEAVE_TIMEOUT_S, self._end, process)

    def publish(self, index: int, entries: Mapping[str, bytes | None]) -> None:
        """Let a node publish entries of its state; None: the entry is gone."""
        process = self.hosts[index].process
        if process is None or process.leaving:
            return
        for key, value in entries.items():
            if value is None:
                process.published.pop(key, None)
            else:
                process.published[key] = value
        process.take(StatePublished(dict(entries)))

    def pause(self, index: int, duration_s: float) -> None:
        """Let a process have no processor for a while."""
        process = self.hosts[index].process
        if process is not None:
            process.pause(duration_s, timer_first=self.rng.random() < 0.5)

    def tell(self, index: int, event: Event) -> None:
        """Let any other event happen at a node."""
        process = self.hosts[index].process
        if process is not None:
            process.take(event)

    def traffic(self) -> Traffic:
        """Return what all processes have sent since the beginning."""
        return sum((process.traffic for process in self.running()), self._past)

    def lived_s(self) -> float:
        """Return for how many seconds processes have run, all of them together."""
        return self._past_s + sum(self.now - process.began_s for process in self.running())

    def run(self, duration_s: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass, at most until a condition holds; return whether it does.

        The condition is looked at after every event: it must be cheap.
        """
        return self.heap.run_until(self.now + duration_s, until)

    def _perform(self, process: Process, effect: Effect) -> None:
        self._effects[type(effect)](process, effect)

    def _send(self, process: Process, effect: SendPacket) -> None:
        process.traffic.packets += 1
        process.traffic.packet_bytes += len(dump(effect.packet)) + DATAGRAM_BYTES
        for delay_s in self.network.datagram(process.address, effect.address):
            event = PacketArrived(process.boot, process.address, effect.packet)
            self.heap.after(delay_s, self._deliver, effect, event)

    def _deliver(self, effect: SendPacket, event: PacketArrived) -> None:
        host = self._at.get(effect.address)
        if host is not None and host.process is not None and host.process.boot == effect.boot:
            host.process.take(event)

    def _end(self, process: Process) -> None:
        if not process.running:
            return
        process.end()
        self._past += process.traffic
        self._past_s += self.now - process.began_s
        self._at[process.address].process = None
        self.watch.ended(process)

    def _process_at(self, address: Address) -> Process | None:
        host = self._at.get(address)
        return None if host is None else host.process

    def _is_off(self, address: Address) -> bool:
        host = self._at.get(address)
        return host is None or host.off


def _address(index: int) -> Address:
    return f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", PORT
