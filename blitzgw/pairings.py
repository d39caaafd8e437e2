"""Pairings of this node's instances with others: joins schedulers over peer links, opens roads.

    steward, drains ──► Pairings ── Attach ──► the host's node: road, PairingOpened, Attached
    scheduler ── Say ──► link or event loop ──► the other scheduler

The guest's node makes the road and asks; whoever sees an end tells the other `Detach` and closes
its end of the road. A message of this node to itself takes the same way, without a link.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from blitzgw.core.live import (
    Attach,
    Attached,
    Detach,
    LivePolicy,
    Purpose,
    Road,
    back_of,
    pairing_of,
)
from blitzgw.core.parcels import DropParcels, ParcelArrived, ParcelsSent
from blitzgw.core.ports import PairingPort
from blitzgw.core.transfer import CloseEdge, EdgeClosed, EdgeProgress, OpenReceive, OpenSend
from blitzgw.core.view import ClusterView, InstanceFacts, NodeView
from blitzgw.device import DeviceRunner
from blitzgw.hosting import PREFIX, End, admit
from blitzgw.roads import make_road, rate_between
from blitzgw.scheduler.events import MoveOut, PairingClosed, PairingOpened

log = logging.getLogger(__name__)

MAX_PAIRINGS = 64
"""Ends at this node: each is a road, and there are a few for every instance that loads or drains.
More is a peer that has lost its senses."""

Say = Callable[[str, Any], None]
"""(boot, message): tells a process, this one perhaps, and returns before that has heard it."""


@dataclass(frozen=True, slots=True)
class _DevicePort:
    pairings: Pairings
    device: str

    def say(self, message: Any) -> None:
        self.pairings.say(self.device, message)

    def end(self, pairing: str, reason: str) -> None:
        self.pairings.end(self.device, pairing, reason)


class Pairings:
    """One node's ends of pairings. For the event loop only; nothing here blocks or raises.

    `say` tells a process something; `on_close` takes a pairing that has ended by no will of this
    node's scheduler. With `encrypt`, what travels between nodes is sealed.
    """

    def __init__(
        self,
        boot: str,
        node: str,
        view: Callable[[], ClusterView],
        devices: Mapping[str, DeviceRunner],
        say: Say,
        on_close: Callable[[PairingOpened], None],
        *,
        encrypt: bool,
    ) -> None:
        self._boot, self._node, self._view, self._devices = boot, node, view, devices
        self._say, self._on_close, self._encrypt = say, on_close, encrypt
        self.sent_bytes = 0
        """Of parcels, since the start."""
        self._ends: dict[tuple[str, bool], End] = {}
        """By pairing and whether the guest is here: a node may have both."""

    # What nodes say.

    def said(self, boot: str, message: Any) -> None:
        """Take what another node says."""
        if isinstance(message, Attach):
            self._on_attach(boot, message)
            return
        for guest in (True, False):
            end = self._ends.get((message.pairing, guest))
            if end is not None and end.boot == boot:
                self._hear(message.pairing, guest, message)

    def link_lost(self, boot: str) -> None:
        """End what was joined to a process that cannot be reached, or is gone."""
        for (name, _), end in [*self._ends.items()]:
            if end.boot == boot:
                self._close(name, end, "the link to the other node was lost")

    def count(self, boot: str) -> int:
        """Return how many pairings need the link to a process."""
        return sum(end.boot == boot for end in self._ends.values())

    # What devices tell.

    def told(self, device: str, message: Any) -> bool:
        """Take what a worker tells of a road; return whether it is one's."""
        if isinstance(message, ParcelArrived | ParcelsSent):
            self.sent_bytes += message.size_bytes if isinstance(message, ParcelsSent) else 0
            name, guest = pairing_of(message.edge), isinstance(message, ParcelsSent)
            end = self._ends.get((name, guest == (name == message.edge)))
            if end is not None and end.open and end.device == device:
                self._devices[device].live(message)
            elif isinstance(message, ParcelArrived):
                late = DropParcels(message.edge, (message.parcel.ticket,))
                self._devices[device].supervisor.send(late)
            return True
        if not isinstance(message, EdgeClosed | EdgeProgress):
            return False
        name = pairing_of(message.edge)
        ends = [end for end in self._both(name) if end.device == device]
        if isinstance(message, EdgeClosed):
            for end in ends:
                self.dissolve(name, end, f"its road has ended: {message.reason or 'closed'}")
        return bool(ends) or message.edge.startswith(PREFIX)

    def instance_gone(self, instance: str) -> None:
        """Take the news that an instance is gone; its scheduler knows."""
        for purpose in Purpose:
            for name, end in self.of(instance, purpose):
                self._forget(name, end, "the instance is gone")

    def worker_lost(self, device: str) -> None:
        """Take the news that a worker is gone, and with it roads and the scheduler's books."""
        for (name, _), end in [*self._ends.items()]:
            if end.device == device:
                self._forget(name, end, "the worker has died")

    # What schedulers want.

    def port(self, device: str) -> PairingPort:
        """Return the way of a device's scheduler to those that it is joined to."""
        return _DevicePort(self, device)

    def say(self, device: str, message: Any) -> None:
        """Send what a device's scheduler says to the other end of its pairing."""
        for end in self._both(message.pairing):
            if end.device == device and end.open:
                self._tell(end, message)

    def end(self, device: str, pairing: str, reason: str) -> None:
        """End a pairing that a device's scheduler has done with; it is not told.

        A stage leaves the one behind it when the one before it is lost: they meet again. A home
        whose helper is complete may have something to give away.
        """
        for end in self._both(pairing):
            if end.device == device:
                self._forget(pairing, end, reason)
                if end.opened.purpose is not Purpose.MOVE:
                    self._on_close(end.opened)

    def close(self) -> None:
        """Forget all; roads end with their workers."""
        self._ends.clear()

    # Ends.

    def _hear(self, name: str, guest: bool, message: Any) -> None:
        """Take what the other end says."""
        end = self._ends.get((name, guest))
        if end is None:
            return  # it has ended here; the other end is being told
        match message:
            case Attached():
                if guest and not end.open:
                    self._take_back(end)
                    self._open(end)
            case Detach(reason=reason):
                self._close(name, end, reason)
            case _ if end.open:
                self._devices[end.device].live(message)

    def _take_back(self, end: End) -> None:
        """Dial for what comes from a host, where anything may: it listens by now."""
        if end.back is not None:
            dial = OpenReceive(end.back.edge, end.back.host, end.back.port)
            self._devices[end.device].supervisor.send(dial)

    def _tell(self, end: End, message: Any) -> None:
        """Tell the other end."""
        if end.boot != self._boot:
            self._say(end.boot, message)
            return
        loop = asyncio.get_running_loop()
        if isinstance(message, Attach):
            loop.call_soon(self._on_attach, self._boot, message)
        else:
            loop.call_soon(self._hear, message.pairing, not end.opened.guest, message)

    def _open(self, end: End) -> None:
        end.open = True
        opened = end.opened
        log.info(
            "pairing_open pairing=%s purpose=%s here=%s there=%s policy=%s",
            opened.pairing, opened.purpose, opened.here, opened.there, opened.policy,
        )  # fmt: skip
        runner = self._devices[end.device]
        if opened.guest and opened.purpose is Purpose.HELP:
            runner.helps(opened.here, opened.there)
        runner.live(opened)
        if end.then is not None:
            runner.live(end.then)

    def _close(self, name: str, end: End, reason: str) -> None:
        """Take the news that the other end is gone, and have another try where that is wanted."""
        if self._remove(name, end, reason) and end.open:
            self._devices[end.device].live(PairingClosed(name, reason))
        self._on_close(end.opened)

    def dissolve(self, name: str, end: End, reason: str) -> None:
        """End a pairing for everybody."""
        self._tell(end, Detach(name, reason))
        self._close(name, end, reason)

    def _forget(self, name: str, end: End, reason: str) -> None:
        """End a pairing of which the scheduler here knows that it is over."""
        if self._remove(name, end, reason):
            self._tell(end, Detach(name, reason))

    def _remove(self, name: str, end: End, reason: str) -> bool:
        """Take an end out of the books and close its road; return whether it was in them."""
        opened = end.opened
        if self._ends.pop((name, opened.guest), None) is None:
            return False
        log.info(
            "pairing_closed pairing=%s here=%s there=%s reason=%s",
            name, opened.here, opened.there, reason,
        )  # fmt: skip
        runner = self._devices[end.device]
        runner.supervisor.send(CloseEdge(name))
        if opened.purpose is Purpose.STAGE:
            runner.supervisor.send(CloseEdge(back_of(name)))
        if opened.guest and opened.purpose is Purpose.HELP:
            runner.helps(opened.here, "")
        return True

    # The guest's side.

    def attach(
        self,
        device: str,
        instance: str,
        there: tuple[NodeView, InstanceFacts],
        purpose: Purpose,
        policy: LivePolicy = LivePolicy.STOP,
        then: Callable[[str], MoveOut] | None = None,
    ) -> bool:
        """Ask another instance's node to be joined to it; return whether it could be asked.

        `then` makes, of the pairing's name, what the scheduler is told once it is open.
        """
        node, facts = there
        name = f"{PREFIX}{secrets.token_hex(8)}"
        runner = self._devices[device]
        here, far = f"{self._node}/{device}", f"{node.name}/{facts.device}"
        road = make_road(self._view(), here, far, name, encrypt=self._encrypt)
        if road is None or not runner.up or here == far or len(self._ends) >= MAX_PAIRINGS:
            return False
        back, rate = self._way_back(far, here, name, purpose)
        opened = PairingOpened(
            name, purpose, instance, facts.id, guest=True, policy=policy, back_bytes_per_s=rate
        )
        end = End(opened, device, node.boot, then=then and then(name), back=back)
        self._ends[name, True] = end
        runner.supervisor.send(OpenSend(road.edge))
        layers = runner.instances[instance].served.n_layers
        attach = Attach(name, purpose, instance, facts.id, facts.claim, road, policy, layers, back)
        self._tell(end, attach)
        return True

    def _way_back(
        self, far: str, here: str, name: str, purpose: Purpose
    ) -> tuple[Road | None, float]:
        """Return the road from the next stage to this one, and its rate; none for anybody else."""
        if purpose is not Purpose.STAGE:
            return None, 0.0
        view = self._view()
        back = make_road(view, far, here, back_of(name), encrypt=self._encrypt)
        return back, rate_between(view, far, here) if back is not None else 0.0

    # The host's side.

    def _on_attach(self, boot: str, message: Attach) -> None:
        """Let a guest in, or say why not."""
        name = message.pairing
        device, reason = admit(self._devices, message)
        if not reason and ((name, False) in self._ends or len(self._ends) >= MAX_PAIRINGS):
            reason = f"{len(self._ends)} pairings are here"
        opened = PairingOpened(
            name, message.purpose, message.host, message.guest, guest=False, policy=message.policy
        )
        end = End(opened, device, boot)
        if reason:
            self._tell(end, Detach(name, reason))
            return
        self._ends[name, False] = end
        road = message.road
        self._devices[device].supervisor.send(OpenReceive(road.edge, road.host, road.port))
        if message.back is not None:
            self._devices[device].supervisor.send(OpenSend(message.back.edge))
        self._open(end)
        self._tell(end, Attached(name))

    # Books.

    def _both(self, name: str) -> list[End]:
        found = (self._ends.get((name, guest)) for guest in (True, False))
        return [end for end in found if end is not None]

    def of(self, instance: str, purpose: Purpose) -> list[tuple[str, End]]:
        """Return the ends of an instance that are for a purpose."""
        return [
            (name, end)
            for (name, _), end in self._ends.items()
            if end.opened.here == instance and end.opened.purpose is purpose
        ]
