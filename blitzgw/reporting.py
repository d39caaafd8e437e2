"""What a node tells about itself: facts for its peers, status for its API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from blitzgw.api.status import ModelStatus
from blitzgw.core.instance import InstanceState
from blitzgw.core.scale import ScaleMode
from blitzgw.core.view import (
    ClusterView,
    DeviceFacts,
    Fact,
    InstanceFacts,
    LoadFacts,
    ScaleFacts,
    mask_of,
)
from blitzgw.device import DeviceRunner
from blitzgw.gossip.catalogue import Definition
from blitzgw.placement import Instance
from blitzgw.router.router import Router
from blitzgw.scaleview import eta_s, scale_facts

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
                    open=instance.open and instance.leads,
                )
            )
    return facts


def load_facts(devices: Iterable[DeviceRunner]) -> list[LoadFacts]:
    """Return how busy a node's serving instances are."""
    return [
        replace(
            load,
            kv_usage=round(load.kv_usage, 3),
            prefill_tokens_per_s=_rounded(load.prefill_tokens_per_s),
            decode_step_s=_rounded(load.decode_step_s),
        )
        for device in devices
        for load in device.loads()
    ]


def loads_by_model(devices: Iterable[DeviceRunner]) -> dict[str, list[LoadFacts]]:
    """Return how busy a node's instances are, by model."""
    found: dict[str, list[LoadFacts]] = {}
    for device in devices:
        for load in load_facts([device]):
            instance = device.instances.get(load.instance)
            if instance is not None:
                found.setdefault(instance.served.model, []).append(load)
    return found


def _rounded(rate: float | None) -> float | None:
    """Keep two digits, so that what has hardly changed is not published again."""
    return None if rate is None else float(f"{rate:.2g}")


@dataclass(slots=True)
class ModelReport:
    """Puts together what is known of models here and elsewhere, at one moment.

    `coming` are the names that this node cannot tokenise for yet; `now` is Unix time.
    """

    devices: Sequence[DeviceRunner]
    router: Router
    view: ClusterView
    coming: Collection[str] = ()
    now: float = 0.0
    _others: dict[tuple[str, str], list[InstanceFacts]] = field(init=False)
    _scaling: dict[str, ScaleFacts] = field(init=False)

    def __post_init__(self) -> None:
        self._others, self._scaling = {}, scale_facts(self.view)
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
        scaling = self._scaling.get(name)
        grows = scaling is not None and scaling.wanted > states[InstanceState.SERVING]
        coming_s = eta_s(scaling, self.now) if grows else None
        if coming_s is None and states[InstanceState.LOADING]:
            coming_s = load_s
        return ModelStatus(
            name=name,
            state=FETCHING if name in self.coming else _best(states),
            instances=states[InstanceState.SERVING],
            layers_resident=max((instance.layers_resident for instance in instances), default=0),
            layers_total=definition.layers,
            eta_s=coming_s,
            running=sum(lane.running for lane in here),
            waiting=sum(lane.waiting for lane in here) + self.router.held(name),
            kv_usage=max((lane.kv_usage for lane in here), default=0.0),
            kv_blocks=sum(i.served.kv.slots * i.served.kv.blocks_per_slot for i in own),
            preemptions=sum(lane.preemptions for lane in here),
            wanted=None if scaling is None else scaling.wanted,
            mode=self._mode(definition) if scaling is None else scaling.mode,
            starting=any(i.state is InstanceState.LOADING and i.load.reads != () for i in held),
        )

    def _mode(self, definition: Definition) -> str:
        known = self.view.oldest_definition(definition.name, definition.digest)
        return ScaleMode.MANUAL if known is None else known.scaling.mode


def hindrance(models: Sequence[ModelStatus]) -> str:
    """Tell why no request can be answered yet; empty where one can, or can be waited for.

    A model that its owner brings up can be, unless it loads because the node starts.
    """
    if not models:
        return "no model is known yet"
    names: dict[str, list[str]] = {}
    for model in models:
        automatic = model.mode == ScaleMode.AUTO and not model.starting
        if automatic and model.state == InstanceState.LOADING:
            return ""
        names.setdefault(model.state, []).append(model.name)
    if names.keys() - {InstanceState.LOADING, FETCHING, FAILED}:
        return ""
    coming = [state for state in (InstanceState.LOADING, FETCHING) if state in names]
    told = [f"{state} {', '.join(sorted(names[state]))}" for state in coming]
    return "; ".join(told) or "no model could be loaded"


def _best(states: Counter[InstanceState]) -> str:
    gone = FAILED if states[InstanceState.GONE] else NOWHERE
    return next((state for state in SETTLED if states[state]), gone)
