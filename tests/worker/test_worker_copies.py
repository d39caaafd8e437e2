"""Host copies: made by one worker process, mapped by others, there after both; never trusted."""

import os
import signal

import pytest

from blitzgw.core.messages import BlobResident, LoadFailed, ModelLoaded, UnloadModel
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CapWeights,
    CopyFailed,
    CopyHeld,
    EdgeClosed,
)
from blitzgw.weights.hostcache import HostCopies
from tests.worker.transfer_kit import CPU, HOST, connect, memory_of, peers, resolved
from tests.worker.worker_kit import PACED, until, write_checkpoint


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return resolved(write_checkpoint(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return resolved(write_checkpoint(tmp_path_factory.mktemp("large"), layers=8, mlp=20_000))


@pytest.fixture
def copies(tmp_path):
    return HostCopies(tmp_path / "copies")


def there(copies):
    return [(file.weights, file.complete) for file in copies.list()]


def damage(copies, offset):
    (path,) = copies.folder.iterdir()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


async def test_a_copy_is_filled_by_peers_and_serves_others(small, copies):
    options = {"copies": str(copies.folder)}
    async with peers(PACED, PACED) as (a, c), peers(HOST, **options) as (h,):
        a.post(small.load())
        h.post(small.elsewhere.hold())
        connect(a, h, small, "fill")
        held = await h.wait(CopyHeld)
        assert (held.weights, held.size_bytes) == (small.weights, small.size_bytes)
        assert sorted(m.index for m in h.of(BlobChecked)) == list(small.everything)
        assert there(copies) == [(small.weights, True)]
        c.post(small.elsewhere.load(reads=()))
        connect(h, c, small, "serve")
        assert await c.tokens() == await a.tokens()
        h.post(small.hold(load=9))  # once more: it is held already
        assert (await h.wait(CopyHeld, 2)).load == 9
        h.post(small.drop())
        await until(lambda: not there(copies), "the end of the copy")


async def test_a_copy_is_filled_from_disk(small, copies):
    async with peers(HOST, copies=str(copies.folder)) as (h,):
        h.post(small.hold(reads=small.everything, load=4))
        await h.wait(CopyHeld, load=4)
        assert [m.index for m in h.of(BlobChecked, load=4)] == list(small.everything)
        h.post(small.drop(), small.hold(reads=small.everything, load=5))
        await h.wait(CopyHeld, load=5)
        assert [m.index for m in h.of(BlobChecked, load=5)] == list(small.everything)


@pytest.mark.parametrize("device", [PACED, CPU], ids=["paced", "cpu"])
async def test_a_copy_survives_its_maker_and_is_mapped_by_the_next(device, large, copies):
    options = {"copies": str(copies.folder)}
    async with peers(device, **options) as (a,):
        a.post(large.hold(), large.load())
        expected = await a.tokens()
        await a.wait(CopyHeld)
        os.kill(a.handle.pid, signal.SIGKILL)
        await a.box.death()
    assert there(copies) == [(large.weights, True)]
    async with peers(device, **options) as (b,):
        before = memory_of(b.handle.pid, "Anonymous")
        b.post(large.elsewhere.load("i1"))  # no disk, no peers
        assert await b.tokens("i1") == expected
        assert len(b.of(BlobResident)) == len(large.everything)
        grown = memory_of(b.handle.pid, "Anonymous") - before
        assert grown < large.size_bytes / 2  # the pages are the file's
        full = memory_of(b.handle.pid)
        b.post(UnloadModel("i1"))
        await until(
            lambda: full - memory_of(b.handle.pid) > large.size_bytes / 2, "the memory's return"
        )
    assert there(copies) == [(large.weights, True)]


async def test_unload_leaves_the_copy_which_serves_on(small, copies):
    async with peers(PACED, copies=str(copies.folder)) as (a,), peers(PACED) as (b,):
        a.post(small.hold(), small.load())
        expected = await a.tokens()
        a.post(UnloadModel("i0"))
        b.post(small.elsewhere.load(reads=()))
        connect(a, b, small)
        assert await b.tokens() == expected
        a.post(small.elsewhere.load("i1", reads=()))
        assert await a.tokens("i1") == expected


async def test_half_a_copy_is_gone_on_with(large, copies):
    options = {"copies": str(copies.folder)}
    async with peers(PACED) as (a,):
        a.post(large.load())
        await a.wait(ModelLoaded)
        a.post(CapWeights(large.size_bytes / 3))
        async with peers(HOST, **options) as (h,):
            h.post(large.elsewhere.hold())
            connect(a, h, large, "first")
            await h.wait(BlobChecked, 4)
            os.kill(h.handle.pid, signal.SIGKILL)
            await h.box.death()
        assert there(copies) == [(large.weights, False)]
        a.post(CapWeights(0))
        async with peers(HOST, **options) as (h,):
            h.post(large.elsewhere.hold())
            await h.wait(BlobChecked, 4)
            found = sum(large.blobs[m.index].size_bytes for m in h.of(BlobChecked))
            connect(a, h, large, "second")
            await h.wait(CopyHeld)
            assert (await h.wait(EdgeClosed)).payload_bytes <= large.size_bytes - found


async def test_an_instance_gives_a_copy_of_what_it_has(small, copies):
    async with peers(PACED, copies=str(copies.folder)) as (a,), peers(PACED) as (b,):
        a.post(small.load())
        expected = await a.tokens()
        a.post(small.elsewhere.hold())
        await a.wait(CopyHeld)
        assert there(copies) == [(small.weights, True)]
        a.post(UnloadModel("i0"))  # from here on the file is what it serves from
        await a.wait(CopyHeld, 2)
        b.post(small.elsewhere.load(reads=()))
        connect(a, b, small)
        assert await b.tokens() == expected


async def test_a_copy_of_an_instance_that_goes_is_given_up(small, copies):
    async with peers(PACED, copies=str(copies.folder)) as (a,):
        a.post(small.elsewhere.load(reads=()), small.elsewhere.hold(), UnloadModel("i0"))
        assert "gone" in (await a.wait(CopyFailed)).message
        await until(lambda: not there(copies), "the end of the copy")


async def test_an_instance_that_nobody_fills_is_refused_though_a_copy_is_begun(small, copies):
    async with peers(PACED, copies=str(copies.folder)) as (a,):
        a.post(small.elsewhere.hold(), small.elsewhere.load("i0"))
        assert "scale it again" in (await a.wait(LoadFailed, instance="i0")).message
        a.post(small.hold(reads=small.everything))  # the copy goes on without it
        await a.wait(CopyHeld)
        a.post(small.elsewhere.load("i1"))
        await a.tokens("i1")


async def test_what_was_removed_under_an_instance_is_made_again(small, copies):
    async with peers(PACED, copies=str(copies.folder)) as (a,):
        a.post(small.hold(), small.load())
        await a.wait(CopyHeld)
        expected = await a.tokens()
        a.post(small.drop())
        await until(lambda: not there(copies), "the end of the copy")
        a.post(small.elsewhere.hold(load=5))
        await a.wait(CopyHeld, load=5)
        assert there(copies) == [(small.weights, True)]
        a.post(UnloadModel("i0"), small.elsewhere.load("i1"))
        assert await a.tokens("i1") == expected


async def test_a_damaged_copy_is_found_and_read_again(small, copies):
    options = {"copies": str(copies.folder)}
    async with peers(HOST, **options) as (h,):
        h.post(small.hold(reads=small.everything))
        await h.wait(CopyHeld)
    damage(copies, 5)  # of the embedding, which is the first blob
    async with peers(PACED, PACED, **options) as (a, b):
        a.post(small.load())
        assert (await a.wait(BlobDamaged)).index == 0
        b.post(small.load("i1"))
        assert await a.tokens() == await b.tokens("i1")
        assert a.of(BlobResident)[-1].index == 0


async def test_a_damaged_copy_is_not_held(small, copies):
    options = {"copies": str(copies.folder)}
    async with peers(HOST, **options) as (h,):
        h.post(small.hold(reads=small.everything))
        await h.wait(CopyHeld)
    damage(copies, 5)
    async with peers(HOST, **options) as (h,):
        h.post(small.elsewhere.hold())
        assert "damaged" in (await h.wait(CopyFailed)).message
        assert h.of(CopyHeld) == []
        assert there(copies) == []
        h.post(small.hold(reads=small.everything))
        await h.wait(CopyHeld)


async def test_a_copy_that_cannot_be_made_is_told_and_the_instance_serves(small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    async with peers(PACED, copies=str(tmp_path / "file")) as (a,), peers(PACED) as (b,):
        a.post(small.hold(), small.load())
        await a.tokens()
        assert (await a.wait(CopyFailed)).weights == small.weights
        assert a.of(LoadFailed) == []
        b.post(small.hold(reads=small.everything))
        assert "folder" in (await b.wait(CopyFailed)).message


async def test_a_copy_whose_disk_fails_leaves_nothing(small, copies, tmp_path):
    broken = small.at(tmp_path / "nowhere")
    async with peers(HOST, copies=str(copies.folder)) as (h,):
        h.post(broken.hold(reads=small.everything))
        assert "nowhere" in (await h.wait(CopyFailed)).message
        assert there(copies) == []
