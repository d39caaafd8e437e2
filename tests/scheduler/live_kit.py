"""Schedulers with toy workers, joined by pairings, and a router's view of every request."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from random import Random

from blitzgw.core.live import LivePolicy, Purpose, Said
from blitzgw.core.messages import StepFailed
from blitzgw.core.parcels import DropParcels, ParcelsSent
from blitzgw.core.peer import Loss
from blitzgw.core.request import FinishReason, GenerationRequest, SamplingParams, Stage
from blitzgw.core.step import KvGeometry
from blitzgw.errors import RequestError
from blitzgw.scheduler.events import (
    EmitTokens,
    EndPairing,
    Event,
    InstanceOpened,
    InstanceReady,
    LayersResident,
    Lose,
    PairingClosed,
    PairingOpened,
    Refuse,
    RequestAborted,
    RequestArrived,
    RunStep,
    Say,
    ServedInstance,
    StepCompleted,
    Ticked,
)
from blitzgw.scheduler.lane import LiveStatistics
from blitzgw.scheduler.scheduler import Scheduler
from tests.scheduler.live_toy import EOS, LayerToy, alone


def served(name: str, **changes: object) -> ServedInstance:
    """Return a small instance: 5 layers, 6 slots of 6 blocks (96 tokens), 10 bytes a block."""
    base = ServedInstance(
        id=name,
        model="toy",
        n_layers=5,
        eos_ids=(EOS,),
        max_model_len=90,
        kv=KvGeometry(slots=6, blocks_per_slot=6, block_bytes=10),
        max_num_seqs=6,
        max_batched_tokens=40,
    )
    return replace(base, **changes)


@dataclass
class Story:
    """A request as its router remembers it."""

    request: GenerationRequest
    instance: str
    outputs: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    over: bool = False
    route: tuple[Stage, ...] = ()
    failures: int = 0


class Node:
    """A worker with its scheduler; `complete` once its instance takes requests."""

    def __init__(self, instance: ServedInstance, kv_bytes: int, **options: object) -> None:
        self.instance = instance
        self.scheduler = Scheduler(kv_bytes, **options)
        self.worker = LayerToy(instance)
        self.complete = False


@dataclass
class Pairing:
    id: str
    guest: str
    host: str
    alive: bool = True


class LiveWorld:
    """Checks the books after every event. Messages wait until they are delivered, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.pairings: dict[str, Pairing] = {}
        self.mail: dict[tuple[str, str], deque[Said | PairingClosed]] = {}
        self.stories: dict[str, Story] = {}
        self.resubmit: deque[str] = deque()
        self.said: list[Said] = []
        self.refused: dict[str, RequestError] = {}

    # Set up.

    def add(
        self, name: str, *, loading: bool = False, kv_bytes: int = 10_000, **options: object
    ) -> Node:
        changes = {k: options.pop(k) for k in list(options) if k in ServedInstance.__slots__}
        node = self.nodes[name] = Node(served(name, **changes), kv_bytes, **options)
        if loading:
            self.tell(name, InstanceOpened(node.instance))
        else:
            self.complete(name)
        return node

    def layers(self, name: str, layers: int) -> None:
        self.nodes[name].worker.resident = layers
        self.tell(name, LayersResident(name, layers))

    def complete(self, name: str) -> None:
        node = self.nodes[name]
        node.worker.resident = node.instance.n_layers
        node.complete = True
        self.tell(name, InstanceReady(node.instance))

    def pair(self, guest: str, host: str, policy: LivePolicy = LivePolicy.ZIGZAG) -> str:
        name = f"p{len(self.pairings) + 1}"
        self.pairings[name] = Pairing(name, guest, host)
        self.mail[name, guest] = deque()
        self.mail[name, host] = deque()
        self.tell(host, PairingOpened(name, Purpose.HELP, host, guest, False, policy))
        if self.pairings[name].alive:
            self.tell(guest, PairingOpened(name, Purpose.HELP, guest, host, True, policy))
        return name

    def ask(
        self, tokens: list[int], max_tokens: int = 3, *, instance: str = "home", **rest: object
    ) -> str:
        name = f"r{len(self.stories) + 1}"
        sampling = SamplingParams(max_tokens, seed=len(self.stories), ignore_eos=True)
        request = GenerationRequest(name, "toy", tuple(tokens), len(tokens), sampling, **rest)
        self.stories[name] = Story(request, instance)
        self.tell(instance, RequestArrived(instance, request))
        return name

    # What happens.

    def tell(self, name: str, event: Event) -> None:
        node = self.nodes[name]
        effects = node.scheduler.handle(event, self.now)
        node.scheduler.check_integrity()
        for effect in effects:
            self._perform(name, node, effect)

    def _perform(self, name: str, node: Node, effect: object) -> None:
        match effect:
            case RunStep(step):
                node.worker.post(step)
            case DropParcels():
                node.worker.drop(effect)
            case Say(message):
                self.said.append(message)
                self._post(message.pairing, name, message)
            case EndPairing(pairing, reason):
                self._end(pairing, name, reason)
            case EmitTokens(events):
                assert events
                for event in events:
                    self._take(name, event)
            case Lose(losses, _, planned):
                for loss in losses:
                    self._lost(name, loss, planned)
            case Refuse(request_id, error):
                self._refused(request_id, error)

    def _other(self, pairing: str, name: str) -> str:
        pair = self.pairings[pairing]
        return pair.host if name == pair.guest else pair.guest

    def _post(self, pairing: str, name: str, message: Said | PairingClosed) -> None:
        if self.pairings[pairing].alive:
            self.mail[pairing, self._other(pairing, name)].append(message)

    def _end(self, pairing: str, name: str, reason: str) -> None:
        if self.pairings[pairing].alive:
            self._post(pairing, name, PairingClosed(pairing, reason))
            self.pairings[pairing].alive = False
            self.nodes[name].worker.close(pairing)
            self.mail[pairing, name].clear()

    def _take(self, name: str, event) -> None:
        story = self.stories[event.request_id]
        if story.over or event.attempt != story.request.attempt or story.instance != name:
            return  # as an ingress ignores it
        story.outputs += event.tokens
        story.route = event.route or story.route
        expected, finish = self.expected(story)
        assert story.outputs == expected[: len(story.outputs)], "a wrong token"
        if event.finish is not None:
            story.finish, story.over = event.finish, True
            assert (story.outputs, story.finish) == (expected, finish)

    def expected(self, story: Story) -> tuple[list[int], FinishReason]:
        instance = next(iter(self.nodes.values())).instance
        context = min(instance.max_model_len, instance.kv.slot_tokens)
        first = replace(
            story.request, tokens=story.request.tokens[: story.request.prompt_length], attempt=0
        )
        return alone(first, instance.n_layers, context)

    def _lost(self, name: str, loss: Loss, planned: bool) -> None:
        story = self.stories[loss.request_id]
        if story.over or story.instance != name or loss.attempt != story.request.attempt:
            return
        story.instance = loss.instance
        story.failures += not planned
        self.resubmit.append(loss.request_id)

    def _refused(self, name: str, error: RequestError) -> None:
        self.refused[name] = error
        self.stories[name].instance = ""
        self.resubmit.append(name)

    # What a test or a dice lets happen next.

    def run_step(self, name: str, *, fail: bool = False) -> None:
        report = self.nodes[name].worker.run_next(fail=fail)
        self.tell(name, report if isinstance(report, StepFailed) else StepCompleted(report))

    def deliver(self, pairing: str, name: str) -> None:
        message = self.mail[pairing, name].popleft()
        if isinstance(message, PairingClosed):
            self.nodes[name].worker.close(pairing)
        self.tell(name, message)

    def carry(self, pairing: str) -> None:
        """Carry a parcel over the road, or say that all of a request's have gone."""
        pair = self.pairings[pairing]
        if pair.guest not in self.nodes:
            return
        read = self.nodes[pair.guest].worker.read_next(pairing)
        if isinstance(read, ParcelsSent):
            self.tell(pair.guest, read)
        elif read is not None and pair.host in self.nodes:
            arrived = self.nodes[pair.host].worker.receive(pairing, *read)
            if arrived is not None:
                self.tell(pair.host, arrived)

    def retry(self) -> None:
        """Submit a lost request where it was sent, or at any complete instance."""
        name = self.resubmit.popleft()
        story = self.stories[name]
        if story.over:
            return
        target = self.nodes.get(story.instance)
        if target is None or not target.complete:
            whole = [node.instance.id for node in self.nodes.values() if node.complete]
            story.instance = whole[len(name) % len(whole)]
        request = story.request
        prompt = request.tokens[: request.prompt_length]
        story.request = replace(
            request, tokens=(*prompt, *story.outputs), attempt=request.attempt + 1
        )
        self.tell(story.instance, RequestArrived(story.instance, story.request))

    def abort(self, name: str) -> None:
        story = self.stories[name]
        story.over = True
        if story.instance in self.nodes:
            self.tell(story.instance, RequestAborted(name, story.request.attempt))

    def break_pairing(self, pairing: str) -> None:
        """The link is gone: both ends hear of it, after what was on its way."""
        pair = self.pairings[pairing]
        if pair.alive:
            pair.alive = False
            for name in (pair.guest, pair.host):
                if name in self.nodes:
                    self.mail[pairing, name].append(PairingClosed(pairing, "the link broke"))

    def kill(self, name: str) -> None:
        """A node is gone without a word."""
        del self.nodes[name]
        for pairing in self.pairings.values():
            if name in (pairing.guest, pairing.host):
                self.mail[pairing.id, name].clear()
                self.break_pairing(pairing.id)
        for request_id, story in self.stories.items():
            if story.instance == name and not story.over and request_id not in self.resubmit:
                story.instance = ""
                story.failures += 1
                self.resubmit.append(request_id)

    def choices(self) -> list[tuple]:
        """Return everything that can happen by itself now."""
        found: list[tuple] = [
            (self.run_step, name) for name, node in self.nodes.items() if node.worker.posted
        ]
        found += [
            (self.deliver, *key) for key, mail in self.mail.items() if mail and key[1] in self.nodes
        ]
        found += [
            (self.carry, pair.id)
            for pair in self.pairings.values()
            if pair.guest in self.nodes and self.nodes[pair.guest].worker.outgoing.get(pair.id)
        ]
        if self.resubmit and any(node.complete for node in self.nodes.values()):
            found.append((self.retry,))
        return found

    def play(self, random: Random | None = None, limit: int = 20_000) -> None:
        """Let things happen until nothing is left to do."""
        for _ in range(limit):
            found = self.choices()
            if not found:
                if not self.tick():
                    return
                continue
            act, *arguments = random.choice(found) if random else found[0]
            act(*arguments)
        raise AssertionError("it goes on for ever")

    def talk(self) -> None:
        """Let everything arrive that is said or sent; no step runs but those without rows."""
        for _ in range(10_000):
            found = [choice for choice in self.choices() if choice[0] != self.run_step]
            found += [
                (self.run_step, name)
                for name, node in self.nodes.items()
                if node.worker.posted and not node.worker.posted[0].rows
            ]
            if not found:
                return
            act, *arguments = found[0]
            act(*arguments)

    def live(self, name: str) -> LiveStatistics:
        """Return the live figures of a node's instance."""
        return self.nodes[name].scheduler.statistics().instances[name].live

    def spans(self, name: str) -> list[tuple[int, int]]:
        """Return the layers of the steps with rows that a worker has carried out."""
        return [(s.span.start, s.span.stop) for s in self.nodes[name].worker.ran if s.rows]

    def tick(self) -> bool:
        """Let a second pass for those who wait for it."""
        self.now += 1.0
        waiting = [name for name, node in self.nodes.items() if node.scheduler.expects_ticks]
        for name in waiting:
            self.tell(name, Ticked())
        return bool(waiting)

    def assert_done(self) -> None:
        """Check that every request has been answered, and that nothing is held for any."""
        open_ones = [name for name, story in self.stories.items() if not story.over]
        assert not open_ones, f"forgotten: {open_ones}"
        for name, node in self.nodes.items():
            figures = node.scheduler.statistics()
            live = figures.instances[name].live
            assert figures.kv_active_bytes == 0, f"{name} holds memory"
            assert figures.steps_in_flight == 0
            held = (live.lent, live.recalled, live.tasks, live.sending, live.kept)
            assert not any(held)
            assert not node.worker.sequences, f"{name}'s worker holds sequences"
            assert not any(node.worker.inbox.values()), f"{name} holds parcels"
