"""What is in the machine's memory is taken as fast as configured, blob by blob, in order."""

import asyncio
import time
from itertools import pairwise

import pytest

from blitzgw.core.messages import BlobResident, ModelLoaded, UnloadModel
from blitzgw.core.transfer import CopyHeld
from blitzgw.worker.pacing import Pace
from tests.worker.transfer_kit import connect, peers, resolved
from tests.worker.worker_kit import PACED, write_checkpoint

TAKES_S = 0.4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return resolved(write_checkpoint(tmp_path_factory.mktemp("model"), layers=8))


def rate(model):
    return model.size_bytes / TAKES_S


async def timed(peer, model, instance):
    """Load an instance; when its blobs came, in order, and how long all of it took."""
    began = time.monotonic()
    peer.post(model.elsewhere.load(instance, reads=()))
    times = {}
    while len(times) < len(model.everything):
        await peer.wait(BlobResident, len(times) + 1, instance=instance)
        for message in peer.of(BlobResident, instance=instance):
            times.setdefault(message.index, time.monotonic() - began)
    await peer.wait(ModelLoaded, instance=instance)
    return times, time.monotonic() - began


async def test_a_copy_that_the_worker_holds_and_one_that_it_maps(model, tmp_path):
    options = {"copies": str(tmp_path / "copies"), "host_bytes_per_s": rate(model)}
    async with peers(PACED, PACED, **options) as (a, b):
        a.post(model.hold(reads=model.everything))
        await a.wait(CopyHeld)
        for peer in (a, b):
            times, all_s = await timed(peer, model, "i0")
            assert list(times) == list(model.everything), "in order"
            assert all_s >= TAKES_S
            halfway = times[len(times) // 2]
            assert 0.1 * TAKES_S < halfway < 0.9 * all_s, "layer by layer, not all at the end"
            peer.post(UnloadModel("i0"))
        times, all_s = await timed(a, model, "i1")
        assert all_s >= TAKES_S, "again"


async def test_what_an_instance_leaves_in_its_copy_and_what_arrives_meanwhile(model, tmp_path):
    slow = {"copies": str(tmp_path / "copies"), "host_bytes_per_s": model.size_bytes / 600}
    async with peers(PACED, **slow) as (a,), peers(PACED) as (b,):
        b.post(model.load())
        await b.wait(ModelLoaded)
        a.post(model.elsewhere.hold(), model.elsewhere.load("i0", reads=()))
        connect(b, a, model)
        await a.wait(ModelLoaded, instance="i0")  # what peers send is usable as it comes
        a.post(UnloadModel("i0"))
        await a.wait(CopyHeld)
        a.post(model.elsewhere.load("i1", reads=()))
        await asyncio.sleep(0.3)
        assert not a.of(ModelLoaded, instance="i1"), "from memory it takes ten minutes"
        a.post(UnloadModel("i1"))


def test_all_share_one_rate():
    pace = Pace(1000.0)
    began = time.monotonic()
    dues = [pace.due(100) for _ in range(4)]
    assert dues[0] >= began + 0.1
    assert [later - former for former, later in pairwise(dues)] == pytest.approx([0.1] * 3)
    assert not Pace(0.0).limited
    assert Pace(0.0).due(1 << 40) == 0.0
