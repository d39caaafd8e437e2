"""A real worker process on a paced device, spoken to through its handle."""

import asyncio
import contextlib
import shutil
from dataclasses import replace

import pytest

from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.core.messages import (
    BlobResident,
    Hello,
    LoadFailed,
    ModelLoaded,
    StepFailed,
    UnloadModel,
)
from blitzgw.core.span import Span
from blitzgw.core.step import KvGeometry, Row, Step, StepResult
from tests.support.nodes import is_gone
from tests.worker.worker_kit import (
    LAYERS,
    VOCAB,
    WHOLE,
    Mailbox,
    first_step,
    load_message,
    next_step,
    slow,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@contextlib.asynccontextmanager
async def worker(**options):
    box = Mailbox()
    handle = await box.start(**options)
    try:
        yield box, handle
    finally:
        await handle.close()
        assert is_gone(handle.pid)


async def test_hello_load_steps_tokens(folder):
    async with worker() as (box, handle):
        hello = await box.wait(Hello)
        assert hello.pid == handle.pid
        assert hello.software == {"layout": "1", "device": "paced"}
        assert hello.memory_bytes > 1 << 28
        handle.post(load_message(folder))
        loaded = await box.wait(ModelLoaded)
        assert loaded.duration_s > 0
        assert [blob.index for blob in box.of(BlobResident)] == list(range(LAYERS + 2))
        # Posted ahead: the second row reads the token that the first has yet to sample.
        handle.post(first_step(1))
        handle.post(next_step(2, 3))
        handle.post(next_step(3, 4))
        await box.wait(StepResult, 3)
        results = box.of(StepResult)
        assert [result.step for result in results] == [1, 2, 3]
        assert all(len(result.tokens) == 1 for result in results)
        assert all(0 <= result.tokens[0] < VOCAB for result in results)
        assert all(result.logprobs is None and result.duration_s > 0 for result in results)
        tokens = [5, 9, 11, *(result.tokens[0] for result in results)]
        handle.post(first_step(4, seq=2, tokens=tokens[:5]))
        again = await box.wait(StepResult, 4)
        assert again.tokens == results[2].tokens
    assert box.deaths == []


async def test_a_failed_step_costs_its_sequences_only(folder):
    async with worker() as (box, handle):
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        handle.post(first_step(1, seq=1))
        handle.post(first_step(2, seq=2))
        handle.post(next_step(3, 40, seq=1))
        handle.post(next_step(4, 3, seq=1))
        handle.post(next_step(5, 3, seq=2))
        handle.post(next_step(6, 3, seq=1, instance="nobody"))
        handle.post(Step(7, "i0", WHOLE, (), drop=(1, 2, 99)))
        await box.wait(StepResult, 4)
        assert [result.step for result in box.of(StepResult)] == [1, 2, 5, 7]
        failures = {failure.step: failure for failure in box.of(StepFailed)}
        assert set(failures) == {3, 4, 6}
        assert "which has 4 tokens" in failures[3].message
        assert "unknown sequence 1" in failures[4].message
        assert "unknown instance nobody" in failures[6].message
        assert box.of(StepResult)[-1].tokens == ()


@pytest.mark.parametrize("damage", ["missing", "truncated", "another shape"])
async def test_a_broken_checkpoint_fails_to_load_and_the_worker_lives(damage, folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    message = load_message(broken, "broken")
    if damage == "missing":
        shutil.rmtree(broken)
    elif damage == "truncated":
        file = broken / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    else:
        write_checkpoint(broken, mlp=32)
    async with worker() as (box, handle):
        handle.post(message)
        failed = await box.wait(LoadFailed)
        assert failed.instance == "broken"
        assert str(broken) in failed.message
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        handle.post(first_step())
        assert len((await box.wait(StepResult)).tokens) == 1


async def test_too_little_memory_fails_to_load_and_the_worker_lives(folder):
    huge = KvGeometry(slots=1 << 50, blocks_per_slot=1, block_bytes=0)
    async with worker() as (box, handle):
        handle.post(replace(load_message(folder, "huge"), kv=huge))
        assert "Error" in (await box.wait(LoadFailed)).message
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)


async def test_a_second_load_of_an_instance_is_refused_and_the_first_serves(folder):
    async with worker() as (box, handle):
        handle.post(load_message(folder))
        handle.post(load_message(folder))
        assert "already here" in (await box.wait(LoadFailed)).message
        await box.wait(ModelLoaded)
        handle.post(first_step())
        await box.wait(StepResult)


async def test_unload_forgets_and_the_name_is_free_again(folder):
    async with worker() as (box, handle):
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        handle.post(first_step(1))
        handle.post(UnloadModel("i0"))
        handle.post(UnloadModel("never heard of"))
        handle.post(next_step(2, 3))
        assert "unknown instance" in (await box.wait(StepFailed)).message
        handle.post(load_message(folder))
        await box.wait(ModelLoaded, 2)
        handle.post(first_step(3))
        result = await box.wait(StepResult, 2)
        assert result.tokens == box.of(StepResult)[0].tokens


async def test_what_was_posted_before_an_unload_runs_before_it(folder):
    async with worker(device=slow(layer_us=1e5)) as (box, handle):
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        handle.post(first_step(1))  # the main thread is busy while the other comes and goes
        handle.post(load_message(folder, "i1"))
        await box.wait(BlobResident, 2 * (LAYERS + 2))
        handle.post(first_step(2, instance="i1"))
        handle.post(UnloadModel("i1"))
        await box.wait(StepResult, 2)
        handle.post(next_step(3, 3, instance="i1"))
        assert "unknown instance" in (await box.wait(StepFailed)).message
        assert len(box.of(StepFailed)) == 1


async def test_unload_during_a_load_is_silent(folder, tmp_path):
    large = write_checkpoint(tmp_path / "large", layers=300)
    async with worker() as (box, handle):
        handle.post(load_message(large, "large"))
        await box.wait(BlobResident)
        handle.post(UnloadModel("large"))
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        assert [loaded.instance for loaded in box.of(ModelLoaded)] == ["i0"]
        assert box.of(LoadFailed) == []


async def test_steps_run_while_another_model_loads(folder, tmp_path):
    large = write_checkpoint(tmp_path / "large", layers=300)
    async with worker() as (box, handle):
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        handle.post(load_message(large, "large"))
        handle.post(first_step())
        await box.wait(StepResult)
        assert len(box.of(ModelLoaded)) == 1
        await box.wait(ModelLoaded, 2)


async def test_layers_that_are_resident_run_before_the_model_is_loaded(tmp_path):
    folder = write_checkpoint(tmp_path / "large", layers=300)
    async with worker() as (box, handle):
        handle.post(load_message(folder))
        await box.wait(BlobResident, 4)
        step, silent = first_step(), Row(1, 0, 3, sample=False, blocks=(4, 5, 6, 7))
        front = Span(0, 2)
        handle.post(Step(1, "i0", front, (silent,), new=step.new))
        assert (await box.wait(StepResult)).tokens == ()
        handle.post(Step(2, "i0", front, (Row(1, 0, 3, sample=True),)))
        assert "cannot sample" in (await box.wait(StepFailed)).message
        await box.wait(ModelLoaded)


async def test_close_during_a_load_and_a_long_step_leaves_nothing(folder, tmp_path):
    large = write_checkpoint(tmp_path / "large", layers=300)
    async with worker(device=slow(layer_us=20e6)) as (box, handle):
        handle.post(load_message(large, "large"))
        await box.wait(BlobResident)
    assert is_gone(handle.pid)
    assert box.deaths == []


async def test_dilation_stretches_the_pace_and_not_the_report(folder):
    async with worker(device=slow(layer_us=2000), dilation=5.0) as (box, handle):
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        started = asyncio.get_running_loop().time()
        handle.post(first_step())
        result = await box.wait(StepResult)
        wall_s = asyncio.get_running_loop().time() - started
        assert result.duration_s >= 0.006
        assert wall_s >= 5 * 0.006
        assert result.duration_s < wall_s / 2


async def test_a_cpu_worker_serves_the_same_messages(folder):
    async with worker(device=DeviceSpec("c0", DeviceKind.CPU, threads=1)) as (box, handle):
        assert "torch" in (await box.wait(Hello)).software
        handle.post(load_message(folder))
        await box.wait(ModelLoaded)
        handle.post(first_step(1))
        handle.post(next_step(2, 3))
        handle.post(next_step(3, 99))
        await box.wait(StepFailed)
        tokens = [5, 9, 11, *(result.tokens[0] for result in box.of(StepResult))]
        handle.post(first_step(4, seq=2, tokens=tokens[:4]))
        assert (await box.wait(StepResult, 3)).tokens == (tokens[4],)
