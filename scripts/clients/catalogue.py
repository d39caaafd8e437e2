"""The clients: what each is called, where it comes from, what is done with it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.clients.installing import Environment
from scripts.clients.vllmcpu import PACKAGES, vllm_env

HERE = Path(__file__).parent

DRIVE_S = 900.0
"""The longest driver asks some two hundred times, on a busy machine's CPU."""

LAST_LINES, MAX_WHY = 30, 300
"""Of a program that fails: of its last lines, those with an error in them are told, cut there."""

REQUESTS = 8
"""Of a load generator: enough that some run at once."""

PROMPT_TOKENS, OUTPUT_TOKENS = 32, 8


@dataclass(frozen=True)
class Target:
    """What is asked. `url` is without /v1; `tokenizer` a folder in Hugging Face's format."""

    url: str
    model: str
    tokenizer: Path


@dataclass(frozen=True)
class Finding:
    """What was done with a client, and whether it went well."""

    what: str
    ok: bool
    detail: str = ""


Drive = Callable[[Environment, Target, Path], Iterable[Finding]]
"""Does everything; the path is an empty folder."""


@dataclass(frozen=True)
class Client:
    """A client, and the packages that it may be in: the first is installed where none is there.

    What is `heavy` is installed only where asked for.
    """

    name: str
    packages: Sequence[str]
    drive: Drive
    heavy: bool = False


class _Failed(Exception):
    """A program failed; the message is the end of what it said."""


def _lines(command: list[str], folder: Path) -> Iterator[str]:
    """Run a program of a client and yield the lines of its output; raises _Failed at their end."""
    environment = {**os.environ, "NO_COLOR": "1"}
    environment.pop("PYTHONPATH", None)  # a client's packages are its own
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        timer = threading.Timer(DRIVE_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                last.append(line)
                yield line
            process.wait()  # bounded by the timer
        finally:
            timer.cancel()
            process.kill()  # which does nothing where it has ended: else the reader has gone
    if process.returncode:
        why = [line for line in last if "rror" in line] or last
        words = " ".join("".join(why).split())
        raise _Failed(f"exit status {process.returncode}: {words[:MAX_WHY]}")


def driven(file: str) -> Drive:
    """Return what runs a driver of this folder, which tells its findings one a line."""

    def drive(environment: Environment, target: Target, folder: Path) -> Iterator[Finding]:
        command = [str(environment.python), str(HERE / file), f"{target.url}/v1", target.model]
        found = 0
        try:
            for line in _lines(command, folder):
                if line.startswith('{"what"'):
                    found += 1
                    yield Finding(**json.loads(line))
            if not found:
                raise _Failed("it found nothing out")
        except _Failed as failure:
            yield Finding("the driver as a whole", False, str(failure))

    return drive


def measured(
    variants: Iterable[str],
    command: Callable[[Environment, Target, Path, str], list[str]],
    count: Callable[[Path], tuple[int, int]],
) -> Drive:
    """Return what runs a load generator in some variants.

    `count` returns how many requests it says have succeeded and failed, from its files.
    """

    def drive(environment: Environment, target: Target, folder: Path) -> Iterator[Finding]:
        for variant in variants:
            place = folder / variant
            place.mkdir()
            try:
                for _ in _lines(command(environment, target, place, variant), place):
                    pass
                good, bad = count(place)
                yield Finding(variant, good == REQUESTS and not bad, f"{good} ok, {bad} failed")
            except (_Failed, OSError, ValueError, KeyError, IndexError, TypeError) as error:
                yield Finding(variant, False, f"{type(error).__name__}: {error}")

    return drive


def _guidellm(env: Environment, target: Target, folder: Path, variant: str) -> list[str]:
    api = "/v1/chat/completions" if variant == "chat" else "/v1/completions"
    backend = f"kind=openai_http,target={target.url},model={target.model},request_format={api}"
    data = f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"
    return [
        env.command("guidellm"), "run", "--backend", backend, "--data", data,
        "--tokenizer", f"kind=huggingface_auto,model={target.tokenizer}",
        "--profile", "kind=concurrent,streams=2",
        "--constraint", f"kind=max_requests,count={REQUESTS}",
        "--output", f"kind=json,path={folder / 'result.json'}", "--disable-console",
    ]  # fmt: skip


def _guidellm_count(folder: Path) -> tuple[int, int]:
    (benchmark,) = _only(folder, "result.json")["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    return totals["successful"], totals["errored"]


def _aiperf(env: Environment, target: Target, folder: Path, variant: str) -> list[str]:
    return [
        env.command("aiperf"), "profile", "--model", target.model, "--url", target.url,
        "--endpoint-type", variant, "--streaming", "--tokenizer", str(target.tokenizer),
        "--request-count", str(REQUESTS), "--concurrency", "2", "--ui", "none",
        "--synthetic-input-tokens-mean", str(PROMPT_TOKENS),
        "--output-tokens-mean", str(OUTPUT_TOKENS),
        "--extra-inputs", "ignore_eos:true", "--output-artifact-dir", str(folder),
    ]  # fmt: skip


def _aiperf_count(folder: Path) -> tuple[int, int]:
    told = _only(folder, "profile_export_aiperf.json")
    failed = told.get("error_request_count") or {"avg": 0}
    return round(told["request_count"]["avg"]), round(failed["avg"])


def _vllm(env: Environment, target: Target, folder: Path, variant: str) -> list[str]:
    chat = variant == "chat"
    told = [f"{name}={value}" for name, value in vllm_env(env.folder, folder / "shim").items()]
    return [
        "env", *told, env.command("vllm"), "bench", "serve",
        "--base-url", target.url, "--model", target.model,
        "--backend", "openai-chat" if chat else "openai",
        "--endpoint", "/v1/chat/completions" if chat else "/v1/completions",
        "--tokenizer", str(target.tokenizer), "--dataset-name", "random",
        "--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(OUTPUT_TOKENS),
        "--num-prompts", str(REQUESTS), "--max-concurrency", "2", "--ignore-eos",
        "--save-result", "--result-dir", str(folder), "--result-filename", "result.json",
    ]  # fmt: skip


def _vllm_count(folder: Path) -> tuple[int, int]:
    told = _only(folder, "result.json")
    return told["completed"], told.get("failed", 0)


def _only(folder: Path, pattern: str) -> Any:
    """Return what is in the file of that name, the only one; raises ValueError."""
    (path,) = folder.rglob(pattern)
    return json.loads(path.read_text())


CLIENTS = (
    Client("openai-python", ("openai",), driven("drive_openai.py")),
    Client("LangChain", ("langchain-openai",), driven("drive_langchain.py")),
    Client("LiteLLM", ("litellm",), driven("drive_litellm.py")),
    Client("guidellm", ("guidellm",), measured(("chat", "text"), _guidellm, _guidellm_count)),
    Client("aiperf", ("aiperf",), measured(("chat", "completions"), _aiperf, _aiperf_count)),
    Client("vllm", PACKAGES, measured(("chat", "text"), _vllm, _vllm_count), heavy=True),
)
