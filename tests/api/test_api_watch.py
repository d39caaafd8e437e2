"""`/cluster/watch`: what is told first, what then, to whom, and when it ends."""

import asyncio
import contextlib
import json
import socket
import time
from dataclasses import replace

import aiohttp
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blitzgw.api import watching
from blitzgw.api.board import Board, differences
from blitzgw.api.enquiries import MAX_FOLLOWED, Enquiries
from blitzgw.api.sight import MAX_OPERATIONS, Sight, measured, operations, passing
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import DeviceKind, InstanceState
from blitzgw.core.rumours import Status
from blitzgw.core.scale import DecisionFacts, WhyFacts
from blitzgw.core.span import Span
from blitzgw.core.view import (
    ClusterView,
    CopyFacts,
    DeviceFacts,
    HostFacts,
    LoadFacts,
    ModelFacts,
    NodeFacts,
    ScaleFacts,
    ScaleTerms,
)
from blitzgw.errors import Unavailable
from tests.api.view_kit import FakeCluster, instance, node
from tests.support.scaling import FakeScaling, chain

# -- the board -------------------------------------------------------------------------------------

ITEMS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3)
PARTS = st.dictionaries(st.sampled_from(("nodes", "models")), ITEMS)


def follow(known, told):
    """What a reader knows after an event."""
    [(kind, parts)] = orjson.loads(told).items()
    known = {part: dict(items) for part, items in ({} if kind == "whole" else known).items()}
    for part, items in parts.items():
        for key, item in items.items():
            if item is None:
                del known[part][key]
            else:
                known.setdefault(part, {})[key] = item
    return {part: items for part, items in known.items() if items}


@given(st.lists(st.tuples(PARTS, st.booleans()), min_size=1))
def test_whoever_reads_when_it_likes_knows_what_there_is(steps):
    board, known, seen = Board(), {}, 0
    for parts, reads in steps:
        before = board.version
        assert board.show(parts) is (board.version == before + 1)
        if reads and board.version != seen:
            known, seen = follow(known, board.since(seen)), board.version
            assert known == {part: items for part, items in parts.items() if items}


def test_only_those_who_are_one_version_behind_are_told_changes():
    board = Board()
    assert board.show({"nodes": {}}), "there being nothing is told, too"
    assert board.show({"nodes": {"a": 1, "b": 1}})
    assert not board.show({"nodes": {"b": 1, "a": 1}})
    assert board.show({"nodes": {"a": 2}})
    assert orjson.loads(board.since(2)) == {"changed": {"nodes": {"a": 2, "b": None}}}
    for version in (0, 1):
        assert orjson.loads(board.since(version)) == {"whole": {"nodes": {"a": 2}}}
    assert board.since(2) is board.since(2), "written once for all"


def test_parts_that_go_take_their_items_along():
    assert differences({"a": {"x": 1}, "b": {"y": 1}}, {"b": {"y": 1}}) == {"a": {"x": None}}


# -- what is seen ----------------------------------------------------------------------------------


def see(*nodes):
    return Sight().parts(ClusterView(nodes[0].boot, {each.boot: each for each in nodes}))


def test_a_node_is_seen_with_what_an_operator_looks_for():
    copies = [CopyFacts("w1", "m", "cpu0", 100, complete=True)]
    full = node(
        "b1", "east",
        facts=NodeFacts("east", "http://10.0.0.1:8000", True),
        devices=[DeviceFacts("cpu0", DeviceKind.CPU, "Xeon", 1 << 30, 2)],
        copies=copies,
        host_facts=HostFacts(8 << 30),
    )  # fmt: skip
    parts = see(full, node("b2", "gone", Status.DEAD, instances=[instance()], copies=copies))
    assert parts["nodes"]["b1"] == {
        "name": "east", "status": "alive", "http": "http://10.0.0.1:8000", "draining": True,
        "devices": [{"id": "cpu0", "kind": "cpu", "name": "Xeon", "memory_bytes": 1 << 30}],
        "copies": [{"model": "m", "size_bytes": 100, "complete": True, "cached": False}],
        "free_bytes": 8 << 30, "started": 1_700_000_000, "conflict": False,
    }  # fmt: skip
    dead = parts["nodes"]["b2"]
    assert (dead["status"], dead["copies"], dead["http"], parts["instances"]) == (
        "dead", [], None, {},
    )  # fmt: skip


