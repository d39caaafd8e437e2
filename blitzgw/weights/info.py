"""From a path to what a node knows of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blitzgw.core.instance import ModelSpec
from blitzgw.core.model import Dtype, TextSpec
from blitzgw.errors import CheckpointError
from blitzgw.weights.base import Checkpoint
from blitzgw.weights.gguf_model import GgufFile
from blitzgw.weights.hf_folder import HfFolder


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


def model_spec(
    name: str, path: str | Path, dtype: Dtype | None, max_model_len: int | None
) -> tuple[ModelSpec, TextSpec]:
    """Return what a worker and what the API need to know of a model.

    `dtype` None: the checkpoint's own. `max_model_len` None: all positions of the model, which is
    also the most that can be asked for.
    """
    checkpoint = open_checkpoint(path)
    try:
        limit = checkpoint.shape.max_positions
        length = limit if max_model_len is None else max_model_len
        if not 0 < length <= limit:
            raise CheckpointError(
                f"model {name}: max_model_len is {length}; this model has {limit} positions"
            )
        spec = ModelSpec(
            name=name,
            path=checkpoint.path,
            shape=checkpoint.shape,
            dtype=dtype or checkpoint.dtype,
            max_model_len=length,
            eos_ids=checkpoint.eos_ids,
            weights=fingerprint(checkpoint),
        )
        return spec, checkpoint.text()
    finally:
        checkpoint.close()


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a digest of the value projections of three layers, which any training changes.

    They are the smallest matrices of a layer: milliseconds even for a large model. The bytes are
    those of the file, so a checkpoint in another format is another model.
    """
    last = checkpoint.shape.n_layers - 1
    digest = hashlib.blake2b(digest_size=16)
    for layer in sorted({0, last // 2, last}):
        digest.update(checkpoint.stored(f"layer.{layer}.v"))
    return digest.hexdigest()
