"""A source whose port serves requests is avoided, on the network without a name too."""

from __future__ import annotations

import pytest

from blitzgw.core.plan import Holder, Links, Port, Task
from blitzgw.scaling.planner.ground import Ground

RATE = 100.0


@pytest.mark.parametrize("network", ["", "fast"])
def test_a_busy_source_is_avoided_but_on_its_own_node(network):
    ports = {(name, network): Port(RATE, RATE) for name in "bc"}
    ports["a", network] = Port(RATE, RATE, serving_tx_bytes_per_s=RATE / 2)
    holders = [Holder(f"{name}/g0", frozenset({0})) for name in "ab"]
    ground = Ground(Task((10,), ("c/g0",), tuple(holders)), Links(ports))
    assert ground.busy("a/g0", "c/g0")
    assert not ground.busy("b/g0", "c/g0")
    assert not ground.busy("a/g0", "a/g1"), "that goes through its memory"
    assert ground.ranked(["a/g0", "b/g0"], "c/g0", [0])[0] == "b/g0"
