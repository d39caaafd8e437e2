"""A node's devices and models as its deciders of scaling see them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from blitzgw.copyshelf import HeldWeights
from blitzgw.core.instance import DeviceKind, DeviceSpec, InstanceState
from blitzgw.core.view import HostFacts
from blitzgw.definitions import Definitions
from blitzgw.device import DeviceRunner
from blitzgw.scaling.events import NOT_YET
from blitzgw.scaling.lifecycle import REVIVABLE
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.scaling.vacancies import FREE


class Premises:
    """Implements `scaling.engagement.Premises`; `held` is by the root of the weights."""

    def __init__(
        self,
        devices: Mapping[str, DeviceRunner],
        definitions: Definitions,
        held: Mapping[str, HeldWeights],
        host: Callable[[], HostFacts],
        is_draining: Callable[[], bool],
    ) -> None:
        self._devices, self._definitions = devices, definitions
        self._held, self._host, self._is_draining = held, host, is_draining

    def claim(self, device: str) -> int | None:
        """Return a device's claim; None where there is none, or its worker is not up."""
        runner = self._devices.get(device)
        return runner.claim if runner is not None and runner.up else None

    def objection(self, device: str, model: str, digest: str) -> str:
        """Return why a device cannot take a model now, or nothing."""
        runner = self._devices[device]
        where = f"{runner.node}/{device}"
        if self._is_draining():
            return f"{runner.node} is draining"
        if runner.device.kind is DeviceKind.HOST:
            return f"{where} computes nothing"
        there = [i for i in runner.instances.values() if i.state not in FREE]
        if there:
            return f"{where} has an instance of {there[0].served.model}"
        known = self._definitions.known(digest)
        if known is None or known.card.name != model:
            return f"{NOT_YET}: {runner.node} does not know this definition of {model}"
        if self._definitions.pinned_to_others(model, known.card.weights):
            return f"{runner.node} is configured to serve {model} with other weights only (digest)"
        need = sum(blob.size_bytes for blob in known.card.blobs)
        if need > runner.memory_bytes:
            return f"{where} has {runner.memory_bytes >> 20} MiB, {model} needs {need >> 20}"
        return ""

    def revivable(self, device: str, model: str, digest: str) -> str:
        """Return the instance of that definition that drains or is kept on a device, or ""."""
        runner, known = self._devices.get(device), self._definitions.known(digest)
        if runner is None or known is None or self._is_draining():
            return ""
        for name, instance in runner.instances.items():
            same = instance.served.model == model == known.card.name
            if same and instance.load.model.weights == known.card.weights:
                defined = instance.digest or self._definitions.digest_of(model)
                return name if instance.state in REVIVABLE and defined == digest else ""
        return ""

    def keep_s(self, instance: str) -> float:
        """Return for how long an instance that has drained is kept: as its model's terms say."""
        device = self.device_of(instance)
        if device is None or self._is_draining():
            return 0.0
        there = self._devices[device].instances[instance]
        if there.state is not InstanceState.DRAINING:
            return 0.0  # it was not complete
        model = there.served.model
        digest = there.digest or self._definitions.digest_of(model)
        return self._definitions.terms_of(model, digest).keep_s

    def device_of(self, instance: str) -> str | None:
        """Return the device of an instance that is here, in whatever state."""
        for name, runner in self._devices.items():
            if instance in runner.instances:
                return name
        return None

    def has_weights(self, device: str, weights: str) -> bool:
        """Whether a worker has a store of these weights, whole or not."""
        held = self._held.get(weights)
        if held is not None and held.device == device:
            return True
        runner = self._devices.get(device)
        return runner is not None and any(
            i.load.model.weights == weights and i.load.blobs and not i.failure
            for i in runner.instances.values()
        )

    def rates(self) -> dict[str, float]:
        """Return the rates of this node's ports, 0 where they are not known."""
        return {network.name: network.rate_bytes_per_s for network in self._host().networks}


def definition_for_scaling(
    definitions: Definitions, model: str, devices: Sequence[DeviceSpec] = ()
) -> ModelDefinition | None:
    """Return the definition that holds for a name, with its weights where they are known.

    With paced `devices` hidden states and KV weigh what the first of these says.
    """
    settled = definitions.settled.get(model)
    if settled is None:
        return None
    known = definitions.known(settled.digest)
    if known is None:
        return ModelDefinition(model, settled.digest, "", ())
    sizes = tuple(blob.size_bytes for blob in known.card.blobs)
    shape, dtype = known.card.shape, known.card.dtype
    hidden = shape.hidden * dtype.size_bytes
    kv_layer = shape.kv_bytes_per_token(dtype) // max(1, shape.n_layers)
    for device in devices:
        if device.kind is DeviceKind.PACED:
            hidden, kv_layer = device.cost.hidden_bytes, device.cost.kv_bytes
            break
    return ModelDefinition(
        model,
        settled.digest,
        known.card.weights,
        sizes,
        hidden,
        kv_layer,
        tied_head=shape.tied_head,
    )
