"""From a path to what a node knows of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blitzgw.core.instance import ModelSpec
from blitzgw.core.manifest import Manifest
from blitzgw.core.model import Dtype, TextSpec
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import Checkpoint
from blitzgw.weights.gguf_model import GgufFile
from blitzgw.weights.hf_folder import HfFolder
from blitzgw.weights.manifest import Progress, manifest_of


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder or a GGUF file, and check all of its tensors' places and shapes.

    Raises CheckpointError. The caller closes it.
    """
    path = Path(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r}: cannot be looked at ({error})") from error
    if not exists:
        raise CheckpointError(f"{path}: does not exist")
    if is_folder:
        return HfFolder(path)
    if path.suffix.lower() != ".gguf":
        raise CheckpointError(
            f"{path}: must be a Hugging Face folder (config.json, *.safetensors) or a .gguf file"
        )
    return GgufFile(path)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A checkpoint of this machine: what workers, the API and the cluster need to know of it."""

    spec: ModelSpec
    text: TextSpec
    manifest: Manifest


def resolve_model(
    name: str,
    path: str | Path,
    dtype: Dtype | None,
    max_model_len: int | None,
    progress: Progress | None = None,
) -> ResolvedModel:
    """Return what is to be known of a model; all of it is read where no manifest is kept.

    `dtype` None: the checkpoint's own. `max_model_len` None: all positions of the model, which is
    also the most that can be asked for. Raises CheckpointError.
    """
    checkpoint = open_checkpoint(path)
    try:
        limit = checkpoint.shape.max_positions
        length = limit if max_model_len is None else max_model_len
        if not 0 < length <= limit:
            raise CheckpointError(
                f"model {name}: max_model_len is {length}; this model has {limit} positions"
            )
        text = checkpoint.text()
        manifest = manifest_of(checkpoint, dtype or checkpoint.dtype, progress)
        spec = ModelSpec(
            name=name,
            path=checkpoint.path,
            shape=checkpoint.shape,
            dtype=manifest.dtype,
            max_model_len=length,
            eos_ids=checkpoint.eos_ids,
            weights=manifest.root(),
            tokenizer=text.tokenizer_path,
        )
        return ResolvedModel(spec, text, manifest)
    finally:
        checkpoint.close()
