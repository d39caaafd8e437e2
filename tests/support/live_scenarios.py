"""Further questions to a bench of live scaling: a standing queue, and running streams."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tests.support import live, live_trace, multicast
from tests.support.gateways import Gateways
from tests.support.live import Round
from tests.support.live_bench import VOCABULARY, LiveBench
from tests.support.live_client import Answer, Client, Volley, completion, prompts
from tests.support.live_setting import MAX_SEQUENCES, TOKENS_PER_S
from tests.support.multicast import OperationFailed
from tests.support.multicast_bench import Findings
from tests.support.multicast_report import Verdict

PAIR = 1.7
"""What a pair completes per second from half of the layers on, in parts of one instance alone."""

LOADS = (0.5, 0.85)
SLOWER, WORST = 1.15, 0.99

ARRIVING_TOKENS, ARRIVING_SHARE = 512, 0.3
"""Prompts that arrive beside streams: their length, and the share of the instance's time that they
take at a load of 1."""

STREAM_PROMPT, STREAM_TOKENS = 16, 2000
BEFORE_S, MIN_DILATION = 1.5, 8.0
"""How long streams are watched before; and slower than else, for each token is a message."""


def standing_queue(bench: LiveBench) -> Findings:
    """How much a pair computes per second, from half of the layers to all of them.

    Completions are told, too, but among them are requests that were half computed before.
    """
    found, wish = bench.found, bench.wish
    rates: dict[str, list[tuple[float, float]]] = {}
    with bench.cluster(1 + wish.targets, traced=True) as made:
        alone = bench.alone(made)
        single = per_second(alone.completions_s)
        work = _work(bench, made, alone, 0.0, max(alone.completions_s))
        for _ in range(wish.rounds):
            for policy in wish.policies:
                one = bench.round(made, policy)
                if one is not None:
                    share = _work(bench, made, one, one.half_s, one.load_s) / work
                    rates.setdefault(policy, []).append((share, in_window(one) / single))
    for policy, measured in rates.items():
        computed, completed = (statistics.median(column) for column in zip(*measured, strict=True))
        row = {"policy": policy, "targets": wish.targets, "computed": computed}
        row |= {"load_over_compute": wish.load_over_compute, "completed": completed}
        found.rows.append(row | {"alone_per_s": single, "rounds": measured})
        found.notes.append(
            f"{policy}, with half of the layers and more: {computed:.3f} × the work of one instance"
            f" per second, {completed:.3f} × its completions ({single:.2f} per s alone)"
        )
        if policy == "zigzag":
            name = "standing queue: zigzag / one instance, work per s"
            found.verdicts.append(Verdict(name, computed, PAIR, least=True))
    return found


def _work(bench: LiveBench, made: Gateways, one: Round, since_s: float, until_s: float) -> float:
    """What the nodes have computed per second in a stretch of a round."""
    trace = bench.trace(made, one)
    return live_trace.layer_tokens_per_s(trace, since_s, until_s)


def per_second(completions_s: Sequence[float]) -> float:
    """Return completions per second, from the first of them to the last. 0: there are too few."""
    if len(completions_s) < 2:
        return 0.0
    first, last = min(completions_s), max(completions_s)
    return (len(completions_s) - 1) / (last - first) if last > first else 0.0


def in_window(one: Round) -> float:
    """Return completions per second while half of the layers and more are resident, but not all."""
    return per_second([at for at in one.completions_s if one.half_s <= at <= one.load_s])


@dataclass(frozen=True, slots=True)
class Streams:
    """Time per token of running streams, p99 in undilated seconds, and what went wrong."""

    before_s: float
    during_s: float
    failed: tuple[str, ...]
    prompts: int


def tpot(bench: LiveBench) -> Findings:
    """What running streams notice of a scale operation, while prompts arrive, too."""
    found = bench.found
    bench.repace(replace(bench.pace, dilation=max(MIN_DILATION, bench.pace.slowed)))
    for load in LOADS:
        for policy in bench.wish.policies:
            with bench.cluster(1 + bench.wish.targets) as made:
                one = _streams(bench, made, policy, load)
            found.failures += [f"{policy} at {load:g}: {text}" for text in one.failed]
            row = {"policy": policy, "targets": bench.wish.targets, "load": load}
            row |= {"tpot_before_s": one.before_s, "tpot_during_s": one.during_s}
            found.rows.append(row | {"prompts": one.prompts})
            name = f"{policy} at {load:g} load: TPOT p99 during / before"
            found.verdicts.append(Verdict(name, one.during_s / one.before_s, SLOWER))
    return found


def _streams(bench: LiveBench, made: Gateways, policy: str, load: float) -> Streams:
    pace, d = bench.pace, bench.pace.slowed
    client = Client(made, 0, live.patience_s(pace, bench.wish.burst))
    ids = prompts(round(load * MAX_SEQUENCES), STREAM_PROMPT, VOCABULARY, 2)
    bodies = {f"s{i:03d}": completion(p, STREAM_TOKENS, stream=True) for i, p in enumerate(ids)}
    gap_s = ARRIVING_TOKENS / TOKENS_PER_S / (ARRIVING_SHARE * load)
    count = round((2 * BEFORE_S + 1.5 * pace.load_s) / gap_s)
    arriving = [
        client.prepare({f"p{i:03d}": completion(p)})
        for i, p in enumerate(prompts(count, ARRIVING_TOKENS, VOCABULARY, 3))
    ]
    running = client.prepare(bodies)
    over = threading.Event()
    sender = threading.Thread(target=_arrive, args=(arriving, gap_s * d, over))
    try:
        running.send()
        sender.start()
        time.sleep(BEFORE_S * d)  # until all run
        before = time.monotonic()
        time.sleep(BEFORE_S * d)
        began = time.monotonic()
        begun = multicast.begin(made, 1 + bench.wish.targets, live.STRATEGY, policy)
        multicast.await_end(made, bench.setting, begun)
        ended = time.monotonic()
        failed = ["a stream ended"] * sum(one.done() for one in running.pending)
    finally:
        over.set()
        sender.join()
        sent = [one for one in arriving if one.pending]
        answers = [answer for one in sent for answer in one.answers()]
        for one in (running, *arriving):
            one.close()
    streams = [one.result() for one in running.pending]
    failed += [f"{one.name}: {one.status} {one.error}" for one in answers if not one.good]
    return Streams(
        worst(streams, before, began) / d,
        worst(streams, began, ended) / d,
        tuple(failed),
        len(sent),
    )


def worst(streams: Sequence[Answer], since_s: float, until_s: float) -> float:
    """Return the p99 over streams of the time per token in a stretch of time."""
    found = []
    for one in streams:
        times = [at for at in one.token_times if since_s <= at <= until_s]
        if len(times) > 1:
            found.append((times[-1] - times[0]) / (len(times) - 1))
    if not found:
        raise OperationFailed("no stream had two tokens in the time that was looked at")
    return live.percentile(found, WORST)


def _arrive(volleys: Sequence[Volley], gap_s: float, over: threading.Event) -> None:
    """Send prompts one by one, at their times whatever becomes of them."""
    start = time.monotonic()
    for number, volley in enumerate(volleys):
        if over.wait(max(0.0, start + number * gap_s - time.monotonic())):
            return
        volley.send()
