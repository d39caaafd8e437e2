"""A cell in a process of its own: several can run, and one that dies takes no other along.

    parent   a task as a line of JSON  ─►  child   progress on standard error
                                       ◄─  a line: its nodes are up
             a line: begin             ─►
                                       ◄─  a record in a file

Children that run side by side begin side by side: nodes that come up take all processors there are,
and none may be measured meanwhile. A child ends at SIGTERM, which it also gets when its parent has
died, and takes its testbed along.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import msgspec

from blitzgw.sim.evaluation.record import Record
from blitzgw.sim.evaluation.store import read_record, write_record
from scripts.evaluation.cell import Cell, Task
from scripts.evaluation.configuration import ROOT
from tests.support.gateways import ClusterFailed
from tests.support.netns import CommandFailed, NotPermitted

END_S = 60.0
"""For a child to take its testbed down; then it is killed."""

SPACE_S, SPACE_POLL_S = 600.0, 5.0
"""How long a record that does not fit on the disk waits for room, for it has cost minutes."""

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
MAX_FAILURE = 4000
"""Characters of why a cell has failed: ends of logs."""


class NoRoom(Exception):
    """A record could not be written."""


class CellProcess:
    """A cell that is running."""

    def __init__(self, task: Task, file: Path) -> None:
        """Start it; the record will be in `file`. Raises OSError."""
        self.task, self._file = task, file
        file.unlink(missing_ok=True)
        words = ["setpriv", "--pdeathsig", "TERM", "--", sys.executable]
        words += ["-m", "scripts.evaluation.cellprocess", str(file)]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # ^C is for the parent, which ends its children in order
        )
        self._told = False
        self._tell(msgspec.json.encode(task))

    def ready(self) -> bool:
        """Tell whether its nodes are up, or it has ended without."""
        if not self._told:
            assert self._process.stdout is not None
            self._told = bool(select.select([self._process.stdout], [], [], 0)[0])
        return self._told

    def begin(self) -> None:
        """Let it begin to measure."""
        self._tell(b"begin")

    def done(self) -> bool:
        """Tell whether it has ended."""
        return self._process.poll() is not None

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it has ended of is in its record
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def record(self) -> Record:
        """Return what has come of it, a failure if there is nothing. Raises NoRoom."""
        code = self._process.wait()
        if code == os.EX_IOERR:
            raise NoRoom(f"{self._file}: no room for a record in {SPACE_S:g} s")
        try:
            return read_record(self._file)
        except (OSError, ValueError) as error:
            failure = f"the cell's process has ended with {code} and left no record: {error}"
            task = self.task
            return Record(task.system.name, task.seed, virtual=False, failure=failure)
        finally:
            self._close()

    def give_up(self) -> None:
        """Ask it to end."""
        if not self.done():
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End it, and everything that it has made."""
        self.give_up()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        self._file.unlink(missing_ok=True)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def run(task: Task) -> Record:
    """Run a cell; what goes wrong in it is told by its record. Raises NotPermitted."""
    cell = Cell(task, lambda text: print(text, file=sys.stderr, flush=True), await_turn)
    try:
        return cell.run()
    except NotPermitted:
        raise
    except (ClusterFailed, CommandFailed, TimeoutError) as error:
        cell.record.failure = f"{type(error).__name__}: {error}"[:MAX_FAILURE]
    except Exception as error:  # the campaign goes on; the record says what has happened
        trace = traceback.format_exc()[-MAX_FAILURE:]
        cell.record.failure = f"{type(error).__name__}: {error}\n{trace}"
    return cell.record


def await_turn() -> None:
    """Say that nodes are up, and wait until it is this cell's turn.

    Raises KeyboardInterrupt if whoever has started it is gone.
    """
    print("ready", flush=True)
    if not sys.stdin.buffer.readline():  # bounded by the other cells' starts
        raise KeyboardInterrupt


def keep(file: Path, record: Record) -> None:
    """Write a record, waiting for room. Raises OSError."""
    deadline_s = time.monotonic() + SPACE_S
    while True:
        try:
            return write_record(file, record)
        except OSError as error:
            if error.errno not in NO_SPACE or time.monotonic() > deadline_s:
                raise
            print(f"{file}: {error.strerror}; waiting for room", file=sys.stderr, flush=True)
            time.sleep(SPACE_POLL_S)


def main() -> int:
    """Run the task on standard input."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    try:
        keep(Path(sys.argv[1]), run(task))
    except KeyboardInterrupt:
        return 130
    except NotPermitted as error:
        print(f"there can be no testbed here: {error}", file=sys.stderr)
        return os.EX_NOPERM
    except OSError as error:
        print(f"{error}", file=sys.stderr)
        return os.EX_IOERR
    return 0


if __name__ == "__main__":
    sys.exit(main())
