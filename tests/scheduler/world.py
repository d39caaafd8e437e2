"""A scheduler and a toy worker joined, with a router's view of every request."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blitzgw.core.messages import StepFailed
from blitzgw.core.request import FinishReason, GenerationRequest, SamplingParams
from blitzgw.core.step import KvGeometry
from blitzgw.scheduler.events import (
    Effect,
    EmitTokens,
    Event,
    InstanceReady,
    InstanceRemoved,
    Lose,
    Refuse,
    RequestAborted,
    RequestArrived,
    RunStep,
    ServedInstance,
    StepCompleted,
)
from blitzgw.scheduler.scheduler import Scheduler
from tests.scheduler.toy import EOS, ToyWorker, alone, scores


def served(name: str = "a", **changes: object) -> ServedInstance:
    """Return a small instance: 4 slots of 6 blocks (96 tokens), 10 bytes a block."""
    base = ServedInstance(
        id=name,
        model="toy",
        n_layers=3,
        eos_ids=(EOS,),
        max_model_len=90,
        kv=KvGeometry(slots=4, blocks_per_slot=6, block_bytes=10),
        max_num_seqs=4,
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
    cached_tokens: int = 0


class World:
    """Checks the books after every event. What is lost is retried, as a router would."""

    def __init__(self, kv_bytes: int = 10_000, **options: int) -> None:
        self.scheduler = Scheduler(kv_bytes, **options)
        self.tenants: dict[int, str] = {}
        self.worker = ToyWorker(kv_bytes, self.tenants)
        self.stories: dict[str, Story] = {}
        self.contexts: dict[str, int] = {}
        self.refused: dict[str, Refuse] = {}
        self.events: list[Event] = []
        self.effects: list[Effect] = []
        self.max_in_flight = options.get("max_in_flight", 2)
        self._lost: list[str] = []

    def add(self, instance: ServedInstance) -> None:
        self.worker.load(instance)
        whole_blocks = self.worker.kv_bytes // instance.kv.block_bytes
        self.contexts[instance.id] = min(
            instance.max_model_len, instance.kv.slot_tokens, whole_blocks * 16
        )
        self.tell(InstanceReady(instance))

    def remove(self, instance: str) -> None:
        self.worker.unload(instance)
        del self.contexts[instance]
        self.tell(InstanceRemoved(instance))

    def ask(
        self,
        tokens: list[int],
        max_tokens: int = 8,
        *,
        instance: str = "a",
        tenant: str = "",
        priority: int = 0,
        name: str = "",
        **sampling: object,
    ) -> str:
        """Submit a request and return its id. Without `ignore_eos=False` it runs to its length."""
        seed = len(self.tenants) + 1
        self.tenants[seed] = tenant
        name = name or f"r{seed}"
        sampling.setdefault("ignore_eos", True)
        request = GenerationRequest(
            id=name,
            model="toy",
            tokens=tuple(tokens),
            prompt_length=len(tokens),
            sampling=SamplingParams(max_tokens=max_tokens, seed=seed, **sampling),
            tenant=tenant,
            priority=priority,
        )
        self.stories[name] = Story(request, instance)
        self.tell(RequestArrived(instance, request))
        return name

    def abort(self, name: str) -> None:
        self.stories[name].over = True
        self.tell(RequestAborted(name, self.stories[name].request.attempt))

    def step(self, *, fail: bool = False) -> bool:
        """Let the worker carry out one step; False when it has none."""
        if not self.worker.posted:
            return False
        report = self.worker.run_next(fail=fail)
        if report is not None:
            self.tell(report if isinstance(report, StepFailed) else StepCompleted(report))
        return True

    def run(self, limit: int = 5_000) -> None:
        """Run until nothing is left to do; more than `limit` steps count as livelock."""
        for _ in range(limit):
            if not self.step():
                break
        else:
            raise AssertionError(f"not done after {limit} steps")
        assert all(story.over for story in self.stories.values()), "a request was forgotten"

    def tell(self, event: Event) -> None:
        self.events.append(event)
        effects = self.scheduler.handle(event, float(len(self.events)))
        self.effects += effects
        for effect in effects:
            self._perform(effect)
        self.scheduler.check_integrity()
        assert self.compute_in_flight() <= self.max_in_flight
        lost, self._lost = self._lost, []
        for name in lost:
            self._retry(self.stories[name])

    def compute_in_flight(self) -> int:
        steps = [step for step in self.worker.posted if not isinstance(step, str)]
        return sum(1 for step in steps if step.rows and step.instance in self.contexts)

    def story(self, name: str) -> Story:
        return self.stories[name]

    def _perform(self, effect: Effect) -> None:
        match effect:
            case RunStep(step):
                self.worker.post(step)
            case EmitTokens(events):
                assert events
                for event in events:
                    self._take(event)
            case Lose(losses, _):
                for loss in losses:
                    assert loss.attempt == self.stories[loss.request_id].request.attempt
                    self._lost.append(loss.request_id)
            case Refuse(name, _):
                self.refused[name] = effect
                self.stories[name].over = True

    def _take(self, event) -> None:
        story = self.stories[event.request_id]
        assert not story.over, "an event after the end"
        assert event.attempt == story.request.attempt
        if event.cached_tokens:
            assert not story.outputs or story.request.attempt
            story.cached_tokens = event.cached_tokens
        if story.request.sampling.prompt_logprobs is not None and not story.outputs:
            assert (event.prompt_logprobs or []) == [*scores([*story.request.tokens])]
            assert not event.cached_tokens
        story.outputs += event.tokens
        if event.finish is not None:
            story.finish, story.over = event.finish, True
            expected = alone(story.request, self.contexts[story.instance])
            assert (story.outputs, story.finish) == expected

    def _retry(self, story: Story) -> None:
        assert not story.over, "lost after the end"
        request = story.request
        prompt = request.tokens[: request.prompt_length]
        story.request = replace(
            request, tokens=(*prompt, *story.outputs), attempt=request.attempt + 1
        )
        self.tell(RequestArrived(story.instance, story.request))
