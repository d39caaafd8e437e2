"""Environments of clients: one for each, made with the venv and pip that everybody has."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALL_S = 900.0
"""The largest client has some gigabytes of dependencies."""

MAX_WHY = 300
"""Characters of what pip says that are told."""


class NotInstalled(Exception):
    """A client cannot be installed here; the message is pip's."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with a client in it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python"

    def command(self, name: str) -> str:
        """Return the path of a program that the client has installed."""
        return str(self.folder / "bin" / name)

    def version(self, packages: Sequence[str]) -> str:
        """Return the version of the first package that is there; raises NotInstalled: none is."""
        for package in packages:
            code = f"from importlib.metadata import version; print(version({package!r}))"
            done = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
            if not done.returncode:
                return done.stdout.strip()
        raise NotInstalled(f"{packages[0]} is not there after it was installed")


def install(packages: Sequence[str], folder: Path) -> Environment:
    """Make an environment with a package from PyPI, or take the one that is there as it is.

    Any of the packages will do where it is there; the first one is what is installed. pip's own
    settings (PIP_INDEX_URL, PIP_CONSTRAINT, …) hold. Raises NotInstalled.
    """
    environment = Environment(folder)
    if os.access(environment.python, os.X_OK):
        with contextlib.suppress(NotInstalled):
            environment.version(packages)
            return environment
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(environment.python), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", packages[0]])
    return environment


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"not installed within {INSTALL_S:.0f} s") from None
    if done.returncode:
        said = (done.stdout + done.stderr).splitlines() or ["it said nothing"]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise NotInstalled(" ".join(errors)[:MAX_WHY])
