"""Network namespaces, shaped links between them, and how to get rid of all that.

What a testbed makes carries its name in front, on the file systems of the kernel and of memory as
much as on the disk: `bgw-PID-TICKS-SERIAL-what`, with the id and the start of the process that made
it. So no list has to be kept: what is left of a process that was killed is found by its name, and
told from what belongs to one that lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PREFIX = "bgw-"
NAMESPACES = Path("/run/netns")
CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
MEMORY = Path("/dev/shm")

BURST, QUEUE = "512kb", "50ms"
"""Of a token bucket: more than the largest packet that is handed over in one, and how long the
queue before it may become."""

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_S = 10.0
COMMAND_S = 30.0
"""Longest time of an `ip` or `tc`; none takes a second unless the machine is at its limits."""

CLONE_NEWNET = 0x40000000

_serials = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


class NotPermitted(Exception):
    """Namespaces or shaping cannot be had here; says why."""


class CommandFailed(Exception):
    """A command of the system has failed; says which, and what it said."""


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes that an interface has received and sent, with the headers of packets as it saw them."""

    received: int
    sent: int


def new_name() -> str:
    """Return what all names of one testbed of this process begin with."""
    return f"{PREFIX}{os.getpid()}-{_ticks(os.getpid())}-{next(_serials)}"


def is_orphan(name: str) -> bool:
    """Whether the process that made something of this name has ended."""
    parts = name.removeprefix(PREFIX).split("-")
    if len(parts) < 3 or not (parts[0].isdigit() and parts[1].isdigit()):
        return False  # not of our making
    return _ticks(int(parts[0])) != int(parts[1])


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals that end a process wait until the block is done."""
    held: list[int] = []
    try:
        with handling(lambda number, _frame: held.append(number)):
            yield
    finally:
        for number in held:
            signal.raise_signal(number)


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle the signals that end a process; those are the main thread's business."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def command(*words: str) -> str:
    """Run a command of the system, out of reach of ^C; return what it prints."""
    with uninterrupted():  # else it might go on by itself, unknown to who cleans up
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=COMMAND_S, start_new_session=True
        )
    if done.returncode:
        raise CommandFailed(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def check_permitted() -> None:
    """Try all that a testbed needs; raises NotPermitted."""
    for tool in ("ip", "tc", "setpriv"):
        if shutil.which(tool) is None:
            raise NotPermitted(f"`{tool}` is not installed (iproute2, util-linux)")
    if os.geteuid() != 0:
        raise NotPermitted("network namespaces need root")
    name = new_name()
    try:
        add_namespaces([f"{name}-a", f"{name}-b"])
        join_ends((f"{name}-a", "e0"), (f"{name}-b", "e0"), 1500)
        shape(f"{name}-a", "e0", 100)
        with inside(f"{name}-a"):
            pass
    except (CommandFailed, OSError) as error:
        raise NotPermitted(f"this machine does not allow it: {error}") from None
    finally:
        remove_namespaces(found(NAMESPACES, name))


def add_namespaces(names: Iterable[str]) -> None:
    """Make namespaces with a loopback interface that is up."""
    for name in names:
        command("ip", "netns", "add", name)
        command("ip", "-n", name, "link", "set", "lo", "up")


def join_ends(one: tuple[str, str], other: tuple[str, str], mtu: int) -> None:
    """Lay a cable between two (namespace, interface); it never is in the one that we are in."""
    peer = ["peer", "name", other[1], "netns", other[0], "mtu", str(mtu)]
    command("ip", "-n", one[0], "link", "add", one[1], "mtu", str(mtu), "type", "veth", *peer)
    for name, interface in (one, other):
        command("ip", "-n", name, "link", "set", interface, "up")


def shape(name: str, interface: str, rate_mbit: float) -> None:
    """Let an interface send at most at a rate."""
    rate = f"{round(rate_mbit * 1e6)}bit"
    bucket = ["tbf", "rate", rate, "burst", BURST, "latency", QUEUE]
    command("tc", "-n", name, "qdisc", "replace", "dev", interface, "root", *bucket)


def payload_share(mtu: int) -> float:
    """Return how much of a shaped link TCP leaves for payload: headers are counted, too.

    Of each packet 52 bytes are those of IP and TCP with a time stamp; 14 more are Ethernet's.
    """
    return (mtu - 52) / (mtu + 14)


def counters(name: str, interface: str) -> Counters:
    """Read the counters of an interface."""
    with inside(name), open("/proc/thread-self/net/dev") as file:
        for line in file:
            label, _, figures = line.partition(":")
            if label.strip() == interface:
                fields = figures.split()
                return Counters(int(fields[0]), int(fields[8]))
    raise CommandFailed(f"{name} has no interface {interface}")


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Be in a namespace with this thread: sockets that are made meanwhile stay in it."""
    with open("/proc/thread-self/ns/net") as home, (NAMESPACES / name).open() as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def members(name: str) -> list[int]:
    """The processes in a namespace."""
    wanted = _inode(NAMESPACES / name)
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if wanted and _inode(Path(f"/proc/{pid}/ns/net")) == wanted]


