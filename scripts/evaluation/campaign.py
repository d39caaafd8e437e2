"""All cells of an evaluation, in turns: every system of a seed, then the next seed.

The order within a seed is drawn with it, so that what drifts hits all systems alike, and none comes
always after the same one. Cells that are there are not run again, save those that something else on
the machine has disturbed, up to ATTEMPTS times each call: what was is kept beside, and told. What
has failed, or said something wrong, is a finding, and stays.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blitzgw.sim.evaluation.ladder import System
from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.store import Store
from blitzgw.sim.evaluation.summary import row, why_void
from blitzgw.sim.evaluation.tables import report
from scripts.evaluation.cell import Task
from scripts.evaluation.cellprocess import CellProcess
from scripts.evaluation.configuration import Setting

ATTEMPTS = 3
"""Of a cell in one call: lag comes from what else the machine does, and passes."""

POLL_S = 0.5
"""Between two looks at cells, which take minutes."""

MIN_FREE_BYTES = 64 << 20
"""Room that a campaign wants before each cell: records, and the logs of nodes."""


class NoRoomLeft(Exception):
    """The disk is full; what is finished is kept."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which cells."""

    setting: Setting
    systems: Sequence[System]
    seeds: Sequence[int]
    jobs: int = 1
    targets: Mapping[str, float] = field(default_factory=dict)
    """Bounds of systems that have one of their own."""


class Campaign:
    """Runs cells and keeps them."""

    def __init__(
        self, wish: Wish, store: Store, about: dict[str, Any], progress: Callable[[str], None]
    ) -> None:
        self._wish, self._store, self._about, self._progress = wish, store, about, progress
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}

    def begin(self) -> None:
        """Make the folder, or go on in it. Raises OtherSettings, OSError."""
        wish = self._wish
        settings = {**wish.setting.told(), "targets": dict(wish.targets), "jobs": wish.jobs}
        self._store.begin(settings)
        call = {key: self._about.get(key) for key in ("begun", "commit", "command")}
        self._store.tell({**self._about, "calls": [*self._store.about().get("calls", []), call]})
        for record in self._store.records():
            self._rows[record.system, record.seed] = row(record)
        self.tell()

    def run(self) -> None:
        """Run what is not there. Raises NoRoomLeft, NoRoom, KeyboardInterrupt."""
        for attempt in range(1, ATTEMPTS + 1):
            if todo := [task for task in self._tasks() if self._open(task)]:
                again = f", attempt {attempt}" if attempt > 1 else ""
                self._progress(f"{len(todo)} cells to run{again}")
                self._pass(todo)

    @property
    def missing(self) -> list[tuple[str, int]]:
        """The cells that there are not, or that something has disturbed."""
        return [(task.system.name, task.seed) for task in self._tasks() if self._open(task)]

    @property
    def failed(self) -> list[tuple[str, int]]:
        """The cells that are void for good."""
        tasks = [task for task in self._tasks() if not self._open(task)]
        keys = [(task.system.name, task.seed) for task in tasks]
        return [key for key in keys if self._rows[key]["void"]]

    def tell(self) -> None:
        """Write the rows and the table. Raises OSError."""
        rows = [self._rows[key] for key in sorted(self._rows, key=self._place)]
        self._store.write("summary.json", json.dumps(rows, indent=1) + "\n")
        self._store.write("table.txt", report(rows, self._store.about()))

    def _place(self, key: tuple[str, int]) -> tuple[int, int, str]:
        """Where a cell's row is: by seed, and in the order that was asked for."""
        names = [system.name for system in self._wish.systems]
        system, seed = key
        return seed, names.index(system) if system in names else len(names), system

    def _tasks(self) -> Iterator[Task]:
        wish = self._wish
        for seed in wish.seeds:
            dice = random.Random(f"order {seed}")
            for system in dice.sample(wish.systems, len(wish.systems)):
                target_s = wish.targets.get(system.name, wish.setting.ttft_target_s)
                setting = replace(wish.setting, ttft_target_s=target_s)
                yield Task(setting, system, seed, self._about)

    def _open(self, task: Task) -> bool:
        """Tell whether a cell is to be run, or run again."""
        found = self._rows.get((task.system.name, task.seed))
        return found is None or bool(found["disturbed"])

    def _pass(self, todo: Sequence[Task]) -> None:
        """Run tasks in order, some side by side; whatever happens none is left running."""
        jobs, began_s = self._wish.jobs, time.monotonic()
        for number in range(0, len(todo), jobs):
            running: list[CellProcess] = []
            try:
                for task in todo[number : number + jobs]:
                    running.append(self._start(task))
                _await(running, CellProcess.ready)
                for cell in running:
                    cell.begin()
                while running:
                    time.sleep(POLL_S)  # bounded by the cells' own bounds
                    for cell in [one for one in running if one.done()]:
                        self._take(cell.record())
                        running.remove(cell)
            finally:
                for cell in running:
                    cell.give_up()
                for cell in running:
                    cell.end()
            done = min(number + jobs, len(todo))
            left_s = (time.monotonic() - began_s) / done * (len(todo) - done)
            self._progress(f"{done} of {len(todo)} cells, about {left_s / 60:.0f} minutes left")

    def _start(self, task: Task) -> CellProcess:
        folder = self._store.folder
        if shutil.disk_usage(folder).free < MIN_FREE_BYTES:
            raise NoRoomLeft(f"{folder}: less than {MIN_FREE_BYTES >> 20} MiB are free")
        self._progress(f"{task.system.name}, seed {task.seed}: begins")
        name = self._store.file(task.system.name, task.seed).name
        return CellProcess(task, folder / f".running-{name}")

    def _take(self, record: Record) -> None:
        """Keep a record and tell of it; the one whose place it takes was disturbed."""
        void = why_void(record)
        self._store.set_aside(record.system, record.seed)
        self._store.put(record)
        self._rows[record.system, record.seed] = row(record)
        if void:
            told = {"system": record.system, "seed": record.seed, "why": void}
            self._store.tell({"void_runs": [*self._store.about().get("void_runs", []), told]})
        self._progress(f"{record.system}, seed {record.seed}: {outcome(record)}")
        self.tell()


def _await(cells: Sequence[CellProcess], there: Callable[[CellProcess], bool]) -> None:
    """Wait for something of all cells, which bound it themselves."""
    while not all(there(cell) for cell in cells):
        time.sleep(POLL_S)


def outcome(record: Record) -> str:
    """Say in a line what a cell has shown."""
    if void := why_void(record):
        return f"VOID, {void}"
    found = row(record)
    return (
        f"attained {found['attainment']:.1%}, p99 TTFT {found['ttft_p99']:.3f} s,"
        f" {found['instance_seconds']:.0f} instance s, {found['failed']} failed,"
        f" {found['split']} split, lag {1e3 * found['lag_p99']:.1f} ms"
    )
