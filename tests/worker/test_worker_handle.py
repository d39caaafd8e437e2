"""How a worker's life ends, and that it is told once and leaves nothing behind."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.messages import BlobResident, Hello, ModelLoaded, Start, UnloadModel
from blitzgw.core.step import StepResult
from blitzgw.errors import ProtocolError
from blitzgw.worker import handle as handle_module
from blitzgw.worker.handle import WorkerHandle
from tests.support.nodes import is_gone
from tests.worker.worker_kit import (
    PACED,
    Mailbox,
    first_step,
    load_message,
    next_step,
    slow,
    until,
    write_checkpoint,
)


async def test_kill_is_reported_once_with_its_signal(tmp_path):
    box = Mailbox()
    handle = await box.start()
    await box.wait(Hello)
    handle.post(load_message(write_checkpoint(tmp_path)))
    await box.wait(ModelLoaded)
    handle.post(first_step())
    await box.wait(StepResult)
    os.kill(handle.pid, signal.SIGKILL)
    assert await box.death() == f"worker {handle.pid} ended its connection; killed by SIGKILL"
    handle.post(next_step(2, 3))
    handle.kill("again")
    await handle.close()
    await handle.close()
    assert len(box.deaths) == 1
    assert is_gone(handle.pid)


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x00" * 64, id="no length"),
        pytest.param(b"\xff" * 64, id="absurd length"),
        pytest.param(b"\x03\x00\x00\x00\x08\xc1\xc1", id="not msgpack"),
        pytest.param(b"\x02\x00\x00\x00\x08\x80", id="a step without fields"),
    ],
)
async def test_a_worker_exits_on_garbage(garbage):
    box = Mailbox()
    handle = await box.start()
    await box.wait(Hello)
    handle._transport.write(garbage)
    assert (await box.death()).endswith("exit status 65")
    await handle.close()


async def test_a_worker_exits_on_a_message_out_of_place():
    box = Mailbox()
    handle = await box.start()
    await box.wait(Hello)
    handle.post(Start(PACED))
    assert (await box.death()).endswith("exit status 65")
    await handle.close()


async def test_a_device_that_cannot_be_opened_is_a_death():
    box = Mailbox()
    handle = await box.start(dilation=0.0)
    assert "exit status" in await box.death()
    await handle.close()


SCRIPTS = {
    "garbage": "import socket, time; socket.socket(fileno=%d).sendall(b'x' * 64); time.sleep(60)",
    "hang up": "import os, time; os.close(%d); time.sleep(60)",
    "leave": "raise SystemExit(3)",
    "deaf": "import time; time.sleep(60)",
}


@pytest.fixture
def impostor(monkeypatch):
    """Replace the worker by a script that misbehaves."""

    def use(name):
        def spawn(sock):
            script = SCRIPTS[name]
            script = script % sock.fileno() if "%d" in script else script
            return subprocess.Popen([sys.executable, "-c", script], pass_fds=(sock.fileno(),))

        monkeypatch.setattr(handle_module, "_spawn", spawn)

    return use


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("garbage", "broke the protocol"),
        ("hang up", "ended its connection; killed by SIGKILL"),
        ("leave", "exit status 3"),
    ],
)
async def test_what_a_worker_can_do_wrong_is_reported(name, told, impostor, monkeypatch):
    monkeypatch.setattr(handle_module, "EXIT_GRACE_S", 0.2)
    impostor(name)
    box = Mailbox()
    handle = await box.start()
    assert told in await box.death()
    assert is_gone(handle.pid)
    await handle.close()
    assert len(box.deaths) == 1


async def test_a_deaf_worker_is_killed_when_too_much_waits(impostor, monkeypatch):
    monkeypatch.setattr(handle_module, "MAX_UNSENT_BYTES", 1 << 20)
    impostor("deaf")
    box = Mailbox()
    handle = await box.start()
    message = UnloadModel("x" * 60000)
    for _ in range(40):
        handle.post(message)
    assert "unread" in await box.death()
    await handle.close()


async def test_close_kills_what_does_not_exit(impostor):
    impostor("deaf")
    box = Mailbox()
    handle = await box.start()
    started = asyncio.get_running_loop().time()
    await handle.close(grace_s=0.1)
    assert is_gone(handle.pid)
    assert asyncio.get_running_loop().time() - started < 5
    assert box.deaths == []


async def test_a_cancelled_close_kills_at_once(impostor):
    impostor("deaf")
    handle = await Mailbox().start()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await handle.close(grace_s=60)
    assert is_gone(handle.pid)
    await handle.close()


async def test_a_cancelled_start_leaves_nothing(monkeypatch):
    spawned = []
    spawn = handle_module._spawn
    monkeypatch.setattr(handle_module, "_spawn", lambda s: spawned.append(spawn(s)) or spawned[-1])
    starting = asyncio.ensure_future(Mailbox().start())
    await until(lambda: spawned)
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled():  # it was quicker
        await starting.result().close()
    assert is_gone(spawned[0].pid)


async def test_a_start_without_an_interpreter_raises(monkeypatch):
    monkeypatch.setattr(handle_module.sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="nowhere"):
        await Mailbox().start()


async def test_a_message_above_its_limit_is_refused_here():
    box = Mailbox()
    handle = await box.start()
    with pytest.raises(ProtocolError, match="limit"):
        handle.post(UnloadModel("x" * 100_000))
    await box.wait(Hello)
    await handle.close()


async def test_signals_of_the_group_do_not_end_a_worker(tmp_path):
    box = Mailbox()
    handle = await box.start()
    await box.wait(Hello)
    os.kill(handle.pid, signal.SIGINT)
    os.kill(handle.pid, signal.SIGTERM)
    handle.post(load_message(write_checkpoint(tmp_path)))
    await box.wait(ModelLoaded)
    assert os.getsid(handle.pid) == handle.pid
    await handle.close()


async def test_close_ends_a_worker_that_is_inside_a_step(tmp_path):
    box = Mailbox()
    handle = await box.start(device=slow(layer_us=60e6))
    handle.post(load_message(write_checkpoint(tmp_path)))
    await box.wait(BlobResident, 5)  # now its warm-up step takes minutes
    await handle.close(grace_s=20)
    assert is_gone(handle.pid)
    assert handle._process.returncode == 0  # it left by itself


PARENT = """
import asyncio
from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.core.messages import Start
from blitzgw.worker.handle import WorkerHandle

