"""A simulated node's devices: what the steward asks about them, and what it has done with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blitzgw.core.instance import InstanceState
from blitzgw.core.transfer import BlobChecked, CloseEdge, OpenReceive, OpenSend
from blitzgw.scaling import duties
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.scaling.lifecycle import REVIVABLE, illegal
from blitzgw.sim.scalingdevice import SimDevice, SimInstance
from blitzgw.sim.scalingflows import LOCAL_BYTES_PER_S, PORT_BYTES_PER_S
from blitzgw.sim.scalingload import SimModel
from blitzgw.sim.scalingrequests import Submit
from blitzgw.sim.scalingserving import Serving

if TYPE_CHECKING:
    from blitzgw.sim.scalingnode import SimNode

NETWORK = "net"
"""The one network that all nodes share."""

DISK_BYTES_PER_S = 2e9
"""Of a node's disk: one NVMe drive."""

WARM_S = 0.2
"""From the last blob until an instance serves."""

DRAIN_LOOK_S = 0.1
"""Between two looks at whether a draining instance is idle."""

REVIVE_S = 0.005
"""From the order to revive an instance until it serves: a message to its worker and back."""

BREAK_S = 0.5
"""From the beginning of an instance until it fails, if it does."""

BROKEN_RATE = 0.02
"""Of all instances that are begun, so many fail before they serve: out of memory, say."""


