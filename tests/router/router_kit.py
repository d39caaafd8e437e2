"""A router with everything around it made up: instances that do as they are told, and a clock."""

from dataclasses import dataclass, field

from blitzgw.core.peer import Loss
from blitzgw.core.ports import Outlook
from blitzgw.core.request import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    StepTokens,
    TokenEvent,
)
from blitzgw.errors import Overloaded, RequestError
from blitzgw.router.router import Router

HOLD_S = 10.0
MAX_HELD = 4
MAX_ATTEMPTS = 3


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def now(self):
        return self.seconds

    async def sleep(self, duration_s):
        raise AssertionError("a router does not wait")


def token_at(request: GenerationRequest, position: int) -> int:
    """What any instance generates at a position: a function of all that must survive a retry."""
    prompt = request.tokens[: request.prompt_length]
    return hash((prompt, request.choice, request.sampling.seed, position)) % 1000


class Instance:
    """An `InstancePort`. `room` limits what it queues; `refusal` is raised whatever comes."""

    def __init__(self, instance, model="m", room=100, at_once=False):
        self.instance, self.model = instance, model
        self.room, self.at_once = room, at_once
        self.refusal = None
        self.open, self.reluctant = True, False
        self.router = None
        self.requests: dict[str, GenerationRequest] = {}
        self.emitted: dict[str, list[int]] = {}
        self.submitted: list[GenerationRequest] = []

    def queued(self):
        return sum(len(request.tokens) for request in self.requests.values())

    def outlook(self):
        return Outlook(self.queued(), open=self.open, reluctant=self.reluctant)

    def submit(self, request):
        if self.refusal is not None:
            raise self.refusal
        if request.attempt == 0 and len(self.requests) >= self.room:
            raise Overloaded("full", retry_after_s=2.0)
        assert request.id not in self.requests, "it is here already"
        self.submitted.append(request)
        if len(request.tokens) >= request.prompt_length + request.sampling.max_tokens:
            done = TokenEvent(request.id, request.attempt, [], finish=FinishReason.LENGTH)
            self.router.on_tokens([done])
            return
        self.requests[request.id] = request
        self.emitted[request.id] = []
        while self.at_once and request.id in self.requests:
            self.router.on_tokens([self.step(request.id)])

    def abort(self, request_id, attempt):
        if request_id in self.requests and self.requests[request_id].attempt == attempt:
            del self.requests[request_id]

    def step(self, request_id, count=1) -> TokenEvent:
        """Generate up to `count` tokens of a request, and end it where that was the last."""
        request, emitted = self.requests[request_id], self.emitted[request_id]
        tokens = []
        left = request.prompt_length + request.sampling.max_tokens - len(request.tokens)
        for _ in range(min(count, left - len(emitted))):
            tokens.append(token_at(request, len(request.tokens) + len(emitted)))
            emitted.append(tokens[-1])
        event = TokenEvent(request_id, request.attempt, tokens, cached_tokens=1)
        if len(emitted) == left:
            event.finish = FinishReason.LENGTH
            del self.requests[request_id]
        return event


class Far(Instance):
    """An instance of another node: it declines later, and its figures are those it told last."""

    def __init__(self, instance, model="m", room=100, at_once=False):
        super().__init__(instance, model, room, at_once)
        self.inbox: list[GenerationRequest] = []
        self.told = 0
        self.told_open = True

    def outlook(self):
        return Outlook(self.told, distance_s=0.001, age_s=0.2, open=self.told_open)

    def tell(self):
        self.told, self.told_open = self.queued(), self.open

    def submit(self, request):
        assert all(request.id != other.id for other in self.inbox), "it is on its way already"
        self.inbox.append(request)

    def arrive(self, count=100):
        """Take what has been on its way, or decline it."""
        for _ in range(min(count, len(self.inbox))):
            if not self.inbox:
                return  # who was answered has taken others along
            request = self.inbox.pop(0)
            try:
                super().submit(request)
            except RequestError as error:
                self.router.on_declined(request.id, request.attempt, error)

    def abort(self, request_id, attempt):
        self.inbox = [r for r in self.inbox if (r.id, r.attempt) != (request_id, attempt)]
        super().abort(request_id, attempt)

    def give_away(self):
        """Hand everything back, as a node does that drains."""
        losses = [Loss(r.id, r.attempt) for r in self.requests.values()]
        self.requests.clear()
        self.router.on_lost(losses, "drained", planned=True)


def packed(events):
    """Events as a scheduler tells them: what is nothing but a token apart from the others."""
    bare = [e for e in events if e == TokenEvent(e.request_id, e.attempt, e.tokens[:1])]
    plain = [event for event in bare if event.tokens]
    rest = [event for event in events if event not in plain]
    return StepTokens([(e.request_id, e.attempt, e.tokens[0]) for e in plain], rest)


@dataclass
class Sink:
    """What a client sees; `on_push` and `on_fail` call back in."""

    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    finishes: list[FinishReason] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    gone: bool = False
    on_push: object = None
    on_fail: object = None

    def push(self, event):
        assert not self.ended, "pushed to after its end"
        self.tokens += event.tokens
        self.cached.append(event.cached_tokens)
        if event.finish is not None:
            self.finishes.append(event.finish)
        if self.on_push is not None:
            self.on_push(event)

    def push_token(self, token, now):
        self.push(TokenEvent(self.request.id, 0, [token]))

    def fail(self, error):
        assert not self.ended, "failed after its end"
        self.errors.append(error)
        if self.on_fail is not None:
            self.on_fail(error)

    @property
    def answered(self):
        return bool(self.finishes or self.errors)

    @property
    def ended(self):
        return self.answered or self.gone

    def whole(self):
        """The tokens of an undisturbed run."""
        first = self.request.prompt_length
        stop = first + self.request.sampling.max_tokens
        return [token_at(self.request, position) for position in range(first, stop)]


class World:
    """A router, its clock, and what was asked of it."""

    def __init__(self, **options):
        self.clock = Clock()
        limits = {
            "max_attempts": MAX_ATTEMPTS,
            "hold_timeout_s": HOLD_S,
            "max_held": MAX_HELD,
        }
        self.router = Router(self.clock, **limits | options)
        self.sinks: dict[str, Sink] = {}

    def up(self, name="a", **options):
        return self.revive(Instance(name, **options))

    def far(self, name="a", **options):
        return self.revive(Far(name, **options))

    def revive(self, instance, digest=""):
        instance.router = self.router
        self.router.instance_up(instance, digest)
        return instance

    def down(self, instance):
        """Lose an instance as a worker is lost: what it had is gone before anybody is told."""
        instance.requests.clear()
        getattr(instance, "inbox", []).clear()
        self.router.instance_down(instance.instance, "died")

    def ask(self, name=None, model="m", prompt=(1, 2, 3), max_tokens=5, **fields):
        name = name or f"r{len(self.sinks)}"
        sampling = SamplingParams(max_tokens=max_tokens, seed=7)
        request = GenerationRequest(name, model, prompt, len(prompt), sampling, **fields)
        sink = self.sinks[name] = Sink(request)
        self.router.generate(request, sink)
        return sink

    def leave(self, sink):
        sink.gone = True
        self.router.abort(sink.request.id)

    def wait(self, seconds):
        self.clock.seconds += seconds
        self.router.tick()
