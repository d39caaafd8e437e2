"""A model that only another node defines: its text comes by digest, whatever goes wrong."""

import asyncio
import logging
import os
from dataclasses import replace

import pytest

from blitzgw import definitions, textshelf
from blitzgw.api.text import Vocabulary
from blitzgw.config import Config
from blitzgw.core.card import content_digest
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.rumours import Rumour, Status, Update
from blitzgw.definitions import Definitions
from blitzgw.errors import CheckpointError, PeerLost, UnknownModel
from blitzgw.gossip.catalogue import KEPT_S
from blitzgw.gossip.directory import Directory, key_of
from blitzgw.placement import load_models
from blitzgw.weights.card import check_card
from blitzgw.weights.content import UNUSED_S, content_path, keep_content, read_content
from blitzgw.wire import decode_card, encode_card, encode_fact

ME, A, B = "00" * 8, "aa" * 8, "bb" * 8
MODEL = "smollm2-135m"


def member(boot, started_s=1000):
    return Rumour(boot, f"n{boot[0]}", "127.0.0.1", 1, started_s, 0, Status.ALIVE)


@pytest.fixture(scope="module")
def loaded():
    """The model, resolved while the cache folder is the user's."""
    return load_models(Config())


@pytest.fixture(scope="module")
def owner(loaded):
    """The definitions of a node that has the model."""
    made = Definitions(loaded, MonotonicClock(), None)
    made.open(lambda: None)
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLITZGW_CACHE", str(tmp_path))
    return tmp_path / "content"


class Hand:
    """A clock that is moved by hand."""

    def __init__(self):
        self.time_s, self.naps, self.sleepers = 1000.0, [], []

    def now(self):
        return self.time_s

    async def sleep(self, duration_s):
        self.naps.append(duration_s)
        entry = (self.time_s + duration_s, asyncio.get_running_loop().create_future())
        self.sleepers.append(entry)
        try:
            await entry[1]
        finally:
            self.sleepers.remove(entry)

    async def advance(self, duration_s):
        """Wake who has slept long enough, and let them do what they can at once."""
        await asyncio.sleep(0)  # who has just been started goes to sleep
        self.time_s += duration_s
        for end_s, woken in [*self.sleepers]:
            if end_s <= self.time_s and not woken.done():
                woken.set_result(None)
        for _ in range(20):
            await asyncio.sleep(0)


class World:
    """Definitions of a node that has nothing, and what it can fetch from whom."""

    def __init__(self, owner, sources=(A,), clock=None, models=()):
        self.owner, self.asked, self.spoil, self.shelf = owner, [], {}, {}
        self.directory = Directory(member(ME), 0.0)
        [self.facts] = owner.facts()
        for boot in sources:
            self.directory.member_changed(member(boot), 0.0)
            self.publish(boot, self.facts)
        self.known = asyncio.Event()
        self.definitions = Definitions(models, clock or MonotonicClock(0.05), self.fetch)
        self.definitions.open(self.changed)

    def changed(self):
        self.known.set()
        self.definitions.settle(self.directory.view())

    def end(self, boot, status=Status.DEAD):
        self.directory.member_changed(member(boot)._replace(status=status), 1.0)
        self.definitions.settle(self.directory.view())

    def define(self, boot, card, tokenizer=None, since_s=50):
        """Let a node define what a card says; return its digest."""
        if tokenizer is not None:
            card = replace(card, tokenizer=content_digest(tokenizer))
            self.shelf[f"blob/{card.tokenizer}"] = tokenizer
        digest = content_digest(encode_card(card))
        self.shelf[f"card/{digest}"] = encode_card(card)
        self.directory.member_changed(member(boot), 0.0)
        self.publish(boot, replace(self.facts, name=card.name, digest=digest, since_s=since_s))
        return digest

    def card(self):
        return decode_card(self.owner.content(f"card/{self.facts.digest}"))

    def publish(self, boot, facts):
        update = Update(boot, key_of(facts), 1, encode_fact(facts))
        self.directory.updated([update], 0.0)

    async def fetch(self, boot, what, max_bytes):
        self.asked.append((boot, what.partition("/")[0]))
        await asyncio.sleep(0)
        if boot in self.spoil:
            return self.spoil[boot](self.owner, what)
        data = self.shelf.get(what) or self.owner.content(what)
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
    here = replace(ours.spec, path=theirs.spec.path, tokenizer=theirs.spec.tokenizer)
    assert here == theirs.spec
    assert ours.spec.weights == world.facts.weights
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