def test_an_instance_is_seen_with_its_layers_its_home_and_its_load():
    helper = instance("i2", InstanceState.LOADING, 3, helps="i1", stage=Span(0, 4), blobs="4d")
    load = LoadFacts("i1", 3, 1, 50, 0.123456, 2000.04, 0.0212345)
    gone = instance("i3", InstanceState.GONE)
    parts = see(node("b1", "a", instances=[instance(), helper, gone], loads=[load]))
    assert set(parts["instances"]) == {"b1 i1", "b1 i2"}
    home, loading = parts["instances"]["b1 i1"], parts["instances"]["b1 i2"]
    assert (home["resident"], home["running"], home["waiting"]) == ([[0, 30]], 3, 1)
    assert (home["kv_usage"], home["decode_step_s"]) == (0.123, 0.0212)
    assert (loading["helps"], loading["stage"], loading["running"]) == ("i1", [0, 4], None)
    assert loading["resident"] == [[1, 3], [5, 6]], "blobs 2, 3 and 6; blob 0 is no layer"
    assert passing(parts) == {"b1 i2"}


@pytest.mark.parametrize(
    ("blobs", "resident", "runs"),
    [("0", 0, []), ("1", 0, []), ("0", 7, [[0, 7]]), ("80000001", 0, []),
     ("6", 2, [[0, 2]]), ("40000000", 1, [[29, 30]]), ("nonsense", 2, [[0, 2]]),
     ("fffffffff", 30, [[0, 30]])],
)  # fmt: skip
def test_layers_are_those_that_are_told_or_the_first_ones(blobs, resident, runs):
    facts = instance(state=InstanceState.LOADING, resident=resident, blobs=blobs)
    assert see(node("b1", "a", instances=[facts]))["instances"]["b1 i1"]["resident"] == runs


def test_what_has_not_changed_is_not_formed_again():
    sight = Sight()
    first, second = node("b1", "a", instances=[instance()]), node("b2", "b")
    view = ClusterView("b1", {"b1": first, "b2": second})
    before = sight.parts(view)
    assert sight.parts(view) is before
    after = sight.parts(ClusterView("b1", {"b1": first, "b2": replace(second, name="c")}))
    assert after["nodes"]["b1"] is before["nodes"]["b1"]
    assert after["instances"]["b1 i1"] is before["instances"]["b1 i1"]
    assert after["nodes"]["b2"]["name"] == "c"
    assert set(sight.parts(ClusterView("b1", {"b1": first}))["nodes"]) == {"b1"}


def test_nodes_that_share_a_name_are_marked():
    one, two = node("b1", "a"), replace(node("b2", "a"), host="10.0.0.2")
    nodes = see(one, two, node("b3", "b"))["nodes"]
    assert {boot for boot, item in nodes.items() if item["conflict"]} == {"b1", "b2"}


def test_a_model_is_seen_as_it_holds_and_when_the_next_instance_serves():
    facts = ModelFacts("m", "d1", 30, 5, scaling=ScaleTerms("auto", ttft_s=0.5))
    rival = ModelFacts("m", "d2", 12, 9)
    scaling = ScaleFacts("m", "auto", 1, 3, 1.5, ready_s=1_700_000_009.5, since_s=4.0)
    parts = see(
        node("b1", "a", models=[facts], scaling=[scaling]),
        node("b2", "b", models=[rival]),
    )
    [model] = parts["models"].values()
    assert (model["name"], model["layers"], model["conflict"]) == ("m", 30, True)
    assert model["ready"] == 1_700_000_009.5
    assert (model["scaling"]["present"], model["scaling"]["wanted"]) == (1, 3)
    assert "eta_s" not in model["scaling"], "it would change all the time"
    assert model["terms"]["ttft_s"] == 0.5
    [model] = see(node("b1", "a", models=[facts]))["models"].values()
    assert (model["ready"], model["scaling"]) == (None, None)


def test_operations_that_run_are_seen_with_their_parts_and_few_others():
    past = [chain(number=i, at_s=99.0) for i in range(1, 20)]
    running = chain(number=0, at_s=2.0)  # the oldest, and yet shown
    seen = operations([*past, running], {running.id: running})
    assert len(seen) == MAX_OPERATIONS + 1
    item = seen[running.id]
    assert (item["state"], item["ended"], len(item["targets"])) == ("transferring", False, 3)
    first = item["targets"][0]
    assert (first["worker"], first["state"], first["blobs"]) == ("node-2/cpu0", "loading", 4)
    assert 0 < first["resident_bytes"] < item["size_bytes"]
    assert item["edges"][0]["source"] == "node-1/cpu0"
    ended = seen["op-19"]
    assert (ended["ended"], ended["targets"], ended["edges"]) == (True, [], [])
    assert "op-1" not in seen


