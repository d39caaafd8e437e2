"""A source that also sends KV at line rate: which one plans take, and what a forced one costs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.support import multicast
from tests.support.gateways import Gateways
from tests.support.multicast import OperationFailed, Round
from tests.support.multicast_bench import Bench, Findings
from tests.support.multicast_report import Verdict

PROBE_PATH = "/admin/v1/probe"

KV_S = 60.0
"""The longest that one probe may take; it is given up when it is not needed any more."""

KNOWN_S = 3.0
"""Until it is known everywhere what a node sends: it is looked at once a second."""

MEASURE_S = 3.0


@dataclass(frozen=True, slots=True)
class Beside:
    """A scale beside KV: its round, bytes of KV per second meanwhile, what weights gave way."""

    round: Round
    kv_bytes_per_s: float
    yielded_s: float
    delayed_s: float


def serving_source(bench: Bench) -> Findings:
    """One of two sources is busy sending KV; then the only source is."""
    found = Findings()
    with bench.cluster(4, 2) as made, kv(made, 0, 3):
        time.sleep(KNOWN_S)
        facts = multicast.scale(made, bench.setting, 3)
        sources = sorted({multicast.node_of(edge["source"]) for edge in facts["edges"]})
        busy = made.name(0)
        found.notes.append(f"{busy} sends KV: the weights came from {', '.join(sources)}")
        value = float(busy in sources)
        found.verdicts.append(Verdict("the busy source was taken (0: the other one)", value, 0.0))
    with bench.cluster(3, 1) as made:
        calm = bench.rounds(made, "chain", 1)
        with kv(made, 0, 2):
            time.sleep(multicast.SETTLE_S)
            alone = _rate(made, 2, MEASURE_S)
            forced = _forced(bench, made, 2)
    _note(bench, found, calm, alone, forced)
    return found


@contextlib.contextmanager
def kv(made: Gateways, source: int, sink: int) -> Iterator[None]:
    """Have a node send KV to another as fast as it goes, for KV_S at most."""
    body = {
        "source": f"{made.name(source)}/p0",
        "target": f"{made.name(sink)}/p0",
        "class": "kv",
        "seconds": KV_S,
    }
    began = made.bed.counters(sink).received
    with contextlib.closing(made.begin_post(PROBE_PATH, body)):
        made.until(lambda: made.bed.counters(sink).received - began > 1 << 20, "any KV")
        yield


def _forced(bench: Bench, made: Gateways, sink: int) -> Beside:
    """Scale from the busy source, with the counters of just that time."""
    before, counters = made.bed.counters(sink).received, made.counters()
    since_s = time.monotonic()
    facts = multicast.scale(made, bench.setting, 2, "chain")
    rate = (made.bed.counters(sink).received - before) / (time.monotonic() - since_s)
    edges: list[dict[str, Any]] = facts["edges"]
    one = multicast.read_round(facts, counters, made.counters())
    if one.seconds <= 0:
        raise OperationFailed(f"nothing came up beside KV: {facts['targets']}")
    yielded_s, delayed_s = (sum(e[key] for e in edges) for key in ("yielded_s", "delayed_s"))
    return Beside(one, rate, yielded_s, delayed_s)


def _rate(made: Gateways, sink: int, for_s: float) -> float:
    before = made.bed.counters(sink).received
    time.sleep(for_s)
    return (made.bed.counters(sink).received - before) / for_s


def _note(bench: Bench, found: Findings, calm: list[Round], alone: float, forced: Beside) -> None:
    row = multicast.row(bench.setting, "chain", calm)
    beside = multicast.row(bench.setting, "chain", [forced.round])
    beside |= {"scenario": "forced: a source that sends KV", "kv_alone_bytes_per_s": alone}
    beside |= {
        "kv_beside_bytes_per_s": forced.kv_bytes_per_s,
        "yielded_s": forced.yielded_s,
        "delayed_s": forced.delayed_s,
    }
    found.rows += [row, beside]
    lost = 1 - forced.kv_bytes_per_s / alone
    slower = forced.round.seconds / row["seconds"]
    found.notes.append(
        f"forced: KV {alone / 1e6:.1f} MB/s alone, {forced.kv_bytes_per_s / 1e6:.1f} MB/s beside"
        f" weights ({lost:.1%} less); weights take {slower:.2f} × as long"
        f" ({row['seconds']:.2f} s → {forced.round.seconds:.2f} s), stood back for"
        f" {forced.yielded_s:.2f} s and kept KV waiting for {forced.delayed_s:.2f} s"
    )