async def main():
    handle = await WorkerHandle.start(
        Start(DeviceSpec("p0", DeviceKind.PACED)), MonotonicClock(),
        on_message=lambda message: print(message.pid, flush=True),
        on_death=lambda error: print(error, flush=True),
    )
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_worker_does_not_outlive_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert not is_gone(pid)
        parent.kill()
    await until(lambda: is_gone(pid), "the worker's end")


def test_the_parents_side_imports_no_engine():
    script = """
import sys
import blitzgw.worker.handle, blitzgw.worker.supervisor
heavy = {"torch", "numpy", "xxhash", "blitzgw.engine", "blitzgw.weights", "blitzgw.worker.executor"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_paced_worker_imports_no_torch():
    script = """
import sys
import blitzgw.worker.main
from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.worker.devices import open_device
open_device(DeviceSpec("p0", DeviceKind.PACED), 1.0)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_worker_without_a_device_imports_no_engine():
    script = """
import sys
import blitzgw.worker.main
from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.worker.devices import open_device
open_device(DeviceSpec("h0", DeviceKind.HOST), 1.0)
print(sorted({"torch", "blitzgw.engine.paced", "blitzgw.engine.decoder"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_it_works_under_uvloop():
    uvloop = pytest.importorskip("uvloop")

    async def live():
        box = Mailbox()
        handle = await box.start()
        await box.wait(Hello)
        os.kill(handle.pid, signal.SIGKILL)
        await box.death()
        await handle.close()
        second = await WorkerHandle.start(
            Start(PACED),
            MonotonicClock(),
            on_message=box.messages.append,
            on_death=box.deaths.append,
        )
        await second.close()
        return is_gone(second.pid) and len(box.deaths) == 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(live())