class SimPremises:
    """Implements `scaling.engagement.Premises`, and carries the steward's effects out."""

    def __init__(self, node: SimNode, devices: int) -> None:
        self._node, self._world = node, node.world
        self.serving = Serving(node)
        self.devices = {f"g{i}": SimDevice(f"g{i}", node.name) for i in range(devices)}
        for model in self._world.models:
            if node.index in self._world.host_nodes[model.name]:
                n_blobs = len(model.definition.blob_bytes)
                self.devices["g0"].stores[model.definition.weights] = set(range(n_blobs))
        self.performers: dict[type, Callable[[Any], None]] = {
            eff.BringUp: self._bring_up,
            eff.DropInstance: self._drop,
            eff.RetireInstance: self._retire,
            eff.KeepInstance: self._keep,
            eff.ReviveInstance: self._revive,
            eff.HoldWeights: self._hold,
            eff.ReadWeights: lambda effect: self._read(effect.device, effect.weights, effect.blobs),
            eff.DropWeights: self._drop_weights,
            eff.ToWorker: self._to_worker,
            eff.PublishNetworks: lambda _: node.changed(structural=False),
            duties.PairInstance: lambda _: None,
            duties.UnpairInstance: lambda _: None,
            duties.StageInstance: lambda _: None,
            duties.UnstageInstance: lambda _: None,
        }

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
        known = self._world.model_of(model)
        return "" if known.definition.digest == digest else "another definition"

    def device_of(self, instance: str) -> str | None:
        """Return the device of an instance that is here, in whatever state."""
        for name, device in self.devices.items():
            if device.instance is not None and device.instance.id == instance:
                return name
        return None

    def has_weights(self, device: str, weights: str) -> bool:
        """Whether a worker has a store of these weights, whole or not."""
        found = self.devices.get(device)
        if found is None:
            return False
        there = found.instance
        has = there is not None and there.model.definition.weights == weights
        return has or weights in found.stores

    def rates(self) -> dict[str, float]:
        """Return the rates of this node's ports."""
        return {NETWORK: PORT_BYTES_PER_S}

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
        return there.model.terms.keep_s if there is not None else 0.0

    # What it has done.

    def _bring_up(self, effect: eff.BringUp) -> None:
        device, world = self.devices[effect.device], self._world
        if device.instance is not None:
            there = device.instance
            world.wrong(f"device: {effect.instance} is begun where {there.id} is {there.state}")
            self._clear(device)
        self._raise_claim(device, effect.claim)
        model = world.model_of(effect.model)
        device.life += 1
        device.instance = SimInstance(
            effect.instance, model, effect.device, effect.claim, world.heap.now
        )
        if not self._map(device, model) and world.rng.random() < BROKEN_RATE:
            world.heap.after(BREAK_S, self._break, device, device.life)
        self._node.changed()

    def _map(self, device: SimDevice, model: SimModel) -> bool:
        """Map what is on the machine already; return whether that is all."""
        weights, sizes = model.definition.weights, model.definition.blob_bytes
        stores = [each.stores.get(weights, set()) for each in self.devices.values()]
        whole = any(len(store) == len(sizes) for store in stores)
        here = set(range(len(sizes))) if whole else device.stores.get(weights, set())
        at_s = 0.0
        for index in sorted(here):
            at_s += sizes[index] / LOCAL_BYTES_PER_S
            self._world.heap.after(at_s, self.arrive, device, device.life, weights, index)
        return whole

    def _raise_claim(self, device: SimDevice, claim: int) -> None:
        """Raise a claim by one, as every device counts for itself."""
        if claim != device.claim + 1:
            self._world.wrong(f"claim: {device.worker} goes from {device.claim} to {claim}")
        device.claim = claim

    def _break(self, device: SimDevice, life: int) -> None:
        """Let an instance fail that is being brought up."""
        there = device.instance
        if not self._node.running or device.life != life or there is None:
            return
        if there.state is InstanceState.LOADING:
            self._clear(device)
            self._node.tell_steward(ev.InstanceEnded(device.id, there.id, "out of memory"))

    def _drop(self, effect: eff.DropInstance) -> None:
        device = self.devices[effect.device]
        if device.instance is not None and device.instance.id == effect.instance:
            self._clear(device)

    def _there(self, name: str, instance: str) -> SimInstance | None:
        """Return the instance of a device, if it is the one that is meant."""
        there = self.devices[name].instance
        if there is not None and there.id == instance:
            return there
        self._world.wrong(f"steward: {instance} is not at {self.devices[name].worker}")
        return None

    def _become(self, there: SimInstance, state: InstanceState) -> None:
        wrong = illegal(there.state, state)
        if wrong:
            self._world.wrong(f"state: {there.id}: {wrong}")
        there.state = state
        self._node.changed()
        self._node.touched(there.model.name)

    def _retire(self, effect: eff.RetireInstance) -> None:
        there = self._there(effect.device, effect.instance)
        if there is None:
            return
        self._become(there, InstanceState.DRAINING)
        self._give_back(there)
        device = self.devices[effect.device]
        self._world.heap.after(DRAIN_LOOK_S, self._drain, device, there)

    def _drain(self, device: SimDevice, there: SimInstance) -> None:
        if not self._node.running or device.instance is not there:
            return
        if there.state is not InstanceState.DRAINING:
            return  # revived
        if there.idle:
            self._node.tell_steward(ev.InstanceDrained(device.id, there.id))
        else:
            self._world.heap.after(DRAIN_LOOK_S, self._drain, device, there)

    def _keep(self, effect: eff.KeepInstance) -> None:
        there = self._there(effect.device, effect.instance)
        if there is not None:
            device = self.devices[effect.device]
            self._become(there, InstanceState.KEPT)
            self._world.ended(there)
            device.claim += 1
            there.claim = device.claim

    def _revive(self, effect: eff.ReviveInstance) -> None:
        there = self._there(effect.device, effect.instance)
        if there is None:
            return
        device = self.devices[effect.device]
        if effect.claim != device.claim:
            self._raise_claim(device, effect.claim)
        there.claim = device.claim
        self._become(there, InstanceState.SERVING)
        self._world.revive(there)
        serves = ev.InstanceServes(device.id, there.id)
        self._world.heap.after(REVIVE_S, self._node.tell_steward, serves)

    def _clear(self, device: SimDevice) -> None:
        there = device.instance
        device.instance = None
        device.life += 1
        device.claim += 1
        if there is not None:
            self._world.ended(there)
            self._node.touched(there.model.name)
            self._give_back(there)
            if there.computing is not None:
                self.serving.bounce(there.computing[0])
        self._world.flows.close_at(device, "the store is gone")
        self._node.changed()

    def _give_back(self, there: SimInstance) -> None:
        for submit, _ in there.queue:
            self.serving.bounce(submit)
        there.queue.clear()

    def close(self) -> None:
        """Lose everything with the process."""
        for device in self.devices.values():
            device.life += 1
            if device.instance is not None:
                self._world.ended(device.instance)
            self._world.flows.close_at(device, "the peer is gone")

    # Weights.

    def _hold(self, effect: eff.HoldWeights) -> None:
        self.devices[effect.device].stores.setdefault(effect.weights, set())
        self._read(effect.device, effect.weights, effect.reads)

    def _drop_weights(self, effect: eff.DropWeights) -> None:
        self.devices[effect.device].stores.pop(effect.weights, None)

    def _read(self, name: str, weights: str, blobs: tuple[int, ...]) -> None:
        device, sizes = self.devices[name], self._world.sizes[weights]
        at_s = 0.0
        for index in blobs:
            at_s += sizes[index] / DISK_BYTES_PER_S
            self._world.heap.after(at_s, self.arrive, device, device.life, weights, index)

    def arrive(self, device: SimDevice, life: int, weights: str, index: int) -> None:
        """Take a blob that has come to a device, from wherever."""
        if not self._node.running:
            return
        there = device.instance
        fits = there is not None and there.model.definition.weights == weights
        store = device.stores.get(weights)
        if store is not None and (not fits or device.life != life):
            store.add(index)
        if there is None or not fits:
            new = store is not None
        else:
            new = index not in there.blobs and (store is not None or device.life == life)
            if new:
                self._fill(device, there, index)
        if new:
            self._node.tell_steward(ev.WorkerSaid(device.id, BlobChecked(weights, index)))

    def _fill(self, device: SimDevice, there: SimInstance, index: int) -> None:
        there.blobs.add(index)
        self._node.changed(structural=False)
        if there.complete:
            self._world.heap.after(WARM_S, self._serve, device, device.life)

    def _to_worker(self, effect: eff.ToWorker) -> None:
        device, flows = self.devices[effect.device], self._world.flows
        match effect.message:
            case OpenSend(terms):
                flows.begin(terms, self._node, device, sends=True)
            case OpenReceive(terms):
                flows.begin(terms, self._node, device, sends=False)
            case CloseEdge(edge):
                flows.close(edge)

    def submitted(self, submit: Submit) -> None:
        """Take a request for an instance that is here, or is not."""
        name = self.device_of(submit.instance)
        self.serving.submitted(self.devices[name].instance if name is not None else None, submit)

    def _serve(self, device: SimDevice, life: int) -> None:
        there = device.instance
        if not self._node.running or device.life != life or there is None:
            return
        if there.state is InstanceState.LOADING:
            self._become(there, InstanceState.SERVING)
            self._world.came_up(there)
            self._node.tell_steward(ev.InstanceServes(device.id, there.id))
