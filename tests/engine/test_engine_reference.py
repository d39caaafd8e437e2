"""Tokens against transformers: the real model, and tiny random ones of every family."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import transformers

from blitzgw.core.model import Dtype
from tests.support.checkpoints import FAMILIES, tiny_checkpoint
from tests.support.engines import Rig, Verdict, decode_row, judge

LENGTHS = (
    *(1, 2, 3, 5, 7, 8, 11, 15, 16, 17, 20, 23, 31, 32, 33, 40, 47, 48, 50, 63, 64, 65, 70, 80, 95),
    *(96, 100, 110, 127, 128, 129, 140, 150, 160, 175, 190, 200, 220, 250, 255, 256, 257, 280, 300),
    *(333, 400, 450, 511, 512, 513, 600, 750, 1000, 1500),
)
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> transformers.PreTrainedModel:
    """SmolLM2 in transformers, fp32."""
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()


def prompts() -> list[list[int]]:
    """Text for half of the lengths, any tokens for the other half."""
    from blitzgw.weights.cache import resolve
    from blitzgw.weights.info import resolve_model

    tokenizers = pytest.importorskip("tokenizers")
    text = resolve_model("m", resolve("smollm2-135m"), None, None).text
    tokenizer = tokenizers.Tokenizer.from_file(text.tokenizer_path)
    licence = tokenizer.encode(Path("LICENSE").read_text()).ids
    draw = random.Random(3)
    made = []
    for i, n in enumerate(LENGTHS):
        start = draw.randrange(max(1, len(licence) - n))
        made.append(
            licence[start : start + n] if i % 2 else [draw.randrange(49152) for _ in range(n)]
        )
    return made


def reference_logits(
    model: transformers.PreTrainedModel, tokens: list[int], prompt_length: int
) -> torch.Tensor:
    """Return the logits from which each token after the prompt must follow."""
    with torch.inference_mode():
        out = model(torch.tensor([tokens[:-1]]), logits_to_keep=len(tokens) - prompt_length)
    return out.logits[0]


def test_smollm2_gives_the_tokens_of_transformers_in_fp32(smollm2, reference, capsys):
    """Prompts of 1 to 1,500 tokens, prefilled in chunks, decoded all together."""
    rig = Rig(smollm2, Dtype.FLOAT32, slots=len(LENGTHS), context=1536)
    sequences = [rig.sequence(tokens, slot) for slot, tokens in enumerate(prompts())]
    assert len(sequences) >= 50
    for sequence in sequences:
        rig.prefill(sequence, chunk=512)
    rig.decode(sequences, NEW_TOKENS - 1)
    total = Verdict()
    for sequence in sequences:
        n = sequence.prompt_length
        verdict = judge(sequence.tokens[n:], reference_logits(reference, sequence.tokens, n))
        total.compared += verdict.compared
        total.near_ties += verdict.near_ties
        total.wrong += verdict.wrong
    with capsys.disabled():
        print(f"\nSmolLM2 fp32 against transformers: {total}")
    assert total.wrong == 0
    assert total.near_ties <= total.compared / 1000


def test_bf16_logits_are_as_close_to_fp32_as_transformers_own(smollm2, reference, capsys):
    """The gate for bf16: the worst logit of a prompt and all of them, on average over prompts.

    The one worst of all prompts is a matter of luck: it differs by a third between sums of the same
    numbers in another order.
    """
    rough = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.bfloat16
    ).eval()
    rig = Rig(smollm2, Dtype.BFLOAT16, context=512)
    ours, theirs = [], []
    for tokens in [p for p in prompts() if 8 <= len(p) <= 300]:
        exact = reference_logits(reference, [*tokens, 0], len(tokens))[0]
        sequence = rig.sequence(tokens, 0)
        ours.append((rig.prefill(sequence)[0] - exact).abs())
        theirs.append((reference_logits(rough, [*tokens, 0], len(tokens))[0].float() - exact).abs())
    worst = [float(torch.stack([d.max() for d in side]).mean()) for side in (ours, theirs)]
    mean = [float(torch.stack(side).mean()) for side in (ours, theirs)]
    with capsys.disabled():
        print(f"\nbf16 logits off fp32, ours and transformers: worst {worst}, mean {mean}")
    assert worst[0] <= worst[1]
    assert mean[0] <= mean[1]


VARIANTS = {
    **{family: (family, {}) for family in FAMILIES},
    "window": ("mistral", {"sliding_window": 12}),
    "untied": ("smollm", {"tie_word_embeddings": False}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "yarn": (
        "qwen3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 128,
            }
        },
    ),
    "llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "rope_theta": 1e4,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_gives_the_tokens_of_transformers(variant, tmp_path):
    family, overrides = VARIANTS[variant]
    folder = tiny_checkpoint(family, tmp_path, **overrides)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rig = Rig(folder, Dtype.FLOAT32)
    draw = random.Random(7)
    lengths = (1, 2, 16, 17, 40, 150)
    sequences = [
        rig.sequence([draw.randrange(3, rig.spec.shape.vocab) for _ in range(n)], slot)
        for slot, n in enumerate(lengths)
    ]
    for sequence in sequences:
        rig.prefill(sequence, chunk=37)
    for _ in range(20):
        draw.shuffle(sequences)
        rig.step([decode_row(sequence) for sequence in sequences])
    for sequence in sequences:
        n = sequence.prompt_length
        logits = reference_logits(model, sequence.tokens, n)
        assert judge(sequence.tokens[n:], logits).wrong == 0
