"""A cluster in virtual time: stewards, owners, workers that move blobs, links that fail."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.operation import ScaleAnswer, ScaleOrder
from blitzgw.core.plan import Edge, Links, Plan, Prediction, Read, Task, Tier, node_of
from blitzgw.core.rumours import Status
from blitzgw.core.span import Span
from blitzgw.core.transfer import (
    BlobChecked,
    CloseEdge,
    CopyHeld,
    EdgeClosed,
    EdgeProgress,
    OpenReceive,
    OpenSend,
)
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    DeviceFacts,
    HostFacts,
    InstanceFacts,
    LoadFacts,
    ModelFacts,
    NetworkFacts,
    NodeFacts,
    NodeView,
    mask_of,
)
from blitzgw.scaling import lifecycle
from blitzgw.scaling.duties import PairInstance, StageInstance, UnpairInstance, UnstageInstance
from blitzgw.scaling.effects import (
    BringUp,
    DropInstance,
    DropWeights,
    HoldWeights,
    KeepInstance,
    OperationEnded,
    PublishNetworks,
    ReadWeights,
    Record,
    RetireInstance,
    ReviveInstance,
    Send,
    ToWorker,
)
from blitzgw.scaling.events import (
    NOT_YET,
    CancelAsked,
    CopyWanted,
    InstanceDrained,
    InstanceEnded,
    InstanceServes,
    LinkLost,
    MessageCame,
    NodeDied,
    OrderGiven,
    TimePassed,
    WorkerLost,
    WorkerSaid,
)
from blitzgw.scaling.lifecycle import BORN, REVIVABLE
from blitzgw.scaling.operation import Surroundings
from blitzgw.scaling.operations import Operations
from blitzgw.scaling.planner.base import PlanError
from blitzgw.scaling.planner.choose import Choice
from blitzgw.scaling.steward import Steward
from blitzgw.scaling.survey import ModelDefinition

SOFTWARE = {"layout": str(LAYOUT_VERSION)}
MODEL = ModelDefinition("m", "d" * 64, "w" * 64, (100, 200, 200, 50))
OTHER = ModelDefinition("o", "e" * 64, "v" * 64, (100, 200, 200, 50))
STILL = (InstanceState.SERVING, InstanceState.KEPT, InstanceState.GONE)
BLOB_S, WARM_S, DRAIN_S, DETECT_S, DIAL_S = 0.02, 0.01, 0.05, 1.0, 1.0


def definition(name: str) -> ModelDefinition | None:
    return {"m": MODEL, "o": OTHER}.get(name)


def known(name: str) -> ModelDefinition:
    found = definition(name)
    assert found is not None
    return found


def toy_choice(task: Task, links: Links, strategy: str = "") -> Choice:
    """A chain over the targets; the first takes each blob from whoever comes first."""
    edges, reads = [], []
    resident = {h.worker: h.blobs for h in task.holders if h.tier is None}
    behind = {h.worker: (h.tier, h.blobs) for h in task.holders if h.tier is not None}
    before = ""
    for target in task.targets:
        lacking = [
            i for i in range(len(task.blob_bytes)) if i not in resident.get(target, frozenset())
        ]
        if target in behind:
            tier, blobs = behind[target]
            here = tuple(i for i in lacking if i in blobs)
            reads.append(Read(target, tier, here))
            lacking = [i for i in lacking if i not in here]
        if before and lacking:
            edges.append(Edge(before, target, tuple(lacking), "net"))
            lacking = []
        by_source: dict[str, list[int]] = {}
        for index in lacking:
            sources = [w for w, blobs in resident.items() if index in blobs and w != target]
            sources += [w for w, (_, blobs) in behind.items() if index in blobs and w != target]
            if not sources:
                raise PlanError(f"nobody has blob {index}")
            by_source.setdefault(sources[0], []).append(index)
        for source, indices in by_source.items():
            if source not in resident and source not in task.targets:
                reads.append(Read(source, behind[source][0], tuple(indices)))
            edges.append(Edge(source, target, tuple(indices), "net"))
        before = target
    arrivals = {t: (0.0,) * len(task.blob_bytes) for t in task.targets}
    plan = Plan("toy", task.targets, tuple(edges), tuple(reads))
    return Choice(plan, Prediction(arrivals, 1.0, 0.5, 0.7), {"toy": 1.0}, {})


@dataclass
class Device:
    id: str
    claim: int = 1
    instance: str = ""
    state: InstanceState = InstanceState.GONE
    store: set[int] = field(default_factory=set)
    copy: set[int] | None = None
    up: bool = True
    helps: str = ""
    stage: Span | None = None
    model: str = "m"
    load: LoadFacts | None = None
    drains: int = 0
    life: int = 0
    """Raised when the worker restarts or what is on the device changes."""

    def blobs(self) -> set[int]:
        return self.store | (self.copy or set())


class Node:
    """Premises, steward and owner in one."""

    def __init__(self, world: World, name: str, devices: int, disk: bool, rate: float) -> None:
        self.world, self.name, self.boot = world, name, f"boot-{name}"
        self.devices = {f"g{i}": Device(f"g{i}") for i in range(devices)}
        self.unknown: set[str] = set()
        self.disk, self.rate, self.alive, self.draining = disk, rate, True, False
        self.steward = Steward(name, self.boot, self)
        around = Surroundings(
            boot=self.boot,
            node=name,
            view=world.view,
            secret=lambda: world.rng.randbytes(32),
            wall_s=lambda: 1e9 + world.now,
            choose=world.choose,
        )
        self.owner = Operations(around, definition)
        self.answers: list[ScaleAnswer] = []
        self.ends: list[OperationEnded] = []
        self.log: list[Record] = []

    # Premises.

    def claim(self, device: str) -> int | None:
        found = self.devices.get(device)
        return found.claim if found is not None and found.up else None

    def objection(self, device: str, model: str, digest: str) -> str:
        found = self.devices[device]
        if model in self.unknown:
            return f"{NOT_YET}: it does not know {model}"
        taken = found.instance and found.state is not InstanceState.KEPT
        return "an instance is there" if taken else ""

    def revivable(self, device: str, model: str, digest: str) -> str:
        found = self.devices[device]
        same = found.model == model and known(model).digest == digest
        return found.instance if same and found.state in REVIVABLE else ""

    def keep_s(self, instance: str) -> float:
        return self.world.keep_s

    def device_of(self, instance: str) -> str | None:
        return next((d.id for d in self.devices.values() if d.instance == instance), None)

    def has_weights(self, device: str, weights: str) -> bool:
        found = self.devices.get(device)
        return found is not None and (bool(found.instance) or found.copy is not None)

    def rates(self) -> dict[str, float]:
        return {"net": self.rate}

    # What happens here.

    def tell_steward(self, event: Any) -> None:
        if not self.alive:
            return
        effects = self.steward.handle(event, self.world.now)
        self.steward.check_integrity()
        for effect in effects:
            self.perform(effect)

    def tell_owner(self, event: Any) -> None:
        if not self.alive:
            return
        effects = self.owner.handle(event, self.world.now)
        self.owner.check_integrity()
        for effect in effects:
            self.perform(effect)

    def tell(self, event: Any) -> None:
        if isinstance(event, MessageCame) and isinstance(event.message, ScaleAnswer):
            self.answers.append(event.message)
            return
        self.tell_owner(event)
        self.tell_steward(event)

    def perform(self, effect: Any) -> None:  # noqa: C901
        world = self.world
        world.effects.append((world.now, self.name, effect))
        match effect:
            case Send(boot, message):
                world.send(self, boot, message)
            case OperationEnded():
                self.ends.append(effect)
            case Record():
                self.log.append(effect)
            case PublishNetworks():
                pass
            case BringUp():
                device = self.devices[effect.device]
                assert not device.instance, "two instances on a device"
                assert effect.claim == device.claim + 1
                device.claim, device.instance = effect.claim, effect.instance
                device.state, device.store = BORN, set()
                device.model = effect.model
                device.life += 1
                full = device.copy is not None and len(device.copy) == len(MODEL.blob_bytes)
                if device.copy is not None and full and device.model == "m":
                    for index in sorted(device.copy):
                        world.after(0.001, self.arrive, device, device.life, index)
                elif world.rng.random() < world.load_failures:
                    world.after(0.03, self.end_instance, device, device.life, "no memory")
            case DropInstance():
                device = self.devices[effect.device]
                if device.instance == effect.instance:
                    self.clear(device)
            case PairInstance():
                device = self.devices[effect.device]
                assert device.instance == effect.instance, "paired what is not there"
                assert device.state is InstanceState.LOADING, "a complete instance helps nobody"
                assert effect.home != effect.instance
                device.helps = effect.home
            case UnpairInstance():
                self.devices[effect.device].helps = ""
            case StageInstance():
                device = self.devices[effect.device]
                assert device.instance == effect.instance, "a stage is not there"
                assert effect.next != effect.instance
                device.stage = effect.span
            case UnstageInstance():
                self.devices[effect.device].stage = None
            case RetireInstance():
                device = self.devices[effect.device]
                assert device.instance == effect.instance, "retired what is not there"
                device.drains += 1
                if device.state is InstanceState.SERVING:
                    self.move(device, InstanceState.DRAINING)
                world.after(world.drain_s, self.drained, device, device.life, device.drains)
            case KeepInstance():
                device = self.devices[effect.device]
                assert device.instance == effect.instance, "kept what is not there"
                self.move(device, InstanceState.KEPT)
                device.claim += 1
                world.kept += 1
            case ReviveInstance():
                device = self.devices[effect.device]
                assert device.instance == effect.instance, "revived what is not there"
                kept = device.state is InstanceState.KEPT
                assert effect.claim == device.claim + kept
                device.claim = effect.claim
                device.drains += 1
                self.move(device, InstanceState.SERVING)
                world.revived += 1
                self.tell_steward(InstanceServes(device.id, device.instance))
            case HoldWeights():
                device = self.devices[effect.device]
                if device.copy is None:
                    device.copy = set()
                self.read(device, effect.reads)
            case ReadWeights():
                self.read(self.devices[effect.device], effect.blobs)
            case DropWeights():
                self.devices[effect.device].copy = None
            case ToWorker(device, OpenSend(terms)):
                world.open(terms, self, self.devices[device], sends=True)
            case ToWorker(device, OpenReceive(terms)):
                world.open(terms, self, self.devices[device], sends=False)
            case ToWorker(device, CloseEdge(edge)):
                world.close(edge, self.devices[device], "closed")
            case _:
                raise AssertionError(effect)

    def read(self, device: Device, blobs: tuple[int, ...]) -> None:
        for number, index in enumerate(blobs):
            self.world.after(BLOB_S * (number + 1), self.arrive, device, device.life, index)

    def arrive(self, device: Device, life: int, index: int) -> None:
        if not self.alive or device.life != life:
            return
        store = device.store if device.instance else device.copy
        if store is None or index in store:
            return
        store.add(index)
        weights = known(device.model).weights if device.instance else MODEL.weights
        self.tell_steward(WorkerSaid(device.id, BlobChecked(weights, index)))
        if len(store) == len(MODEL.blob_bytes):
            self.world.after(WARM_S, self.serve, device, life)

    def serve(self, device: Device, life: int) -> None:
        if not self.alive or device.life != life:
            return
        if device.instance and device.state is InstanceState.LOADING:
            self.move(device, InstanceState.SERVING)
            device.helps = ""
            self.tell_steward(InstanceServes(device.id, device.instance))
        elif not device.instance and device.copy is not None:
            self.tell_steward(WorkerSaid(device.id, CopyHeld(MODEL.weights, 550)))

    def drained(self, device: Device, life: int, drains: int) -> None:
        if self.alive and (device.life, device.drains) == (life, drains) and device.instance:
            self.tell_steward(InstanceDrained(device.id, device.instance))

    def move(self, device: Device, state: InstanceState) -> None:
        lifecycle.check(device.state, state)
        device.state = state

    def end_instance(self, device: Device, life: int, reason: str) -> None:
        if self.alive and device.life == life and device.instance:
            instance = device.instance
            self.clear(device)
            self.tell_steward(InstanceEnded(device.id, instance, reason))

    def clear(self, device: Device) -> None:
        if device.instance:
            self.move(device, InstanceState.GONE)
        device.instance, device.store = "", set()
        device.helps, device.stage = "", None
        device.claim += 1
        device.life += 1
        self.world.close_all(device, "the store is gone")

    def crash_worker(self, device: Device) -> None:
        if self.alive:
            device.copy = None
            self.clear(device)
            self.tell_steward(WorkerLost(device.id, "killed"))

    def view(self, detected: bool) -> NodeView:
        host = "10.0.0.1"
        networks = (
            NetworkFacts("net", host, self.rate, *self.steward.reserved().get("net", (0.0, 0.0))),
        )
        devices = {
            d.id: DeviceFacts(
                d.id, DeviceKind.PACED, "x", 1 << 40, d.claim, SOFTWARE, {"net": 1000}
            )
            for d in self.devices.values()
            if d.up
        }
        instances = {
            d.instance: InstanceFacts(
                d.instance, d.model, known(d.model).digest, d.id, d.claim, d.state, len(d.store),
                2, weights=known(d.model).weights, blobs=mask_of(d.store), helps=d.helps,
                stage=d.stage,
            )
            for d in self.devices.values()
            if d.instance
        }  # fmt: skip
        copies = {
            d.id: CopyFacts(
                MODEL.weights, "m", d.id, 550, mask_of(d.copy), len(d.copy) == len(MODEL.blob_bytes)
            )
            for d in self.devices.values()
            if d.copy is not None
        }
        model = ModelFacts("m", MODEL.digest, 2, 0, weights=MODEL.weights, disk=self.disk)
        return NodeView(
            boot=self.boot,
            name=self.name,
            host=host,
            port=1,
            status=Status.DEAD if detected else Status.ALIVE,
            started_s=0,
            facts=NodeFacts(self.name, "", self.draining),
            devices=devices,
            models={"m": model},
            instances=instances,
            loads={d.instance: d.load for d in self.devices.values() if d.instance and d.load},
            copies=copies,
            host_facts=HostFacts(1 << 30, networks=networks),
        )


@dataclass
class Flow:
    terms: Any
    source: tuple[Node, Device, int] | None = None
    target: tuple[Node, Device, int] | None = None
    next: int = 0
    sent: int = 0
    over: bool = False


class World:
    def __init__(
        self,
        seed: int = 0,
        *,
        nodes: int = 4,
        devices: int = 2,
        disks: int = 0,
        rate: float = 1e6,
        choose: Callable[..., Choice] = toy_choice,
        load_failures: float = 0.0,
        keep_s: float = 0.0,
        drain_s: float = DRAIN_S,
    ) -> None:
        self.keep_s, self.drain_s, self.kept, self.revived = keep_s, drain_s, 0, 0
        self.rng, self.now, self.choose = random.Random(seed), 0.0, choose
        self.load_failures = load_failures
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._n = 0
        self.effects: list[tuple[float, str, Any]] = []
        self._last: dict[tuple[str, str], float] = {}
        self._cut: dict[frozenset[str], float] = {}
        self._broken: dict[tuple[str, str], int] = {}
        self.flows: dict[str, Flow] = {}
        self._detected: set[str] = set()
        self._view: ClusterView | None = None
        self._fresh: tuple[float, ClusterView] | None = None
        self.nodes = [Node(self, f"n{i}", devices, i < disks, rate) for i in range(nodes)]
        self.by_boot = {node.boot: node for node in self.nodes}

    def after(self, delay: float, call: Callable[..., None], *args: Any) -> None:
        self._n += 1
        heapq.heappush(self._queue, (self.now + delay, self._n, call, args))

    def run(self, until: float) -> None:
        while True:
            due = self._queue[0][0] if self._queue else until
            timers = [
                (when, node, decider)
                for node in self.nodes
                if node.alive
                for decider in (node.owner, node.steward)
                if (when := decider.deadline()) is not None
            ]
            first = min(timers, key=lambda timer: timer[0], default=None)
            if min(due, first[0] if first else until) >= until:
                self.now = until
                return
            if first is not None and first[0] < due:
                self.now = max(self.now, first[0])
                tell = first[1].tell_owner if first[2] is first[1].owner else first[1].tell_steward
                tell(TimePassed())
                continue
            self.now, _, call, args = heapq.heappop(self._queue)
            call(*args)

    # Views lag by up to 50 ms.

    def view(self) -> ClusterView:
        if self._fresh is None or self.now - self._fresh[0] > 0.05:
            nodes = {n.boot: n.view(n.boot in self._detected) for n in self.nodes}
            self._fresh = (self.now, ClusterView("", nodes))
        return self._fresh[1]

    # Links.

    def send(self, sender: Node, boot: str, message: Any) -> None:
        node = self.by_boot.get(boot)
        pair = frozenset((sender.boot, boot))
        if node is None:
            return
        if self.now < self._cut.get(pair, 0.0):
            self.after(0.2, sender.tell, LinkLost(boot))
            return
        way = (sender.boot, boot)
        delay = 0.0 if node is sender else self.rng.uniform(0.0005, 0.005)
        at = max(self._last.get(way, 0.0), self.now + delay)
        self._last[way] = at
        generation = self._broken.get(way, 0)
        self.after(at - self.now, self.deliver, way, generation, message)

    def deliver(self, way: tuple[str, str], generation: int, message: Any) -> None:
        if self._broken.get(way, 0) == generation:
            self.by_boot[way[1]].tell(MessageCame(way[0], message))

    def lose_link(self, a: Node, b: Node, cut_s: float = 0.0) -> None:
        for way in ((a.boot, b.boot), (b.boot, a.boot)):
            self._broken[way] = self._broken.get(way, 0) + 1
        self._cut[frozenset((a.boot, b.boot))] = self.now + cut_s
        self.after(self.rng.uniform(0, 0.1), a.tell, LinkLost(b.boot))
        self.after(self.rng.uniform(0, 0.1), b.tell, LinkLost(a.boot))

    def crash(self, node: Node) -> None:
        if not node.alive:
            return
        node.alive = False
        for device in node.devices.values():
            device.life += 1
            self.close_all(device, "the peer is gone")
        self.after(DETECT_S, self.detect, node)

    def detect(self, node: Node) -> None:
        self._detected.add(node.boot)
        self._fresh = None
        for other in self.nodes:
            other.tell(LinkLost(node.boot))
            other.tell(NodeDied(node.boot))

    # Edges.

    def open(self, terms: Any, node: Node, device: Device, *, sends: bool) -> None:
        flow = self.flows.setdefault(terms.id, Flow(terms))
        if sends:
            assert flow.source is None, "opened twice"
            flow.source = (node, device, device.life)
        else:
            assert flow.target is None, "opened twice"
            flow.target = (node, device, device.life)
        if flow.source and flow.target:
            self.after(0.002, self.step, flow)
        else:
            self.after(DIAL_S, self.expire, flow)

    def expire(self, flow: Flow) -> None:
        if not (flow.source and flow.target):
            self.finish(flow, "nobody has come")

    def step(self, flow: Flow) -> None:
        if flow.over:
            return
        assert flow.source is not None
        assert flow.target is not None
        if flow.next == len(flow.terms.blobs):
            self.finish(flow, "")
            return
        index = flow.terms.blobs[flow.next]
        if index in flow.target[1].blobs():
            flow.next += 1
            self.after(0.0, self.step, flow)
        elif index in flow.source[1].blobs():
            self.after(BLOB_S, self.land, flow, index)
        else:
            self.after(0.01, self.step, flow)

    def land(self, flow: Flow, index: int) -> None:
        if flow.over:
            return
        assert flow.target is not None
        flow.next += 1
        flow.sent += MODEL.blob_bytes[index]
        node, device, life = flow.target
        node.tell_steward(WorkerSaid(device.id, EdgeProgress(flow.terms.id, flow.sent)))
        node.arrive(device, life, index)
        self.step(flow)

    def finish(self, flow: Flow, reason: str) -> None:
        if flow.over:
            return
        flow.over = True
        for end in (flow.source, flow.target):
            if end is not None:
                node, device, _ = end
                closed = EdgeClosed(flow.terms.id, reason, flow.sent, 0.1)
                self.after(0.001, node.tell_steward, WorkerSaid(device.id, closed))

    def close(self, edge: str, device: Device, reason: str) -> None:
        flow = self.flows.get(edge)
        if flow is not None:
            self.finish(flow, reason)

    def close_all(self, device: Device, reason: str) -> None:
        for flow in self.flows.values():
            if any(end is not None and end[1] is device for end in (flow.source, flow.target)):
                self.finish(flow, reason)

    # For tests.

    def put(self, node: int, device: int = 0, model: str = "m") -> Device:
        """Put a serving instance there."""
        home = self.nodes[node]
        found = home.devices[f"g{device}"]
        found.instance, found.state = f"{model}@{home.name}/{found.id}", InstanceState.SERVING
        found.model = model
        found.store = set(range(len(MODEL.blob_bytes)))
        return found

    def scale(self, instances: int, *, owner: int = 0, model: str = "m", **more: Any) -> None:
        node = self.nodes[owner]
        order = ScaleOrder(1, model, instances, **more)
        node.tell_owner(OrderGiven(node.boot, order))

    def serving(self, model: str = "m") -> list[str]:
        return [
            f"{node.name}/{device.id}"
            for node in self.nodes
            if node.alive
            for device in node.devices.values()
            if device.state is InstanceState.SERVING and device.model == model
        ]

    def assert_quiet(self) -> None:
        """Nothing is left of any operation."""
        for node in self.nodes:
            if not node.alive:
                continue
            figures = node.steward.statistics()
            assert figures.leases == figures.edges == figures.operations == 0, (node.name, figures)
            assert node.steward.reserved() == {}
            assert node.owner.statistics().running == 0
            for device in node.devices.values():
                assert device.state in STILL, (
                    node.name,
                    device,
                )
                if device.state is InstanceState.SERVING:
                    assert len(device.store) == len(MODEL.blob_bytes)
        for flow in self.flows.values():
            ends = [end for end in (flow.source, flow.target) if end is not None]
            assert flow.over or not any(end[0].alive for end in ends), flow.terms.id


__all__ = ["MODEL", "OTHER", "CancelAsked", "CopyWanted", "Tier", "World", "node_of", "toy_choice"]
