"""What a node does with its copies: one of each weights, on one device."""

import asyncio
from types import SimpleNamespace

import pytest

from blitzgw.copydesk import CopyDesk, Surroundings
from blitzgw.copyshelf import CopyShelf, Deciders
from blitzgw.core.manifest import BlobDigest
from blitzgw.core.transfer import CopyFailed, CopyHeld, HoldCopy
from blitzgw.scaling import effects as eff
from blitzgw.scaling import events as ev
from blitzgw.weights.hostcache import NO_ROOM

W, DIGEST = "w", "d"
BLOBS = tuple(BlobDigest(10, bytes(32), 0) for _ in range(3))
HOLD = {device: eff.HoldWeights(device, "m", DIGEST, W, ()) for device in ("g0", "g1")}


class Runner:
    """A device whose worker is up, and what that is sent."""

    def __init__(self):
        self.up, self.instances, self.sent = True, {}, []
        self.supervisor = SimpleNamespace(send=self.sent.append)


class Files:
    """A folder of copies with nothing in it."""

    def list(self):
        return []


class Node:
    """A desk and a shelf with two devices; `heard` is what deciders are told."""

    def __init__(self):
        self.devices = {"g0": Runner(), "g1": Runner()}
        self.heard, self.fetched, self.tried = [], [], []
        card = SimpleNamespace(weights=W, blobs=BLOBS)
        definitions = SimpleNamespace(
            known=lambda _: SimpleNamespace(card=card, spec="spec"),
            digest_of=lambda _: DIGEST,
            terms_of=lambda *_: SimpleNamespace(host_cache_s=30.0),
            settled={},
        )
        keeper = SimpleNamespace(handle=lambda event, _: self.tried.append(event) or [])
        told = Deciders(self.heard.append, lambda event: self.desk.keep(event))
        self.shelf = CopyShelf(self.devices, definitions, told, lambda: None)
        self.shelf.open(Files())
        around = Surroundings(self.perform, self.fetched.append, lambda *_: False, lambda: 1 << 30)
        clock = SimpleNamespace(now=lambda: 0.0)
        self.desk = CopyDesk(self.devices, definitions, self.shelf, keeper, around, clock)

    def perform(self, effects):
        for effect in effects:
            self.desk.performers()[type(effect)](effect)

    def instance(self, device, failure=""):
        self.devices[device].instances["i"] = SimpleNamespace(
            served=SimpleNamespace(model="m"),
            digest=DIGEST,
            load=SimpleNamespace(model=SimpleNamespace(weights=W)),
            failure=failure,
        )


async def test_a_second_device_is_refused_and_only_the_steward_is_told():
    node = Node()
    node.instance("g0")
    node.desk.worker_up("g0")
    node.perform([HOLD["g1"]])
    await asyncio.sleep(0)
    [said] = node.heard
    assert (said.device, type(said.message)) == ("g1", CopyFailed)
    assert "g0" in said.message.message
    assert node.tried == []
    assert node.shelf.held[W].device == "g0"
    assert node.shelf.is_cached(W)
    assert node.devices["g1"].sent == []


@pytest.mark.parametrize("disk", [True, False], ids=["disk", "peers"])
async def test_a_copy_that_is_begun_is_gone_on_with_where_it_is(disk):
    node = Node()
    node.instance("g1")
    node.desk.worker_up("g1")
    node.perform([eff.ObtainCopy("g0", "m", DIGEST, W, disk)])
    assert not node.shelf.is_cached(W), "the cluster counts on it"
    assert node.devices["g0"].sent == []
    if disk:
        assert node.devices["g1"].sent[-1] == HoldCopy(W, "spec", BLOBS, (0, 1, 2))
    else:
        assert [effect.device for effect in node.fetched] == ["g1"]


@pytest.mark.parametrize("failure", ["", "no memory"])
def test_an_instance_that_has_failed_does_not_come_with_its_worker(failure):
    node = Node()
    node.instance("g0", failure)
    node.desk.worker_up("g0")
    assert node.shelf.is_cached(W) == (not failure)
    assert bool(node.devices["g0"].sent) == (not failure)


@pytest.mark.parametrize("why", ["cancelled", f"no: {NO_ROOM}, or else"])
def test_lack_of_memory_is_told_apart(why):
    node = Node()
    node.perform([HOLD["g0"]])
    node.shelf.told("g0", CopyFailed(W, why))
    assert node.tried == [ev.CopyTried(W, why, no_room=why != "cancelled")]
    node.perform([HOLD["g0"]])
    node.shelf.told("g0", CopyHeld(W, 30))
    assert node.desk.whole(W)
