"""A simulated node's devices: what the steward asks about them, and what it has done with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from blitzgw.core.instance import InstanceState
from blitzgw.core.transfer import BlobChecked, CloseEdge, OpenReceive, OpenSend
from blitzgw.scaling import duties
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.lifecycle import REVIVABLE, illegal
from blitzgw.sim.cluster.instances import SimDevice, SimInstance
from blitzgw.sim.cluster.setup import ModelSetup
from blitzgw.sim.cluster.shelf import SimShelf
from blitzgw.sim.cluster.streams import Store

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode

NETWORK = "net"
"""The one network that all nodes share."""


class SimPremises:
    """Implements `scaling.engagement.Premises`, and carries the steward's effects out."""

    def __init__(self, node: SimNode, devices: int) -> None:
        self._node, self._world = node, node.world
        self._heap, self._took = node.world.heap, node.world.latencies
        self.devices = {f"g{i}": SimDevice(f"g{i}") for i in range(devices)}
        self.shelf = SimShelf(node)
        self.performers: dict[type, Callable[[Any], None]] = {
            eff.BringUp: self._bring_up,
            eff.DropInstance: self._drop,
            eff.RetireInstance: self._retire,
            eff.KeepInstance: self._keep,
            eff.ReviveInstance: self._revive,
            eff.HoldWeights: self.shelf.hold,
            eff.ReadWeights: self._read,
            eff.DropWeights: lambda effect: self.shelf.drop(effect.weights),
            eff.ToWorker: self._to_worker,
            eff.PublishNetworks: lambda _: node.changed(structural=False),
            duties.PairInstance: self._pair,
            duties.UnpairInstance: self._unpair,
            duties.StageInstance: self._stage,
            duties.UnstageInstance: self._unstage,
        }

    def instances(self) -> list[SimInstance]:
        """Return the instances that are here, in whatever state."""
        return [d.instance for d in self.devices.values() if d.instance is not None]

    # What the steward asks.

    def claim(self, device: str) -> int | None:
        """Return a device's claim."""
        found = self.devices.get(device)
        return found.claim if found is not None else None

    def objection(self, device: str, model: str, digest: str) -> str:
        """Return why a device cannot take a model now, or nothing."""
        there = self.devices[device].instance
        if there is not None and there.state is not InstanceState.KEPT:
            return f"{self._node.name}/{device} has an instance of {there.model.name}"
        known = self._world.models.get(model)
        same = known is not None and known.definition.digest == digest
        return "" if same else "another definition"

    def device_of(self, instance: str) -> str | None:
        """Return the device of an instance that is here, in whatever state."""
        for name, device in self.devices.items():
            if device.instance is not None and device.instance.id == instance:
                return name
        return None

    def has_weights(self, device: str, weights: str) -> bool:
        """Whether a worker has a store of these weights, whole or not."""
        return self.store(device, weights) is not None

    def store(self, device: str, weights: str) -> Store | None:
        """Return a worker's store of these weights: its instance's, or what it holds in memory."""
        found = self.devices.get(device)
        if found is None:
            return None
        there = found.instance
        if there is not None and there.model.definition.weights == weights:
            return there.store
        copy = self.shelf.copies.get(weights)
        return copy.store if copy is not None and copy.device == device else None

    def rates(self) -> dict[str, float]:
        """Return the rates of this node's ports."""
        return {NETWORK: self._world.setup.link_bytes_per_s}

    def revivable(self, device: str, model: str, digest: str) -> str:
        """Return the instance of that definition that drains or is kept on a device, or ""."""
        there = self.devices[device].instance
        if there is None or there.state not in REVIVABLE:
            return ""
        known = there.model.definition
        return there.id if (known.name, known.digest) == (model, digest) else ""

    def keep_s(self, instance: str) -> float:
        """Return for how long an instance that has drained is to be kept, in seconds."""
        device = self.device_of(instance)
        there = self.devices[device].instance if device is not None else None
        if there is None or there.state is not InstanceState.DRAINING:
            return 0.0
        return there.model.config.keep_s

    # Instances.

    def place(self, model: ModelSetup, device: SimDevice) -> SimInstance:
        """Have an instance that serves already."""
        there = self._begin(device, f"{model.name}@{self._node.name}/{device.id}", model)
        there.store.whole.update(range(len(there.store.sizes)))
        there.blobs.update(there.store.whole)
        device.warm.add(model.profile.name)
        self.shelf.comes(there)
        self._serve(there)
        return there

    def drained(self, there: SimInstance) -> None:
        """Take the news that an instance that was to go has nothing to do any more."""
        self._heap.after(0.0, self._tell, ev.InstanceDrained(there.device, there.id))

    def close(self) -> None:
        """Lose everything with the process."""
        stores = [there.store for there in self.instances()]
        for store in (*stores, *(copy.store for copy in self.shelf.copies.values())):
            store.close("the peer is gone")
        for there in self.instances():
            self._world.record.move(there.state, None)

    def _begin(self, device: SimDevice, name: str, model: ModelSetup) -> SimInstance:
        store = Store(model.profile.blob_bytes, lambda _: None)
        there = SimInstance(
            id=name,
            model=model,
            node=self._node,
            device=device.id,
            claim=device.claim,
            store=store,
            served=model.served(name),
        )
        store.landed = partial(self._landed, there)
        device.instance = there
        self._world.record.move(None, there.state)
        self._node.serving.bring_up(there)
        self._node.changed()
        return there

    def _bring_up(self, effect: eff.BringUp) -> None:
        device = self.devices[effect.device]
        assert device.instance is None, f"{device.instance} is there yet"
        device.claim += 1
        assert device.claim == effect.claim, "the steward counts claims as the device does"
        there = self._begin(device, effect.instance, self._world.models[effect.model])
        copy = self.shelf.copies.get(there.model.definition.weights)
        if copy is not None and copy.store.complete:
            blobs = range(len(there.store.sizes))
            self.shelf.copy(there.store, blobs)
        self.shelf.comes(there)

    def _landed(self, there: SimInstance, blob: int) -> None:
        self._heap.after(self._took.check_s, self._checked, there, blob)

    def _checked(self, there: SimInstance, blob: int) -> None:
        """Have a blob in its place: its layer may run."""
        if not self._is_here(there):
            return
        there.blobs.add(blob)
        self._node.serving.blob_resident(there, blob)
        if there.complete:
            serve_s = self._took.serve_s + self._warm_up_s(there)
            self._heap.after(serve_s, self._loaded, there)
        self._node.changed(structural=False)
        self._tell(self._said(there.device, there.model, blob))

    def _warm_up_s(self, there: SimInstance) -> float:
        """Return what a worker computes first that has never run an instance of that shape.

        One that has run steps while it loaded needs nothing.
        """
        device, profile = self.devices[there.device], there.model.profile
        is_warm = profile.name in device.warm or self._node.serving.has_run(there)
        device.warm.add(profile.name)
        return 0.0 if is_warm else profile.warm_up_s

    def _said(self, device: str, model: ModelSetup, blob: int) -> ev.WorkerSaid:
        return ev.WorkerSaid(device, BlobChecked(model.definition.weights, blob))

    def _loaded(self, there: SimInstance) -> None:
        if self._is_here(there) and there.state is InstanceState.LOADING:
            self._serve(there)
            self._tell(ev.InstanceServes(there.device, there.id))

    def _serve(self, there: SimInstance) -> None:
        self._become(there, InstanceState.SERVING)
        self._node.serving.completed(there)
        self._node.serving.ready(there)

    def _retire(self, effect: eff.RetireInstance) -> None:
        there = self._there(effect.device, effect.instance)
        self._become(there, InstanceState.DRAINING)
        self._node.serving.retire(there)

    def _keep(self, effect: eff.KeepInstance) -> None:
        there = self._there(effect.device, effect.instance)
        device = self.devices[effect.device]
        self._become(there, InstanceState.KEPT)
        device.claim += 1
        there.claim = device.claim
        self._node.serving.keep(there)

    def _revive(self, effect: eff.ReviveInstance) -> None:
        there = self._there(effect.device, effect.instance)
        device = self.devices[effect.device]
        device.claim = there.claim = effect.claim
        self._become(there, InstanceState.SERVING)
        self._heap.after(self._took.revive_s, self._revived, there)

    def _revived(self, there: SimInstance) -> None:
        if self._is_here(there) and there.state is InstanceState.SERVING:
            self._node.serving.revive(there)
            self._tell(ev.InstanceServes(there.device, there.id))

    def _drop(self, effect: eff.DropInstance) -> None:
        device = self.devices[effect.device]
        there = device.instance
        if there is None or there.id != effect.instance:
            return
        device.instance = None
        self._become(there, InstanceState.GONE)
        device.claim += 1
        self._node.serving.drop(there, effect.reason, planned=effect.planned)
        self.shelf.left(there)

    def _there(self, device: str, instance: str) -> SimInstance:
        there = self.devices[device].instance
        assert there is not None, f"{instance} is not at {device}"
        assert there.id == instance, f"{there.id} is at {device}, not {instance}"
        return there

    def _is_here(self, there: SimInstance) -> bool:
        return self._node.running and self.devices[there.device].instance is there

    def _become(self, there: SimInstance, state: InstanceState) -> None:
        wrong = illegal(there.state, state)
        assert not wrong, f"{there.id}: {wrong}"
        self._world.record.move(there.state, None if state is InstanceState.GONE else state)
        there.state = state
        self._node.changed()
        self._node.touched(there.model.name)

    # What instances do while they load.

    def _pair(self, effect: duties.PairInstance) -> None:
        there = self._there(effect.device, effect.instance)
        self._node.serving.pair(there, effect.home, effect.policy)

    def _unpair(self, effect: duties.UnpairInstance) -> None:
        self._node.serving.unpair(self._there(effect.device, effect.instance))

    def _stage(self, effect: duties.StageInstance) -> None:
        there = self._there(effect.device, effect.instance)
        self._node.serving.stage(there, effect.span, effect.next)

    def _unstage(self, effect: duties.UnstageInstance) -> None:
        self._node.serving.unstage(self._there(effect.device, effect.instance))

    # Weights.

    def _read(self, effect: eff.ReadWeights) -> None:
        store = self.store(effect.device, effect.weights)
        if store is not None:
            self.shelf.read(store, effect.blobs)

    def _to_worker(self, effect: eff.ToWorker) -> None:
        edges = self._world.edges
        match effect.message:
            case OpenSend(terms):
                edges.begin(terms, self._node, effect.device, sends=True)
            case OpenReceive(terms):
                edges.begin(terms, self._node, effect.device, sends=False)
            case CloseEdge(edge):
                edges.close(edge)

    def _tell(self, event: ev.StewardEvent) -> None:
        self._node.tell_steward(event)
