"""Read a configuration: tables one by one, then options, folders, keys and warnings."""

from __future__ import annotations

import os
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blitzgw.config import (
    ClusterConfig,
    Config,
    DeviceEntry,
    HttpConfig,
    ModelConfig,
    NodeConfig,
    TransferConfig,
)
from blitzgw.configfile.adminkey import resolve_admin_key_file
from blitzgw.configfile.cluster import is_loopback, resolve_cluster
from blitzgw.configfile.keys import read_cluster_keys, with_api_key_file
from blitzgw.configfile.resolve import resolve_devices, resolve_models
from blitzgw.configfile.tables import Mistakes, check_names, read_array, read_table, read_toml
from blitzgw.configfile.transfer import resolve_transfer
from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.core.paths import cache_dir

NODE_NAME_CHARS = 128
"""Longest name of a node: gossip has 255 bytes for one, and it is a part of instances' ids."""

SECTIONS = ("node", "http", "cluster", "transfer", "devices", "models")


@dataclass(frozen=True, slots=True)
class Option:
    """A command-line option that sets `key`: `http.port`, `models[0].dtype`, `devices`."""

    name: str
    key: str
    value: object = field(repr=False)


def load(
    path: Path | None = None,
    options: Sequence[Option] = (),
    discover: Callable[[], list[DeviceSpec]] = list,
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Read a file (None: defaults only), let options override it, and resolve what is automatic.

    `discover` lists the GPUs that an automatic device stands for; `environment` may hold the
    cluster key. Raises `ConfigError` with every mistake found, each naming file and key, or the
    option.
    """
    mistakes = Mistakes(str(path or "defaults"), {option.key: option.name for option in options})
    document = read_toml(path) if path else {}
    for option in options:
        _override(document, option, mistakes)
    check_names(document, SECTIONS, "", mistakes)
    base = path.parent if path else Path()
    node = read_table(NodeConfig, document.get("node", {}), "node", mistakes)
    _check_node(node, mistakes)
    http = read_table(HttpConfig, document.get("http", {}), "http", mistakes)
    if http.reuse_port and not http.port:
        mistakes.add("http.reuse_port", "port 0 is another one for each node; give http.port")
    cluster = read_table(ClusterConfig, document.get("cluster", {}), "cluster", mistakes)
    transfer = read_table(TransferConfig, document.get("transfer", {}), "transfer", mistakes)
    entries = read_array(DeviceEntry, document.get("devices"), "devices", mistakes)
    models = read_array(ModelConfig, document.get("models"), "models", mistakes)
    http, warnings = with_api_key_file(http, base, mistakes)
    node = _resolve_node(node, base)
    http, admin = resolve_admin_key_file(http, node.cache_dir, base, mistakes)
    keys, more = read_cluster_keys(cluster, base, environment, mistakes)
    cluster, unreachable = resolve_cluster(cluster, bool(keys), mistakes)
    transfer = resolve_transfer(transfer, cluster, bool(keys), base, mistakes)
    groups = resolve_devices(entries, discover, mistakes)
    models = resolve_models(models, groups, base, mistakes)
    mistakes.raise_if_any()
    devices = tuple({spec.id: spec for group in groups.values() for spec in group}.values())
    warnings += admin + more + unreachable + _exposure(http) + _crowding(devices)
    if not keys:
        warnings += _idle(devices, models)
    return Config(node, http, cluster, transfer, devices, tuple(models), tuple(warnings), keys)


def _override(document: dict[str, Any], option: Option, mistakes: Mistakes) -> None:
    section, _, name = option.key.partition(".")
    if not name:
        document[section] = option.value
        return
    if section == "models[0]":
        tables = document.setdefault("models", [{}])
        if not isinstance(tables, list) or len(tables) != 1:
            text = f"is for a single model; set {name} in each [[models]] of {mistakes.source}"
            mistakes.add(option.key, text)
            return
        table = tables[0]
    else:
        table = document.setdefault(section, {})
    if isinstance(table, dict):
        table[name] = option.value


def _check_node(node: NodeConfig, mistakes: Mistakes) -> None:
    if len(node.name) > NODE_NAME_CHARS:
        text = f"has {len(node.name)} characters; give one of at most {NODE_NAME_CHARS}"
        mistakes.add("node.name", text)


def _resolve_node(node: NodeConfig, base: Path) -> NodeConfig:
    cache = base / os.path.expanduser(node.cache_dir) if node.cache_dir else cache_dir()
    name = node.name or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "node"
    return replace(node, name=name, cache_dir=str(cache.absolute()))


def _exposure(http: HttpConfig) -> list[str]:
    if http.api_keys or is_loopback(http.host):
        return []
    return [
        f"http.host is {http.host} and there are no API keys: whoever reaches port {http.port} can"
        " use the models; set http.api_key_file"
    ]


def _idle(devices: Sequence[DeviceSpec], models: Sequence[ModelConfig]) -> list[str]:
    """Warn of a node that neither computes nor has anybody to pass requests on to."""
    missing = [name for name, items in (("models", models), ("devices", devices)) if not items]
    return [
        f"there are no {name}, and no cluster key: this node can serve nothing, neither by itself"
        " nor through others"
        for name in missing
    ]


def _crowding(devices: Sequence[DeviceSpec]) -> list[str]:
    """Warn where devices would each take most of one GPU's memory for KV."""
    automatic = [spec for spec in devices if spec.kind is DeviceKind.CUDA and not spec.kv_bytes]
    shared = [index for index, n in Counter(spec.index for spec in automatic).items() if n > 1]
    return [f"GPU {index} is shared by several devices: set kv_bytes for each" for index in shared]