def of_other_blobs(owner, what):
    card = decode_card(owner.content(what))
    return encode_card(replace(card, blobs=card.blobs[::-1]))


def monstrous(owner, what):
    card = decode_card(owner.content(what))
    return encode_card(replace(card, shape=replace(card.shape, vocab=1 << 60)))


@pytest.mark.parametrize("spoil", [lost, garbage, of_another, of_other_blobs, monstrous])
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
    world.end(A)
    await asyncio.sleep(0.2)
    count = len(world.asked)
    await asyncio.sleep(0.2)
    assert len(world.asked) == count
    assert not world.definitions._learning
    assert world.definitions.table.coming == {MODEL}
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


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_definition_outlives_the_restart_of_its_only_node(owner, cache):
    clock = Hand()
    world = World(owner, clock=clock)
    await world.settle()
    entry = world.definitions.table.lookup(MODEL)
    assert (entry.digest, entry.since_s) == (world.facts.digest, world.facts.since_s)
    world.end(A)
    for _ in range(2):
        await clock.advance(KEPT_S / 2 - 1)
        world.definitions.settle(world.directory.view())
        kept = world.definitions.table.lookup(MODEL)
        assert (kept.text, kept.digest) == (entry.text, entry.digest)
        assert world.definitions.holds(MODEL, entry.digest)
        assert world.definitions.settled[MODEL].sources == ()
    world.directory.member_changed(member(B), 2.0)
    world.publish(B, world.facts)
    world.definitions.settle(world.directory.view())
    await clock.advance(2 * KEPT_S)
    assert world.definitions.table.lookup(MODEL).text is entry.text
    assert [kind for _, kind in world.asked] == ["card", "blob"]
    await world.definitions.close()


async def test_what_has_gone_for_good_is_forgotten_by_itself(owner, cache):
    clock = Hand()
    world = World(owner, clock=clock)
    await world.settle()
    world.end(A, Status.LEFT)
    await clock.advance(KEPT_S)  # nobody settles but the definitions themselves
    with pytest.raises(UnknownModel):
        world.definitions.table.lookup(MODEL)
    await clock.advance(KEPT_S)
    assert not world.definitions._known
    assert not world.definitions._told
    assert world.definitions._tidying is None
    await world.definitions.close()


async def test_a_rival_that_lives_takes_over_from_one_that_has_gone(owner, cache):
    world = World(owner, clock=Hand())
    await world.settle()
    rival = world.define(B, replace(world.card(), max_model_len=512))
    world.publish(B, replace(world.facts, digest=rival, since_s=world.facts.since_s + 9))
    world.definitions.settle(world.directory.view())
    assert world.definitions.holds(MODEL, world.facts.digest)
    world.end(A)
    assert world.definitions.holds(MODEL, rival)
    await until(lambda: rival in world.definitions._known)
    assert world.definitions.table.lookup(MODEL).spec.max_model_len == 512
    await world.definitions.close()


async def test_own_models_are_known_before_they_are_published(owner, cache, loaded):
    world = World(owner, sources=(), models=loaded)
    world.definitions.settle(world.directory.view())
    assert world.definitions.table.lookup(MODEL).digest == world.facts.digest
    assert world.definitions.holds(MODEL, world.facts.digest)
    await world.definitions.close()


async def test_a_tokenizer_is_built_once_for_all_definitions_that_share_it(
    owner, cache, monkeypatch
):
    built = []

    def build(*given):
        built.append(given)
        return Vocabulary(*given)

    monkeypatch.setattr(textshelf, "Vocabulary", build)
    world = World(owner, sources=())
    card, data = world.card(), owner.content(f"blob/{world.card().tokenizer}")
    names = {f"m{n}": world.define(f"{n:016x}", replace(card, name=f"m{n}", max_model_len=100 + n),
                                   data) for n in range(1, 5)}  # fmt: skip
    world.definitions.settle(world.directory.view())
    await until(lambda: set(names.values()) <= world.definitions._known.keys())
    entries = [world.definitions.table.lookup(name) for name in names]
    assert len({id(entry.text.table) for entry in entries}) == len(built) == 1
    assert {entry.spec.max_model_len for entry in entries} == {101, 102, 103, 104}
    assert [kind for _, kind in world.asked].count("blob") == 1
    await world.definitions.close()


