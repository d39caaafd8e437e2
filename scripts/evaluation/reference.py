"""What a paced device says to a prompt, computed in this process by the formulas of its own docs.

Greedy tokens are checked one after another, each from the ones that were answered before it: if all
are right, the answer is the one that a single process would have given. `engine/paced.py` has the
formulas; nothing of it is used here but its hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from blitzgw.core.layout import blob_layouts
from blitzgw.engine.noise import U64, mix_array
from blitzgw.weights.info import open_checkpoint
from blitzgw.weights.loader import load_blobs

PHI = np.uint64(0x9E3779B97F4A7C15)


class Reference:
    """A model on a paced device: digests of its blobs, and what follows from them."""

    def __init__(self, model: Path) -> None:
        """Read all of a checkpoint. Raises CheckpointError."""
        checkpoint = open_checkpoint(model)
        try:
            layouts = blob_layouts(checkpoint.shape, checkpoint.dtype)
            buffers = [memoryview(bytearray(layout.size_bytes)) for layout in layouts]
            load_blobs(
                checkpoint, layouts, checkpoint.dtype, lambda index: buffers[index], lambda _: None
            )
            if checkpoint.shape.tied_head:
                raise ValueError(f"{model}: its head is tied, which is not computed here")
            self._vocabulary = checkpoint.shape.vocab
            self._eos = sorted(set(checkpoint.eos_ids))
        finally:
            checkpoint.close()
        self._digests = [np.uint64(xxhash.xxh3_64_intdigest(one)) for one in buffers]

    def agrees(self, prompt: Sequence[int], answered: Sequence[int], outputs: int) -> bool:
        """Tell whether an answer is `outputs` right tokens; that which ends it may be there."""
        said = [*answered]
        if said and said[-1] in self._eos:
            said.pop()
        return len(said) == outputs and said == self.answer(prompt, said)

    def answer(self, prompt: Sequence[int], said: Sequence[int]) -> list[int]:
        """Return the token that follows the prompt, and those that follow all of `said` but one."""
        tokens = np.array([*prompt, *said[:-1]], np.uint64)
        position = np.arange(len(tokens), dtype=np.uint64)
        weight = 2 * position + np.uint64(1)
        hidden = mix_array(mix_array(tokens ^ self._digests[0]) + position * PHI)
        for digest in self._digests[1:-1]:
            keyed = hidden ^ digest
            fold: U64 = np.cumsum(mix_array(keyed) * weight, dtype=np.uint64)
            hidden = mix_array(fold + keyed)
        logits = mix_array(hidden[len(prompt) - 1 :] ^ self._digests[-1])
        return [self._word(int(bits)) for bits in mix_array(logits)]

    def _word(self, bits: int) -> int:
        """Return a token: none that ends a sequence."""
        token = bits % (self._vocabulary - len(self._eos))
        for eos in self._eos:
            token += token >= eos
        return token
