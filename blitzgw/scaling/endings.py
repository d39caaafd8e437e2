"""How a node lets go: what operations have begun is undone, instances that serve are retired."""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.operation import Retired
from blitzgw.scaling.effects import DropInstance, DropWeights, RetireInstance, Send, StewardEffect
from blitzgw.scaling.engagement import Engagement

Asker = tuple[str, str]
"""(boot, operation): who is told of an instance's end."""


@dataclass(slots=True)
class _Retiring:
    device: str
    askers: set[Asker]


class Retirements:
    """The instances of a node that drain, and to whom their end is told."""

    def __init__(self) -> None:
        self._known: dict[str, _Retiring] = {}

    def begin(
        self, device: str, instance: str, reason: str, asker: Asker | None = None
    ) -> list[StewardEffect]:
        """Retire an instance, unless it drains already; `asker` is told when it is gone."""
        known = self._known.get(instance)
        askers = set() if asker is None else {asker}
        if known is not None:
            known.askers |= askers
            return []
        self._known[instance] = _Retiring(device, askers)
        return [RetireInstance(device, instance, reason)]

    def drains(self, instance: str) -> bool:
        """Whether an instance drains."""
        return instance in self._known

    def on(self, device: str) -> list[str]:
        """Return the instances of a device that drain."""
        return [name for name, known in self._known.items() if known.device == device]

    def ended(self, instance: str, reason: str) -> list[StewardEffect]:
        """Tell that an instance is gone, or for a reason is not; nobody has asked of others."""
        known = self._known.pop(instance, None)
        askers = known.askers if known is not None else set()
        return [Send(b, Retired(operation, instance, reason)) for b, operation in sorted(askers)]

    def lose_device(self, device: str, reason: str) -> list[StewardEffect]:
        """Tell that the instances of a device are gone with its worker."""
        effects: list[StewardEffect] = []
        for instance in [i for i, known in self._known.items() if known.device == device]:
            effects += self.ended(instance, reason)
        return effects

    def __len__(self) -> int:
        return len(self._known)


class Endings:
    """Ends operations and targets. `engaged` is the steward's own book, and is kept up here."""

    def __init__(self, engaged: dict[str, Engagement]) -> None:
        self._engaged = engaged
        self.retiring = Retirements()

    def end(self, operation: str, reason: str, *, keep_ready: bool) -> list[StewardEffect]:
        """Undo what an operation has begun here; what is ready stays, or drains."""
        held = self._engaged.pop(operation, None)
        if held is None:
            return []
        effects: list[StewardEffect] = []
        for edge in list(held.edges):
            effects += held.close(edge)
        for device, lease in sorted(held.leases.items()):
            if not lease.ready:
                effects.append(DropInstance(device, lease.instance, reason))
            elif not keep_ready:
                effects += self.retiring.begin(device, lease.instance, reason)
        for device, copy in sorted(held.copies.items()):
            if not (copy.ready and keep_ready):
                effects.append(DropWeights(device, held.weights))
        for device in sorted(held.stores):
            effects += self._let_go(held, device)
        return effects

    def drop(self, held: Engagement, device: str, reason: str) -> list[StewardEffect]:
        """End a target that is not ready, and the edges that it has part in."""
        effects: list[StewardEffect] = []
        for name, edge in list(held.edges.items()):
            if held.worker(device) in (edge.order.source, edge.order.target):
                effects += held.close(name)
        lease = held.leases.pop(device)
        held.reading.pop(device, None)
        return [*effects, DropInstance(device, lease.instance, reason)]

    def _let_go(self, held: Engagement, device: str) -> list[StewardEffect]:
        """Drop a store that was made to send from, unless another operation sends from it too."""
        for other in self._engaged.values():
            if other.weights == held.weights and (
                device in other.copies
                or any(edge.order.source == held.worker(device) for edge in other.edges.values())
            ):
                if device not in other.copies:
                    other.stores.add(device)
                return []
        return [DropWeights(device, held.weights)]
