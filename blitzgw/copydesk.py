"""Which weights a node keeps in memory: joins the deciders of that with devices and copies.

time, view ──────────────────────────► CopyKeeper (those that the cluster is to have) ─┐
a device's instances ── come, leave ──► HostCache (what they leave for a while) ────────┴► CopyShelf
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blitzgw.copyshelf import CopyShelf
from blitzgw.core.clock import Clock
from blitzgw.definitions import Definitions
from blitzgw.device import DeviceRunner
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.caching import HostCache
from blitzgw.scaling.copies import CopyKeeper


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the desk asks of its node.

    `perform` carries out effects, with the desk's `performers` among others; `fetch` begins an
    operation that brings a copy over the network. `busy` says whether an operation uses a device's
    store of some weights, `free_bytes` how much memory the machine has left.
    """

    perform: Callable[[Sequence[Any]], None]
    fetch: Callable[[eff.ObtainCopy], None]
    busy: Callable[[str, str], bool]
    free_bytes: Callable[[], int]


class CopyDesk:
    """Also the cache's `Shelf`. Call it from the event loop."""

    def __init__(
        self,
        devices: Mapping[str, DeviceRunner],
        definitions: Definitions,
        shelf: CopyShelf,
        keeper: CopyKeeper,
        around: Surroundings,
        clock: Clock,
    ) -> None:
        self._devices, self._definitions = devices, definitions
        self._shelf, self._keeper, self._clock = shelf, keeper, clock
        self._perform, self._fetch = around.perform, around.fetch
        self.busy, self.free_bytes = around.busy, around.free_bytes
        self._cache = HostCache(self)
        shelf.is_cached, shelf.is_going = self._cache.has, self._cache.goes

    def deadlines(self) -> list[tuple[float | None, Callable[[ev.TimePassed], None]]]:
        """Return when each decider wants to be told that time has passed, and how."""
        return [(self._keeper.deadline(), self.keep), (self._cache.deadline(), self._tell)]

    # What happens.

    def keep(self, event: ev.KeeperEvent) -> None:
        """Tell who looks after copies, and do what it says."""
        if isinstance(event, ev.CopyTried):
            self._tell(event)
        self._perform(self._keeper.handle(event, self._clock.now()))

    def comes(self, device: str, model: str, digest: str) -> None:
        """Take the news that an instance is about to be brought up."""
        known = self._definitions.known(digest)
        if known is None or not self._shelf.keeps:
            return
        size_bytes = sum(blob.size_bytes for blob in known.card.blobs)
        cache_s = self._definitions.terms_of(model, digest).host_cache_s
        comes = ev.InstanceComes(device, model, digest, known.card.weights, size_bytes, cache_s)
        self._tell(comes)

    def left(self) -> None:
        """Take the news that an instance is no more, or has not come."""
        self._tell(ev.InstanceLeft())

    def worker_up(self, device: str) -> None:
        """Take the news that a worker is up, which will bring up the instances of its device."""
        self._shelf.worker_up(device)
        for instance in self._devices[device].instances.values():
            model = instance.served.model
            if not instance.failure:
                self.comes(device, model, instance.digest or self._definitions.digest_of(model))

    def worker_lost(self, device: str, reason: str) -> None:
        """Take the news that a worker is gone, and with it what its instances have left."""
        self._tell(ev.WorkerLost(device, reason))
        self._shelf.worker_lost(device, reason)

    def _tell(self, event: ev.CacheEvent) -> None:
        effects = self._cache.handle(event, self._clock.now())
        self._perform(effects)
        if effects or len(self._cache):
            self._shelf.changed()

    # Effects.

    def performers(self) -> dict[type, Callable[[Any], None]]:
        """Return what carries out effects about copies, and stores without an engine."""
        return {
            eff.HoldWeights: self._shelf.hold,
            eff.DropWeights: self._drop,
            eff.ReadWeights: self._shelf.read,
            eff.ObtainCopy: self._obtain,
        }

    def _drop(self, effect: eff.DropWeights) -> None:
        if not self._cache.has(effect.weights):
            self._shelf.drop(effect)

    def _obtain(self, effect: eff.ObtainCopy) -> None:
        if self._cache.give_up(effect.weights):
            asyncio.get_running_loop().call_soon(self.keep, ev.CopyTried(effect.weights))
            self._shelf.changed()
            return
        held = self._shelf.held.get(effect.weights)
        if held is not None:  # a node has one copy: what is begun is gone on with where it is
            effect = replace(effect, device=held.device)
        if effect.disk:
            self._shelf.read_copy(effect)
        else:
            self._fetch(effect)

    # What the cache asks.

    def in_use(self, weights: str) -> bool:
        """Whether an instance of these weights is here, in whatever state."""
        return any(
            instance.load.model.weights == weights and not instance.failure
            for runner in self._devices.values()
            for instance in runner.instances.values()
        )

    def holds(self, weights: str) -> bool:
        """Whether there is a host copy of them, whole or not."""
        return weights in self._shelf.held

    def whole(self, weights: str) -> bool:
        """Whether there is one that is complete."""
        held = self._shelf.held.get(weights)
        return held is not None and held.complete