def test_what_owners_measure_and_decided_last_is_seen():
    now = DecisionFacts("m", "a", 5.0, "hold", 1, 1, acted=False, reason="enough")
    grown = DecisionFacts("m", "a", 4.0, "grow", 1, 3, acted=True, reason="more than it can serve")
    why = WhyFacts("m", "a", "auto", ScaleTerms(), None, now, {"ttft_p50_s": 0.123456}, (grown,))
    told = measured([why])["m"]
    assert told["quantiles"] == {"ttft_p50_s": 0.123}
    assert (told["last"]["action"], told["last"]["wanted"]) == ("grow", 3)
    assert measured([replace(why, past=())])["m"]["last"] is None


class Owners(FakeScaling):
    """Owners that can fall silent."""

    silent = False

    async def whys(self):
        if self.silent:
            raise Unavailable("nobody answers")
        return ()

    async def operation(self, operation):
        self.asked.append(operation)
        if self.silent:
            raise Unavailable("it does not answer")
        return await super().operation(operation)


async def test_owners_are_asked_for_operations_that_run_and_missed_where_they_are_silent():
    owners = Owners()
    owners.known = {f"op-{i}": chain(number=i, at_s=1.0) for i in range(1, 20)}
    owners.known["op-20"] = chain(number=20, at_s=99.0)
    enquiries = Enquiries(owners)
    await enquiries.ask()
    assert len(owners.asked) == MAX_FOLLOWED
    assert (enquiries.missing, enquiries.parts["measured"]) == (set(), {})
    owners.silent = True
    await enquiries.ask()
    assert enquiries.missing == {"measured", "operations"}
    assert "op-20" in enquiries.parts["operations"], "what was known stays"
    owners.silent, owners.known = False, {"op-20": owners.known["op-20"]}
    owners.asked.clear()
    await enquiries.ask()
    await enquiries.follow()
    assert (owners.asked, enquiries.missing) == ([], set())
    assert set(enquiries.parts["operations"]) == {"op-20"}


# -- over sockets ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watching, "LOOK_S", 0.01)


@pytest.fixture
def cluster():
    return FakeCluster(node("b1", "a", instances=[instance()]))


@pytest.fixture
async def world(make_world, cluster):
    return await make_world(cluster=cluster)


@contextlib.asynccontextmanager
async def watch(world, **options):
    """Watch: an iterator over the events."""
    async with asyncio.timeout(20), world.http.get(world.url(watching.PATH), **options) as response:
        assert response.status == 200
        yield told(response)


async def told(response):
    async for line in response.content:
        if line.strip():
            assert line.startswith(b"data: ")
            yield json.loads(line[6:])


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_all_is_told_at_once_and_then_what_changes(world, cluster):
    async with watch(world) as events:
        first = (await anext(events))["whole"]
        assert first["here"][""]["node"] == "node-a"
        assert first["here"][""]["accepting"] is True
        assert first["instances"]["b1 i1"]["layers_resident"] == 30
        cluster.show(node("b1", "a", instances=[instance(state=InstanceState.DRAINING)]))
        changed = (await anext(events))["changed"]
        assert changed["instances"]["b1 i1"]["state"] == "draining"
        assert set(changed) == {"instances"}
        world.status.accepting, world.status.reason = False, "starting"
        assert (await anext(events))["changed"]["here"][""]["reason"] == "starting"
        cluster.show(node("b1", "a"))
        assert await anext(events) == {"changed": {"instances": {"b1 i1": None}}}


async def test_headers_keep_caches_and_proxies_out_of_the_way(world):
    async with world.http.get(world.url(watching.PATH)) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["x-blitzgw-node"] == "node-a"
    async with world.http.head(world.url(watching.PATH)) as response:
        assert (response.status, await response.read()) == (200, b"")
    assert (await world.post(watching.PATH, {}))[0] == 405


async def test_a_silent_cluster_gives_signs_of_life_whatever_its_dilation(world, monkeypatch):
    object.__setattr__(world.services, "clock", MonotonicClock(1e6))
    monkeypatch.setattr(watching, "BEAT_LOOKS", 2)
    async with watch(world) as events:
        assert "whole" in await anext(events)
        assert await anext(events) == {"alive": True}
        assert await anext(events) == {"alive": True}


async def test_all_who_watch_share_one_look_and_nobody_looks_for_nobody(world, cluster):
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watch(world)) for _ in range(5)]
        for events in streams:
            assert "whole" in await anext(events)
        assert world.server._watching.watchers == 5
        start, looks = time.monotonic(), cluster.looks
        await asyncio.sleep(0.2)
        most = (time.monotonic() - start) / watching.LOOK_S + 2
        assert 0 < cluster.looks - looks <= most
    await until(lambda: world.server._watching.watchers == 0)
    looks = cluster.looks
    await asyncio.sleep(0.05)
    assert cluster.looks == looks


