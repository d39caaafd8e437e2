"""What is needed to repeat a run, of the machine and of the program."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GIT_S = 10.0
CHUNK_BYTES = 1 << 24
SOURCES = ("blitzgw", "scripts/evaluation")


def machine(root: Path) -> dict[str, Any]:
    """Return commit, machine and moment."""
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "changed_files": len(_git(root, "status", "--porcelain").splitlines()),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def source(root: Path) -> str:
    """Return a digest of the program as it lies there: what a cell that begins now is made of."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def warm_up(folder: Path) -> None:
    """Read all files once, so that the first cell does not read them more slowly than others."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            while stream.read(CHUNK_BYTES):
                pass


def _git(root: Path, *words: str) -> str:
    """Return what git says; empty where there is none, or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=GIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((one.partition(": ")[2] for one in lines if one.startswith("model name")), "")
