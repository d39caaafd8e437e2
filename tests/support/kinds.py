"""The products of which a fleet can be made: blitzgw's nodes, its gossip alone, serf's agents."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.support.fleet import Kind
from tests.support.ports import PORTS

NODE = """
{rest}
[node]
name = "{name}"
[http]
port = 0
[cluster]
port = {port}
join = [{seed}]
{tables}
"""
NOTHING = "devices = []\nmodels = []"
OWNER = """
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "4GiB"
cost = { fixed_us = 0, token_us = 0, context_us = 0 }
[[models]]
path = "smollm2-135m"
max_model_len = 2048
prefix_caching = false
"""


def node_kind(folder: Path) -> Kind:
    """`blitzgw run`: `owner` has a paced device and a model, all others nothing."""

    def command(name: str, port: int, seed: str) -> list[str]:
        file = folder / f"{name}.toml"
        rest, tables = ("", OWNER) if name == "owner" else (NOTHING, "")
        join = f'"{seed}"' if seed else ""
        file.write_text(NODE.format(name=name, port=port, seed=join, rest=rest, tables=tables))
        return [str(Path(sys.executable).with_name("blitzgw")), "run", "--config", str(file)]

    told = r"member name=(?P<name>\S+) boot=\S+ status="
    return Kind(
        "blitzgw",
        command,
        re.compile("cluster_listening address="),
        {status: re.compile(told + status) for status in ("alive", "suspect", "dead")},
    )


def member_kind(script: Path) -> Kind:
    """A script that is a member of gossip when it is called with `--member`."""
    return Kind(
        "member",
        lambda name, port, seed: [sys.executable, str(script), "--member", name, str(port), seed],
        re.compile('"event": "listening"'),
        {"alive": re.compile('"event": "member", "name": "(?P<name>[^"]+)", "status": "alive"')},
    )


def _serf(name: str, port: int, seed: str) -> list[str]:
    address, rpc = f"127.0.0.1:{port}", f"127.0.0.1:{port + len(PORTS)}"
    join = [f"-join={seed}"] if seed else []
    return ["serf", "agent", f"-node={name}", f"-bind={address}", f"-rpc-addr={rpc}", *join]


SERF = Kind(
    "serf",
    _serf,
    re.compile("Serf agent running!"),  # its log is held back until it has joined, this is not
    {
        "alive": re.compile(r"EventMemberJoin: (?P<name>\S+) "),
        "dead": re.compile(r"EventMemberFailed: (?P<name>\S+) "),
    },
)
