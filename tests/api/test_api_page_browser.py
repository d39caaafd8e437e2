"""The page in a real browser: what is seen, what is typed, what cannot get in."""

import asyncio
from dataclasses import replace

import pytest

from blitzgw.api import watching
from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.request import FinishReason, TokenEvent
from blitzgw.core.rumours import Status
from blitzgw.core.span import Span
from blitzgw.core.view import (
    DeviceFacts,
    HostFacts,
    LoadFacts,
    ModelFacts,
    NodeFacts,
    ScaleFacts,
)
from blitzgw.errors import GenerationFailed, Overloaded
from tests.api import view_kit
from tests.api.view_kit import FakeCluster, instance
from tests.support.browser import chromium, connected, installed
from tests.support.scaling import FakeScaling, chain

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium is installed")

WORDS = "The quick brown fox jumps over the lazy dog."
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>'


DEVICE = DeviceFacts("cpu0", DeviceKind.CPU, "Xeon", 16 << 30, 1)


def node(boot, name, status=Status.ALIVE, **more):
    more.setdefault("facts", NodeFacts(name, "http://10.0.0.7:8000"))
    return view_kit.node(
        boot, name, status, devices=[DEVICE], host_facts=HostFacts(8 << 30), **more
    )


MODEL = ModelFacts("m", "d1", 30, 5)
HOME = node(
    "b1", "node-1", instances=[instance("i1")], models=[MODEL],
    loads=[LoadFacts("i1", 3, 2, 50, 0.25, 2000.0, 0.03)],
    scaling=[ScaleFacts("m", "auto", 1, 2, 1.2, since_s=4.0)],
)  # fmt: skip


class Owners(FakeScaling):
    async def whys(self):
        return ()


@pytest.fixture(scope="module")
def chromium_address():
    with chromium() as address:
        yield address


@pytest.fixture
async def tab(chromium_address):
    async with connected(chromium_address) as browser:
        yield await browser.tab()


@pytest.fixture
def cluster():
    return FakeCluster(HOME)


@pytest.fixture
async def world(make_world, cluster, monkeypatch):
    monkeypatch.setattr(watching, "LOOK_S", 0.02)
    return await make_world(cluster=cluster)


UP = "document.querySelector('#up')?.dataset.tone === 'good'"


async def opened(tab, world, width=1280, height=800):
    await tab.look(width, height)
    await tab.open(world.url("/"))
    await tab.until(UP)


async def shows(tab, selector, text):
    quoted = text.replace("'", "\\'")
    await tab.until(f"document.querySelector('{selector}')?.innerText.includes('{quoted}')")


async def test_the_cluster_is_seen_as_it_is_and_as_it_changes(tab, world, cluster):
    await opened(tab, world)
    assert await tab.ask("document.title") == "Up: node-a – blitzgw"
    await shows(tab, ".model", "1 of 2 wanted")
    assert "3 running · 2 waiting · KV 25 % · 100 tokens/s" in await tab.text(".instance .busy")
    up = (await tab.text("#nodes .busy")).rpartition("up ")[2]
    assert "days" in up
    await tab.ask("Date.now = () => 0, 1")  # somebody puts the clock right
    loading = instance("i2", InstanceState.LOADING, 12, helps="i1", stage=Span(0, 12))
    cluster.show(HOME, node("b2", "node-2", instances=[loading]))
    await shows(tab, ".instance:nth-child(2)", "helps node-1 · runs layers 0 to 11")
    assert (await tab.text("#nodes .busy")).endswith(f"up {up}")
    bar = ".instance:nth-child(2) .bar"
    assert (
        await tab.ask(f"document.querySelector('{bar} path').getAttribute('d')") == "M0 0H12V1H0z"
    )
    assert await tab.ask(f"document.querySelector('{bar}').ariaValueText") == "12 of 30 layers"
    await tab.ask("window.kept = document.querySelector('.instance:nth-child(2)'), 1")
    holes = replace(loading, layers_resident=13, blobs="c0007ffe")
    cluster.show(HOME, node("b2", "node-2", instances=[holes]))
    await shows(tab, bar.removesuffix(" .bar"), "13/30")
    path = await tab.ask(f"document.querySelector('{bar} path').getAttribute('d')")
    assert path == "M0 0H14V1H0zM29 0H30V1H29z"
    assert await tab.ask("window.kept.isConnected"), "rows are kept, so is a selection"
    cluster.show(HOME, node("b2", "node-2", Status.DEAD, instances=[holes]))
    await tab.until("document.querySelectorAll('.instance').length === 1")
    await shows(tab, "#nodes", "dead")
    assert await tab.ask("document.querySelector('#sums li b').innerText") == "1 of 2"
    cluster.show(HOME, replace(HOME, boot="b9", host="10.0.0.9"))
    await shows(tab, "#nodes", "another node has this name")
    assert await tab.ask("document.querySelectorAll('.instance').length") == 2
    assert tab.errors == []


