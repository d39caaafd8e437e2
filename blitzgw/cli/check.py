"""`blitzgw check-config`: what a configuration comes to on this machine, or all that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blitzgw.cli.output import columns, format_option, size

if TYPE_CHECKING:
    from blitzgw.config import Config


@click.command("check-config", epilog="\b\nExample:\n  blitzgw check-config blitzgw.toml\n")
@click.argument("file", required=False, type=Path)
@format_option()
def check_config(file: Path | None, layout: str) -> None:
    """Print what the configuration FILE comes to on this machine (no FILE: the defaults).

    All mistakes are reported at once, with the key and what would be right; then the exit code is
    2. Keys are counted, not shown.
    """
    import json  # noqa: PLC0415  keeps --help quick

    from blitzgw.configfile.load import load  # noqa: PLC0415
    from blitzgw.worker.discovery import discover  # noqa: PLC0415

    config = load(file, discover=discover)
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    facts = _facts(config)
    click.echo(json.dumps(facts, indent=2) if layout == "json" else _table(facts))


def _facts(config: Config) -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415  keeps --help quick

    facts = asdict(config)
    facts["http"]["api_keys"] = len(config.http.api_keys)
    facts["cluster"]["keys"] = len(facts.pop("cluster_keys"))
    return facts


def _table(facts: dict[str, Any]) -> str:
    parts = []
    for section in ("node", "http", "cluster", "transfer"):
        rows = [[key, _shown(key, value)] for key, value in facts[section].items()]
        parts.append(f"{section}\n{columns(rows, indent=2)}")
    for section in ("devices", "models"):
        tables = facts[section]
        rows = [list(table) for table in tables[:1]] or [["none"]]
        rows += [[_shown(key, value) for key, value in table.items()] for table in tables]
        parts.append(f"{section}\n{columns(rows, indent=2)}")
    return "\n\n".join(parts)


def _shown(key: str, value: Any) -> str:
    if key in ("threads", "kv_bytes", "max_model_len", "rate") and value == 0:
        return "auto"
    if key in ("rate", "max_weight_rate", "max_disk_rate", "max_host_rate"):
        return _bits(value) if value else "no limit"
    if key == "networks":
        return ", ".join(_network(network) for network in value) or "-"
    if key.endswith("_bytes"):
        return size(value)
    if isinstance(value, dict):
        return "/".join(f"{part:g}" for part in value.values())
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value)) or "-"
    return {"": "-", "True": "yes", "False": "no"}.get(str(value), str(value))


def _network(network: dict[str, Any]) -> str:
    told = f"{network['name']} at {network['host']}"
    return f"{told} ({_bits(network['rate'])})" if network["rate"] else told


def _bits(bytes_per_s: float) -> str:
    """Return a rate as networks are sold."""
    amount, unit = bytes_per_s * 8, "bit"
    for larger in ("kbit", "Mbit", "Gbit", "Tbit"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.4g} {unit}/s"
