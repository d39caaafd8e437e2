"""The text of `/metrics`, format 0.0.4.

Written here rather than by prometheus_client, because its 6 ms for 40 KB hold the GIL wherever they
run; this takes 0.1 ms a model. Only what other components registered is rendered by it, in a
thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import generate_latest

from blitzgw.api.histogram import Histogram
from blitzgw.api.metrics import Metrics, ModelMetrics
from blitzgw.api.status import ModelStatus
from blitzgw.core.step import BLOCK_TOKENS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "time_to_first_token",
    "vllm:inter_token_latency_seconds": "inter_token_latency",
    "vllm:request_time_per_output_token_seconds": "time_per_output_token",
    "vllm:e2e_request_latency_seconds": "e2e_latency",
    "vllm:request_queue_time_seconds": "queue_time",
    "vllm:request_prefill_time_seconds": "prefill_time",
    "vllm:request_decode_time_seconds": "decode_time",
    "vllm:request_inference_time_seconds": "inference_time",
    "vllm:request_prompt_tokens": "request_prompt_tokens",
    "vllm:request_generation_tokens": "request_generation_tokens",
}
_COUNTERS = {
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:prefix_cache_queries_total": "prompt_tokens",
    "vllm:prefix_cache_hits_total": "cached_tokens",
}
_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_usage",
}


async def render(metrics: Metrics, status: Iterable[ModelStatus]) -> bytes:
    """Return the whole page; what others registered is collected in a thread."""
    own = "".join(_lines(metrics, list(status))).encode()
    others: bytes = await asyncio.to_thread(generate_latest, metrics.registry)
    return own + others


def _lines(metrics: Metrics, status: list[ModelStatus]) -> Iterator[str]:
    models = list(metrics.models.values())
    for name, field in _GAUGES.items():
        yield f"# TYPE {name} gauge\n"
        for model in status:
            yield f"{name}{{{_labels(model.name)}}} {float(getattr(model, field))}\n"
    yield from _cache_config(status)
    for name, field in _COUNTERS.items():
        yield f"# TYPE {name} counter\n"
        for seen in models:
            yield f"{name}{{{_labels(seen.name)}}} {float(getattr(seen, field))}\n"
    yield "# TYPE vllm:num_preemptions_total counter\n"
    for model in status:
        yield f"vllm:num_preemptions_total{{{_labels(model.name)}}} {float(model.preemptions)}\n"
    yield from _by_reason(metrics, models)
    for name, field in _HISTOGRAMS.items():
        yield f"# TYPE {name} histogram\n"
        for seen in models:
            yield from _histogram(name, _labels(seen.name), getattr(seen, field))


def _cache_config(status: list[ModelStatus]) -> Iterator[str]:
    name = "vllm:cache_config_info"
    yield f"# TYPE {name} gauge\n"
    for model in status:
        sizes = f'block_size="{BLOCK_TOKENS}",num_gpu_blocks="{model.kv_blocks}"'
        yield f"{name}{{{_labels(model.name)},{sizes}}} 1.0\n"


def _by_reason(metrics: Metrics, models: list[ModelMetrics]) -> Iterator[str]:
    name = "vllm:request_success_total"
    yield f"# TYPE {name} counter\n"
    for seen in models:
        for reason, count in seen.success.items():
            yield f'{name}{{{_labels(seen.name)},finished_reason="{reason}"}} {float(count)}\n'
    name = "vllm:admission_rejections_total"
    yield f"# TYPE {name} counter\n"
    everywhere = [("", metrics.rejections), *((seen.name, seen.rejections) for seen in models)]
    for model_name, rejections in everywhere:
        for reason, count in rejections.items():
            yield f'{name}{{{_labels(model_name)},reason="{reason}"}} {float(count)}\n'


def _histogram(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    running = list(accumulate(histogram.counts))
    bounds = [*map(_number, histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, running, strict=True):
        yield f'{name}_bucket{{{labels},le="{bound}"}} {float(count)}\n'
    yield f"{name}_count{{{labels}}} {float(running[-1])}\n"
    yield f"{name}_sum{{{labels}}} {histogram.total}\n"


def _number(bound: float) -> str:
    return repr(float(bound))


def _labels(model: str) -> str:
    escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'model_name="{escaped}",engine="0"'
