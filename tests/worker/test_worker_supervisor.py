"""The supervisor brings a device back, whatever happens to its worker, and goes when told."""

import asyncio
import os
import shutil
import signal
from types import SimpleNamespace

import pytest

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.messages import BlobResident, Hello, LoadFailed, LoadModel, ModelLoaded
from blitzgw.core.transfer import (
    BlobChecked,
    BlobDamaged,
    CapWeights,
    CopyFailed,
    CopyHeld,
    HoldCopy,
    ReadBlobs,
)
from blitzgw.errors import WorkerLost
from blitzgw.worker import supervisor as supervisor_module
from blitzgw.worker.supervisor import WorkerSupervisor
from tests.support.nodes import is_gone
from tests.worker.transfer_kit import LAN, resolved
from tests.worker.worker_kit import (
    LAYERS,
    PACED,
    first_step,
    load_message,
    next_step,
    until,
    write_checkpoint,
)


class Listener:
    """Keeps what it is told as tuples."""

    def __init__(self):
        self.log = []

    def worker_up(self, hello):
        self.log.append(("up", hello.pid))

    def worker_lost(self, reason):
        self.log.append(("lost", reason))

    def blob_resident(self, instance, index):
        self.log.append(("blob", instance, index))

    def told(self, message):
        self.log.append(("news", message))

    def instance_loading(self, instance, resident, total):
        self.log.append(("loading", instance, resident, total))

    def instance_ready(self, instance, duration_s):
        self.log.append(("ready", instance))

    def instance_failed(self, instance, message):
        self.log.append(("failed", instance, message))

    def step_done(self, result):
        self.log.append(("done", result.step, result.tokens))

    def step_failed(self, failure):
        self.log.append(("step failed", failure.step, failure.message))

    def of(self, kind):
        return [entry for entry in self.log if entry[0] == kind]

    async def wait(self, kind, count=1):
        await until(lambda: len(self.of(kind)) >= count, f"{count} × {kind} among {self.log}")
        return self.of(kind)[count - 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
async def supervise():
    """Start supervisors of real workers; at the end no process may be left."""
    made, pids = [], set()

    def start(*messages, **options):
        listener = Listener()
        supervisor = WorkerSupervisor(PACED, messages, MonotonicClock(), listener, **options)
        made.append((supervisor, listener))
        supervisor.start()
        return supervisor, listener

    yield start
    for supervisor, listener in made:
        pids.add(supervisor.pid)
        pids |= {pid for _, pid in listener.of("up")}
        await supervisor.stop()
        assert supervisor.pid is None
    assert all(is_gone(pid) for pid in pids - {None})


async def test_it_loads_what_is_wanted_and_passes_steps(supervise, folder):
    supervisor, listener = supervise(load_message(folder))
    supervisor.post(first_step(1))  # too early: dropped, for nothing is up
    await listener.wait("ready")
    assert listener.log[0][0] == "up"
    assert listener.of("loading") == [("loading", "i0", n, LAYERS) for n in range(1, LAYERS + 1)]
    supervisor.post(first_step(2))
    supervisor.post(next_step(3, 99))
    done = await listener.wait("done")
    assert done[1] == 2
    assert (await listener.wait("step failed"))[1] == 3


def test_news_of_a_load_that_was_given_up_are_not_heard(folder):
    """What the worker said before it has read `UnloadModel` is not about the load that follows."""
    listener, posted = Listener(), []
    supervisor = WorkerSupervisor(PACED, [], MonotonicClock(), listener)
    supervisor._handle, supervisor._up = SimpleNamespace(post=posted.append), True
    supervisor.load(load_message(folder))
    supervisor.unload("i0")
    supervisor.load(load_message(folder))
    first, second = [message.load for message in posted if isinstance(message, LoadModel)]
    for number in (first, 0):
        supervisor._dispatch(BlobResident("i0", 1, number))
        supervisor._dispatch(ModelLoaded("i0", 1.0, number))
        supervisor._dispatch(LoadFailed("i0", "no", number))
    assert listener.log == []
    supervisor._dispatch(BlobResident("i0", 1, second))
    supervisor._dispatch(ModelLoaded("i0", 1.0, second))
    assert listener.log == [("blob", "i0", 1), ("loading", "i0", 1, LAYERS), ("ready", "i0")]
    supervisor._dispatch(LoadFailed("i0", "no", second))
    assert listener.log[3:] == [("failed", "i0", "no")]


async def test_a_killed_worker_comes_back_with_its_instances(supervise, folder):
    supervisor, listener = supervise(load_message(folder), load_message(folder, "i1"))
    await listener.wait("ready", 2)
    supervisor.post(first_step(1))
    tokens = (await listener.wait("done"))[2]
    for life in (1, 2):
        os.kill(supervisor.pid, signal.SIGKILL)
        assert "SIGKILL" in (await listener.wait("lost", life))[1]
        await listener.wait("ready", 2 + 2 * life)
        supervisor.post(first_step(1 + life))
        assert (await listener.wait("done", 1 + life))[2] == tokens
    assert len(listener.of("lost")) == 2
    assert len({pid for _, pid in listener.of("up")}) == 3


async def test_news_of_weights_are_passed_on_and_commands_are_sent(supervise, folder, tmp_path):
    model = resolved(folder)
    supervisor, listener = supervise(networks=LAN, copies=str(tmp_path / "copies"))
    supervisor.send(model.hold(reads=model.everything))  # too early: dropped
    supervisor.send(CapWeights(5e6))
    await listener.wait("up")
    supervisor.load(model.load(reads=()))
    supervisor.send(ReadBlobs(model.weights, model.spec, model.everything))
    await listener.wait("ready")
    blobs = [entry[2] for entry in listener.of("blob")]
    assert blobs == list(model.everything)
    checked = [news for _, news in listener.of("news") if isinstance(news, BlobChecked)]
    assert [news.index for news in checked] == blobs
    assert not any(isinstance(news, CopyHeld) for _, news in listener.of("news"))
    assert supervisor._start.weight_bytes_per_s == 5e6  # for the next worker too


async def test_what_came_from_peers_is_read_from_disk_by_the_next_worker(supervise, folder):
    model = resolved(folder)
    supervisor, listener = supervise()
    await listener.wait("up")
    supervisor.load(model.load("i0", reads=()))
    supervisor.load(model.elsewhere.load("i1", reads=()))  # shares the weights of i0
    supervisor.send(ReadBlobs(model.weights, model.spec, model.everything))
    await listener.wait("ready", 2)
    supervisor.unload("i0")
    os.kill(supervisor.pid, signal.SIGKILL)
    assert "scale it again" in (await listener.wait("failed"))[2]
    supervisor.load(model.load("i2", reads=()))  # the first time: as it is said
    os.kill(supervisor.pid, signal.SIGKILL)
    await listener.wait("ready", 3)
    assert len(listener.of("failed")) == 1


async def test_a_host_copy_brings_an_instance_back_without_a_disk(supervise, folder, tmp_path):
    model = resolved(folder)
    supervisor, listener = supervise(copies=str(tmp_path / "copies"))
    await listener.wait("up")
    supervisor.send(model.elsewhere.hold())
    supervisor.load(model.elsewhere.load("i1", reads=()))
    supervisor.send(ReadBlobs(model.weights, model.spec, model.everything))
    await listener.wait("ready")
    await until(lambda: any(isinstance(news, CopyHeld) for _, news in listener.of("news")))
    os.kill(supervisor.pid, signal.SIGKILL)
    await listener.wait("ready", 2)
    assert listener.of("failed") == []


def by_hand():
    """A supervisor that believes in a worker, what it hears, and what it has posted."""
    listener, posted = Listener(), []
    supervisor = WorkerSupervisor(PACED, [], MonotonicClock(), listener)
    supervisor._handle = SimpleNamespace(post=posted.append)
    supervisor._dispatch(Hello(1, "paced", 0, {}))
    return supervisor, listener, posted


def test_late_news_of_a_store_that_was_given_up_are_not_heard(folder):
    model = resolved(folder)
    supervisor, listener, posted = by_hand()
    supervisor.load(model.load(reads=()))
    supervisor._dispatch(BlobChecked(model.weights, 0, posted[-1].load))
    supervisor.unload("i0")
    late = BlobChecked(model.weights, 1, 1), BlobDamaged(model.weights, 0, load=1)
    for news in late:  # nothing is wanted
        supervisor._dispatch(news)
    supervisor.load(model.load(reads=()))
    for news in (*late, BlobChecked(model.weights, 2)):  # something else is
        supervisor._dispatch(news)
    assert listener.of("news") == [("news", BlobChecked(model.weights, 0, 1))]
    assert [m.load for m in posted if isinstance(m, LoadModel)] == [1, 2]
    supervisor._dispatch(BlobChecked(model.weights, 1, 2))
    assert listener.of("news")[1:] == [("news", BlobChecked(model.weights, 1, 2))]


def test_a_store_that_others_use_goes_on_telling(folder):
    model = resolved(folder)
    supervisor, listener, _ = by_hand()
    supervisor.load(model.load("i0", reads=()))
    supervisor.send(model.hold())
    supervisor.load(model.load("i1", reads=()))
    supervisor.unload("i0")
    supervisor._dispatch(BlobChecked(model.weights, 1, 1))
    supervisor._dispatch(LoadFailed("i1", "no", 3))
    supervisor._dispatch(BlobChecked(model.weights, 2, 1))
    assert [news.index for _, news in listener.of("news")] == [1, 2]
    supervisor.send(model.drop())
    supervisor._dispatch(BlobChecked(model.weights, 3, 1))
    assert len(listener.of("news")) == 2


@pytest.mark.parametrize(
    "of_copy", [lambda w, n: CopyHeld(w, 9, n), lambda w, n: CopyFailed(w, "", n)]
)
def test_late_news_of_a_host_copy_are_not_heard(folder, of_copy):
    model = resolved(folder)
    supervisor, listener, posted = by_hand()
    for _ in range(2):
        supervisor.send(model.hold())
        supervisor.send(model.drop())
    supervisor.send(model.hold())
    assert [m.load for m in posted if isinstance(m, HoldCopy)] == [1, 2, 3]
    for number in (0, 1, 2):
        supervisor._dispatch(of_copy(model.weights, number))
    assert listener.of("news") == []
    supervisor._dispatch(of_copy(model.weights, 3))
    assert listener.of("news") == [("news", of_copy(model.weights, 3))]


def test_the_next_worker_has_no_store_of_the_former_one(folder):
    model = resolved(folder)
    supervisor, listener, _ = by_hand()
    supervisor.send(model.hold())
    supervisor._dispatch(Hello(2, "paced", 0, {}))
    supervisor._dispatch(BlobChecked(model.weights, 1, 1))
    assert listener.of("news") == []


async def test_a_broken_checkpoint_is_not_tried_again_until_asked(supervise, folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    message = load_message(broken, "broken")
    (broken / "model.safetensors").rename(tmp_path / "away")
    supervisor, listener = supervise(message, load_message(folder))
    assert (await listener.wait("failed"))[1] == "broken"
    await listener.wait("ready")
    os.kill(supervisor.pid, signal.SIGKILL)
    await listener.wait("ready", 2)
    assert len(listener.of("failed")) == 1
    (tmp_path / "away").rename(broken / "model.safetensors")
    supervisor.load(load_message(broken, "broken"))
    assert (await listener.wait("ready", 3))[1] == "broken"


async def test_instances_come_and_go(supervise, folder):
    supervisor, listener = supervise()
    await listener.wait("up")
    supervisor.load(load_message(folder))
    supervisor.load(load_message(folder))  # wanted already: nothing happens
    await listener.wait("ready")
    supervisor.unload("i0")
    supervisor.unload("i0")
    supervisor.post(first_step(1))
    assert "unknown instance" in (await listener.wait("step failed"))[2]
    os.kill(supervisor.pid, signal.SIGKILL)
    await listener.wait("up", 2)
    assert listener.of("failed") == []
    assert len(listener.of("ready")) == 1


async def test_stop_during_a_load_and_twice(supervise, tmp_path):
    large = write_checkpoint(tmp_path / "large", layers=300)
    supervisor, listener = supervise(load_message(large))
    await listener.wait("loading")
    pid = supervisor.pid
    async with asyncio.TaskGroup() as stops:
        for _ in range(2):
            stops.create_task(supervisor.stop())
        await asyncio.sleep(0)  # until both have begun; something may still come before them
        told = len(listener.log)
    assert is_gone(pid)
    await supervisor.stop()
    assert len(listener.log) == told


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.3])
async def test_stop_right_after_start(supervise, folder, after_s):
    supervisor, listener = supervise(load_message(folder))
    await asyncio.sleep(after_s)
    await supervisor.stop()
    assert listener.of("lost") == []


