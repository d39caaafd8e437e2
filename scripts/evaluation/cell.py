"""A cell: one system under one trace on a testbed, from the first node's start to a record.

start nodes ─► settle ─► replay, looking on ─► what nodes tell ─► check all answers ─► Record
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from blitzgw.sim.evaluation import conditions, levels
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.ladder import System
from blitzgw.sim.evaluation.record import Look, Record
from blitzgw.sim.evaluation.traces import load
from scripts.evaluation import shelf
from scripts.evaluation.configuration import ROOT, Nodes, Premises, Setting, roles
from scripts.evaluation.machine import source
from scripts.evaluation.meters import Busy, Meters, bytes_by_link, decide_s
from scripts.evaluation.player import Endpoint, Options, Player
from scripts.evaluation.prompts import prompt_ids
from scripts.evaluation.reference import Reference
from scripts.evaluation.reply import Reply
from scripts.evaluation.watch import LOOK_S, Watch, copies, errors, under_way
from tests.support.gateways import HTTP_PORT, MODEL, ClusterFailed
from tests.support.testbed import Spec, testbed

SAY_LOOKS = 40
"""Looks between two words of progress."""

NICE = 19
"""Answers are checked while another cell may still be measured."""

START_S, SETTLE_S = 180.0, 240.0
"""On the wall: for nodes to come up on busy processors; for host copies to be read from disks, and
for `oracle` to put instances aside."""


@dataclass(frozen=True, slots=True)
class Task:
    """Which cell is to be run."""

    setting: Setting
    system: System
    seed: int
    about: dict[str, Any]
    """What is told of the whole: commit, machine."""

    @property
    def arrivals(self) -> list[Arrival]:
        """What is offered. Raises ConfigError."""
        setting = self.setting
        return load(setting.file, setting.window, setting.factor, self.seed, setting.spread_s)


class Cell:
    """Runs a task."""

    def __init__(
        self, task: Task, progress: Callable[[str], None], await_turn: Callable[[], None]
    ) -> None:
        """`await_turn` returns when nodes that are up may be measured."""
        self._task, self._progress, self._await_turn = task, progress, await_turn
        self._premises = Premises(task.setting)
        self._arrivals = task.arrivals
        self._replies: list[Reply] = []
        self._busy = Busy()
        setting, system = task.setting, task.system
        self._initial = initial(system, setting, self._arrivals)
        self._sources = setting.min_instances if system.scales else self._initial
        about = {"free_when_kept": system.free_when_kept, "settings": dict(system.settings)}
        about["knobs"] = dict(self._premises.knobs(system))
        about |= {
            "source": source(ROOT),
            "initial": self._initial,
            **task.about,
        }
        self.record = Record(
            system.name, task.seed, virtual=False, about=self._premises.about() | about
        )

    def run(self) -> Record:
        """Run it. Raises ClusterFailed, CommandFailed, NotPermitted; `record` has what there is."""
        setting = self._task.setting
        spec = Spec(setting.nodes, self._premises.pace.rate_mbit)
        with testbed(spec) as bed:
            made = Nodes(bed, roles(self._premises, self._task.system, self._sources))
            made.host_bytes_per_s = self._premises.host_bytes_per_s
            shelf.lay(made, self._premises.model, made.roles.host_copies)
            made.start_all(START_S)
            watch = Watch(made, self._premises.pace.slowed, self._task.system.free_when_kept)
            self._settle(made)
            self._await_turn()
            self._busy.look()
            try:
                self._replay(made, watch)
            finally:
                self._write_down(watch)
                self.record.failure = errors(made)
                self.record.about |= self._busy.told()
        os.nice(NICE)
        self._check()
        return self.record

    def _settle(self, made: Nodes) -> None:
        """Wait for host copies; have instances that are kept for no cost; let all end."""
        wanted = min(made.roles.host_copies, self._task.setting.nodes)
        made.until(lambda: copies(made) >= wanted, f"{wanted} host copies", SETTLE_S)
        if wanted:
            shelf.keep(made, self._premises.model)
        if self._initial > self._sources:
            _scale(made, self._initial)
            _scale(made, self._sources)
            order(made, "auto")
        _await(made, self._sources)

    def _replay(self, made: Nodes, watch: Watch) -> None:
        task, setting = self._task, self._task.setting
        options = Options(
            MODEL,
            max_tokens=setting.max_tokens,
            dilation=self._premises.pace.slowed,
            seed=task.seed,
            patience_s=setting.patience_s,
            seed_ends=True,
            token_ids=True,
        )
        player = Player(self._endpoints(made), self._arrivals, options, self._replies.append)
        before = Meters.of(made)

        def look(now_s: float) -> None:
            watch.look(now_s)
            self._busy.look()
            if len(watch.looks) % SAY_LOOKS == 1:
                tally = player.tally
                done = f"{tally.done}/{tally.offered} over"
                bad = {k: n for k, n in tally.outcomes.items() if k != "ok"}
                self._say(f"{now_s:6.1f} s, {done}{f' {bad}' if bad else ''}, {_last(watch)}")

        try:
            player.run(look, LOOK_S)
            least = setting.min_instances if task.system.scales else self._sources
            while player.now_s < setting.window_s and not watch.settled(least):
                time.sleep(LOOK_S * self._premises.pace.slowed)
                look(player.now_s)
        finally:
            self.record.answers = player.answers
        watch.ask()
        self.record.bytes_by_link = bytes_by_link(
            before, Meters.of(made), watch.operations.values()
        )
        self.record.about["decide_s"] = decide_s(made)

    def _write_down(self, watch: Watch) -> None:
        record, window_s = self.record, self._task.setting.window_s
        first = [Look(0.0, one.states) for one in watch.looks[:1] if one.at_s > 0]
        record.looks = first + watch.looks
        record.operations = sorted(watch.operations.values(), key=lambda one: one["at_s"])
        record.decisions = sorted(watch.decisions.values(), key=lambda one: one["at_s"])
        record.seconds = max([window_s, *(one.at_s + one.last_s for one in record.answers)])

    def _endpoints(self, made: Nodes) -> list[Endpoint]:
        bed, found = made.bed, []
        for node in made.nodes:
            url = f"http://{bed.address(node)}:{HTTP_PORT}"
            found.append(Endpoint(url, partial(bed.connect, node, HTTP_PORT, 10.0)))
        return found

    def _check(self) -> None:
        """Compare the tokens of all answers with those of a single process."""
        record, reference = self.record, Reference(self._premises.model)
        for reply in self._replies:
            if reply.answer.ok:
                prompt = prompt_ids(self._task.seed, reply.number, reply.arrival)
                outputs = min(self._task.setting.max_tokens, reply.arrival.output_tokens)
                record.checked += 1
                record.wrong += not reference.agrees(prompt, reply.token_ids, outputs)

    def _say(self, text: str) -> None:
        self._progress(f"{self._task.system.name}, seed {self._task.seed}: {text}")


def order(made: Nodes, instances: int | str) -> None:
    """Ask for so many instances, or leave it to the policy. Raises ClusterFailed."""
    status, told = made.post(f"/admin/v1/models/{MODEL}/scale", {"instances": instances})
    if not 200 <= status < 300:
        raise ClusterFailed(f"scale to {instances}: {status} {told}")


def _scale(made: Nodes, instances: int) -> None:
    order(made, instances)
    _await(made, instances)


def _await(made: Nodes, instances: int) -> None:
    """Wait until so many instances serve and nothing is under way. Raises ClusterFailed."""
    made.until(
        lambda: len(made.holders()) == instances and not under_way(made),
        f"{instances} instances with nothing under way",
        SETTLE_S,
    )


def initial(system: System, setting: Setting, arrivals: Sequence[Arrival]) -> int:
    """Return how many instances a system begins with."""

    def load() -> float:
        return levels.load(arrivals, setting.window_s, setting.steps)

    return conditions.initial(system, setting.nodes, setting.min_instances, load)


def _last(watch: Watch) -> dict[str, int]:
    return watch.looks[-1].states if watch.looks else {}