async def test_a_definition_that_differs_little_from_an_own_one_builds_nothing(
    owner, cache, loaded
):
    world = World(owner, sources=(), models=loaded)
    other = world.define(A, replace(world.card(), max_model_len=512))
    world.definitions.settle(world.directory.view())
    await until(lambda: other in world.definitions._known)
    mine, theirs = (world.definitions.table.lookup(MODEL), world.definitions._known[other])
    assert theirs.text.vocabulary is world.definitions._texts[MODEL].vocabulary
    assert mine.spec.max_model_len == 512  # theirs is older
    assert [kind for _, kind in world.asked] == ["card"]
    tokenizer = f"blob/{theirs.card.tokenizer}"
    assert world.definitions.content(tokenizer) == owner.content(tokenizer)
    await world.definitions.close()


async def test_a_kept_tokenizer_that_is_damaged_is_fetched_again(owner, cache):
    world = World(owner)
    digest = world.card().tokenizer
    keep_content(digest, owner.content(f"blob/{digest}"))
    content_path(digest).write_bytes(b"{}")
    await world.settle()
    assert [kind for _, kind in world.asked] == ["card", "blob"]
    assert content_path(digest).read_bytes() == owner.content(f"blob/{digest}")
    await world.definitions.close()


async def test_a_tokenizer_that_cannot_be_used_is_not_kept(owner, cache, caplog):
    clock = Hand()
    world = World(owner, sources=(), clock=clock)
    world.define(A, world.card(), b'{"no": "tokenizer"}')
    world.definitions.settle(world.directory.view())
    for attempts in (1, 2, 3):
        await clock.advance(60.0)
        await until(lambda n=attempts: len(world.asked) == 2 * n and len(clock.sleepers) == 1)
    assert [path.name for path in cache.iterdir()] == [".lock"]
    assert sum("not a tokenizer.json" in record.message for record in caplog.records) == 1
    await world.definitions.close()


async def test_attempts_become_rarer_and_tell_each_cause_once(owner, cache, caplog):
    clock, world = Hand(), None
    world = World(owner, clock=clock)
    world.spoil[A] = lost
    world.definitions.settle(world.directory.view())
    for n in range(8):
        await until(lambda n=n: len(clock.naps) == n + 1)
        if n == 4:
            world.spoil[A] = garbage
        await clock.advance(clock.naps[-1])
    assert clock.naps[:8] == [1, 2, 4, 8, 16, 30, 30, 30]
    told = [r.message for r in caplog.records if r.message.startswith("model_not_fetched")]
    assert len(told) == len(set(told)) == 2
    await world.definitions.close()


async def test_a_new_source_is_asked_at_once(owner, cache):
    clock = Hand()
    world = World(owner, clock=clock)
    world.spoil[A] = lost
    world.definitions.settle(world.directory.view())
    await until(lambda: clock.sleepers)
    world.directory.member_changed(member(B), 1.0)
    world.publish(B, world.facts)
    await world.settle()
    assert (B, "blob") in world.asked
    await world.definitions.close()


@pytest.mark.parametrize(
    "source", ["{{ " + "(" * 3000 + "1" + ")" * 3000, "{{ " + "9" * 5000 + "}}"]
)
async def test_a_template_that_does_not_compile_ends_nothing(owner, cache, source):
    clock = Hand()
    world = World(owner, sources=(), clock=clock)
    bad = world.define(A, replace(world.card(), chat_template=source))
    world.definitions.settle(world.directory.view())
    await until(lambda: clock.sleepers)
    world.publish(A, world.facts)
    await world.settle()
    assert world.definitions.holds(MODEL, world.facts.digest)
    assert bad not in world.definitions._known
    await world.definitions.close()


