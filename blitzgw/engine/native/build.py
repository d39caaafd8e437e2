"""Compile the kernels once per machine, and load them.

The library has a plain C interface and needs no headers but the compiler's own, so a build takes
seconds. It is kept in the cache folder under a hash of source and command. It shares torch's
OpenMP threads: torch has loaded libgomp by then, and the loader takes the one that is there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from blitzgw.core.paths import cache_dir

log = logging.getLogger(__name__)

SOURCE = Path(__file__).parent
NEEDED_FLAGS = frozenset({"avx512_bf16", "avx512bw", "avx512dq", "avx512vl"})
AMX_FLAGS = frozenset({"amx_bf16", "amx_tile"})
UNITS = {"amx": NEEDED_FLAGS | AMX_FLAGS, "avx512": NEEDED_FLAGS}
"""What multiplies matrices (unit.h), the best first, and the flags of processors that have it."""
COMPILE = (
    *("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-w", "-mfma"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16"),
)
COMPILE_AMX = ("-mamx-tile", "-mamx-bf16")
BUILD_TIMEOUT_S = 120.0


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, or None where this machine cannot run or build them (logged once).

    $BLITZGW_NATIVE: 0 for none, the name of a unit for no other.
    """
    chosen = os.environ.get("BLITZGW_NATIVE", "")
    flags = cpu_flags()
    if chosen == "0":
        return None
    if missing := NEEDED_FLAGS - flags:
        log.info("native_kernels_off reason=cpu_without flags=%s", ",".join(sorted(missing)))
        return None
    for unit, needed in UNITS.items():
        if needed <= flags and (chosen == unit or chosen not in UNITS):
            loaded = _load(unit)
            if loaded is not None:
                return loaded
    return None


def _load(unit: str) -> ctypes.CDLL | None:
    """Return the kernels for a unit, or None where they cannot be built or used (logged)."""
    try:
        loaded = ctypes.CDLL(str(build(unit)))
    except (OSError, subprocess.SubprocessError) as e:
        log.warning("native_kernels_off unit=%s reason=build_failed error=%s", unit, _told(e))
        return None
    if loaded.blitzgw_init() != 0:
        log.warning("native_kernels_off unit=%s reason=denied_by_the_system", unit)
        return None
    loaded.blitzgw_scratch_bytes.restype = ctypes.c_size_t
    return loaded


def cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags; empty where Linux does not tell them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split() for line in lines if line.startswith("flags")), []))


def build(unit: str) -> Path:
    """Compile the kernels for one of `UNITS` unless done before; return the library's path.

    $CXX may have arguments. Raises OSError without a compiler or a writable cache, SubprocessError
    where it fails.
    """
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise OSError("no C++ compiler: install g++, or set CXX")
    command = (*shlex.split(found), *COMPILE, *(COMPILE_AMX if unit == "amx" else ()))
    digest = hashlib.blake2b(" ".join(command).encode(), digest_size=12)
    for source in (*sorted(SOURCE.glob("*.h")), SOURCE / "layer.cpp"):
        digest.update(source.read_bytes())
    target = cache_dir() / "native" / f"layer-{unit}-{digest.hexdigest()}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "layer.so"
        subprocess.run(  # noqa: S603 - the operator's own compiler, no shell
            [*command, str(SOURCE / "layer.cpp"), "-o", str(made)],
            check=True,
            capture_output=True,
            timeout=BUILD_TIMEOUT_S,
        )
        made.replace(target)
    return target


def _told(error: OSError | subprocess.SubprocessError) -> str:
    """Return an error with what the compiler has said first, where it has said something."""
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    said = error.stderr.decode(errors="replace").strip() or "nothing"
    return f"{error.cmd[0]} ended with {error.returncode} and said {said.splitlines()[0]:.200}"


if __name__ == "__main__":  # ahead of the first start, which would otherwise wait for it
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    library()