async def test_pages_beyond_the_limit_are_told_so(world, monkeypatch):
    monkeypatch.setattr(watching, "MAX_WATCHERS", 2)
    async with watch(world) as one, watch(world) as two:
        await anext(one)
        await anext(two)
        status, headers, body = await world.get(watching.PATH)
        assert (status, headers["Retry-After"]) == (429, "5")
        assert "2 pages watch this node already" in body["error"]["message"]
    await until(lambda: world.server._watching.watchers == 0)
    async with watch(world) as again:
        await anext(again)


async def test_a_draining_node_sends_them_away(world):
    async with watch(world) as events:
        await anext(events)
        world.server.drain()
        assert await anext(events) == {"end": "this node is draining"}
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    status, headers, body = await world.get(watching.PATH)
    assert (status, "draining" in body["error"]["message"]) == (503, True)
    assert "Retry-After" in headers


async def test_watchers_do_not_hold_up_a_stop(make_world, cluster):
    world = await make_world(cluster=cluster)
    async with watch(world) as events:
        await anext(events)
        start = time.monotonic()
        await world.server.stop(grace_s=5.0)
        assert time.monotonic() - start < 2.0


async def ask_and_not_read(world):
    """Watch over a connection that takes next to nothing."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", world.port))
        reader, writer = await asyncio.open_connection(sock=sock.dup(), limit=1 << 12)
    writer.transport.pause_reading()
    writer.write(f"GET {watching.PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await until(lambda: world.server._watching.watchers == 1)
    return reader, writer


async def test_a_slow_reader_is_not_told_what_passed_and_ends_up_to_date(world, cluster):
    """30 MB of versions pass while it does not read: far beyond what kernels buffer."""
    reader, writer = await ask_and_not_read(world)
    watched = world.server._watching
    board = watched._show.board
    versions, whole_bytes = 60, 500_000
    for i in range(versions):
        seen, name = board.version, f"{i}-{'x' * (whole_bytes // 100)}"
        cluster.show(node("b1", "a"), *(node(f"n{j}", name) for j in range(100)))
        await until(lambda seen=seen: board.version > seen)
    cluster.show(node("b1", "last"))
    writer.transport.resume_reading()
    received, tail = 0, b""
    async with asyncio.timeout(10):
        while b'"b1":{"name":"last"' not in tail:
            chunk = await reader.read(1 << 20)
            assert chunk
            received += len(chunk)
            tail = tail[-100:] + chunk
    assert whole_bytes < received < versions * whole_bytes / 2
    writer.transport.abort()
    await until(lambda: watched.watchers == 0)


async def test_who_does_not_read_at_all_is_cut_off(world, cluster, monkeypatch):
    monkeypatch.setattr(watching, "SEND_TIMEOUT_S", 0.2)
    _, writer = await ask_and_not_read(world)
    number, watched = 0, world.server._watching
    async with asyncio.timeout(20):
        while watched.watchers:
            number += 1
            name = f"{number}-{'x' * 5000}"
            cluster.show(*(node(f"n{j}", name) for j in range(100)))
            await asyncio.sleep(0.02)
    writer.transport.abort()


async def test_a_mistake_of_ours_ends_what_is_shown_and_the_next_try_works(world, cluster, caplog):
    async with watch(world) as events:
        await anext(events)
        view, cluster.view = cluster.view, lambda: 1 / 0
        assert await anext(events) == {"end": "internal error"}
    assert "watch_failed" in caplog.text
    assert "division" not in caplog.text
    assert (await world.get(watching.PATH))[0] == 500, "the first look already"
    cluster.view = view
    async with watch(world) as events:
        assert "whole" in await anext(events)


async def test_keys_are_needed_where_there_are_any(make_world, cluster):
    world = await make_world(cluster=cluster, api_keys=["secret"])
    assert (await world.get(watching.PATH))[0] == 401
    async with watch(world, headers={"Authorization": "Bearer secret"}) as events:
        assert "whole" in await anext(events)


async def test_an_old_client_is_told_until_the_connection_closes(world):
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(f"GET {watching.PATH} HTTP/1.0\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert (await reader.readline()).startswith(b'data: {"whole":')
        world.server.drain()
        assert (await reader.read()).endswith(b'data: {"end":"this node is draining"}\n\n')
        writer.close()


async def test_without_a_cluster_there_is_nothing_to_watch(make_world):
    world = await make_world()
    assert (await world.get(watching.PATH))[0] == 404
    assert isinstance(world.http, aiohttp.ClientSession)
