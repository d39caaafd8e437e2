"""Memory that is in use comes into huge pages, where the kernel has them, and stays what it is."""

from __future__ import annotations

import ctypes
import gc
import mmap
import re
import sys
from pathlib import Path

import pytest

from blitzgw import hugepages
from blitzgw.hugepages import GROWN_BYTES, HUGE_BYTES, Gathering, gather

SIZE = 4 * HUGE_BYTES


def huge_bytes() -> int:
    found = re.search(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(found[1]) << 10 if found else 0


def collapses() -> bool:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    version = Path("/proc/sys/kernel/osrelease")
    if not switch.exists() or "[never]" in switch.read_text():
        return False
    return tuple(map(int, version.read_text().split(".")[:2])) >= (6, 1)


def test_what_is_full_is_gathered_and_unchanged():
    if not collapses():
        pytest.skip("this kernel does not gather pages on demand")
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        content = bytes(i % 251 for i in range(SIZE // 64)) * 64
        memory[:] = content
        before = huge_bytes()
        gathered = gather()
        if not gathered:
            pytest.skip("the kernel has no huge page to spare")
        assert huge_bytes() > before
        assert memory[:] == content


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_what_is_nearly_empty_is_left_alone():
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        inside = range(start, start + SIZE)
        assert {at for at in hugepages._candidates() if at in inside}
        memory[::HUGE_BYTES] = b"a" * len(memory[::HUGE_BYTES])
        assert not {at for at in hugepages._worthwhile() if at in inside}
        memory[:] = b"a" * SIZE
        assert {at for at in hugepages._worthwhile() if at in inside}
        del start
        gc.collect()


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(hugepages.sys, "platform", "darwin")
    assert gather() == 0


def test_a_system_that_tells_nothing_is_left_alone(monkeypatch):
    def refuse():
        raise PermissionError

    monkeypatch.setattr(hugepages, "_worthwhile", refuse)
    assert gather() == 0


def test_memory_is_gathered_again_when_there_is_more(monkeypatch):
    resident, gathered = [100], []
    monkeypatch.setattr(hugepages, "_resident_bytes", lambda: resident[0])
    monkeypatch.setattr(hugepages, "gather", lambda: gathered.append(resident[0]) or 7)
    gathering = Gathering()
    assert gathering.look() == 7
    resident[0] += GROWN_BYTES - 1
    assert gathering.look() == 0
    resident[0] += 1
    assert gathering.look() == 7
    assert gathered == [100, 100 + GROWN_BYTES]