def remove_namespaces(paths: Iterable[Path]) -> None:
    """End all processes in namespaces, by their ids, then remove those."""
    paths = list(paths)
    end_processes(pid for path in paths for pid in members(path.name))
    for path in paths:
        command("ip", "netns", "del", path.name)


def end_processes(pids: Iterable[int]) -> None:
    """Kill processes and wait until they are gone."""
    left = list(pids)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + END_S
    while (left := [pid for pid in left if not _is_gone(pid)]) and time.monotonic() < deadline_s:
        time.sleep(0.01)


def found(folder: Path, name: str = PREFIX) -> list[Path]:
    """What is in a folder under names that begin so."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if path.name.startswith(name))
    return []


def names(*, orphans_only: bool) -> list[str]:
    """The testbeds of which there is anything, `PREFIX…` up to their serial numbers."""
    places = (NAMESPACES, CPU_GROUPS, MEMORY, Path(tempfile.gettempdir()))
    whole = {path.name for place in places for path in found(place)}
    made = {"-".join(name.split("-")[:4]) for name in whole}
    return sorted(name for name in made if is_orphan(f"{name}-") or not orphans_only)


def remove_all(name: str) -> list[str]:
    """Remove whatever there is under names that begin so; return what could not be."""
    failures = []
    steps = (
        lambda: remove_namespaces(found(NAMESPACES, f"{name}-")),
        lambda: [_remove_group(path) for path in found(CPU_GROUPS, f"{name}-")],
        lambda: [shutil.rmtree(path) for path in found(MEMORY, f"{name}-")],
        lambda: [shutil.rmtree(path) for path in found(Path(tempfile.gettempdir()), f"{name}-")],
    )
    for step in steps:
        try:
            step()
        except (CommandFailed, OSError, subprocess.TimeoutExpired) as failure:
            failures.append(str(failure))
    return failures


def limit_cpu(group: str, cores: float) -> None:
    """Make a group of processes that may use so many cores."""
    folder = CPU_GROUPS / group
    try:
        folder.mkdir()
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        (folder / "cpu.cfs_quota_us").write_text(str(round(cores * period_us)))
    except OSError as error:
        raise NotPermitted(f"no cgroup v1 for cpu quotas: {error}") from None


def entering(name: str, group: str = "") -> list[str]:
    """What to put before a command so that it runs in a namespace, and dies with this process."""
    words = ["setpriv", "--pdeathsig", "KILL", "--"]
    if group:
        join = f'echo $$ > {CPU_GROUPS / group}/cgroup.procs; exec "$@"'
        words += ["sh", "-c", join, "sh"]
    return [*words, "ip", "netns", "exec", name]


def _remove_group(path: Path) -> None:
    pids = (path / "cgroup.procs").read_text().split()
    end_processes(map(int, pids))
    path.rmdir()


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _ticks(pid: int) -> int:
    """When a process started, in ticks of the kernel; 0: there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def _is_gone(pid: int) -> bool:
    return _ticks(pid) == 0