async def test_an_error_that_nobody_foresaw_is_told_once_and_tried_again(
    owner, cache, caplog, monkeypatch
):
    clock = Hand()
    world = World(owner, clock=clock)
    world.spoil[A] = lambda owner, what: [][1]
    world.definitions.settle(world.directory.view())
    for n in range(3):
        await until(lambda n=n: len(clock.naps) == n + 1)
        await clock.advance(60.0)
    assert [r.levelno for r in caplog.records].count(logging.ERROR) == 1
    del world.spoil[A]
    await until(lambda: clock.sleepers)
    await clock.advance(60.0)
    await world.settle()
    await world.definitions.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_model_len": 0},
        {"max_model_len": 1 << 31},
        {"eos_ids": tuple(range(65))},
        {"eos_ids": (-1,)},
        {"chat_template": "x" * ((1 << 20) + 1)},
        {"vocab": (1 << 20) + 1},
        {"vocab": 0},
    ],
)
def test_a_card_that_no_model_has_is_refused(owner, wrong):
    card = decode_card(owner.content(f"card/{owner.facts()[0].digest}"))
    check_card(card)
    if "vocab" in wrong:
        wrong = {"shape": replace(card.shape, **wrong)}
    with pytest.raises(CheckpointError, match="card of"):
        check_card(replace(card, **wrong))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda card: {"blobs": ()}, "0 blobs"),
        (lambda card: {"blobs": card.blobs[:-1]}, "31 blobs"),
        (lambda card: {"blobs": (*card.blobs, card.blobs[0])}, "33 blobs"),
        (lambda card: {"blobs": card.blobs[::-1]}, "blob 0 has"),
        (lambda card: {"blobs": (replace(card.blobs[0], blake3=b"x"), *card.blobs[1:])}, "none"),
        (lambda card: {"blobs": (replace(card.blobs[0], lanes=-1), *card.blobs[1:])}, "none"),
        (lambda card: {"blobs": (replace(card.blobs[0], lanes=1), *card.blobs[1:])}, "those of"),
        (lambda card: {"weights": "0" * 64}, "those of its blobs"),
        (lambda card: {"shape": replace(card.shape, qk_norm=True)}, "blob 1 has"),
        (lambda card: {"shape": replace(card.shape, norm_eps=1e-6)}, "those of its blobs"),
    ],
)
def test_a_card_whose_blobs_are_not_its_weights_is_refused(owner, change, why):
    card = decode_card(owner.content(f"card/{owner.facts()[0].digest}"))
    with pytest.raises(CheckpointError, match=why):
        check_card(replace(card, **change(card)))


def test_the_card_of_the_largest_model_can_be_fetched(owner):
    card = decode_card(owner.content(f"card/{owner.facts()[0].digest}"))
    blob = replace(card.blobs[0], size_bytes=(1 << 62) - 1, lanes=(1 << 64) - 1)
    largest = replace(card, blobs=(blob,) * 4098, chat_template="x" * (1 << 20))
    assert len(encode_card(largest)) < textshelf.CARD_BYTES


def test_what_a_node_tells_of_its_models(owner, loaded):
    [model], [facts] = loaded, owner.facts()
    assert facts.weights == model.manifest.root() == model.spec.weights
    assert facts.disk
    assert facts.host_copies == model.config.host_copies == 1


def pinned(loaded, digest):
    return [replace(model, config=replace(model.config, digest=digest)) for model in loaded]


async def test_a_node_answers_nothing_for_a_name_by_weights_other_than_its_pin(
    owner, loaded, cache, caplog
):
    own_weights = loaded[0].spec.weights
    world = World(owner, sources=(), models=pinned(loaded, own_weights))
    world.definitions.settle(world.directory.view())
    assert world.definitions.table.lookup(MODEL).spec.weights == own_weights
    assert "model_refused" not in caplog.text

    card = world.card()
    blobs = (replace(card.blobs[0], lanes=card.blobs[0].lanes ^ 1), *card.blobs[1:])
    other = replace(card, blobs=blobs, weights=replace(card.manifest(), blobs=blobs).root())
    digest = world.define(A, other)  # since before this node has
    await world.settle()
    for _ in range(3):
        world.definitions.settle(world.directory.view())
    assert world.definitions.settled[MODEL].digest == digest
    assert not world.definitions.holds(MODEL, world.definitions.digest_of(MODEL))
    with pytest.raises(UnknownModel):
        world.definitions.table.lookup(MODEL)
    refused = [r.getMessage() for r in caplog.records if "model_refused" in r.getMessage()]
    assert len(refused) == 1
    assert own_weights[:12] in refused[0]
    assert other.weights[:12] in refused[0]

    world.end(A)
    world.define(B, card)  # the same weights as here, whoever defines them
    world.definitions.settle(world.directory.view())
    assert world.definitions.table.lookup(MODEL).spec.weights == own_weights
    await world.definitions.close()


async def test_without_a_pin_the_first_definition_is_trusted(owner, loaded, cache, caplog):
    world = World(owner, sources=(), models=loaded)
    card = world.card()
    blobs = (replace(card.blobs[0], lanes=card.blobs[0].lanes ^ 1), *card.blobs[1:])
    other = replace(card, blobs=blobs, weights=replace(card.manifest(), blobs=blobs).root())
    world.define(A, other)
    await world.settle()
    assert world.definitions.table.lookup(MODEL).spec.weights == other.weights
    assert "model_refused" not in caplog.text
    await world.definitions.close()