async def test_nothing_is_fetched_from_elsewhere_and_state_comes_at_once(tab, world):
    await opened(tab, world)
    assert all(url.startswith(world.url("/")) for url in tab.requests), tab.requests
    assert sum(url.endswith("/cluster/watch") for url in tab.requests) == 1
    assert len(tab.requests) == len(set(tab.requests))
    again = len(tab.requests)
    await tab.call("Page.reload")
    await tab.until(f"performance.getEntriesByType('navigation')[0].type === 'reload' && {UP}")
    transferred = await tab.ask(
        "performance.getEntriesByType('resource').filter(e => e.name.includes('/page/'))"
        ".reduce((sum, e) => sum + e.transferSize, 0)"
    )
    assert transferred <= 300 * again, "304 for what the browser has"


async def test_operations_are_seen_with_their_progress(tab, make_world, cluster, monkeypatch):
    monkeypatch.setattr(watching, "LOOK_S", 0.02)
    monkeypatch.setattr(watching, "ASK_LOOKS", 1)
    world = await make_world(cluster=cluster)
    owners = Owners()
    owners.known = {"op-1": chain(number=1, at_s=2.0)}
    object.__setattr__(world.services, "scaling", owners)
    await opened(tab, world)
    await shows(tab, ".operation", "m 1 → 4")
    first = await tab.text(".operation .target")
    assert "node-2/cpu0" in first
    assert "37 % of 269 MB" in first
    assert "from node-1/cpu0 at 50 MB/s" in first
    assert await tab.ask("document.querySelector('.target .bar').ariaValueNow") == "100000000"
    failed = replace(chain(number=1, at_s=2.0), state="failed", reason="node-2 was lost")
    owners.known = {"op-1": failed}
    await shows(tab, ".operation", "node-2 was lost")
    assert "failed" in await tab.text(".operation .badge")
    assert await tab.ask("document.querySelectorAll('.target').length") == 0


async def test_whatever_the_cluster_says_gets_in_as_text(tab, world, cluster):
    evil = ModelFacts(EVIL, "d1", 30, 5, aliases=(EVIL,))
    proto = ModelFacts("__proto__", "d1", 30, 5)
    cluster.show(
        node("b1", EVIL, models=[evil, proto], facts=NodeFacts(EVIL, "javascript:alert(1)"),
             instances=[instance(EVIL, InstanceState.LOADING, model=EVIL, helps=EVIL)]),
    )  # fmt: skip
    world.status.accepting, world.status.reason = False, EVIL
    await tab.open(world.url("/"))
    await shows(tab, "#trouble", "<img src=x")
    assert await tab.ask("document.querySelectorAll('main img, main script').length") == 0
    assert await tab.ask("[...document.querySelectorAll('.model h3')].map(e => e.innerText)") == [
        EVIL, "__proto__",
    ]  # fmt: skip
    assert await tab.ask("document.querySelector('.node a').hasAttribute('href')") is False
    assert (await tab.ask("document.title")).startswith("Not ready: ")
    assert await tab.ask("({}).name") is None
    assert tab.errors == []
    blocked = await tab.ask(
        "(() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } })()"
    )
    assert blocked, "the policy refuses HTML even where a mistake would let it in"


async def test_a_node_that_goes_and_comes_back(tab, make_world, cluster, monkeypatch):
    monkeypatch.setattr(watching, "LOOK_S", 0.02)
    world = await make_world(cluster=cluster)
    await opened(tab, world)
    await world.server.stop(grace_s=0.0)
    await shows(tab, "#up", "Not connected")
    await tab.until("document.body.hasAttribute('data-stale')")
    await shows(tab, "#trouble", "trying again")
    again = await make_world(cluster=cluster)
    await again.server.stop(grace_s=0.0)
    again.server._watching._closed = False
    await again.server.start("127.0.0.1", world.port)
    await tab.until(UP)
    await tab.until("document.querySelector('#trouble').hidden")


async def say(tab, words):
    await tab.ask("document.querySelector('#words').focus()")
    await tab.type(words)
    await tab.until("!document.querySelector('#send').disabled")
    await tab.press("Enter", 13, "\r")


async def asked(world, number=1):
    """Wait for so many requests to be generated; return the last, and its sink."""
    async with asyncio.timeout(10):
        while len(world.generator.requests) < number:
            await asyncio.sleep(0.01)
    return world.generator.last


ANSWERED = "document.querySelector('#stop').hidden && document.querySelector('.assistant')"


