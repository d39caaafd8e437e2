"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from blitzgw.weights import cache

_REAL_CACHE = {key: os.environ.get(key) for key in ("BLITZGW_CACHE", "XDG_CACHE_HOME")}


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


def pytest_configure() -> None:
    """Let processes of tests be interrupted: what a shell starts in the background ignores ^C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