async def test_stop_without_start():
    await WorkerSupervisor(PACED, (), MonotonicClock(), Listener()).stop()


async def test_join_ends_with_a_stop(supervise, folder):
    supervisor, listener = supervise(load_message(folder))
    await listener.wait("ready")
    joining = asyncio.ensure_future(supervisor.join())
    await asyncio.sleep(0)
    assert not joining.done()
    await supervisor.stop()
    await joining


async def test_join_raises_what_a_listener_raised():
    class Broken(Listener):
        def worker_lost(self, reason):
            raise RuntimeError(reason)

    supervisor = WorkerSupervisor(PACED, (), MonotonicClock(), Broken())
    supervisor.start()
    await until(lambda: supervisor.pid, "a worker")
    os.kill(supervisor.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="SIGKILL"):
        await supervisor.join()


async def test_a_cancelled_stop_goes_on(supervise, folder):
    supervisor, listener = supervise(load_message(folder))
    pid = (await listener.wait("up"))[1]
    stopping = asyncio.ensure_future(supervisor.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    await asyncio.wait({stopping})
    await until(lambda: is_gone(pid), "the worker's end")
    await supervisor.stop()


class ScriptClock:
    """Time that passes only by sleeping, without waiting."""

    def __init__(self):
        self.time, self.slept = 0.0, []

    def now(self):
        return self.time

    async def sleep(self, duration_s):
        self.slept.append(duration_s)
        self.time += duration_s
        await asyncio.sleep(0)


class FakeHandle:
    """A worker that dies `lives_s` after it said hello, or that never says it."""

    def __init__(self, clock, lives_s, on_message, on_death):
        self.pid, self.closed = 1, False
        self._clock, self._lives_s, self._on_death = clock, lives_s, on_death
        if lives_s is not None:
            asyncio.get_running_loop().call_soon(self._live, on_message)

    def _live(self, on_message):
        on_message(Hello(1, "fake", 0, {}))
        self._clock.time += self._lives_s
        self._on_death(WorkerLost("fell over"))

    def kill(self, reason):
        self._on_death(WorkerLost(reason))

    def post(self, message):
        raise AssertionError(message)

    async def close(self, grace_s):
        self.closed = True


async def lives(monkeypatch, script):
    """Run a supervisor through a script of lives; return what it waited and what it told."""
    clock, listener, script = ScriptClock(), Listener(), iter(script)
    handles = []

    async def start(start, clock, *, on_message, on_death):
        lives_s = next(script, "over")
        if lives_s == "over":
            await asyncio.Event().wait()
        if lives_s == "no process":
            raise OSError("no memory")
        handles.append(FakeHandle(clock, lives_s, on_message, on_death))
        return handles[-1]

    monkeypatch.setattr(supervisor_module.WorkerHandle, "start", start)
    monkeypatch.setattr(ScriptClock, "sleep", patient(ScriptClock.sleep))
    supervisor = WorkerSupervisor(PACED, (), clock, listener)
    supervisor.start()
    for _ in range(400):
        await asyncio.sleep(0)
    await supervisor.stop()
    assert all(handle.closed for handle in handles)
    return [wait for wait in clock.slept if wait != supervisor_module.HELLO_S], listener


def patient(sleep):
    """The wait for Hello lasts until it is cancelled, unless nothing else can happen."""

    async def patient_sleep(self, duration_s):
        if duration_s == supervisor_module.HELLO_S:
            for _ in range(10):
                await asyncio.sleep(0)
        await sleep(self, duration_s)

    return patient_sleep


async def test_waits_double_up_to_a_cap(monkeypatch):
    waits, listener = await lives(monkeypatch, ["no process"] * 5 + [1.0] * 5)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
    assert listener.of("lost")[0] == ("lost", "a worker could not be started: no memory")
    assert listener.of("lost")[-1] == ("lost", "fell over")


async def test_a_long_life_resets_the_wait(monkeypatch):
    waits, _ = await lives(monkeypatch, [0.0, 0.0, 59.0, 61.0, 0.0])
    assert waits == [0.1, 0.2, 0.4, 0.1, 0.2]


async def test_a_worker_that_never_says_hello_is_killed(monkeypatch):
    waits, listener = await lives(monkeypatch, [None])
    assert listener.log == [("lost", "was not ready within 120 s")]
    assert waits == [0.1]
