"""From zero, on SmolLM2 itself: what the time until a held request's first token is made of.

Two nodes on loopback define the model and hold nothing of it; one of them is asked. All that is
measured ends on the client's clock; what nodes say of it is in Unix time of the same machine.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.scale_kit import ended
from tests.support.clusters import Cluster
from tests.support.nodes import until

MODEL = "smollm2-135m"
PROMPT = "Once upon a time there was a small town by the sea, and"

NODE = """
[[devices]]
kind = "cpu"
threads = {threads}
kv_bytes = "256MiB"
[[models]]
path = "smollm2-135m"
dtype = "{dtype}"
max_model_len = 2048
scaling = "auto"
min_instances = 0
load_at_start = false
scale_down_after_s = 0.2
idle_to_zero_s = 0.3
keep_s = 0.0
host_copies = {copies}
"""

MARKS = ("decided", "claimed", "first_blob", "complete", "ready", "first_token")
"""In the order in which they come to pass; each row tells the time since the one before, too."""

OTHERS = {
    "busy_s": "processor time of nodes and workers until then",
    "load": "average of the machine",
    "instances": "that were begun",
}

SETTLE_S = 0.5
"""Between two rounds: what the one before has left to do is none of the next one's time."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured: `copies` nodes keep the weights in memory; 0: all of it is on disk."""

    name: str
    copies: int
    dtype: str = "bfloat16"
    threads: int = 1
    rounds: int = 7


class ZeroBench:
    """Two nodes, asked again and again from zero."""

    def __init__(self, setting: Setting, folder: Path, progress: Callable[[str], None]) -> None:
        self.setting, self._progress = setting, progress
        self._nodes = Cluster(folder)

    def run(self) -> list[dict[str, Any]]:
        """Measure all rounds, but for a first one that warms caches."""
        found = []
        try:
            self._start()
            for number in range(self.setting.rounds + 1):
                row = self._round()
                self._progress(f"{self.setting.name} round {number}: {_line(row)}")
                found.append(row)
            self._nodes.stop()
        finally:
            for node in self._nodes.nodes.values():
                if node.process.poll() is None:
                    node.process.kill()
                    node.process.wait()
        return found[1:]

    def _start(self) -> None:
        values = {"dtype": self.setting.dtype, "threads": self.setting.threads}
        for name in "ab":
            self._nodes.add(name, NODE.format(copies=self.setting.copies, **values))
        for node in self._nodes.nodes.values():
            node.listen()
        until(self._whole, "both workers known to both nodes")

    def _whole(self) -> bool:
        """Whether each node knows both workers, warm, and can answer for the model."""
        for name, node in self._nodes.nodes.items():
            told = self._nodes.get(name, "nodes")
            warm = [each for one in told for each in one["devices"] if each["data_ports"]]
            listed = node.get("/v1/models").json["data"]
            if len(warm) < len(self._nodes.nodes) or not any(i["id"] == MODEL for i in listed):
                return False
        return True

    def _round(self) -> dict[str, Any]:
        """Ask once from zero; wait until it is zero again."""
        known = {one["id"] for one in self._nodes.get("a", "operations")}
        load, busy_s = os.getloadavg()[0], self._busy_s()
        sent_s, first_s = self._ask()
        busy_s = self._busy_s() - busy_s
        made = [one for one in self._nodes.get("a", "operations") if one["id"] not in known]
        grown = [one for one in made if one["instances_wanted"] > one["instances_before"]]
        facts = ended(self._nodes, "a", grown[-1]["id"])
        row = _marks(facts, sent_s, first_s)
        row |= {
            "strategy": facts["strategy"],
            "tiers": sorted({read["tier"] for read in facts["reads"]}),
            "where": [one["worker"] for one in facts["targets"]],
            "instances": sum(len(ended(self._nodes, "a", one["id"])["targets"]) for one in grown),
            "reasons": [self._reason(one["id"]) for one in grown],
            "busy_s": round(busy_s, 2),
            "load": round(load, 1),
        }
        until(lambda: not self._nodes.get("a", "instances"), "zero again")
        time.sleep(SETTLE_S)
        return row

    def _reason(self, operation: str) -> str | None:
        made = self._nodes.get("a", "decisions")
        return next((one["reason"] for one in made if one["operation"] == operation), None)

    def _busy_s(self) -> float:
        """Return the processor time of all nodes and workers, which other work does not alter."""
        pids = [pid for node in self._nodes.nodes.values() for pid in (node.pid, *node.workers())]
        ticks = 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def _ask(self) -> tuple[float, float]:
        """Return when a request was sent, and when its first token came; in Unix time."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._nodes.nodes["a"].port, timeout=60
        )
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 4, "stream": True}
        sent_s = _unix_s()
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            while not (line := answer.readline()).startswith(b"data: {"):
                assert line, f"no token: {answer.status}"
            first_s = _unix_s()
            answer.read()
        finally:
            connection.close()
        return sent_s, first_s


def _unix_s() -> float:
    return time.time()  # noqa: TID251  what nodes tell is in it, too


def _marks(facts: dict[str, Any], sent_s: float, first_s: float) -> dict[str, Any]:
    """Return when things came to pass, in seconds since the request was sent."""
    at = {"decided": facts["started"] - sent_s}
    for event in facts["events"]:
        name = "first_blob" if event["what"] == "blob" else event["what"]
        if name in MARKS:
            at.setdefault(name, facts["started"] + event["at_s"] - sent_s)
    at["first_token"] = first_s - sent_s
    return at


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return least, median and most of all rounds, of each mark and of each step to it."""
    found: dict[str, Any] = {}
    before = "sent"
    for mark in MARKS:
        since = [row[mark] for row in rows if mark in row]
        steps = [row[mark] - row.get(before, 0.0) for row in rows if mark in row]
        if not since:
            continue
        found[mark] = {"since_sent_s": _spread(since), "step_s": _spread(steps)}
        before = mark
    found["busy_s"] = _spread([row["busy_s"] for row in rows])
    found["load"] = _spread([row["load"] for row in rows])
    found["instances"] = _spread([row["instances"] for row in rows])
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    least, middle, most = min(values), statistics.median(values), max(values)
    return {"min": round(least, 3), "median": round(middle, 3), "max": round(most, 3)}


def table(found: dict[str, Any]) -> str:
    """Return a summary as lines of text."""
    spread = f"{'min':>10}{'med':>7}{'max':>7}"
    lines = [f"{'seconds':12}{'since the send':>24}{'since the line above':>24}"]
    lines.append(f"{'':12}{spread}{spread}")
    for mark in MARKS:
        cells = "".join(
            f"{one['min']:10.3f}{one['median']:7.3f}{one['max']:7.3f}"
            for one in found.get(mark, {}).values()
        )
        lines.append(f"{mark:12}{cells}")
    for name, what in OTHERS.items():
        one = found[name]
        lines.append(f"{name:12}{one['min']:10.2f}{one['median']:7.2f}{one['max']:7.2f}  {what}")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    times = " ".join(f"{mark} {row[mark]:.3f}" for mark in MARKS if mark in row)
    tiers = ",".join(row["tiers"]) or row["strategy"]
    where = "+".join(row["where"])
    return f"{times} ({tiers} on {where}, busy {row['busy_s']} s, load {row['load']})"
