"""A node's own decider of scale operations: it answers for its devices, ports and workers.

Owners ask, here it is decided: a device is claimed at one claim by one operation, so two owners who
do not know of each other cannot both have it; a port is not promised beyond its rate. What has been
begun ends with its operation: by `Conclude` (what is ready stays), by `Abandon` (nothing stays), or
by itself once the owner is dead or has been silent for the lease (what is ready stays, because it
serves). Messages of an operation from anybody but its owner are dropped.

    free ── Claim ──► leased ── the instance serves ──► ready ── Conclude ──► (an instance like any)
      ▲                 │  worker lost, failed            │
      └── undone ◄──────┴─ Abandon, Retire, lease over    └─ Abandon, Retire ──► draining ──► free

What becomes of an instance that drains, and how it comes back, is in keeping.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blitzgw.core.finite import lease_within
from blitzgw.core.operation import (
    LEASE_S,
    Abandon,
    Claim,
    Claimed,
    Conclude,
    Engage,
    Engaged,
    Renew,
    Retire,
    Retired,
)
from blitzgw.core.plan import node_of
from blitzgw.scaling.admission import Admission
from blitzgw.scaling.assignments import assignments
from blitzgw.scaling.effects import DropInstance, PublishNetworks, Send, StewardEffect
from blitzgw.scaling.endings import Endings
from blitzgw.scaling.engagement import Engagement, Premises
from blitzgw.scaling.events import (
    UNKNOWN_EPOCH,
    InstanceDrained,
    InstanceEnded,
    InstanceServes,
    LinkLost,
    MessageCame,
    NodeDied,
    StewardEvent,
    TimePassed,
    WorkerLost,
    WorkerSaid,
)
from blitzgw.scaling.keeping import Keeping
from blitzgw.scaling.leases import Lease, PortPromises
from blitzgw.scaling.workernews import WorkerNews

MAX_LEASE_S = 60.0
"""However long an owner asks for: a device is not lost to a slip of a unit."""


@dataclass(frozen=True, slots=True)
class StewardStatistics:
    """How much a node has given to operations now, and how often it has refused or undone."""

    operations: int
    leases: int
    edges: int
    retiring: int
    refused: int
    expired: int
    kept: int = 0


class Steward:
    """The decider of the node `node`, the process `boot`."""

    def __init__(self, node: str, boot: str, premises: Premises) -> None:
        self._node, self._boot, self._premises = node, boot, premises
        self._engaged: dict[str, Engagement] = {}
        self._ports = PortPromises(node)
        self._admission = Admission(node, premises, self._engaged, self._ports)
        self._endings = Endings(self._engaged)
        self._retiring = self._endings.retiring
        self._keeping = Keeping(premises, self._retiring, self._sends)
        self._published: dict[str, tuple[float, float]] = {}
        self._refused = self._expired = 0
        self._news = WorkerNews(self._engaged)
        self._events: dict[type, Callable[[Any, float], list[StewardEffect]]] = {
            TimePassed: self._on_time,
            MessageCame: self._on_message,
            LinkLost: self._on_link_lost,
            NodeDied: self._on_node_died,
            WorkerSaid: self._news.on_said,
            WorkerLost: self._on_worker_lost,
            InstanceServes: self._news.on_serves,
            InstanceDrained: self._keeping.drained,
            InstanceEnded: self._on_instance_ended,
        }
        self._messages: dict[type, Callable[[str, Any, float], list[StewardEffect]]] = {
            Claim: self._on_claim,
            Engage: self._on_engage,
            Renew: self._on_renew,
            Conclude: self._on_conclude,
            Abandon: self._on_abandon,
            Retire: self._on_retire,
        }

    def handle(self, event: StewardEvent, now: float) -> list[StewardEffect]:
        """Take an event at time `now` in seconds; return what to do, in order."""
        effects = self._events[type(event)](event, now)
        for operation in [name for name, held in self._engaged.items() if held.idle]:
            del self._engaged[operation]
        self._ports.keep(frozenset(e for held in self._engaged.values() for e in held.edges))
        if self._ports.totals() != self._published:
            self._published = self._ports.totals()
            effects.append(PublishNetworks())
        return effects

    def deadline(self) -> float | None:
        """Return when `TimePassed` is due; None: never."""
        times = [held.until_s for held in self._engaged.values()]
        kept = self._keeping.deadline()
        return min(times if kept is None else [*times, kept], default=None)

    def reserved(self) -> dict[str, tuple[float, float]]:
        """Return what is promised of this node's ports: (tx, rx) bytes/s by network."""
        return self._ports.totals()

    def uses(self, device: str, weights: str) -> bool:
        """Whether an operation fills a device's store of some weights, or sends from it."""
        return any(held.uses(device, weights) for held in self._engaged.values())

    def _sends(self, device: str) -> bool:
        """Whether anything goes by edges from a device, or to it."""
        return any(
            device in held.ends_here(edge.order)
            for held in self._engaged.values()
            for edge in held.edges.values()
        )

    def statistics(self) -> StewardStatistics:
        """Return the present figures."""
        engaged = self._engaged.values()
        return StewardStatistics(
            operations=len(engaged),
            leases=sum(len(held.leases) for held in engaged),
            edges=sum(len(held.edges) for held in engaged),
            retiring=len(self._retiring),
            refused=self._refused,
            expired=self._expired,
            kept=len(self._keeping),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if the books contradict themselves."""
        devices = [device for held in self._engaged.values() for device in held.leases]
        assert len(devices) == len(set(devices)), "a device is leased twice"
        assert not any(map(self._keeping.at, devices)), "a leased device counts as free"
        edges = [edge for held in self._engaged.values() for edge in held.edges]
        assert len(edges) == len(set(edges)), "an edge belongs to two operations"
        assert not any(held.idle for held in self._engaged.values()), "an idle engagement is kept"
        assert self._ports.totals() == self._published, "promises are not published"
        for held in self._engaged.values():
            for name, edge in held.edges.items():
                assert edge.ends, f"edge {name} is open nowhere"

    # Messages.

    def _on_message(self, event: MessageCame, now: float) -> list[StewardEffect]:
        message: Any = event.message
        handler = self._messages.get(type(message))
        if handler is None:
            return []  # for the owner's side of this node
        held = self._engaged.get(message.operation)
        if held is not None and held.owner != event.boot and not isinstance(message, Retire):
            return []
        effects = held.retell() if held is not None else []
        return effects + handler(event.boot, message, now)

    def _on_claim(self, boot: str, message: Claim, now: float) -> list[StewardEffect]:
        held = self._engaged.get(message.operation)
        lease = held.leases.get(message.device) if held is not None else None
        if held is not None and lease is not None and lease.former == message.claim:
            return [Send(boot, _granted(message.operation, lease))]
        revived = self._keeping.revivable(message)
        reason = self._admission.objection(message, revived)
        if reason:
            self._refused += 1
            present = self._premises.claim(message.device)
            at = -1 if present is None else present
            return [Send(boot, Claimed(message.operation, message.device, at, reason=reason))]
        lease_s = lease_within(message.lease_s, MAX_LEASE_S, LEASE_S)
        if held is None:
            held = Engagement(self._node, message.operation, boot, now + lease_s, lease_s)
            self._engaged[message.operation] = held
        held.until_s = now + lease_s
        if revived:
            return self._revive(held, message, revived)
        room = self._keeping.make_room(message)
        begin, lease = held.lease(message, raised=len(room))
        return [*room, begin, Send(boot, _granted(message.operation, lease))]

    def _revive(self, held: Engagement, message: Claim, instance: str) -> list[StewardEffect]:
        """Grant a device with the instance that drains or is kept there."""
        begin, lease = self._keeping.revive(message, instance)
        held.grant(lease)
        told = self._retiring.ended(instance, f"revived by operation {message.operation}")
        return [*told, Send(held.owner, _granted(message.operation, lease)), begin]

    def _on_engage(self, boot: str, message: Engage, now: float) -> list[StewardEffect]:
        held = self._engaged.get(message.operation)
        if held is None:
            reason = self._admission.crowded()
            if reason:
                return [Send(boot, Engaged(message.operation, message.epoch, reason))]
            held = Engagement(self._node, message.operation, boot, now)
        if message.epoch < held.epoch:
            return []
        held.until_s = now + lease_within(message.lease_s, MAX_LEASE_S, LEASE_S)
        answer = Engaged(message.operation, message.epoch)
        if message.epoch == held.epoch:
            return [Send(boot, answer)]
        reason = self._admission.refusal(held, message)
        if reason:
            self._refused += 1
            return [Send(boot, Engaged(message.operation, message.epoch, reason))]
        self._engaged[message.operation] = held
        return [*self._engage(held, message), Send(boot, answer)]

    def _engage(self, held: Engagement, message: Engage) -> list[StewardEffect]:
        effects = held.replace(message)
        has = self._premises.has_weights
        reads = [order for order in message.reads if node_of(order.worker) == self._node]
        if message.copy:
            effects += held.begin_copies(message, owned=held.owner == self._boot)
        for order in reads:
            device = order.worker.partition("/")[2]
            effects += held.read(order, has_store=has(device, message.weights))
        fresh = [edge for edge in message.edges if edge.id not in held.edges]
        for edge in fresh:
            effects += held.open(edge)
        self._ports.promise(fresh)
        effects += assignments(held, message)
        for device in sorted(held.leases):
            effects += held.news(device)  # what was there before the weights had a name
        return effects

    def _on_renew(self, boot: str, message: Renew, now: float) -> list[StewardEffect]:
        held = self._engaged.get(message.operation)
        if held is None:
            reason = "nothing is known of the operation"
            return [Send(boot, Engaged(message.operation, UNKNOWN_EPOCH, reason))]
        held.until_s = now + lease_within(held.lease_s, MAX_LEASE_S, LEASE_S)
        return []

    def _on_conclude(self, _boot: str, message: Conclude, _now: float) -> list[StewardEffect]:
        return self._endings.end(message.operation, "the operation has ended", keep_ready=True)

    def _on_abandon(self, _boot: str, message: Abandon, _now: float) -> list[StewardEffect]:
        return self._endings.end(message.operation, message.reason, keep_ready=False)

    def _on_retire(self, boot: str, message: Retire, _now: float) -> list[StewardEffect]:
        device = self._premises.device_of(message.instance)
        if device is None or self._premises.claim(device) != message.claim:
            reason = "it is not there at that claim"
            return [Send(boot, Retired(message.operation, message.instance, reason))]
        held = next((h for h in self._engaged.values() if device in h.leases), None)
        if held is not None and not held.leases[device].ready:
            reason = f"given up by operation {message.operation}"
            effects = self._endings.drop(held, device, reason)
            if held.operation != message.operation:
                effects += held.fail(device, reason)
            return [*effects, Send(boot, Retired(message.operation, message.instance))]
        if held is not None:
            del held.leases[device]
        if self._keeping.at(device) == message.instance:
            return [Send(boot, Retired(message.operation, message.instance))]  # it is free already
        return self._retiring.begin(device, message.instance, "retired", (boot, message.operation))

    # Other events.

    def _on_time(self, _event: TimePassed, now: float) -> list[StewardEffect]:
        effects: list[StewardEffect] = []
        for held in [held for held in self._engaged.values() if held.until_s <= now]:
            self._expired += 1
            reason = "its owner has fallen silent"
            effects += self._endings.end(held.operation, reason, keep_ready=True)
        return effects + self._keeping.due(now)

    def _on_link_lost(self, event: LinkLost, _now: float) -> list[StewardEffect]:
        for held in self._engaged.values():
            held.stale = held.stale or held.owner == event.boot
        return []

    def _on_node_died(self, event: NodeDied, _now: float) -> list[StewardEffect]:
        effects: list[StewardEffect] = []
        for held in [held for held in self._engaged.values() if held.owner == event.boot]:
            self._expired += 1
            effects += self._endings.end(held.operation, "its owner has died", keep_ready=True)
        return effects

    def _on_worker_lost(self, event: WorkerLost, _now: float) -> list[StewardEffect]:
        effects: list[StewardEffect] = []
        for held in list(self._engaged.values()):
            effects += self._news.lose_device(held, event.device, event.reason)
            if event.device in held.leases:
                lease = held.leases[event.device]
                effects.append(DropInstance(event.device, lease.instance, event.reason))
            if held.target(event.device) is not None:
                effects += held.fail(event.device, event.reason)
            held.stores.discard(event.device)
            held.reading.pop(event.device, None)
        self._keeping.forget(event.device)
        return effects + self._retiring.lose_device(event.device, event.reason)

    def _on_instance_ended(self, event: InstanceEnded, _now: float) -> list[StewardEffect]:
        self._keeping.forget(event.device, event.instance)
        effects = self._retiring.ended(event.instance, event.reason)
        for held in list(self._engaged.values()):
            lease = held.leases.get(event.device)
            if lease is not None and lease.instance == event.instance:
                effects += self._news.lose_device(held, event.device, event.reason)
                effects += held.fail(event.device, event.reason or "it has ended")
        return effects


def _granted(operation: str, lease: Lease) -> Claimed:
    return Claimed(operation, lease.device, lease.claim, lease.instance, revived=lease.revived)
