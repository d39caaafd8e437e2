"""A tiny checkpoint written by hand, messages about it, and ways to wait for real processes."""

import asyncio
import json
import struct
import time
from pathlib import Path

import numpy as np

from blitzgw.core.clock import MonotonicClock
from blitzgw.core.instance import DeviceKind, DeviceSpec, PacedCost
from blitzgw.core.messages import LoadModel, Start
from blitzgw.core.model import Dtype
from blitzgw.core.request import SamplingParams
from blitzgw.core.span import Span
from blitzgw.core.step import KvGeometry, NewSequence, Row, Step
from blitzgw.weights.info import open_checkpoint
from blitzgw.worker.handle import WorkerHandle

LAYERS, HIDDEN, HEADS, MLP, VOCAB = 3, 16, 2, 24, 64
WHOLE = Span(0, LAYERS)
KV = KvGeometry(slots=4, blocks_per_slot=4, block_bytes=0)
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
PACED = DeviceSpec("p0", DeviceKind.PACED)
PATIENCE_S = 30.0
"""Longest wait for anything in these tests; none should come near it."""


def slow(layer_us):
    """A paced device whose steps take time."""
    return DeviceSpec("p0", DeviceKind.PACED, cost=PacedCost(fixed_us=layer_us))


def write_checkpoint(folder: Path, layers: int = LAYERS, mlp: int = MLP) -> Path:
    """A tied llama of random float32 numbers."""
    names = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(layers):
        lead = f"model.layers.{i}."
        names |= {
            lead + "input_layernorm.weight": (HIDDEN,),
            lead + "post_attention_layernorm.weight": (HIDDEN,),
            lead + "mlp.gate_proj.weight": (mlp, HIDDEN),
            lead + "mlp.up_proj.weight": (mlp, HIDDEN),
            lead + "mlp.down_proj.weight": (HIDDEN, mlp),
        }
        for part in "qkvo":
            names[lead + f"self_attn.{part}_proj.weight"] = (HIDDEN, HIDDEN)
    rng, header, data = np.random.default_rng(8), {}, b""
    for name, shape in names.items():
        raw = rng.standard_normal(shape, np.float32).tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": mlp,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "num_hidden_layers": layers,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load_message(folder: Path, instance: str = "i0", dtype: Dtype = Dtype.FLOAT32) -> LoadModel:
    from blitzgw.core.instance import ModelSpec

    checkpoint = open_checkpoint(folder)
    try:
        spec = ModelSpec("tiny", str(folder), checkpoint.shape, dtype, 64, checkpoint.eos_ids)
    finally:
        checkpoint.close()
    return LoadModel(instance, spec, KV)


def first_step(step: int = 1, seq: int = 1, instance: str = "i0", tokens=(5, 9, 11)) -> Step:
    """A prompt whose KV lies in the slot of the sequence's number."""
    new = NewSequence(seq, tuple(tokens), len(tokens), 0, GREEDY)
    row = Row(seq, 0, len(tokens), sample=True, blocks=tuple(range(4 * seq, 4 * seq + 4)))
    return Step(step, instance, WHOLE, (row,), new=(new,))


def next_step(step: int, start: int, seq: int = 1, instance: str = "i0") -> Step:
    return Step(step, instance, WHOLE, (Row(seq, start, 1, sample=True),))


async def until(condition, what="the condition"):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {PATIENCE_S} s"
        await asyncio.sleep(0.005)


class Mailbox:
    """What a handle reports: messages, and deaths as text."""

    def __init__(self):
        self.messages, self.deaths = [], []

    def of(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]

    async def wait(self, kind, count=1):
        await until(lambda: len(self.of(kind)) >= count or self.deaths, f"{count} × {kind}")
        assert not self.deaths, self.deaths
        return self.of(kind)[count - 1]

    async def death(self):
        await until(lambda: self.deaths, "a death")
        return self.deaths[0]

    async def start(self, device=PACED, dilation=1.0, **more):
        return await WorkerHandle.start(
            Start(device, dilation, **more),
            MonotonicClock(),
            on_message=self.messages.append,
            on_death=lambda error: self.deaths.append(str(error)),
        )
