"""Tiny random checkpoints of every family, as transformers writes them.

The weights are drawn wide, so that logits differ by whole units and greedy tokens are the same in
every number format and batch shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm")

SEED = 20250607

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 and 2 of every tiny vocabulary; the last one ends a turn."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TEXT = (
    "The quick brown fox jumps over the lazy dog, and the dog says: well, this is the thing that "
    "there is to say when another one jumps over you. One, two, three; user and assistant."
)


def tiny_checkpoint(family: str, folder: Path, **overrides: Any) -> Path:
    """Write a checkpoint of `family` into `folder` and return the folder.

    `overrides` are arguments of the configuration class; `max_shard_size` and `dtype` (a name,
    "float32" unless given) are those of saving, `seed` draws other weights.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    shard_size = overrides.pop("max_shard_size", "5GB")
    dtype = overrides.pop("dtype", "float32")
    seed = overrides.pop("seed", SEED)
    vocab = _write_tokenizer(folder, digits=family == "smollm")
    model = _model(family, vocab, overrides)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter, generator)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def state_dict(folder: Path) -> dict[str, Any]:
    """Return the tensors that transformers loads from a folder, in the type they are stored in."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return dict(model.state_dict())


def _model(family: str, vocab: int, overrides: dict[str, Any]) -> Any:
    import transformers

    prefix = {"smollm": "Llama", "llama": "Llama", "mistral": "Mistral"}.get(family)
    prefix = prefix or family.capitalize()
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": family == "smollm",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    if family == "mistral":
        sizes["sliding_window"] = None
    if family == "qwen3":
        sizes["head_dim"] = 24
    config = getattr(transformers, f"{prefix}Config")(**{**sizes, **overrides})
    return getattr(transformers, f"{prefix}ForCausalLM")(config)


def _draw(name: str, parameter: Any, generator: Any) -> None:
    """Draw matrices of spectral size about 1 to 2, and norms and biases that matter."""
    if "norm" in name:
        parameter.uniform_(0.5, 1.5, generator=generator)
    elif name.endswith(".bias"):
        parameter.normal_(0.0, 0.3, generator=generator)
    else:
        outer = name.startswith(("model.embed", "lm_head"))
        parameter.normal_(0.0, 0.5 if outer else 0.25, generator=generator)


def _write_tokenizer(folder: Path, *, digits: bool) -> int:
    """Write tokenizer.json and tokenizer_config.json; return the size of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return tokenizer.get_vocab_size()
