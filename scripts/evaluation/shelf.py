"""Host copies that are there before a cell begins: reading them from paced disks takes a minute.

The first cell keeps a copy that a node has made; later ones lay it where nodes look for what former
ones have left. They check and hold it as they would any other.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from blitzgw.core.paths import cache_dir
from scripts.evaluation.configuration import Nodes

PATTERN = "*.blobs"


def lay(made: Nodes, model: Path, count: int) -> None:
    """Give copies to so many nodes, the last ones first: instances begin at the first ones."""
    for file in _folder(model).glob(PATTERN):
        for node in [*reversed(made.nodes)][:count]:
            target = made.bed.memory(node) / file.name
            target.touch(mode=0o600)
            shutil.copyfile(file, target)


def keep(made: Nodes, model: Path) -> None:
    """Keep a whole copy of a node, unless there is one. A full disk is no harm."""
    folder = _folder(model)
    found = (file for node in made.nodes for file in made.bed.memory(node).glob(PATTERN))
    file = next(found, None)
    if file is None or any(folder.glob(PATTERN)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{file.name}.{made.bed.name}"
    try:
        shutil.copyfile(file, partial)
        partial.rename(folder / file.name)
    except OSError:
        partial.unlink(missing_ok=True)


def _folder(model: Path) -> Path:
    return cache_dir() / "bench" / f"copy-of-{model.name}"
