"""Devices and models: what is automatic, and what must agree between tables."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from blitzgw.config import DeviceEntry, ModelConfig
from blitzgw.configfile.tables import Mistakes, nearest
from blitzgw.core.instance import DeviceKind, DeviceSpec, PacedCost

MAX_TOKEN_BYTES = 1 << 20
"""Of what a token of a paced device weighs on a link: the largest models have 64 KiB."""

Groups = dict[str, list[DeviceSpec]]
"""Every id that a model may name, and the devices it stands for."""


def resolve_devices(
    entries: Sequence[DeviceEntry], discover: Callable[[], list[DeviceSpec]], mistakes: Mistakes
) -> Groups:
    """Return the devices. The id of an automatic entry stands for all that it found."""
    groups: Groups = {}
    for i, entry in enumerate(entries):
        key = f"devices[{i}]"
        _check_entry(entry, key, mistakes)
        if entry.kind == "auto" and any(other.kind == "auto" for other in entries[:i]):
            if not any(mistakes.under(f"devices[{j}].kind") for j in range(i + 1)):
                text = '"auto" stands for every device found; keep one such entry'
                mistakes.add(f"{key}.kind", text)
            continue
        specs = _specs(entry, entries[:i], discover)
        for spec in specs:
            if spec.id in groups:
                text = f'"{spec.id}" is taken by an earlier entry; give each device its own id'
                mistakes.add(f"{key}.id", text)
            groups.setdefault(spec.id, [spec])
        if entry.id:
            groups.setdefault(entry.id, specs)
    return groups


def resolve_models(
    models: Sequence[ModelConfig], groups: Groups, base: Path, mistakes: Mistakes
) -> list[ModelConfig]:
    """Return the models with absolute paths, names and device ids.

    A path that begins like one, or has a slash and exists, counts from `base`. Any other is a name
    or hub id, which the model cache understands.
    """
    taken: dict[str, str] = {}
    resolved = []
    for i, written in enumerate(models):
        key = f"models[{i}]"
        model = _located(written, base, key, mistakes)
        _check_names(model, key, taken, mistakes)
        _check_batch(model, key, mistakes)
        _check_bounds(model, key, mistakes)
        _check_ways(model, key, mistakes)
        resolved.append(replace(model, devices=_device_ids(model, groups, key, mistakes)))
    return resolved


def _specs(
    entry: DeviceEntry, before: Sequence[DeviceEntry], discover: Callable[[], list[DeviceSpec]]
) -> list[DeviceSpec]:
    if entry.kind == "auto" and (found := discover()):
        return [replace(spec, threads=entry.threads, kv_bytes=entry.kv_bytes) for spec in found]
    kind = DeviceKind.CPU if entry.kind == "auto" else DeviceKind(entry.kind)
    number = entry.index
    if kind is not DeviceKind.CUDA:
        number = sum(other.kind in (kind, entry.kind) for other in before)
    name = entry.id or f"{kind}{number}"
    return [DeviceSpec(name, kind, entry.index, entry.threads, entry.kv_bytes, entry.cost)]


def _check_entry(entry: DeviceEntry, key: str, mistakes: Mistakes) -> None:
    cost = (entry.cost.fixed_us, entry.cost.token_us, entry.cost.context_us)
    if not all(us >= 0 and math.isfinite(us) for us in cost):
        mistakes.add(f"{key}.cost", "a time is negative or endless; give microseconds, 0 or more")
    for name in ("kv_bytes", "hidden_bytes"):
        weight = getattr(entry.cost, name)
        if not 0 <= weight <= MAX_TOKEN_BYTES:
            text = f"{weight} is not a number of bytes, 0 to {MAX_TOKEN_BYTES}"
            mistakes.add(f"{key}.cost.{name}", text)
    if mistakes.under(f"{key}.kind"):
        return
    if entry.index and entry.kind != "cuda":
        text = f'chooses a GPU, but kind is "{entry.kind}"; set kind = "cuda" or remove it'
        mistakes.add(f"{key}.index", text)
    if entry.cost != PacedCost() and entry.kind != "paced":
        text = f'paces a device, but kind is "{entry.kind}"; set kind = "paced" or remove it'
        mistakes.add(f"{key}.cost", text)


def _located(model: ModelConfig, base: Path, key: str, mistakes: Mistakes) -> ModelConfig:
    """Make the path of a file or folder absolute and let an empty name follow from the path."""
    path = Path(os.path.abspath(base / os.path.expanduser(model.path)))
    explicit = model.path.startswith(("/", "./", "../", "~")) or model.path.endswith(".gguf")
    if explicit and not os.path.exists(path):
        mistakes.add(f"{key}.path", f"{path} does not exist; name a folder or a .gguf file")
    local = explicit or ("/" in model.path and os.path.exists(path))
    name = model.name or (path.name.removesuffix(".gguf") if local else model.path)
    return replace(model, path=str(path) if local else model.path, name=name)


def _check_names(model: ModelConfig, key: str, taken: dict[str, str], mistakes: Mistakes) -> None:
    if mistakes.under(f"{key}.name"):
        return
    if model.name == "*":
        mistakes.add(f"{key}.name", '"*" stands for any name; put it into aliases')
        return
    named = [(f"{key}.name", model.name)]
    named += [(f"{key}.aliases[{i}]", alias) for i, alias in enumerate(model.aliases)]
    for where, name in named:
        if name in taken:
            mistakes.add(where, f'"{name}" is already {taken[name]}; names are given once')
        taken.setdefault(name, where)


def _check_batch(model: ModelConfig, key: str, mistakes: Mistakes) -> None:
    if model.max_batched_tokens < model.max_num_seqs:
        mistakes.add(
            f"{key}.max_batched_tokens",
            f"{model.max_batched_tokens} is below max_num_seqs ({model.max_num_seqs}), and each"
            " sequence takes a token of every step; raise it or lower max_num_seqs",
        )


def _check_bounds(model: ModelConfig, key: str, mistakes: Mistakes) -> None:
    """Check that numbers of instances agree with each other."""
    if mistakes.under(f"{key}.min_instances") or mistakes.under(f"{key}.max_instances"):
        return
    if 0 < model.max_instances < model.min_instances:
        mistakes.add(
            f"{key}.max_instances",
            f"{model.max_instances} is below min_instances ({model.min_instances}); raise it, lower"
            " that, or give 0 for as many as there are devices",
        )
    if model.idle_to_zero_s and model.min_instances:
        mistakes.add(
            f"{key}.idle_to_zero_s",
            f"never comes true while min_instances keeps {model.min_instances}; set that to 0, or"
            " this",
        )


def _check_ways(model: ModelConfig, key: str, mistakes: Mistakes) -> None:
    """Check that what new instances do and where their weights come from go together."""
    if model.live == "pipeline" and model.strategy not in ("auto", "binomial"):
        mistakes.add(
            f"{key}.strategy",
            f'"{model.strategy}" brings every instance the same layers first, and those of a'
            ' pipeline begin with different ones; write "auto" or "binomial", or another `live`',
        )
    if model.strategy == "host" and not (model.host_copies or model.host_cache_s):
        mistakes.add(
            f"{key}.strategy",
            '"host" takes weights from copies in memory, of which host_copies = 0 keeps none;'
            " raise that to the number of nodes, or set host_cache_s",
        )


def _device_ids(
    model: ModelConfig, groups: Mapping[str, list[DeviceSpec]], key: str, mistakes: Mistakes
) -> tuple[str, ...]:
    """Return the ids of the devices that a model may use; none named: all."""
    for i, name in enumerate(model.devices):
        if name not in groups:
            text = f'there is no device "{name}"; {nearest(name, groups)}'
            mistakes.add(f"{key}.devices[{i}]", text)
    specs = [spec for name in model.devices or groups for spec in groups.get(name, [])]
    return tuple(dict.fromkeys(spec.id for spec in specs))
