"""What a node tells of loads by gossip, and how often."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from blitzgw.core.rumours import Rumour, Status
from blitzgw.core.view import LoadFacts
from blitzgw.gossip.directory import Directory
from blitzgw.publishing import GOSSIP_LOAD_S, Publisher

ME = "ff" * 8


@pytest.mark.parametrize("every_s", [0.25, 0.05])
def test_loads_that_always_change_are_gossiped_once_in_their_period(every_s: float) -> None:
    """However much or little late the timers are by which they are looked at."""
    clock, told = SimpleNamespace(now=lambda: now), list[float]()
    network: Any = SimpleNamespace(report=lambda _: None, publish=lambda _: told.append(now))
    now = 0.0
    directory = Directory(Rumour(ME, "me", "127.0.0.1", 1, 0, 0, Status.ALIVE), now)
    publisher = Publisher(directory, network, clock)
    for look in range(1, 1 + round(20 / every_s)):
        now = look * every_s + (0.004, 0.003, 0.0, 0.002, 0.001)[look % 5]
        publisher.loads([LoadFacts("m@me/d", look, 0, 0, 0.0, None, None)])
    pauses_s = [later - at for at, later in pairwise(told)]
    assert pauses_s == pytest.approx([GOSSIP_LOAD_S] * len(pauses_s), abs=0.01)
    assert len(told) >= 20