async def test_an_answer_streams_in_with_its_figures(tab, world, tools, served):
    world.status.served = served("m@node-9/cpu0", "node-9 0-29")
    ids = world.ids(WORDS)
    world.generator.script = lambda request: tools.events(request, ids, FinishReason.STOP)
    await opened(tab, world)
    await say(tab, "Hello <b>you</b>")
    await tab.until(ANSWERED)
    assert await tab.text(".assistant .text") == WORDS
    note = await tab.text(".assistant .note")
    assert "first token after" in note
    assert f"{len(ids)} tokens" in note
    assert "by m@node-9/cpu0 · split node-9 0-29" in note
    assert await tab.text(".user .text") == "Hello <b>you</b>"
    assert await tab.ask("document.activeElement.id") == "words"
    request = world.generator.last[0]
    assert request.sampling.temperature == 0.7
    assert request.sampling.max_tokens == 512
    before = len(request.tokens)
    await say(tab, "And now?")
    await tab.until("document.querySelectorAll('.assistant').length === 2")
    await tab.until(ANSWERED)
    assert len(world.generator.last[0].tokens) > before + len(ids), "the conversation goes along"
    await tab.click("#anew")
    assert await tab.ask("document.querySelector('#talk').childElementCount") == 0
    assert tab.errors == []


async def test_an_answer_is_seen_as_it_grows_and_can_be_stopped(tab, world):
    await opened(tab, world)
    await say(tab, "Hello")
    request, sink = await asked(world)
    assert await tab.ask("document.querySelector('.assistant').ariaBusy") == "true"
    assert "Waiting" in await tab.text(".assistant .note")
    sink.push(TokenEvent(request.id, 0, world.ids("The quick")))
    await shows(tab, ".assistant .text", "The quick")
    sink.push(TokenEvent(request.id, 0, world.ids(" brown fox")))
    await shows(tab, ".assistant .text", "The quick brown fox")
    await tab.press("Escape", 27)
    await tab.until(ANSWERED)
    assert (await tab.text(".assistant .note")).startswith("stopped · first token after")
    async with asyncio.timeout(10):
        while request.id not in world.generator.aborted:
            await asyncio.sleep(0.01)
    assert await tab.ask("document.querySelector('.assistant').ariaBusy") is None


async def test_errors_are_shown_as_they_are(tab, world, tools):
    await opened(tab, world)
    world.generator.refusal = lambda request: Overloaded("the queue is full", retry_after_s=7)
    await say(tab, "Hello")
    await tab.until(ANSWERED)
    note = await tab.text(".assistant .note.error")
    assert note.startswith("429 ")
    assert "the queue is full · try again in 7 s" in note
    world.generator.refusal = None
    world.generator.script = lambda request: [
        TokenEvent(request.id, 0, world.ids("The quick")),
        GenerationFailed("three attempts have failed"),
    ]
    await say(tab, "Hello")
    await tab.until("document.querySelectorAll('.assistant').length === 2")
    await tab.until(ANSWERED)
    assert await tab.text(".assistant:last-child .text") == "The quick"
    assert "three attempts have failed" in await tab.text(".assistant:last-child .note.error")


async def test_a_key_is_asked_for_kept_in_the_tab_and_sent(tab, make_world, cluster, tools):
    public = frozenset({"/"})
    world = await make_world(cluster=cluster, api_keys=["right"], public_paths=public)
    world.generator.script = lambda request: tools.events(request, world.ids(WORDS))
    await tab.look(1280, 800)
    await tab.open(world.url("/"))
    await tab.until("document.querySelector('#key-dialog')?.open")
    assert "an API key is needed" in await tab.text("#key-why")
    assert await tab.ask("document.activeElement.id") == "key"
    await tab.type("wrong")
    await tab.press("Enter", 13, "\r")
    await tab.until("document.querySelector('#key-dialog').open")
    await shows(tab, "#key-why", "not known")
    await tab.press("Escape", 27)
    await tab.until("!document.querySelector('#key-dialog').open")
    await shows(tab, "#trouble", "not known")
    await tab.click("#change-key")
    await tab.type("right…")
    await tab.press("Enter", 13, "\r")
    assert await tab.ask("document.querySelector('#key-dialog').open"), "no header could carry it"
    await tab.ask("document.querySelector('#key').value = '', 1")
    await tab.type(" right ")
    await tab.press("Enter", 13, "\r")
    await tab.until(UP)
    await say(tab, "Hello")
    await tab.until(ANSWERED)
    assert await tab.text(".assistant .text") == WORDS
    assert await tab.ask("localStorage.length") == 0
    assert await tab.ask("Object.values(sessionStorage)") == ["right"]
    assert not any("right" in url for url in tab.requests)
    await tab.call("Page.reload")
    await tab.until(f"performance.getEntriesByType('navigation')[0].type === 'reload' && {UP}")


