"""A model that only another node defines: its text comes by digest, whatever goes wrong."""

import asyncio
from dataclasses import replace

import pytest

from blitzgw.config import Config
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.rumours import Rumour, Status, Update
from blitzgw.definitions import Definitions
from blitzgw.errors import PeerLost
from blitzgw.gossip.directory import Directory, key_of
from blitzgw.placement import load_models
from blitzgw.wire import decode_card, encode_card, encode_fact

ME, A, B = "00" * 8, "aa" * 8, "bb" * 8
MODEL = "smollm2-135m"


def member(boot, started_s=1000):
    return Rumour(boot, f"n{boot[0]}", "127.0.0.1", 1, started_s, 0, Status.ALIVE)


@pytest.fixture(scope="module")
def owner():
    """The definitions of a node that has the model."""
    made = Definitions(load_models(Config()), MonotonicClock(), None)
    made.open(lambda: None)
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path))
    return tmp_path / "content"


class World:
    """Definitions of a node that has nothing, and what it can fetch from whom."""

    def __init__(self, owner, sources=(A,)):
        self.owner, self.asked, self.spoil = owner, [], {}
        self.directory = Directory(member(ME), 0.0)
        [self.facts] = owner.facts()
        for boot in sources:
            self.directory.member_changed(member(boot), 0.0)
            self.publish(boot, self.facts)
        self.known = asyncio.Event()
        self.definitions = Definitions([], MonotonicClock(0.05), self.fetch)
        self.definitions.open(self.known.set)

    def publish(self, boot, facts):
        update = Update(boot, key_of(facts), 1, encode_fact(facts))
        self.directory.updated([update], 0.0)

    async def fetch(self, boot, what, max_bytes):
        self.asked.append((boot, what.partition("/")[0]))
        await asyncio.sleep(0)
        if boot in self.spoil:
            return self.spoil[boot](self.owner, what)
        data = self.owner.content(what)
        assert len(data) <= max_bytes
        return data

    async def settle(self):
        self.definitions.settle(self.directory.view())
        async with asyncio.timeout(20):
            await self.known.wait()


async def test_text_is_the_owners(owner, cache):
    world = World(owner)
    await world.settle()
    theirs, ours = owner.table.lookup(MODEL), world.definitions.table.lookup(MODEL)
    assert replace(ours.spec, path=theirs.spec.path, weights=theirs.spec.weights) == theirs.spec
    text = "héllo, 世界 🦙 <|im_start|>"
    tokens = theirs.text.encode_now(text, True)
    assert ours.text.encode_now(text, True) == tokens
    assert ours.text.decode(tokens, skip_special_tokens=False) == text
    assert ours.text.template is not None
    assert world.asked == [(A, "card"), (A, "blob")]
    await world.definitions.close()


async def test_a_tokenizer_that_is_kept_is_not_fetched_again(owner, cache):
    for expected in (["card", "blob"], ["card"]):
        world = World(owner)
        await world.settle()
        assert [kind for _, kind in world.asked] == expected
        await world.definitions.close()


async def test_what_was_fetched_can_be_given_to_others(owner, cache):
    world = World(owner)
    await world.settle()
    card = decode_card(owner.content(f"card/{world.facts.digest}"))
    for what in (f"card/{world.facts.digest}", f"blob/{card.tokenizer}"):
        assert world.definitions.content(what) == owner.content(what)
    assert world.definitions.content("blob/../../etc/passwd") is None
    assert world.definitions.content("card/") is None
    await world.definitions.close()


def lost(owner, what):
    raise PeerLost("gone")


def garbage(owner, what):
    return b"\xc1 garbage"


def of_another(owner, what):
    card = decode_card(owner.content(what))
    return encode_card(replace(card, name="something else"))


def monstrous(owner, what):
    card = decode_card(owner.content(what))
    return encode_card(replace(card, shape=replace(card.shape, vocab=1 << 60)))


@pytest.mark.parametrize("spoil", [lost, garbage, of_another, monstrous])
async def test_a_source_that_does_not_give_it_is_passed_over(owner, cache, spoil):
    world = World(owner, sources=(A, B))
    world.spoil[A] = spoil
    await world.settle()
    assert {boot for boot, kind in world.asked if kind == "blob"} == {B}
    assert world.definitions.table.lookup(MODEL).name == MODEL
    await world.definitions.close()


async def test_it_is_tried_until_it_works(owner, cache):
    world = World(owner)
    world.spoil[A] = lost
    world.definitions.settle(world.directory.view())
    assert world.definitions.table.coming == {MODEL}
    while world.asked.count((A, "card")) < 3:
        await asyncio.sleep(0.01)
    del world.spoil[A]
    await world.settle()
    assert not world.definitions.table.coming
    await world.definitions.close()


async def test_what_nobody_defines_any_more_is_not_sought(owner, cache):
    world = World(owner)
    world.spoil[A] = lost
    world.definitions.settle(world.directory.view())
    await asyncio.sleep(0.02)
    world.directory.member_changed(member(A)._replace(status=Status.DEAD), 1.0)
    world.definitions.settle(world.directory.view())
    await asyncio.sleep(0.2)
    count = len(world.asked)
    await asyncio.sleep(0.2)
    assert len(world.asked) == count
    assert not world.definitions.table.coming
    await world.definitions.close()


async def test_a_full_disk_is_no_end(owner, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("BLITZGW_CACHE", str(blocked))
    world = World(owner)
    world.definitions.settle(world.directory.view())
    while len(world.asked) < 2:
        await asyncio.sleep(0.01)
    assert world.definitions.table.coming == {MODEL}
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path / "free"))
    await world.settle()
    await world.definitions.close()