def test_content_that_nobody_has_read_for_a_month_makes_room(cache):
    data = [b"old", b"used", b"new"]
    old, used, new = (content_digest(item) for item in data)
    for item in data[:2]:
        keep_content(content_digest(item), item)
        path = content_path(content_digest(item))
        stamp = path.stat().st_mtime - UNUSED_S - 10
        os.utime(path, (stamp, stamp))
    assert read_content(used) == b"used"
    keep_content(new, b"new")
    assert [read_content(digest) for digest in (old, used, new)] == [None, b"used", b"new"]


class Nodes:
    """Several nodes whose directories hold the same."""

    def __init__(self, loaded, monkeypatch):
        self.loaded, self.monkeypatch, self.nodes, self.boots = loaded, monkeypatch, {}, {}
        self.n = 0

    def start(self, name, max_model_len, at_s):
        """Start a node, anew where it was there before; it publishes before it hears of others."""
        self.n += 1
        self.boots[name] = boot = f"{self.n:016x}"
        self.monkeypatch.setattr(definitions, "unix_time", lambda: at_s)
        [model] = self.loaded
        model = replace(model, spec=replace(model.spec, max_model_len=max_model_len))
        made = Definitions([model], Hand(), None)
        made.open(lambda: None)
        directory = Directory(member(boot), 0.0)
        for other, (_, theirs) in self.nodes.items():
            directory.member_changed(member(self.boots[other]), 0.0)
            theirs.member_changed(member(boot), 0.0)
        self.nodes[name] = made, directory
        self.publish()

    def stop(self, name):
        del self.nodes[name]
        for _, directory in self.nodes.values():
            gone = member(self.boots[name])._replace(status=Status.LEFT)
            directory.member_changed(gone, 0.0)
        self.publish()

    def publish(self):
        """Tell everybody everything until nothing changes any more."""
        changed = True
        while changed:
            facts = {name: made.facts() for name, (made, _) in self.nodes.items()}
            for name, (_, directory) in self.nodes.items():
                for other, [fact] in facts.items():
                    if other == name:
                        directory.published({key_of(fact): fact}, 0.0)
                    else:
                        update = Update(self.boots[other], key_of(fact), 1, encode_fact(fact))
                        directory.updated([update], 0.0)
            settled = [made.settle(seen.view()) for made, seen in self.nodes.values()]
            changed = any(settled)

    def holds(self):
        """Return the digest that holds, on which all agree."""
        [digest] = {made.settled[MODEL].digest for made, _ in self.nodes.values()}
        return digest


async def test_a_definition_survives_the_restarts_of_its_nodes_one_by_one(
    loaded, monkeypatch, cache
):
    nodes = Nodes(loaded, monkeypatch)
    nodes.start("one", 2048, 10)
    nodes.start("two", 2048, 11)
    nodes.start("rival", 512, 50)
    first = nodes.holds()
    assert first == nodes.nodes["one"][0].digest_of(MODEL)
    for name, at_s in (("one", 100), ("two", 200), ("one", 300)):
        nodes.stop(name)
        assert nodes.holds() == first
        nodes.start(name, 2048, at_s)
        assert nodes.holds() == first
        assert nodes.nodes[name][0].facts()[0].since_s == 10
    nodes.stop("one")
    nodes.stop("two")
    assert nodes.holds() != first
    nodes.start("one", 2048, 400)  # the rival holds by now, and goes on to
    assert nodes.holds() != first


async def test_instances_batch_as_the_oldest_node_that_defines_the_model_says(owner, cache):
    world = World(owner, sources=())
    told = replace(world.facts, max_num_seqs=8, max_batched_tokens=2048, prefix_caching=False)
    for boot, facts in ((A, told), (B, replace(told, since_s=told.since_s + 9, max_num_seqs=3))):
        world.directory.member_changed(member(boot), 0.0)
        world.publish(boot, facts)
    world.definitions.settle(world.directory.view())
    found = world.definitions.config_of(MODEL, told.digest)
    assert (found.max_num_seqs, found.max_batched_tokens, found.prefix_caching) == (8, 2048, False)
    await world.definitions.close()


@pytest.mark.parametrize("batch", [(0, 512), (600, 512), (8, 1 << 40), (-1, 5)])
async def test_a_batching_that_cannot_be_is_not_believed(owner, cache, batch):
    world = World(owner, sources=())
    told = replace(world.facts, max_num_seqs=batch[0], max_batched_tokens=batch[1])
    world.directory.member_changed(member(A), 0.0)
    world.publish(A, told)
    world.definitions.settle(world.directory.view())
    found = world.definitions.config_of(MODEL, told.digest)
    assert (found.max_num_seqs, found.max_batched_tokens) == (64, 512)
    await world.definitions.close()
