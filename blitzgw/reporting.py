"""What a node tells about itself: facts for its peers, status for its API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from blitzgw.api.status import ModelStatus
from blitzgw.core.instance import InstanceState
from blitzgw.core.view import (
    ClusterView,
    DeviceFacts,
    Fact,
    InstanceFacts,
    LoadFacts,
    mask_of,
)
from blitzgw.device import DeviceRunner
from blitzgw.gossip.catalogue import Definition
from blitzgw.placement import Instance
from blitzgw.router.router import Router

FAILED = "failed"
"""The state of a model none of whose instances could be loaded."""

FETCHING = "fetching"
"""The state of a model that this node cannot tokenise for yet."""

NOWHERE = "scaled_to_zero"
"""The state of a model of which no instance is anywhere."""

SETTLED = (InstanceState.SERVING, InstanceState.LOADING, InstanceState.DRAINING)
"""States from the best: a model is in the best state of any of its instances."""


def device_facts(devices: Sequence[DeviceRunner], digests: dict[str, str]) -> list[Fact]:
    """Return what a node publishes of its devices and instances; `digests` by model name."""
    facts: list[Fact] = []
    for device in devices:
        spec = device.device
        facts.append(
            DeviceFacts(
                id=spec.id,
                kind=spec.kind,
                name=device.hardware,
                memory_bytes=device.memory_bytes,
                claim=device.claim,
                software=device.software,
                data_ports=device.data_ports,
            )
        )
        for name, instance in device.instances.items():
            served = instance.served
            facts.append(
                InstanceFacts(
                    id=name,
                    model=served.model,
                    digest=instance.digest or digests.get(served.model, ""),
                    device=spec.id,
                    claim=device.claim,
                    state=instance.state,
                    layers_resident=instance.layers_resident,
                    layers_total=served.n_layers,
                    weights=instance.load.model.weights,
                    blobs=mask_of(instance.blobs) if instance.load.blobs else "0",
                    helps=instance.helps,
                    stage=instance.stage,
                )
            )
    return facts


def load_facts(devices: Sequence[DeviceRunner]) -> list[LoadFacts]:
    """Return how busy a node's serving instances are."""
    return [
        LoadFacts(
            instance=name,
            running=lane.running,
            waiting=lane.waiting,
            queued_tokens=lane.queued_tokens,
            kv_usage=round(lane.kv_usage, 3),
            prefill_tokens_per_s=_rounded(lane.prefill_tokens_per_s),
            decode_step_s=_rounded(lane.decode_step_s),
        )
        for device in devices
        for name, lane in device.lanes().items()
    ]


def _rounded(rate: float | None) -> float | None:
    """Keep two digits, so that what has hardly changed is not published again."""
    return None if rate is None else float(f"{rate:.2g}")


@dataclass(slots=True)
class ModelReport:
    """Puts together what is known of models here and elsewhere, at one moment.

    `coming` are the names that this node cannot tokenise for yet.
    """

    devices: Sequence[DeviceRunner]
    router: Router
    view: ClusterView
    coming: Collection[str] = ()
    _others: dict[tuple[str, str], list[InstanceFacts]] = field(init=False)

    def __post_init__(self) -> None:
        self._others = {}
        for node in self.view.living():
            for facts in node.instances.values() if node.boot != self.view.local else ():
                self._others.setdefault((facts.model, facts.digest), []).append(facts)

    def status(self, definition: Definition, load_s: float | None) -> ModelStatus:
        """Return a model's status: instances of the cluster, work of this node.

        `load_s` is how long the last load took here, None where that is not known.
        """
        name = definition.name
        own = [i for d in self.devices for i in d.instances.values() if i.served.model == name]
        others = self._others.get((name, definition.digest), [])
        held = [] if self.view.local in definition.rivals else own  # a rival's are not served
        instances: list[Instance | InstanceFacts] = [*held, *others]
        states = Counter(instance.state for instance in instances)
        here = [lane for device in self.devices for lane in device.statistics(name)]
        return ModelStatus(
            name=name,
            state=FETCHING if name in self.coming else _best(states),
            instances=states[InstanceState.SERVING],
            layers_resident=max((instance.layers_resident for instance in instances), default=0),
            layers_total=definition.layers,
            eta_s=load_s if states[InstanceState.LOADING] else None,
            running=sum(lane.running for lane in here),
            waiting=sum(lane.waiting for lane in here) + self.router.held(name),
            kv_usage=max((lane.kv_usage for lane in here), default=0.0),
            kv_blocks=sum(i.served.kv.slots * i.served.kv.blocks_per_slot for i in own),
            preemptions=sum(lane.preemptions for lane in here),
        )


def hindrance(models: Sequence[ModelStatus]) -> str:
    """Tell why no request can be answered yet; empty where one can, or can be waited for."""
    if not models:
        return "no model is known yet"
    names: dict[str, list[str]] = {}
    for model in models:
        names.setdefault(model.state, []).append(model.name)
    if names.keys() - {InstanceState.LOADING, FETCHING, FAILED}:
        return ""
    coming = [state for state in (InstanceState.LOADING, FETCHING) if state in names]
    told = [f"{state} {', '.join(sorted(names[state]))}" for state in coming]
    return "; ".join(told) or "no model could be loaded"


def _best(states: Counter[InstanceState]) -> str:
    gone = FAILED if states[InstanceState.GONE] else NOWHERE
    return next((state for state in SETTLED if states[state]), gone)
