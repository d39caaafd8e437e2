"""A cluster made by hand around autoscalers: views, demands, operations that take their time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blitzgw.core.instance import InstanceState
from blitzgw.core.scale import Demand
from blitzgw.core.view import ClusterView, LoadFacts, ModelFacts, ScaleTerms
from blitzgw.scaling.autoevents import (
    CancelOperation,
    Coming,
    Decided,
    DemandCame,
    OperationOver,
    OrderInstances,
    OrderTaken,
    PublishScale,
    PublishWish,
    Underway,
    ViewChanged,
)
from blitzgw.scaling.autoscaler import Autoscaler
from blitzgw.scaling.events import TimePassed
from blitzgw.scaling.ownership import owner_of
from blitzgw.scaling.survey import ModelDefinition
from tests.scaling.view_kit import instance, node

AUTO = ScaleTerms(mode="auto", min_instances=0, patience_s=1.0)
EPOCH_S = 1e9


def definition(name="m", size=10):
    return ModelDefinition(name, f"d-{name}", f"w-{name}", (size, size, size))


def model_facts(name, terms):
    return ModelFacts(name, f"d-{name}", 1, 0, weights=f"w-{name}", scaling=terms)


def placed(device, state=InstanceState.SERVING, model="m", node_name="a"):
    made = instance(device, model=model, state=state, weights=f"w-{model}")
    return replace(made, id=f"{model}@{node_name}/{device}", digest=f"d-{model}")


def load(where, model="m", **changes):
    made = LoadFacts(f"{model}@{where}", prefill_tokens_per_s=1000.0, kv_tokens=10_000)
    return replace(made, **changes)


@dataclass
class Running:
    """An operation of the fake `Operations`: `coming` are (boot, device)."""

    name: str
    model: str
    wanted: int
    grows: bool
    owner: str
    coming: list = field(default_factory=list)
    ready_at: float | None = None
    hangs: bool = False

    def fraction(self, left_s, load_s):
        return 0.5 if self.hangs else min(1.0, max(0.0, 1.0 - left_s / load_s))


class Bench:
    """Nodes by name, one view for all, an autoscaler for each of `deciders`, by boot."""

    def __init__(self, terms=None, nodes=("a",), devices=4, deciders=None, **node_changes):
        self.terms = terms or {"m": AUTO}
        self.now = 0.0
        self.nodes = {
            f"boot-{name}": node(
                name,
                devices=devices,
                models={m: model_facts(m, t) for m, t in self.terms.items()},
                **node_changes,
            )
            for name in nodes
        }
        self.operations: dict[str, Running] = {}
        self.load_s, self.hold_orders, self.refuse = 1.0, False, ""
        self.effects: list = []
        self.numbers: dict[tuple[str, str], int] = {}
        self._made = 0
        self.scalers = {}
        for name in deciders or nodes:
            self.start(f"boot-{name}")

    # What deciders are given.

    def start(self, boot):
        self.scalers[boot] = Autoscaler(
            boot,
            self.nodes[boot].name,
            lambda: self.view(boot),
            lambda model: definition(model) if model in self.terms else None,
            lambda model, now: self.underway(boot, model),
            lambda: EPOCH_S + self.now,
        )

    def view(self, boot):
        return ClusterView(boot, dict(self.nodes))

    def underway(self, boot, model):
        return tuple(
            Underway(
                each.name,
                each.grows,
                each.wanted,
                tuple(
                    Coming(
                        f"{model}@{self.nodes[b].name}/{d}",
                        each.fraction(each.ready_at - self.now, self.load_s),
                        each.ready_at - self.now,
                        computes=False,
                    )
                    for b, d in each.coming
                ),
            )
            for each in self.operations.values()
            if (each.owner, each.model) == (boot, model)
        )

    # What happens.

    @property
    def scaler(self):
        return self.scalers[min(self.scalers)]

    def owner(self, model="m"):
        return owner_of(model, self.view(min(self.scalers)))

    def change(self, boot, **changes):
        self.nodes[boot] = replace(self.nodes[boot], **changes)

    def put(self, where, state=InstanceState.SERVING, model="m", **loads):
        """Have an instance; a state of None takes it away."""
        name, _, device = where.partition("/")
        of = self.nodes[f"boot-{name}"]
        found = {k: v for k, v in of.instances.items() if k != f"{model}@{where}"}
        if state is not None:
            made = placed(device, state, model, name)
            found[made.id] = made
        known = {**of.loads}
        if loads:
            known[f"{model}@{where}"] = load(where, model, **loads)
        self.change(of.boot, instances=found, loads=known)

    def say(self, event, boot=None):
        """Tell a decider, carry out what it wants, and return the effects, replies' too."""
        boot = boot or min(self.scalers)
        effects = self.scalers[boot].handle(event, self.now)
        self.scalers[boot].check_integrity()
        self.effects += effects
        for effect in list(effects):
            effects += self._perform(boot, effect)
        return effects

    def _perform(self, boot, effect):
        if isinstance(effect, PublishWish):
            wishes = {**self.nodes[boot].wishes, effect.wish.model: effect.wish}
            self.change(boot, wishes=wishes)
        if isinstance(effect, PublishScale):
            told = {k: v for k, v in self.nodes[boot].scaling.items() if k != effect.model}
            if effect.facts is not None:
                told[effect.model] = effect.facts
            self.change(boot, scaling=told)
        if isinstance(effect, CancelOperation):
            gone = self.operations.pop(effect.operation, None)
            if gone is not None:
                self._drop(gone)
                over = OperationOver(gone.model, gone.name, "cancelled", "as asked")
                return self.say(over, boot)
        if isinstance(effect, OrderInstances):
            return self._begin(boot, effect)
        return []

    def _begin(self, boot, order):
        if self.refuse:
            return self.say(OperationOver(order.model, "", "failed", self.refuse), boot)
        if self.hold_orders:
            return []
        self._made += 1
        grows = order.instances > len(self.counted(order.model))
        made = Running(f"o{self._made}", order.model, order.instances, grows, boot)
        self.operations[made.name] = made
        return self.say(OrderTaken(order.model, order.decision, made.name), boot)

    def counted(self, model="m", *states):
        states = states or (InstanceState.SERVING, InstanceState.LOADING)
        return [
            (n.boot, i.device)
            for n in self.nodes.values()
            for i in n.instances.values()
            if n.living and i.model == model and i.state in states
        ]

    def free(self):
        return [
            (n.boot, d)
            for n in self.nodes.values()
            if n.living
            for d in n.devices
            if d not in {i.device for i in n.instances.values()}
        ]

    def claim(self, name):
        """Let a growth take its devices."""
        operation = self.operations[name]
        lacking = operation.wanted - len(self.counted(operation.model))
        operation.ready_at = self.now + self.load_s
        for boot, device in self.free()[: max(0, lacking)]:
            operation.coming.append((boot, device))
            self.put(f"{self.nodes[boot].name}/{device}", InstanceState.LOADING, operation.model)

    def finish(self, name, state="done", reason="", asked=False):
        """End an operation as it should, or undo it."""
        operation = self.operations.pop(name)
        if state != "done":
            self._drop(operation)
        elif operation.grows:
            for boot, device in operation.coming:
                if self.nodes[boot].living:
                    where = f"{self.nodes[boot].name}/{device}"
                    self.put(where, InstanceState.SERVING, operation.model)
        else:
            serving = self.counted(operation.model)
            for boot, device in serving[operation.wanted :]:
                self.put(f"{self.nodes[boot].name}/{device}", None, operation.model)
        over = OperationOver(operation.model, name, state, reason, asked=asked)
        return self.say(over, operation.owner) if operation.owner in self.scalers else []

    def finish_all(self):
        """End all operations that run, as they should; some end others."""
        for name in [*self.operations]:
            if name in self.operations:
                self.finish(name)

    def _drop(self, operation):
        for boot, device in operation.coming if operation.grows else ():
            self.put(f"{self.nodes[boot].name}/{device}", None, operation.model)

    def look(self, seconds=0.0, boot=None):
        """Let time pass."""
        self.now += seconds
        return self.say(TimePassed(), boot)

    def run(self, seconds, boot=None):
        """Let time pass, from deadline to deadline."""
        until, effects = self.now + seconds, []
        boot = boot or min(self.scalers)
        for _ in range(10_000):
            due = self.scalers[boot].deadline()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            effects += self.say(TimePassed(), boot)
        else:
            raise AssertionError("it never comes to rest")
        self.now = until
        return effects

    def changed(self, boot=None):
        return self.say(ViewChanged(), boot)

    def demand(self, sender="boot-a", model="m", boot=None, **fields):
        """Tell what a node knows; numbers rise by themselves."""
        key = sender, model
        self.numbers[key] = self.numbers.get(key, 0) + 1
        told = Demand(model, f"d-{model}", self.numbers[key], **fields)
        return self.say(DemandCame(sender, told), boot)

    def settle(self):
        """Let ownership settle."""
        self.changed()
        return self.run(0.5)


def orders(effects):
    return [effect.instances for effect in effects if isinstance(effect, OrderInstances)]


def decided(effects):
    return [each.decision for each in effects if isinstance(each, Decided)]


def of(effects, kind):
    return [effect for effect in effects if isinstance(effect, kind)]
