"""Checkpoints to measure transfers with: random weights in blobs of nearly equal size.

The embedding, each layer and the head (which is not tied) are as large as one another, so that
figures of plans by blobs come out as the formulas say. What a model is called says all of what is
in it: the same arguments give the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from blitzgw.core.layout import blob_layouts
from blitzgw.core.model import Dtype
from blitzgw.core.paths import cache_dir

VERSION = 1
"""Of what this module makes of its arguments."""

KEPT = 3
"""Models that stay in the cache folder; the ones that were used longest ago are removed."""

CONTEXT = 2048
HEADS, KV_HEADS = 4, 1
MIN_HIDDEN, MAX_HIDDEN = 64, 4096
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MIN_VOCAB = 256 + len(SPECIAL_TOKENS)
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a model of so many bytes in so many blobs is like."""

    layers: int
    hidden: int
    intermediate: int
    vocab: int

    @property
    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order of the file."""
        d, kv, mlp = self.hidden, self.hidden // HEADS * KV_HEADS, self.intermediate
        yield "model.embed_tokens.weight", (self.vocab, d)
        for layer in range(self.layers):
            inner = {
                "input_layernorm": (d,),
                "self_attn.q_proj": (d, d),
                "self_attn.k_proj": (kv, d),
                "self_attn.v_proj": (kv, d),
                "self_attn.o_proj": (d, d),
                "post_attention_layernorm": (d,),
                "mlp.gate_proj": (mlp, d),
                "mlp.up_proj": (mlp, d),
                "mlp.down_proj": (d, mlp),
            }
            for name, shape in inner.items():
                yield f"model.layers.{layer}.{name}.weight", shape
        yield "model.norm.weight", (d,)
        yield "lm_head.weight", (self.vocab, d)

    def config(self, context: int) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": self.hidden // HEADS,
            "vocab_size": self.vocab,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


def sizes(size_bytes: int, blobs: int) -> Sizes:
    """Return what comes nearest. Raises ValueError where blobs would be too small for a layer."""
    if blobs < 3:
        raise ValueError(f"{blobs} blobs; an embedding, a layer and a head are 3")
    elements = size_bytes / blobs / 2  # of bfloat16
    hidden = MAX_HIDDEN
    while hidden > MIN_HIDDEN and hidden * hidden * 16 > elements:
        hidden //= 2
    attention = (2 + 2 * KV_HEADS / HEADS) * hidden * hidden + 2 * hidden
    intermediate = round((elements - attention) / (3 * hidden))
    vocab = round(elements / hidden)
    if intermediate < 1 or vocab < MIN_VOCAB:
        raise ValueError(f"blobs of {size_bytes // blobs} bytes are too small; give fewer, or more")
    return Sizes(blobs - 2, hidden, intermediate, vocab)


def bench_model(
    size_mb: float, blobs: int, folder: Path | None = None, context: int = CONTEXT
) -> Path:
    """Return the folder of a checkpoint for `context` tokens, made where it is not there yet.

    MB are 10⁶ bytes. It is kept in `folder`, or `bench/` of the cache folder.
    """
    made = sizes(round(size_mb * 1e6), blobs)
    home = folder or cache_dir() / "bench"
    home.mkdir(parents=True, exist_ok=True)
    longer = "" if context == CONTEXT else f"-{context}tokens"
    target = home / f"bench-v{VERSION}-{size_mb:g}mb-{blobs}blobs{longer}"
    if not target.is_dir():
        _write(made, target, context)
    target.touch()  # used now
    _prune(home)
    return target


def size_bytes(folder: Path) -> list[int]:
    """Return the sizes of a checkpoint's blobs, as blitzgw lays them out."""
    from blitzgw.weights.info import open_checkpoint

    checkpoint = open_checkpoint(folder)
    try:
        layouts = blob_layouts(checkpoint.shape, Dtype.BFLOAT16)
    finally:
        checkpoint.close()
    return [layout.size_bytes for layout in layouts]


def _write(made: Sizes, target: Path, context: int) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        (partial / "config.json").write_text(json.dumps(made.config(context), indent=1))
        _write_tokenizer(partial)
        with (partial / "model.safetensors").open("wb") as file:
            _write_weights(made, file)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_weights(made: Sizes, file: BinaryIO) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in made.tensors:
        stop = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    bits = np.random.PCG64(VERSION)
    for _, shape in made.tensors:
        file.write(_numbers(bits, int(np.prod(shape))).data)


def _numbers(bits: np.random.PCG64, count: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Return random bfloat16 numbers of 2⁻⁷ to 2⁻⁵ and either sign: no zeros, no infinities."""
    words = bits.random_raw(-(-count // 4)).view(np.uint16)[:count]
    words &= np.uint16(0x80FF)
    words |= np.uint16(0x3C00)
    return words


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single bytes: no merges, nothing to train."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.add_special_tokens([*SPECIAL_TOKENS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": SPECIAL_TOKENS[2],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def _prune(home: Path) -> None:
    made = sorted(home.glob("bench-v*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in made[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
