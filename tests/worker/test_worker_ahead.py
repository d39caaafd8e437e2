"""A worker launches a step while the one before it is computed, and answers both in order."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from blitzgw.core.messages import LoadFailed, ModelLoaded, Start, StepFailed, UnloadModel
from blitzgw.core.step import NewSequence, Row, Step, StepResult
from blitzgw.engine.decoder import TorchEngine
from blitzgw.engine.gpu.engine import GpuEngine
from blitzgw.worker.commands import Worker
from blitzgw.worker.executor import InstanceExecutor
from tests.support.capturing import RecordingShell, gathered
from tests.support.engines import CPU, load_into
from tests.worker.worker_kit import (
    GREEDY,
    KV,
    PATIENCE_S,
    WHOLE,
    first_step,
    load_message,
    next_step,
    write_checkpoint,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Device:
    """A GPU with a CPU in its place. Its broken state is that of its steps' tokens."""

    def __init__(self):
        self.shell, self.engines = RecordingShell(), []

    def engine(self, spec, kv, memory):
        made = GpuEngine(
            spec, kv, CPU, memory, time.perf_counter, self.shell, lambda: gathered(spec)
        )
        self.engines.append(made)
        return made

    def reclaim(self):
        pass

    def is_broken(self, error):
        return False


class Mail:
    """Messages of a worker, in the order they were sent in."""

    def __init__(self):
        self.sent, self._new = [], queue.SimpleQueue()

    def send(self, message):
        self.sent.append(message)
        self._new.put(message)

    def wait(self, kind):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            message = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            assert not isinstance(message, LoadFailed), message
            if isinstance(message, kind):
                return message

    def answers(self):
        return [m.step for m in self.sent if isinstance(m, (StepResult, StepFailed))]


class Over(BaseException):
    """Ends the worker's loop."""


@contextmanager
def running(folder):
    """A worker in a thread of this process, with a model loaded."""
    device, mail = Device(), Mail()
    worker = Worker(mail, device, Start(CPU), time.perf_counter)

    def run():
        with pytest.raises(Over):
            worker.run()

    def stop():
        raise Over

    thread = threading.Thread(target=run)
    thread.start()
    try:
        worker.post(load_message(folder))
        mail.wait(ModelLoaded)
        yield worker, device, mail
    finally:
        worker._jobs.put(stop)
        thread.join(PATIENCE_S)
        worker.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def expected(folder):
    """The tokens of `first_step` and four more, by a plain engine."""
    message = load_message(folder)
    engine = TorchEngine(message.model, KV, CPU)
    load_into(engine, folder, message.model)
    executor = InstanceExecutor(engine, WHOLE.stop)
    tokens = [executor.execute(first_step())[0].token]
    for i in range(4):
        tokens.append(executor.execute(next_step(2 + i, 3 + i))[0].token)
    return tokens


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_next_step_is_launched_while_the_first_is_computed(folder, expected):
    with running(folder) as (worker, device, mail):
        device.shell.slow = True
        before = len(device.shell.fetched)
        worker.post(first_step(1))
        worker.post(next_step(2, 3))
        until(lambda: len(device.shell.fetched) == before + 2)
        assert mail.answers() == []
        worker.post(next_step(3, 4))  # for a third one to begin, the first is waited for
        until(lambda: len(device.shell.fetched) == before + 3)
        assert mail.answers() == [1]
        for fetched in device.shell.fetched[before:]:
            fetched.ready = True
        results = [mail.wait(StepResult) for _ in range(3)]
    assert [r.step for r in results] == [1, 2, 3]
    assert [r.tokens[0] for r in results] == expected[:3]
    assert all(r.duration_s > 0 for r in results)


def test_a_refusal_is_answered_in_its_turn(folder):
    with running(folder) as (worker, device, mail):
        device.shell.slow = True
        worker.post(first_step(1))
        worker.post(next_step(2, 99))
        failed = mail.wait(StepFailed)
        assert "positions [99, 100)" in failed.message
        assert mail.answers() == [1, 2]
        worker.post(next_step(3, 3))  # its sequence went with the refusal
        assert "unknown sequence 1" in mail.wait(StepFailed).message


def test_what_goes_wrong_on_the_device_fails_the_step_that_it_was(folder):
    with running(folder) as (worker, device, mail):
        device.shell.slow = True
        before = len(device.shell.fetched)
        worker.post(first_step(1))
        worker.post(first_step(2, seq=2))
        until(lambda: len(device.shell.fetched) == before + 2)

        def broken():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        failing = device.shell.fetched[before]
        failing.is_ready = failing.wait = broken  # a device tells whoever asks
        for fetched in device.shell.fetched[before:]:
            fetched.ready = True
        assert "illegal memory access" in mail.wait(StepFailed).message
        assert mail.wait(StepResult).step == 2
        assert mail.answers() == [1, 2]
        device.shell.slow = False
        worker.post(next_step(3, 3))
        assert "unknown sequence 1" in mail.wait(StepFailed).message


def test_steps_under_way_are_answered_before_their_instance_goes(folder):
    with running(folder) as (worker, device, mail):
        device.shell.slow = True
        worker.post(first_step(1))
        worker.post(UnloadModel("i0"))
        worker.post(next_step(2, 3))
        assert "unknown instance" in mail.wait(StepFailed).message
        assert mail.answers() == [1, 2]


def test_a_row_that_needs_the_tokens_waits_for_them(folder, expected):
    """A penalty counts the tokens so far: the third step must know what the second has sampled."""
    penalised = replace(GREEDY, repetition_penalty=1.0001)
    with running(folder) as (worker, device, mail):
        device.shell.slow = True
        new = NewSequence(1, (5, 9, 11), 3, 0, penalised)
        row = Row(1, 0, 3, sample=True, blocks=tuple(range(4, 8)))
        worker.post(Step(1, "i0", WHOLE, (row,), new=(new,)))
        worker.post(next_step(2, 3))
        worker.post(next_step(3, 4))
        for fetched in iter_ready(device.shell, 3):
            fetched.ready = True
        results = [mail.wait(StepResult) for _ in range(3)]
    assert [r.tokens[0] for r in results] == expected[:3]


def iter_ready(shell, count):
    """Yield fetches as they are made, until `count` of them have not been waited for."""
    for _ in range(count):
        until(lambda: any(not f.ready for f in shell.fetched))
        yield next(f for f in shell.fetched if not f.ready)


def test_quiet_moments_are_used_and_change_nothing(folder, expected):
    with running(folder) as (worker, device, mail):
        worker.post(first_step(1))
        worker.post(next_step(2, 3))
        results = [mail.wait(StepResult) for _ in range(2)]
        until(lambda: device.shell.captures == 3)  # 1, 2 and 4 rows of 4 slots
        assert device.engines[0].moment_s() is None
        replays = device.shell.replays
        for i in range(3):
            worker.post(next_step(3 + i, 4 + i))
        results += [mail.wait(StepResult) for _ in range(3)]
        assert device.shell.replays == replays + 3
    assert [r.tokens[0] for r in results] == expected
