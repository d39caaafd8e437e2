"""Fixtures of all tests."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blitzgw.weights import cache

_REAL_CACHE = {key: os.environ.get(key) for key in ("BLITZGW_CACHE", "XDG_CACHE_HOME")}


TIMED = {"cli", "cluster", "gossip", "node", "transport", "worker"}
"""Folders whose tests start processes, or go by the clock: they want the machine for themselves."""


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M in Q4_1, fetched once into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in _REAL_CACHE.items():
            if value is None:
                patch.delenv(key, raising=False)
            else:
                patch.setenv(key, value)
        return cache.add_model("smollm2-135m").path


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Compute tiny models on one thread: more of them would wait for each other at every step."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_configure() -> None:
    """Let processes of tests be interrupted: what a shell starts in the background ignores ^C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that are timed: of two processes (`pytest -n 2`) one has them all."""
    items.sort(key=lambda item: not _is_timed(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal tests out by the file, those that are timed as if they were in one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "timed" if _is_timed(nodeid) else nodeid.split("::")[0]

    return Scheduling(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give way to the tests that are timed, where they run beside this one."""
    if "PYTEST_XDIST_WORKER" in os.environ and not _is_timed(item.nodeid) and os.nice(0) == 0:
        os.setsid()
        os.nice(19)
        with contextlib.suppress(OSError):  # where Linux shares processors out by session
            Path("/proc/self/autogroup").write_text("19")


def _is_timed(nodeid: str) -> bool:
    return nodeid.split("/")[1] in TIMED
