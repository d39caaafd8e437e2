"""Live scaling in virtual time: a burst at one instance while others are loading.

The schedulers are those of production, one for each worker; workers and roads are ideal
(liveworker.py). The setting is that of ALGORITHMS.md §3: the unit of time is one layer of one
request, a batch is one request, all requests are queued at 0, layer i may run at i × load, and
messages take no time.

At equal moments the home's steps end first, then layers arrive, then the helpers' steps end, and
last helpers that are complete become ready: the home recalls a request before its helper begins
the next layer of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from blitzgw.core.live import LivePolicy, Purpose
from blitzgw.core.parcels import DropParcels, Parcel, ParcelArrived, ParcelsSent
from blitzgw.core.request import GenerationRequest, SamplingParams
from blitzgw.core.step import BLOCK_TOKENS, KvGeometry, Step, StepResult
from blitzgw.scheduler.events import (
    Effect,
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
    RequestArrived,
    RunStep,
    Say,
    ServedInstance,
    StepCompleted,
)
from blitzgw.scheduler.scheduler import Scheduler
from blitzgw.sim.liveworker import LAYER_S, Agenda, IdealRoad, IdealWorker, Work

MODEL = "model"
HOME = 0
"""The worker with the complete instance; the others are its helpers."""

HOME_RANK, LAYER_RANK, HELPER_RANK, READY_RANK = range(4)
"""What comes first at equal moments."""


@dataclass(frozen=True, slots=True)
class LiveSetup:
    """What is tried out.

    `load` is the time between two layers' arrivals, and `handoff` that of one layer's KV (or of
    the hidden states) on the road, in units of one layer's compute. `in_flight` limits the
    requests at a helper; None: no limit.
    """

    layers: int
    requests: int
    load: float
    policy: LivePolicy = LivePolicy.ZIGZAG
    in_flight: int | None = None
    helpers: int = 1
    handoff: float = 0

    @property
    def prompt_tokens(self) -> int:
        """A prompt fills a batch, which may not have fewer tokens than there are sequences."""
        return max(BLOCK_TOKENS, self.requests)


@dataclass(frozen=True, slots=True)
class LiveOutcome:
    """When each request was complete, by its place in the queue, and who has run what."""

    completion: tuple[float, ...]
    work: tuple[Work, ...]

    @property
    def mean(self) -> float:
        """The mean time to completion."""
        return sum(self.completion) / len(self.completion)


class StuckError(Exception):
    """The schedulers wait for each other, or go round in circles: a mistake in them."""


MakeScheduler = Callable[..., Scheduler]
"""The production one, or in tests one that is broken or checks its books."""


def simulate_live(setup: LiveSetup, make: MakeScheduler = Scheduler) -> LiveOutcome:
    """Let a burst be served. Raises StuckError when some of it never is."""
    return LiveWorld(setup, make).run()


class LiveWorld:
    """Schedulers, workers and roads, joined as the nodes would join them."""

    def __init__(self, setup: LiveSetup, make: MakeScheduler = Scheduler) -> None:
        self.setup = setup
        self._make = make
        self.agenda = Agenda()
        self.workers = [self._worker(number) for number in range(setup.helpers + 1)]
        self.schedulers = [self._scheduler() for _ in self.workers]
        self.roads = {_pairing(n): self._road(n) for n in range(1, len(self.workers))}
        self.requests = {request.id: request for request in _burst(setup)}
        self.completion: dict[str, float] = {}
        self._mail: deque[tuple[int, Event]] = deque()

    def run(self) -> LiveOutcome:
        """Carry everything out, until all requests are complete and nothing more happens."""
        self._open()
        most = self._most_moments()
        for _ in range(most):
            self._deliver()
            if not self.agenda.next():
                break
        else:
            raise StuckError(f"after {most} events there is no end")
        if missing := [name for name in self.requests if name not in self.completion]:
            raise StuckError(f"at {self.agenda.now} nothing goes on; not complete: {missing}")
        work = sorted(
            (work for worker in self.workers for work in worker.work),
            key=lambda work: (work.start, work.worker),
        )
        return LiveOutcome(tuple(self.completion[name] for name in self.requests), tuple(work))

    def _most_moments(self) -> int:
        """Every layer of every request takes a step, and few others: ten times that is a circle."""
        setup = self.setup
        return 1000 + 10 * (setup.requests + 2) * setup.layers * (setup.helpers + 1)

    # What there is.

    def _worker(self, number: int) -> IdealWorker:
        rank = HELPER_RANK if number else HOME_RANK
        layers = self.setup.layers
        ended = partial(self._step_ended, number)
        return IdealWorker(number, rank, layers, self.agenda, ended, 0 if number else layers)

    def _scheduler(self) -> Scheduler:
        kv = _served(self.setup, 0).kv
        return self._make(
            kv.slots * kv.blocks_per_slot * kv.block_bytes,
            max_in_flight=1,
            max_queue=self.setup.requests,
            home_layers=1,
            in_flight=self.setup.in_flight,
        )

    def _road(self, helper: int) -> IdealRoad:
        def arrived(parcel: Parcel) -> None:
            self.workers[HOME].take_in(_pairing(helper), parcel)
            self._tell(HOME, ParcelArrived(_pairing(helper), parcel))

        def sent(ticket: int) -> None:
            self._tell(helper, ParcelsSent(_pairing(helper), ticket, 0, 0.0))

        return IdealRoad(self.agenda, self.setup.handoff, arrived, sent)

    def _open(self) -> None:
        """Join the instances with a layer each, queue the burst, and put the rest on the agenda."""
        setup = self.setup
        helpers = range(1, len(self.workers))
        self._tell(HOME, InstanceReady(_served(setup, HOME)))
        for helper in helpers:
            self._tell(helper, InstanceOpened(_served(setup, helper)))
            for here, there in ((HOME, helper), (helper, HOME)):
                names = _instance(here), _instance(there)
                opened = PairingOpened(
                    _pairing(helper), Purpose.HELP, *names, here != HOME, setup.policy
                )
                self._tell(here, opened)
        for helper in helpers:
            self._arrive(helper, 1)
        self._deliver()
        for request in self.requests.values():
            self._tell(HOME, RequestArrived(_instance(HOME), request))
        for layer in range(1, setup.layers):
            for helper in helpers:
                self.agenda.at(layer * setup.load, LAYER_RANK, self._arrive, helper, layer + 1)
        for helper in helpers:
            complete_at = (setup.layers - 1) * setup.load
            ready = InstanceReady(_served(setup, helper))
            self.agenda.at(complete_at, READY_RANK, self._tell, helper, ready)

    # What happens.

    def _arrive(self, helper: int, layers: int) -> None:
        self.workers[helper].resident = layers
        self._tell(helper, LayersResident(_instance(helper), layers))

    def _step_ended(self, worker: int, step: Step, result: StepResult) -> None:
        self._tell(worker, StepCompleted(result))
        for send in step.sends:
            self.roads[send.edge].send(send)

    def _tell(self, worker: int, event: Event) -> None:
        self._mail.append((worker, event))

    def _deliver(self) -> None:
        """Let the schedulers handle what they have been told, and what follows at once."""
        for _ in range(self._most_moments()):
            if not self._mail:
                return
            worker, event = self._mail.popleft()
            for effect in self.schedulers[worker].handle(event, self.agenda.now * LAYER_S):
                self._perform(worker, effect)
        raise StuckError(f"at {self.agenda.now} the schedulers never come to an end")

    def _perform(self, worker: int, effect: Effect) -> None:
        match effect:
            case RunStep(step):
                self.workers[worker].post(step)
            case EmitTokens(events):
                finished = (event for event in events if event.finish is not None)
                self.completion.update((e.request_id, self.agenda.now) for e in finished)
            case Say(message):
                self._tell(_other(worker, message.pairing), message)
            case EndPairing(pairing, reason):
                self._tell(_other(worker, pairing), PairingClosed(pairing, reason))
            case DropParcels(edge, tickets):
                self._drop(worker, edge, tickets)
            case Lose():
                self._submit_again(effect)
            case Refuse(_, error):
                raise StuckError(f"a request is refused: {error}")

    def _drop(self, worker: int, edge: str, tickets: tuple[int, ...]) -> None:
        if worker == HOME:
            self.workers[HOME].drop_parcels(edge, tickets)
        else:
            self.roads[edge].drop(tickets)

    def _submit_again(self, lost: Lose) -> None:
        """Do what the router does with requests that are given away."""
        for loss in lost.losses:
            known = self.requests[loss.request_id]
            request = replace(known, attempt=known.attempt + 1)
            self.requests[loss.request_id] = request
            instance = loss.instance or _instance(HOME)
            self._tell(int(instance), RequestArrived(instance, request))


def _instance(worker: int) -> str:
    return str(worker)


def _pairing(helper: int) -> str:
    return str(helper)


def _other(worker: int, pairing: str) -> int:
    """Return the worker at the other end of a pairing, which has the name of its helper."""
    return int(pairing) if worker == HOME else HOME


def _served(setup: LiveSetup, worker: int) -> ServedInstance:
    """Return an instance whose batch is one prompt, with memory for all and some to spare."""
    tokens = setup.prompt_tokens
    blocks = tokens // BLOCK_TOKENS + 2
    return ServedInstance(
        id=_instance(worker),
        model=MODEL,
        n_layers=setup.layers,
        eos_ids=(),
        max_model_len=blocks * BLOCK_TOKENS,
        kv=KvGeometry(slots=2 * setup.requests, blocks_per_slot=blocks, block_bytes=1),
        max_num_seqs=setup.requests,
        max_batched_tokens=tokens,
        prefix_caching=False,
    )


def _burst(setup: LiveSetup) -> Iterator[GenerationRequest]:
    tokens = (1,) * setup.prompt_tokens
    for number in range(setup.requests):
        sampling = SamplingParams(max_tokens=1, temperature=0.0, seed=number, ignore_eos=True)
        yield GenerationRequest(f"r{number}", MODEL, tokens, len(tokens), sampling)
