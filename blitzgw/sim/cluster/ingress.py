"""A node that clients talk to: the production router, and what becomes of each request.

A request's way from its client to the router and its first token's way back take constant times
(`Latencies`), half of them each way; what lies between is simulated.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from blitzgw.core.peer import Declined, Lost, Tokens
from blitzgw.core.request import GenerationRequest, TokenEvent
from blitzgw.core.view import ClusterView, InstanceFacts, NodeView
from blitzgw.errors import RequestError
from blitzgw.gossip.links import Links
from blitzgw.gossip.remote import RemoteIngress
from blitzgw.router.router import Router
from blitzgw.scheduler.shell import LocalInstance
from blitzgw.sim.cluster.asking import Asked, Latencies, prompt, sampling
from blitzgw.sim.cluster.loop import VirtualClock
from blitzgw.sim.cluster.ports import SeenInstance
from blitzgw.sim.cluster.routing import Routing
from blitzgw.sim.cluster.wire import Wire
from blitzgw.sim.evaluation.arrivals import Arrival

if TYPE_CHECKING:
    from blitzgw.sim.cluster.node import SimNode
    from blitzgw.sim.cluster.setup import ModelSetup

MAX_ATTEMPTS, HOLD_TIMEOUT_S, MAX_HELD = 3, 60.0, 512
"""As by default: [cluster] max_attempts, hold_timeout_s and [http] max_queue."""

TICK_S = 0.25
"""Between two looks at what is held (node.py)."""


class Ingress:
    """The ingress part of a node. Once closed it does nothing any more."""

    def __init__(self, node: SimNode) -> None:
        world = node.world
        self.node, self.clock = node, VirtualClock(world.heap)
        self._heap, self._latencies = world.heap, world.latencies
        dice = random.Random(f"{world.setup.seed} {node.name}")  # noqa: S311  to be repeated
        self.router = Router(
            self.clock,
            max_attempts=MAX_ATTEMPTS,
            hold_timeout_s=HOLD_TIMEOUT_S,
            max_held=MAX_HELD,
            node=node.name,
            dice=dice,
        )
        self.router.watch(self._stirred, lambda _: None)
        self.router.summon = self._summon
        self.wire = Wire(node)
        self.links = cast(Links, self.wire)
        self.remote = RemoteIngress(self.links, self.router, self._peer_lost)
        self.routing = Routing(self)
        self._told_s = -1.0
        self._running = True
        self._ticking = False
        self._asked: dict[str, Asked] = {}
        self._patience: deque[tuple[float, Asked]] = deque()
        self._told: dict[str, Latencies] = {}
        for runner in node.serving.runners.values():
            if runner.port is not None:
                self.local_up(runner.port, runner.there.model.definition.digest)

    @property
    def moment_s(self) -> float:
        """When the tokens that come now were sampled."""
        return self._told_s if self._told_s >= 0 else self._heap.now

    # Clients.

    def arrive(self, model: ModelSetup, number: int, arrival: Arrival) -> None:
        """Take a request at the moment at which its client sends it."""
        asked = Asked(self, model, number, arrival, self._heap.now)
        self._heap.after(self._way_s, self._generate, asked)

    @property
    def _way_s(self) -> float:
        """What half of the way of a request takes, there and back."""
        took, computing = self._latencies, self.node.world.company.computing
        return (took.request_local_s + took.request_beside_s * computing) / 2

    def _generate(self, asked: Asked) -> None:
        if not self._running:
            asked.end("failed", "the node is gone")
            return
        arrival, name = asked.arrival, asked.id
        request = GenerationRequest(
            id=name,
            model=asked.model.name,
            tokens=prompt(asked.number, arrival),
            prompt_length=arrival.prompt_tokens,
            sampling=sampling(arrival, asked.model.max_tokens),
            digest=asked.model.definition.digest,
        )
        self._asked[name] = asked
        self._wait_for(asked)
        try:
            self.router.generate(request, asked)
        except RequestError as error:
            asked.fail(error)

    def over(self, asked: Asked) -> None:
        """Forget a request that has its answer."""
        self._asked.pop(asked.id, None)
        waiting = self._patience
        while len(waiting) > 1 and waiting[1][1].settled and waiting[0][1].settled:
            waiting.popleft()  # the last one is left: it says that somebody looks
        self.node.touched(asked.model.name, urgent=False)

    def learn(self, model: str) -> Latencies:
        """Return where the latencies of a model's clients are counted."""
        found = self._told.get(model)
        if found is None:
            found = self._told[model] = Latencies()
        return found

    def way_back_s(self, request_id: str) -> float:
        """Return what a token takes to its client."""
        took, back_s = self._latencies, self._way_s
        if self._is_away(request_id):
            back_s += max(0.0, took.request_remote_s - took.message_s)
        return back_s

    def _is_away(self, request_id: str) -> bool:
        instance = self.router.instance_of(request_id)
        return instance is not None and not self.routing.is_local(instance)

    def _wait_for(self, asked: Asked) -> None:
        """Give a request up when its client does."""
        patience_s = self.node.world.setup.patience_s
        if not self._patience:
            self._heap.after(patience_s, self._give_up)
        self._patience.append((self._heap.now + patience_s, asked))

    def _give_up(self) -> None:
        waiting = self._patience
        while waiting and (waiting[0][0] <= self._heap.now or waiting[0][1].settled):
            asked = waiting.popleft()[1]
            if not asked.settled and self._running:
                self.router.abort(asked.id)
                asked.end("timeout", "no token in time")
        if waiting:
            self._heap.at(waiting[0][0], self._give_up)

    # Tokens.

    def tokens(self, boot: str, message: Tokens, told_s: float) -> None:
        """Take tokens of requests that are at another node, sampled at `told_s` (-1: now)."""
        if self._running:
            self._told_s = told_s
            self.remote.on_tokens(boot, message)
            self._told_s = -1.0

    def own_tokens(self, events: Sequence[TokenEvent], told_s: float) -> None:
        """Take tokens of requests at this node's instances."""
        if self._running:
            self._told_s = told_s
            self.router.on_tokens(events)
            self._told_s = -1.0

    # Other processes.

    def hear(self, boot: str, message: Any) -> bool:
        """Take what a process says; return whether it concerned requests."""
        if isinstance(message, Declined):
            self.remote.on_declined(boot, message)
        elif isinstance(message, Lost):
            self.remote.on_lost(boot, message)
        else:
            return False
        return True

    def view_changed(self, view: ClusterView, changed: frozenset[str]) -> None:
        """Take a picture of the cluster in which some processes are not what they were."""
        self.routing.follow(view, changed)

    def lost(self, boot: str) -> None:
        """Take back what is at a process that cannot be reached; it is asked again later."""
        self.wire.broken.add(boot)
        self.remote.link_lost(boot, "the link was lost")

    def _peer_lost(self, boot: str, reason: str) -> None:
        until_s = self.routing.eject(boot, reason)
        self._heap.at(until_s, self._forgive, boot)

    def _forgive(self, boot: str) -> None:
        if self._running and self.node.world.process(boot) is not None:
            self.wire.broken.discard(boot)
            self.routing.forgive(boot, self.node.view())

    def way_to(self, node: NodeView, facts: InstanceFacts) -> SeenInstance:
        """Return the router's way to an instance of another node."""
        return SeenInstance(self, self.remote, node, facts)

    def local_up(self, port: LocalInstance, digest: str) -> None:
        """Route to an instance of this node."""
        self.routing.local_up(port, digest)

    def local_down(self, instance: str, reason: str, *, planned: bool) -> None:
        """Route to it no more."""
        self.routing.local_down(instance, reason, planned=planned)

    def _summon(self, instance: str) -> None:
        self.routing.summon(instance, self.node.view())

    # Scaling.

    def demand(self, model: str) -> dict[str, Any]:
        """Return the fields of a `Demand` that are the router's; latencies are told once."""
        arrived, held = self.router.arrived(model), self.router.queue(model)
        now = self._heap.now
        return {
            "held": held.requests,
            "held_tokens": held.tokens,
            "held_s": 0.0 if held.since_s is None else max(0.0, now - held.since_s),
            "arrived": arrived.requests,
            "arrived_tokens": max(0, arrived.tokens),
            "refused": arrived.refused,
            **self.learn(model).take(),
        }

    def _stirred(self, model: str) -> None:
        self.node.touched(model)
        if not self._ticking and self.router.held(model):
            self._ticking = True
            self._heap.after(TICK_S, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        if not self._running:
            return
        self.router.tick()
        if self.router.statistics().held:
            self._ticking = True
            self._heap.after(TICK_S, self._tick)

    def close(self) -> None:
        """End with the process: its clients' connections are reset."""
        self._running = False
        for asked in [*self._asked.values()]:
            asked.end("failed", "the node is gone")