async def test_what_is_forgotten_while_it_is_answered_is_not_sent_again(tab, world):
    await opened(tab, world)
    await say(tab, "Hello")
    request, sink = await asked(world)
    sink.push(TokenEvent(request.id, 0, world.ids("The quick")))
    await shows(tab, ".assistant .text", "The quick")
    await tab.click("#anew")
    await tab.until("document.querySelector('#stop').hidden")
    await say(tab, "Hello")
    again, _ = await asked(world, 2)
    assert list(again.tokens) == list(request.tokens)


async def test_a_long_answer_does_not_stop_the_page(tab, world):
    """Drawn once a frame: drawn for each token this takes minutes."""
    await opened(tab, world)
    await say(tab, "Hello")
    request, sink = await asked(world)
    ids, times = world.ids("word "), 4000
    for i in range(times):
        sink.push(TokenEvent(request.id, 0, ids))
        if i % 100 == 0:
            await asyncio.sleep(0)
    sink.push(TokenEvent(request.id, 0, [], finish=FinishReason.STOP))
    await tab.until(ANSWERED)
    assert await tab.ask("document.querySelector('.assistant .text').textContent") == (
        "word " * times
    )


async def test_options_are_taken_or_refused_with_the_reason(tab, world, tools):
    world.generator.script = lambda request: tools.events(request, world.ids(WORDS))
    await opened(tab, world)
    for option, value in (("temperature", "0.75"), ("most", "0")):
        await tab.ask(f"document.querySelector('#{option}').value = '{value}', 1")
        await say(tab, "Hello")
        await tab.until(f"document.querySelector('.assistant:last-child .note') && {ANSWERED}")
        await tab.until("!document.querySelector('[aria-busy]')")
    assert world.generator.last[0].sampling.temperature == 0.75
    assert "max_tokens" in await tab.text(".assistant:last-child .note.error")


async def test_a_model_that_was_chosen_is_asked_again_when_it_is_back(tab, world, cluster, tools):
    both = replace(HOME, models={"m": MODEL, "b": ModelFacts("b", "d2", 30, 5)})
    offered = "[...document.querySelectorAll('#model option')].map(e => e.value).join()"
    cluster.show(both)
    await opened(tab, world)
    await tab.until(f"{offered} === 'b,m'")
    await tab.ask(
        "(e => { e.value = 'm'; e.dispatchEvent(new Event('change')) })"
        "(document.querySelector('#model'))"
    )
    for models in ({"b": both.models["b"]}, {}, both.models):
        cluster.show(replace(both, models=models))
        await tab.until(f"{offered} === '{','.join(sorted(models))}'")
    assert await tab.ask("document.querySelector('#model').value") == "m"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_it_is_readable_on_a_phone(tab, world, cluster, dark, tmp_path):
    long = "a-model-with-a-name-of-some-length/" * 3
    own = [
        instance(f"{long}@node-{i}/cpu0", InstanceState.LOADING, 9, model=long, helps="i1")
        for i in range(3)
    ]
    cluster.show(
        HOME,
        node("b2", "node-with-a-name-of-some-length-" * 2, instances=own,
             models=[ModelFacts(long, "d1", 30, 5)]),
    )  # fmt: skip
    await opened(tab, world, 320, 640)
    await tab.look(320, 640, dark=dark)
    await shows(tab, "#models", long)
    await tab.ask("document.querySelector('#change-key').hidden = false, 1")
    assert await tab.ask("document.querySelector('#up span').scrollWidth <= "
                         "document.querySelector('#up span').clientWidth")  # fmt: skip
    assert await tab.ask("document.querySelector('h1').offsetHeight") < 30, "one line"
    for view in ("chat", "cluster"):
        await tab.click(f"[data-shows={view}]")
        assert await tab.ask("document.documentElement.scrollWidth") <= 320
        assert await tab.ask(f"document.querySelector('#{view}').scrollWidth") <= 320
        shown = await tab.ask(
            "['chat', 'cluster'].filter(id => document.getElementById(id).offsetWidth)"
        )
        assert shown == [view]
    background = await tab.ask("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, background.removeprefix("rgb(").rstrip(")").split(","))) > 384
    assert light is not dark


async def test_keys_alone_are_enough(tab, world):
    """Tab reaches each control that is to be seen, in the order in which it stands there."""
    await opened(tab, world, 390, 844)
    await tab.press("Tab", 9)
    assert await tab.ask("document.activeElement.dataset.shows") == "cluster"
    await tab.press("Tab", 9)
    await tab.press(" ", 32, " ")
    await tab.until("document.body.dataset.view === 'chat'")
    reached = []
    for _ in range(5):
        await tab.press("Tab", 9)
        reached.append(await tab.ask("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["model", "anew", "talk", "words", "SUMMARY"]
    assert await tab.ask("document.querySelector('#talk').role") == "log"
