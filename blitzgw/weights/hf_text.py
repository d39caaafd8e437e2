"""The text side of a Hugging Face folder: tokenizer, chat template, special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blitzgw.core.model import TextSpec
from blitzgw.errors import CheckpointError
from blitzgw.weights.files import read_json, read_text


def text_from_folder(folder: Path) -> TextSpec:
    """Return where the tokenizer is, and the chat template of that name or of its own file."""
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(
            f"{folder}: has no tokenizer.json; save it with transformers' fast tokenizer "
            "(AutoTokenizer.from_pretrained(…).save_pretrained(…))"
        )
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    return TextSpec(
        tokenizer_path=str(tokenizer),
        chat_template=_template(folder, config),
        bos_token=_token(config, "bos_token", config_path),
        eos_token=_token(config, "eos_token", config_path),
    )


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    """Look where transformers looks, in its order: the .jinja file, the .json file, the config."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    path = folder / "chat_template.json"
    if path.is_file():
        return _choose(read_json(path).get("chat_template"), path)
    return _choose(config.get("chat_template"), folder / "tokenizer_config.json")


def _choose(value: Any, where: Path) -> str | None:
    if value is None or isinstance(value, str):
        return value
    named: dict[Any, Any] = {}
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        named = {str(entry.get("name")): entry.get("template") for entry in entries}
    if isinstance(named.get("default"), str):
        return str(named["default"])
    raise CheckpointError(
        f"{where}: chat_template must be a string or a list with a template named 'default'"
    )


def _token(config: dict[str, Any], key: str, where: Path) -> str:
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CheckpointError(f"{where}: {key} must be a string or an object with `content`")
    return value
