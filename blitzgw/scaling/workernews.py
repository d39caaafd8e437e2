"""What a node's workers say of weights, and what of that the owners of operations are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blitzgw.core.operation import BlobNews, EdgeNews, TargetReady
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CopyFailed,
    CopyHeld,
    EdgeClosed,
    EdgeProgress,
)
from blitzgw.scaling.effects import Send, StewardEffect
from blitzgw.scaling.engagement import Engagement, OpenEdge
from blitzgw.scaling.events import InstanceServes, WorkerSaid

PROGRESS_S = 0.2
"""Between two reports of an edge's progress: five a second make a bar move, and cost nothing."""

READ = "read "
"""Before a worker's name in `EdgeNews.edge`: what it reads from disk, which is no edge."""


class WorkerNews:
    """Turns what workers say into news for owners. `engaged` is the steward's own book."""

    def __init__(self, engaged: Mapping[str, Engagement]) -> None:
        self._engaged = engaged
        self._handlers: dict[type, Callable[[str, Any, float], list[StewardEffect]]] = {
            BlobChecked: self._on_checked,
            BlobDamaged: self._on_damaged,
            EdgeProgress: self._on_progress,
            EdgeClosed: self._on_closed,
            CopyHeld: self._on_copy_held,
            CopyFailed: self._on_copy_failed,
        }

    def on_said(self, event: WorkerSaid, now: float) -> list[StewardEffect]:
        """Take what a worker has said."""
        return self._handlers[type(event.message)](event.device, event.message, now)

    def on_serves(self, event: InstanceServes, _now: float) -> list[StewardEffect]:
        """Note that a target is ready, and tell."""
        for held in self._engaged.values():
            lease = held.leases.get(event.device)
            if lease is not None and lease.instance == event.instance:
                lease.ready = True
                return [Send(held.owner, TargetReady(held.operation, held.worker(event.device)))]
        return []

    def lose_device(self, held: Engagement, device: str, reason: str) -> list[StewardEffect]:
        """End the edges of an operation that begin or end at a device of this node."""
        effects: list[StewardEffect] = []
        for name, edge in list(held.edges.items()):
            if device in held.ends_here(edge.order):
                edge.ends.discard(device)
                effects += held.close(name)
                effects.append(_lost(held, name, edge.told_bytes, reason))
        return effects

    # What workers say.

    def _on_checked(self, device: str, said: BlobChecked, _now: float) -> list[StewardEffect]:
        effects: list[StewardEffect] = []
        for held in self._engaged.values():
            target = held.target(device)
            if target is None or (said.weights, said.index) in target.blobs:
                continue
            target.blobs.add((said.weights, said.index))
            if said.weights == held.weights:
                news = BlobNews(held.operation, held.worker(device), (said.index,))
                effects.append(Send(held.owner, news))
        return effects

    def _on_damaged(self, device: str, said: BlobDamaged, _now: float) -> list[StewardEffect]:
        reason = f"blob {said.index} was damaged"
        found = self._find(said.source)
        if found is not None:
            held, edge = found
            effects = held.close(said.source)
            self._forget(held, device, said)
            return [*effects, _lost(held, said.source, edge.told_bytes, reason)]
        effects = []
        for held in self._engaged.values():
            if held.weights == said.weights and held.reading.pop(device, set()):
                self._forget(held, device, said)
                effects.append(_lost(held, READ + held.worker(device), 0, reason))
        return effects

    def _forget(self, held: Engagement, device: str, said: BlobDamaged) -> None:
        target = held.target(device)
        if target is not None:
            target.blobs.discard((said.weights, said.index))

    def _on_progress(self, device: str, said: EdgeProgress, now: float) -> list[StewardEffect]:
        found = self._find(said.edge)
        if found is None:
            return []
        held, edge = found
        if device not in edge.ends or now - edge.told_s < PROGRESS_S:
            return []
        edge.told_s, edge.told_bytes = now, said.received_bytes
        news = EdgeNews(
            held.operation,
            held.epoch,
            said.edge,
            said.received_bytes,
            resumed=said.resumed,
            damaged=said.damaged,
        )
        return [Send(held.owner, news)]

    def _on_closed(self, device: str, said: EdgeClosed, _now: float) -> list[StewardEffect]:
        found = self._find(said.edge)
        if found is None:
            return []  # closed by us: nobody asks any more
        held, edge = found
        if device not in edge.ends:
            return []
        edge.ends.discard(device)
        effects: list[StewardEffect] = []
        if said.reason:
            effects = held.close(said.edge)
        elif not edge.ends:
            del held.edges[said.edge]
        news = EdgeNews(
            held.operation,
            held.epoch,
            said.edge,
            said.payload_bytes,
            ended=True,
            reason=said.reason,
            seconds=said.seconds,
            yielded_s=said.yielded_s,
            delayed_s=said.delayed_s,
        )
        return [*effects, held.end(news)]

    def _on_copy_held(self, device: str, said: CopyHeld, _now: float) -> list[StewardEffect]:
        effects: list[StewardEffect] = []
        for held in self._engaged.values():
            copy = held.copies.get(device)
            if copy is not None and held.weights == said.weights and not copy.ready:
                copy.ready = True
                effects.append(Send(held.owner, TargetReady(held.operation, held.worker(device))))
        return effects

    def _on_copy_failed(self, device: str, said: CopyFailed, _now: float) -> list[StewardEffect]:
        effects: list[StewardEffect] = []
        for held in self._engaged.values():
            if held.weights != said.weights:
                continue
            if device in held.copies:
                effects += self.lose_device(held, device, said.message)
                effects += held.fail(device, said.message)
            elif device in held.stores:
                effects += self.lose_device(held, device, said.message)
                held.stores.discard(device)
                held.reading.pop(device, None)
                effects.append(_lost(held, READ + held.worker(device), 0, said.message))
        return effects

    def _find(self, edge: str) -> tuple[Engagement, OpenEdge] | None:
        for held in self._engaged.values():
            if edge in held.edges:
                return held, held.edges[edge]
        return None


def _lost(held: Engagement, edge: str, received_bytes: int, reason: str) -> StewardEffect:
    news = EdgeNews(held.operation, held.epoch, edge, received_bytes, ended=True, reason=reason)
    return held.end(news)
