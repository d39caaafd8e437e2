"""The constants of the cluster simulator, each measured by itself: nothing here is fitted to a run.

Real nodes on a testbed, with paced devices and nearly no load. All seconds are of the wall clock:
what processors and sockets take is not dilated with the rest, so a simulation of a cluster whose
time passes D times as slowly divides by D.

    request overhead    send → first token  −  the steps that the cost formula gives the prompt
    link share          weights' bytes / (last byte − first byte) / nominal payload rate
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from blitzgw.demands import TELL_S
from blitzgw.sim.evaluation.conditions import LINK_OVER_DISK, MAX_SEQUENCES
from scripts.evaluation.microconstants import (
    BESIDE,
    BURST,
    BURST_TOKENS,
    HOW,
    OTHERS,
    Constant,
)
from scripts.evaluation.microphases import disk_rate_share, link_share, phases
from scripts.evaluation.microrequests import BUDGET_TOKENS, VOCABULARY, Asker
from tests.support import multicast
from tests.support.benchmodel import bench_model, size_bytes
from tests.support.gateways import Gateways, Roles, Terms
from tests.support.live_client import Client, completion, prompts
from tests.support.live_setting import LAYERS, Pace
from tests.support.testbed import Spec, testbed

NODES = 8
"""As many as a cell of an evaluation has: what the idle ones take of the processors counts."""

SIZE_MB = 270.0
CONTEXT = 9216

GROWTHS, DISK_GROWTHS, WHOLE_GROWTHS = 6, 3, 2
"""Of one instance over a link, from a disk (ten times slower), and of all at once. The first of
either finds a worker that has never computed, or never read."""

LOOK_S = 0.002
"""Between two looks at another node's picture, on the wall."""

LOAD_OVER_COMPUTE = 6.0
KEEP_S, PATIENCE_S = 60.0, 1.0
"""Of the model that scales by itself here: what goes down soon is revived by the next burst."""

SETTINGS = f"""max_model_len = {CONTEXT}
max_num_seqs = {MAX_SEQUENCES}
max_batched_tokens = {BUDGET_TOKENS}
prefix_caching = false
"""
BY_HAND = "keep_s = 0.0\n"
BY_ITSELF = f"""scaling = "auto"
live = "stop"
ttft_target_s = 0.5
tpot_target_s = 0.04
min_instances = 1
max_instances = {NODES}
scale_down_after_s = {PATIENCE_S}
keep_s = {KEEP_S}
"""


DECIDE = re.compile(
    r'^blitzgw_scale_phase_seconds_(sum|count)\{phase="decide"\} (\S+)$', re.MULTILINE
)


