"""Weights in a simulated node's memory: host copies, what is held to be sent, what instances leave.

What an instance leaves behind for a while is decided by `scaling.caching.HostCache`, as on nodes:
from its beginning its store is a host copy, too, that outlives it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from blitzgw.core.transfer import BlobChecked, CopyHeld
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.caching import HostCache
from blitzgw.sim.cluster.instances import SimCopy, SimInstance
from blitzgw.sim.cluster.setup import MEMORY_BYTES, ModelSetup
from blitzgw.sim.cluster.streams import Store, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blitzgw.sim.cluster.flows import Resource
    from blitzgw.sim.cluster.node import SimNode

DROP_S = 30.0
"""For so long weights stay that were held only to be sent: as nodes drop superfluous host copies
(scaling/copies.py)."""


class SimShelf:
    """Implements `scaling.caching.Shelf`; `copies` are by the root of the weights."""

    def __init__(self, node: SimNode) -> None:
        self._node, self._world, self._heap = node, node.world, node.world.heap
        self.copies: dict[str, SimCopy] = {}
        self._cache: HostCache | None = None
        self._has_read = False
        self._stores: dict[str, Store] = {}
        """Of instances that are being brought up, which are to be copies too."""

    # What the decider of the cache asks.

    def in_use(self, weights: str) -> bool:
        """Whether an instance of these weights is here, in whatever state."""
        there = self._node.premises.instances()
        return any(each.model.definition.weights == weights for each in there)

    def holds(self, weights: str) -> bool:
        """Whether there is a copy of them, whole or not."""
        return weights in self.copies

    def whole(self, weights: str) -> bool:
        """Whether there is one that is complete."""
        copy = self.copies.get(weights)
        return copy is not None and copy.store.complete

    def busy(self, device: str, weights: str) -> bool:
        """Whether an operation uses a device's store of them."""
        return self._node.steward.uses(device, weights)

    def free_bytes(self) -> int:
        """Return how much memory is left."""
        taken = sum(copy.model.definition.size_bytes for copy in self.copies.values())
        return max(0, MEMORY_BYTES - taken)

    # Instances.

    def comes(self, there: SimInstance) -> None:
        """Take the news that an instance is being brought up."""
        known, cache_s = there.model.definition, there.model.config.host_cache_s
        if cache_s <= 0 and self._cache is None:
            return
        if self._cache is None:
            self._cache = HostCache(self)
        self._stores[known.weights] = there.store
        self._tell(
            ev.InstanceComes(
                there.device, known.name, known.digest, known.weights, known.size_bytes, cache_s
            )
        )
        self._stores.pop(known.weights, None)

    def left(self, there: SimInstance) -> None:
        """Take the news that an instance is gone."""
        copy = self.copies.get(there.model.definition.weights)
        if copy is None or copy.store is not there.store or not there.complete:
            there.store.close("the instance is gone")
        if self._cache is not None:
            self._tell(ev.InstanceLeft())

    def _tell(self, event: ev.CacheEvent) -> None:
        cache = self._cache
        assert cache is not None
        for effect in cache.handle(event, self._heap.now):
            match effect:
                case eff.HoldWeights():
                    self.hold(effect)
                case eff.DropWeights():
                    self.drop(effect.weights)
        for weights, copy in self.copies.items():
            copy.cached = cache.has(weights)
        due = cache.deadline()
        if due is not None:
            self._heap.at(due, self._due, due)

    def _due(self, due_s: float) -> None:
        if self._node.running and self._cache is not None and self._cache.deadline() == due_s:
            self._tell(ev.TimePassed())

    # Copies.

    def put(self, model: ModelSetup, device: str) -> None:
        """Have a whole copy."""
        weights = model.definition.weights
        if weights not in self.copies:
            copy = self._make(model, device, weights)
            copy.store.whole.update(range(len(copy.store.sizes)))

    def hold(self, effect: eff.HoldWeights) -> None:
        """Have a store without an engine, and read blobs of it from disk."""
        copy = self.copies.get(effect.weights)
        if copy is None:
            model = self._world.models[effect.model]
            copy = self._make(model, effect.device, effect.weights)
            self._heap.after(DROP_S, self._drop_unused, copy)
        if effect.reads:
            self.read(copy.store, effect.reads)

    def drop(self, weights: str) -> None:
        """Let weights go."""
        copy = self.copies.pop(weights, None)
        if copy is not None:
            shared = any(there.store is copy.store for there in self._node.premises.instances())
            if not shared:
                copy.store.close("the copy is gone")
            self._node.changed()

    def read(self, store: Store, blobs: Iterable[int]) -> None:
        """Read blobs into a store from this node's disk."""
        network = self._world.network
        stream = self._stream(store, blobs, network.disks)
        begin = partial(self._heap.after, self._world.latencies.disk_first_byte_s, stream.open)
        if self._has_read:
            begin()
        else:
            self._has_read = True
            network.compute(self._world.latencies.first_read_s, begin)

    def copy(self, store: Store, blobs: Iterable[int]) -> None:
        """Take blobs into a store from this node's memory."""
        stream = self._stream(store, blobs, self._world.network.hosts)
        self._heap.after(0.0, stream.open)

    def _stream(self, store: Store, blobs: Iterable[int], of: list[Resource]) -> Stream:
        source = of[self._node.index]
        way = ((source,), source.capacity)
        return Stream(self._world.network, way, tuple(blobs), store, lambda *_: None)

    def _make(self, model: ModelSetup, device: str, weights: str) -> SimCopy:
        store = self._stores.pop(weights, None)
        if store is None:
            store = Store(model.profile.blob_bytes, lambda _: None)
            copy = SimCopy(model, device, store)
            store.landed = partial(self._landed, copy)
        else:
            copy = SimCopy(model, device, store, cached=True)
        self.copies[weights] = copy
        self._node.changed()
        return copy

    def _landed(self, copy: SimCopy, blob: int) -> None:
        self._heap.after(self._world.latencies.check_s, self._checked, copy, blob)

    def _checked(self, copy: SimCopy, blob: int) -> None:
        known = copy.model.definition
        if not self._node.running or self.copies.get(known.weights) is not copy:
            return
        self._node.changed(structural=False)
        self._node.tell_steward(ev.WorkerSaid(copy.device, BlobChecked(known.weights, blob)))
        if copy.store.complete:
            held = CopyHeld(known.weights, known.size_bytes)
            self._node.tell_steward(ev.WorkerSaid(copy.device, held))

    def _drop_unused(self, copy: SimCopy) -> None:
        """Drop what was held only to be sent, once nothing uses it; host copies stay."""
        weights = copy.model.definition.weights
        if not self._node.running or self.copies.get(weights) is not copy or copy.cached:
            return
        if self._node.boot in self._world.keepers(copy.model):
            return
        if self.busy(copy.device, weights):
            self._heap.after(DROP_S, self._drop_unused, copy)
        else:
            self.drop(weights)
