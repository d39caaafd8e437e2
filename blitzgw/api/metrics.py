"""What this node's API has seen, per model, under vLLM's names and with vLLM's buckets.

Everything is counted at the ingress: a request that another node serves is counted here. Gauges
come from the `StatusPort` at scrape time. Other components register with `registry`.
"""

from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry

from blitzgw.api.histogram import Histogram, one_two_five
from blitzgw.core.clock import Clock
from blitzgw.core.request import FinishReason
from blitzgw.core.scale import bucket_of

TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
REQUEST_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


MAX_RUNS = 64
"""Runs of tokens that have waited equally long and are not counted yet: counting each as it comes
would look a histogram up for every token of a single stream, whose place the caches forget."""


class Recent:
    """Latencies since they were last taken: how many by bucket (core/scale.py).

    Only the first and the last event of a generation are noted, so tokens cost nothing here.
    """

    __slots__ = ("queue", "tpot", "ttft")

    def __init__(self) -> None:
        self.ttft, self.tpot, self.queue = Counter[int](), Counter[int](), Counter[int]()

    def __bool__(self) -> bool:
        return bool(self.ttft or self.tpot or self.queue)

    def take(self) -> dict[str, dict[int, int]]:
        """Return what there is by the names of `core.scale.Demand`, and begin anew."""
        taken = {"ttft": dict(self.ttft), "tpot": dict(self.tpot), "queue": dict(self.queue)}
        self.ttft.clear()
        self.tpot.clear()
        self.queue.clear()
        return taken


class ModelMetrics:
    """Counters and histograms of one model. Times in seconds."""

    def __init__(self, name: str, max_model_len: int) -> None:
        self.name = name
        self.time_to_first_token = Histogram(TTFT_S)
        self._inter_token_latency = Histogram(TOKEN_S)
        self.time_per_output_token = Histogram(TOKEN_S)
        self.e2e_latency = Histogram(REQUEST_S)
        self.queue_time = Histogram(REQUEST_S)
        self.prefill_time = Histogram(REQUEST_S)
        self.decode_time = Histogram(REQUEST_S)
        self.inference_time = Histogram(REQUEST_S)
        self.request_prompt_tokens = Histogram(one_two_five(max_model_len))
        self.request_generation_tokens = Histogram(one_two_five(max_model_len))
        self.prompt_tokens = 0
        self._generation_tokens = 0
        self.gap_s = 0.0
        self.alike = 0
        """Tokens that have come `gap_s` after the one before them, and are not counted yet."""
        self._runs: list[tuple[float, int]] = []
        """What `gap_s` and `alike` were before, and is not counted yet either."""
        self.cached_tokens = 0
        self.success: Counter[str] = Counter({reason.value: 0 for reason in FinishReason})
        self.rejections: Counter[str] = Counter()
        self.recent = Recent()

    @property
    def inter_token_latency(self) -> Histogram:
        """Seconds between two tokens of one answer."""
        self._settle()
        return self._inter_token_latency

    @property
    def generation_tokens(self) -> int:
        """Tokens of answers."""
        self._settle()
        return self._generation_tokens

    def token(self, gap_s: float) -> None:
        """Count one token, so long after the one before it.

        All tokens of a step have mostly waited equally long: who sees that this one has come after
        `gap_s` as well need only count it as `alike`.
        """
        runs = self._runs
        runs.append((self.gap_s, self.alike))
        self.gap_s, self.alike = gap_s, 1
        if len(runs) >= MAX_RUNS:
            self._settle()

    def tokens(self, count: int) -> None:
        """Count tokens between which there is no time to tell of."""
        self._generation_tokens += count

    def _settle(self) -> None:
        self._runs.append((self.gap_s, self.alike))
        self.alike = 0
        for gap_s, alike in self._runs:
            if alike:
                self._inter_token_latency.observe(gap_s, alike)
                self._generation_tokens += alike
        self._runs.clear()


class Metrics:
    """All models' metrics, and the registry that other components register with."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.models: dict[str, ModelMetrics] = {}
        self.rejections: Counter[str] = Counter()
        """Refusals before a model was known, by error code."""

    def model(self, name: str, max_model_len: int) -> ModelMetrics:
        """Return the metrics of a model, made on first use."""
        found = self.models.get(name)
        if found is None:
            found = self.models[name] = ModelMetrics(name, max_model_len)
        return found

    def recent(self, name: str) -> Recent | None:
        """Return what has not been told yet of a model's latencies; None where nothing has been."""
        found = self.models.get(name)
        return None if found is None else found.recent


class Meter:
    """Times one generation: arrival, first token, every token, end."""

    __slots__ = (
        "_arrival", "_clock", "_first", "_leads", "_prompt_tokens",
        "last_s", "metrics", "queued_s", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        metrics: ModelMetrics,
        clock: Clock,
        arrival: float,
        prompt_tokens: int,
        leads: bool = True,
    ) -> None:
        """`leads`: this is the first choice of its prompt, whose tokens are counted once."""
        self.metrics = metrics
        self._clock = clock
        self._arrival = arrival
        self._first = 0.0
        self.last_s = 0.0
        self._prompt_tokens = prompt_tokens
        self._leads = leads
        self.tokens = 0
        self.queued_s: float | None = None

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to the first token; 0 before it."""
        return self._first - self._arrival if self.tokens else 0.0

    def skip(self, tokens: int, last_s: float) -> None:
        """Note tokens that `ModelMetrics.token` has counted, and when the last of them came."""
        self.tokens += tokens
        self.last_s = last_s

    def step(self, tokens: int) -> None:
        """Count the tokens of one step."""
        now = self._clock.now()
        if self.tokens:
            self.metrics.inter_token_latency.observe(now - self.last_s)
        elif tokens:
            self._first = now
            self.metrics.time_to_first_token.observe(now - self._arrival)
            self.metrics.recent.ttft[bucket_of(now - self._arrival)] += 1
            if self._leads:
                self.metrics.prompt_tokens += self._prompt_tokens
        self.last_s = now
        self.tokens += tokens
        self.metrics.tokens(tokens)

    def end(self, reason: FinishReason, cached_tokens: int) -> None:
        """Count a finished generation."""
        metrics, now = self.metrics, self._clock.now()
        metrics.success[reason.value] += 1
        metrics.cached_tokens += cached_tokens if self._leads else 0
        metrics.e2e_latency.observe(now - self._arrival)
        metrics.request_prompt_tokens.observe(self._prompt_tokens)
        metrics.request_generation_tokens.observe(self.tokens)
        if self.queued_s is not None:
            metrics.queue_time.observe(self.queued_s)
            metrics.recent.queue[bucket_of(self.queued_s)] += 1
        if self.tokens:
            started = self._arrival + (self.queued_s or 0.0)
            metrics.prefill_time.observe(self._first - started)
            metrics.decode_time.observe(self.last_s - self._first)
            metrics.inference_time.observe(self.last_s - started)
        if self.tokens > 1:
            tpot_s = (self.last_s - self._first) / (self.tokens - 1)
            metrics.time_per_output_token.observe(tpot_s)
            metrics.recent.tpot[bucket_of(tpot_s)] += 1