class Microbench:
    """Measures all constants, in two clusters one after another."""

    def __init__(self, progress: Callable[[str], None], dilation: float = 4.0) -> None:
        self._progress = progress
        self.model = bench_model(SIZE_MB, LAYERS + 2, context=CONTEXT)
        sizes = size_bytes(self.model)
        layer = round(statistics.fmean(sizes[1:-1]))
        self.pace = Pace(LOAD_OVER_COMPUTE, layer, sum(sizes), dilation=dilation)
        self.found = {name: Constant(how) for name, how in HOW.items()}

    def run(self) -> dict[str, Any]:
        """Measure everything. Raises ClusterFailed, OperationFailed, NotPermitted."""
        self.by_hand()
        self.beside_others()
        self.by_itself()
        return self.told()

    def by_hand(self) -> None:
        """Measure requests and growths that are asked for."""
        with self._cluster(BY_HAND) as made:
            self._requests(made)
            self._growths(made)

    def beside_others(self) -> None:
        """Measure requests beside others, where every node has an instance; after `by_hand`."""
        with self._cluster(BY_HAND, NODES) as made:
            self._beside_others(made)

    def by_itself(self) -> None:
        """Measure decisions, of a cluster that scales by itself; after `by_hand`."""
        with self._cluster(BY_ITSELF) as made:
            self._decisions(made)

    def told(self) -> dict[str, Any]:
        """Return what was measured, and on what."""
        return {
            "dilation": self.pace.slowed,
            "rate_mbit": self.pace.rate_mbit,
            "nodes": NODES,
            "constants": {name: one.told() for name, one in self.found.items()},
        }

    def _requests(self, made: Gateways) -> None:
        """Ask an idle instance for one prompt after another, at its own node and at another."""
        asker = Asker(made, self.pace, self._progress)
        local, remote = asker.ask(0), asker.ask(1)
        self._add("request_local_s", local.short)
        self._add("prefill_step_s", local.prefill_step)
        self._add("step_overhead_s", local.decode_step)
        base, step = statistics.median(local.short), statistics.median(local.decode_step)
        more = [one - base for one in remote.short]
        self._add("request_remote_s", more)
        self._add("message_s", (one / 2 for one in more))
        self._add("token_back_s", (one - step for one in remote.decode_step))

    def _beside_others(self, made: Gateways) -> None:
        """Ask an idle instance while some, or all, other nodes have requests of their own."""
        asker = Asker(made, self.pace, self._progress)
        idle = {name: statistics.median(self.found[name].values) for name in BESIDE}
        for nodes in OTHERS:
            with asker.others(nodes):
                found = asker.ask(0)
            lists = (found.short, found.prefill_step, found.decode_step)
            for (name, beside), values in zip(BESIDE.items(), lists, strict=True):
                self._add(beside, ((one - idle[name]) / len(nodes) for one in values))

    def _growths(self, made: Gateways) -> None:
        """Grow by one, by all, and by one from its disk; go back each time."""
        setting = multicast.Setting(self.pace.rate_mbit, progress=self._progress)
        nominal = made.bed.spec.payload_bytes_per_s
        for number in range(GROWTHS):
            facts, lag_s = self._grow(made, setting, 2, "chain")
            self._add("gossip_lag_s", lag_s)
            for name, values in phases(facts, self.pace.slowed).items():
                if number or name != "serve_s":  # the first one warms up, by the cost formula
                    self._add(name, values)
            self._add("link_share", link_share(facts, nominal, self.pace.slowed))
            self._progress(f"growth {number + 1} of {GROWTHS}")
        self._disk_growths(made, setting)
        for _ in range(WHOLE_GROWTHS):
            facts, _ = self._grow(made, setting, NODES, "chain")
            self._add("hop_s", phases(facts, self.pace.slowed)["hop_s"])
            self._progress("growth to all")

    def _disk_growths(self, made: Gateways, setting: multicast.Setting) -> None:
        """Grow by one from its disk; the first time it also loads what reads checkpoints."""
        rate = self._disk_bytes_per_s / self.pace.slowed
        began: list[float] = []
        for _ in range(DISK_GROWTHS):
            facts, _ = self._grow(made, setting, 2, "disk")
            found = disk_rate_share(facts, rate, self.pace.slowed)
            self._add("disk_share", found["disk_share"])
            began += found["disk_first_byte_s"]
            self._progress("growth from a disk")
        first, *again = began
        self._add("disk_first_byte_s", again)
        self._add("first_read_s", [first - statistics.median(again)])
        self._add("cores", [len(os.sched_getaffinity(0))])

    def _grow(
        self, made: Gateways, setting: multicast.Setting, instances: int, strategy: str
    ) -> tuple[dict[str, Any], list[float]]:
        """Scale up and down again; return the operation, and when another node told of it."""
        begun = multicast.begin(made, instances, strategy)
        seen_s = self._await_told(made, instances)
        facts = multicast.await_end(made, setting, begun)
        multicast.scale_down(made, setting, 1)
        served = [one["ready_s"] for one in facts["targets"] if one["ready_s"] is not None]
        ready_s = facts["started"] + max(served) * self.pace.slowed
        return facts, [seen_s - ready_s] if seen_s and instances == 2 else []

    def _await_told(self, made: Gateways, instances: int) -> float:
        """Look at an idle node's picture until it tells of so many; return when, in Unix time."""
        deadline_s = time.monotonic() + 120.0
        node = NODES - 1
        while time.monotonic() < deadline_s:
            if sum("serving" in states for states in made.instances(node).values()) >= instances:
                return _unix_s()
            made.check()
            time.sleep(LOOK_S if instances == 2 else multicast.POLL_S)
        return 0.0

    def _decisions(self, made: Gateways) -> None:
        """Let bursts come to one instance; what they bring up goes down and is kept."""
        known: set[str] = set()
        for number in range(GROWTHS + 1):
            before_s = _decide_s(made)
            self._burst(made, number)
            operations = [one for one in _operations(made) if one["id"] not in known]
            known |= {one["id"] for one in operations}
            grown = [one for one in operations if one["instances_wanted"] > one["instances_before"]]
            took_s, decisions = (b - a for a, b in zip(before_s, _decide_s(made), strict=True))
            if decisions:
                told_s = took_s / decisions - TELL_S
                self._add("demand_s", [max(0.0, told_s) * self.pace.slowed])
            for one in grown:
                facts = multicast.look(made, one["id"])
                if not facts["strategy"]:
                    self._add("revive_s", [facts["elapsed_s"] * self.pace.slowed])
            self._progress(f"burst {number + 1}: {len(grown)} growths")

    def _burst(self, made: Gateways, number: int) -> None:
        """Send a burst to one instance, and wait until only one is left."""
        made.until(lambda: len(made.holders()) == 1, "one instance", 120.0)
        time.sleep(multicast.SETTLE_S)
        texts = prompts(BURST, BURST_TOKENS, VOCABULARY, seed=1000 + number)
        bodies = {f"b{number}-{i}": completion(p) for i, p in enumerate(texts)}
        volley = Client(made, 0, 120.0).prepare(bodies)
        volley.send()
        volley.answers()
        made.until(lambda: len(made.holders()) == 1, "one instance", 120.0)

    def _add(self, name: str, values: Iterable[float]) -> None:
        self.found[name].values += values

    @property
    def _disk_bytes_per_s(self) -> float:
        """What nodes are told of their disks, undilated."""
        return self.pace.rate_mbit * 1e6 / 8 * self.pace.slowed / LINK_OVER_DISK

    @contextmanager
    def _cluster(self, settings: str, sources: int = 1) -> Iterator[Gateways]:
        """Nodes, the first of which serve the model."""
        base = self.pace.terms()
        disk = self._disk_bytes_per_s
        terms = Terms(base.device, SETTINGS + settings, base.dilation, disk_bytes_per_s=disk)
        with testbed(Spec(NODES, self.pace.rate_mbit, 1500, (), 0.0)) as bed:
            made = Gateways(bed, Roles(self.model, sources, definers=NODES, terms=terms))
            made.start_all(180.0)
            yield made


def _operations(made: Gateways) -> list[Mapping[str, Any]]:
    status, told = made.get("/cluster/operations")
    return list(told["operations"]) if status == 200 else []


def _decide_s(made: Gateways) -> tuple[float, float]:
    """Return how long all decisions to grow have taken, undilated, and how many there were."""
    found = {"sum": 0.0, "count": 0.0}
    for node in made.nodes:
        status, told = made.get("/metrics", node)
        for name, value in DECIDE.findall(str(told)) if status == 200 else ():
            found[name] += float(value)
    return found["sum"], found["count"]


def _unix_s() -> float:
    return time.time()  # noqa: TID251  what nodes tell of operations is in it, too
