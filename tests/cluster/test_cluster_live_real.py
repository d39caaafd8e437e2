"""SmolLM2 on two nodes, one of them loading: prompts are split, and tokens are those of one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.live_real_kit import (
    BURST,
    LAYERS,
    Burst,
    Verdict,
    gaps,
    home,
    judge,
    pair,
    token_ids,
)
from tests.cluster.scale_kit import LONG, ended, scale
from tests.support.clusters import Cluster
from tests.support.nodes import Reply, until

FEW = 5


@pytest.fixture(scope="module")
def nodes(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert smollm2.is_file()
    with pair(tmp_path_factory.mktemp("live")) as made:
        yield made


@pytest.fixture(scope="module")
def alone(nodes: Cluster) -> list[Reply]:
    """What one instance answers, with nothing else there. No prefix is kept of it."""
    return Burst(nodes, "a").answers()


def resident(nodes: Cluster, asked: str) -> int:
    """How many layers the instance has that is loading; -1 where there is none."""
    found = [i for i in nodes.get(asked, "instances") if i["state"] != "serving" and i.get("helps")]
    return int(found[0]["layers_resident"]) if found else -1


def reach(nodes: Cluster, asked: str, layers: int) -> None:
    """Wait until so many layers are there, without keeping the processors busy with asking."""

    def there() -> bool:
        time.sleep(0.05)
        return resident(nodes, asked) >= layers

    until(there, f"{layers} layers")


def show(capsys: pytest.CaptureFixture[str], what: str, verdict: Verdict) -> None:
    with capsys.disabled():
        print(f"\n{what}: {verdict}")


def test_a_burst_while_the_second_instance_loads(
    nodes: Cluster, alone: list[Reply], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = home(nodes)
    begun = scale(nodes, asked, 2, policy="zigzag")
    reach(nodes, asked, 1)
    burst = Burst(nodes, asked)
    verdict = judge(burst.answers(), alone)
    show(capsys, "zigzag, real compute", verdict)
    assert ended(nodes, asked, begun["id"])["state"] == "done"
    assert not verdict.wrong
    assert verdict.split
    helper = "b" if asked == "a" else "a"
    after = judge(Burst(nodes, helper, range(2)).answers(), alone[:2])
    assert not after.wrong
    assert not after.split


@pytest.mark.parametrize("whose", ["helper", pytest.param("home", marks=LONG)])
def test_a_worker_that_dies_in_mid_load(
    nodes: Cluster, alone: list[Reply], capsys: pytest.CaptureFixture[str], whose: str
) -> None:
    """All are answered by the other one, or by the home when it has started anew."""
    asked = home(nodes)
    helper = "b" if asked == "a" else "a"
    begun = scale(nodes, asked, 2, policy="zigzag")
    reach(nodes, asked, 1)
    burst = Burst(nodes, helper if whose == "home" else asked, range(FEW))
    reach(nodes, asked, LAYERS // 2)
    os.kill(nodes.nodes[helper if whose == "helper" else asked].worker(), signal.SIGKILL)
    verdict = judge(burst.answers(), alone[:FEW])
    show(capsys, f"{whose} killed, real compute", verdict)
    assert not verdict.wrong
    ended(nodes, helper, begun["id"])


def test_the_comparison_would_notice(alone: list[Reply]) -> None:
    """Prompts are answered differently, and nearly all of the tokens clearly."""
    assert len({tuple(token_ids(reply)) for reply in alone}) == BURST
    found = [gap for reply in alone for gap in gaps(reply)]
    assert sum(gap > 1e-2 for gap in found) > 0.9 * len(found)
