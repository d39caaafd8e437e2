"""`/metrics`: vLLM's names, exact numbers, readable by Prometheus' own parser."""

import asyncio
import json

import pytest
from prometheus_client import Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from blitzgw.api.exposition import _histogram, _labels
from blitzgw.api.histogram import Histogram as Own
from blitzgw.api.histogram import one_two_five
from blitzgw.api.metrics import MAX_RUNS, TTFT_S, ModelMetrics
from blitzgw.core.request import TokenEvent
from blitzgw.errors import Overloaded

TOLD = "Hi there, 😀 and 😀 go on"
TEXT = {"model": "m", "prompt": "Hello fox"}


def samples(page):
    return {
        (
            s.name,
            s.labels.get("finished_reason", s.labels.get("reason", s.labels.get("le"))),
        ): s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
        if s.labels.get("model_name", "m") == "m"
    }


async def test_a_request_is_counted(world, tools):
    tokens = world.ids("Hi there you")
    world.generator.script = lambda r: tools.events(r, tokens, cached_tokens=1, queued_s=0.5)
    await world.post("/v1/completions", TEXT | {"n": 2})
    world.generator.refusal = lambda r: Overloaded("full")
    await world.post("/v1/completions", TEXT)
    await world.post("/v1/completions", TEXT | {"top_p": 9})
    own = Counter("blitzgw_things", "x", registry=world.services.metrics.registry)
    own.inc()
    status, headers, page = await world.get("/metrics")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(page)
    prompt = len(world.ids("Hello fox"))
    expected = {
        ("vllm:prompt_tokens_total", None): prompt,
        ("vllm:generation_tokens_total", None): 2 * len(tokens),
        ("vllm:request_success_total", "length"): 2,
        ("vllm:request_success_total", "stop"): 0,
        ("vllm:admission_rejections_total", "overloaded"): 1,
        ("vllm:admission_rejections_total", "bad_request"): 1,
        ("vllm:prefix_cache_queries_total", None): prompt,
        ("vllm:prefix_cache_hits_total", None): 1,
        ("vllm:num_requests_running", None): 3,
        ("vllm:num_requests_waiting", None): 2,
        ("vllm:kv_cache_usage_perc", None): 0.5,
        ("vllm:num_preemptions_total", None): 1,
        ("vllm:cache_config_info", None): 1,
        ("vllm:time_to_first_token_seconds_count", None): 2,
        ("vllm:inter_token_latency_seconds_count", None): 2 * (len(tokens) - 1),
        ("vllm:request_time_per_output_token_seconds_count", None): 2,
        ("vllm:e2e_request_latency_seconds_count", None): 2,
        ("vllm:request_prefill_time_seconds_count", None): 2,
        ("vllm:request_decode_time_seconds_count", None): 2,
        ("vllm:request_inference_time_seconds_count", None): 2,
        ("vllm:request_queue_time_seconds_count", None): 2,
        ("vllm:request_prompt_tokens_sum", None): 2 * prompt,
        ("vllm:request_generation_tokens_sum", None): 2 * len(tokens),
        ("blitzgw_things_total", None): 1,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert b'engine="0"' in page
    assert b'block_size="16",num_gpu_blocks="640"' in page


async def test_tokens_are_counted_while_they_come_and_when_a_client_leaves(world):
    tokens = world.ids(TOLD)
    pieces = [world.text.table.hidden[token] for token in tokens]
    assert any(isinstance(piece, bytes) for piece in pieces)  # parts of characters
    body = TEXT | {"stream": True, "stream_options": {"include_usage": True}}
    post = asyncio.ensure_future(world.http.post(world.url("/v1/completions"), json=body))
    while not world.generator.requests:
        await asyncio.sleep(0)
    request, sink = world.generator.last
    sink.push(TokenEvent(request.id, 0, tokens[:1], queued_s=0.0))
    response = await post
    seen = world.services.metrics.models["m"]
    now = world.services.clock.now()
    for count, token in enumerate(tokens[1:], 2):
        sink.push_token(token, now + count)
        assert seen.generation_tokens == count
        assert sum(seen.inter_token_latency.counts) == count - 1
    text = ""
    while not text.endswith(" on"):
        line = await asyncio.wait_for(response.content.readline(), 5)
        if line.startswith(b"data: "):
            text += json.loads(line[6:])["choices"][0]["text"]
    assert text == TOLD
    response.close()
    while world.server.active:
        await asyncio.sleep(0.001)
    sink.push_token(tokens[0], now)  # is not heard any more
    assert seen.generation_tokens == len(tokens)
    assert seen.request_generation_tokens.total == len(tokens)
    last_s = now + len(tokens)
    assert seen.decode_time.total == pytest.approx(last_s - now, abs=1.0)


@pytest.mark.parametrize("values", [[], [0.0], [0.001, 0.0011, 5000.0], [0.04] * 3])
def test_histograms_are_written_as_prometheus_client_writes_them(values):
    registry = CollectorRegistry()
    theirs = Histogram("h", "x", ["model_name", "engine"], buckets=TTFT_S, registry=registry)
    ours = Own(TTFT_S)
    child = theirs.labels('a"b\\c\n', "0")
    for value in values:
        child.observe(value)
        ours.observe(value)
    expected = [
        line for line in generate_latest(registry).decode().splitlines()
        if line.startswith(("h_bucket", "h_count", "h_sum"))
    ]  # fmt: skip
    written = "".join(_histogram("h", _labels('a"b\\c\n'), ours)).splitlines()

    def canonical(lines):
        text = "\n".join(["# TYPE h histogram", *lines, ""])
        return sorted(
            (s.name, tuple(sorted(s.labels.items())), s.value)
            for family in text_string_to_metric_families(text)
            for s in family.samples
        )

    assert canonical(written) == canonical(expected)


def test_buckets_of_token_counts():
    assert one_two_five(100) == (1, 2, 5, 10, 20, 50, 100)
    assert one_two_five(99) == (1, 2, 5, 10, 20, 50)


def test_gaps_that_are_not_counted_yet_are_few_and_none_is_lost():
    seen = ModelMetrics("m", 100)
    for n in range(1000):
        gap_s = (n // 3) / 1000
        if gap_s == seen.gap_s:
            seen.alike += 1
        else:
            seen.token(gap_s)
        assert len(seen._runs) < MAX_RUNS
    assert seen.generation_tokens == sum(seen.inter_token_latency.counts) == 1000
    assert seen.inter_token_latency.total == pytest.approx(sum(n // 3 for n in range(1000)) / 1000)
