"""Nodes with a small model of their own, one of which has it, and orders to scale it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import tiny_checkpoint
from tests.support.clusters import Cluster, spare
from tests.support.nodes import until

MODEL = "small"
LAYERS = 6
ENDED = ("done", "failed", "cancelled")

LONG = pytest.mark.skipif(
    os.environ.get("BLITZGW_LONG") != "1",
    reason="a variant that takes its time: set BLITZGW_LONG=1, as scripts/test --long",
)

SOURCE = """
[[devices]]
id = "p0"
kind = "paced"
kv_bytes = "256MiB"
[[models]]
name = "small"
path = "{path}"
host_copies = {copies}
keep_s = 0.0
{model}
"""


def small_model(folder: Path) -> Path:
    """Some 21 MB in blobs of about 3.5."""
    return tiny_checkpoint(
        "llama",
        folder / "model",
        dtype="bfloat16",
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=64,
    )


def source(path: Path, copies: int = 0, model: str = "") -> str:
    """Devices and models of a node that has the model on disk and serves it."""
    return SOURCE.format(path=path, copies=copies, model=model)


@contextlib.contextmanager
def scaled(folder: Path, path: Path, spares: str = "bcd", **transfer: str) -> Iterator[Cluster]:
    """Node a with the model and others without; `transfer` are lines of [transfer] by node."""
    nodes = Cluster(folder)
    try:
        nodes.add("a", source(path), transfer=transfer.get("a", ""))
        for name in spares:
            nodes.add(name, spare(0.0), transfer=transfer.get(name, ""))
        nodes.settle(1)
        until(lambda: all(ready(nodes, name) for name in nodes.nodes), "all to know of all")
        yield nodes
        nodes.stop()
    finally:
        nodes.end()


def ready(nodes: Cluster, name: str) -> bool:
    """Whether a node can answer for the model, and knows of all workers."""
    listed = nodes.nodes[name].get("/v1/models").json["data"]
    known = any(item["id"] == MODEL for item in listed)
    devices = [d for node in nodes.get(name, "nodes") for d in node["devices"] if d["data_ports"]]
    return known and len(devices) == len(nodes.nodes)


def admin(nodes: Cluster) -> dict[str, str]:
    """The header with the admin key, which the nodes of a test share."""
    key = (nodes.folder / "admin.key").read_text().strip()
    return {"Authorization": f"Bearer {key}"}


def scale(nodes: Cluster, asked: str, instances: int | str, **more: Any) -> dict[str, Any]:
    """Order so many instances, or `auto`; the operation as it began, or the error."""
    body = {"instances": instances, **more}
    path = f"/admin/v1/models/{MODEL}/scale"
    return nodes.nodes[asked].post(path, body, **admin(nodes)).json


def cancel(nodes: Cluster, asked: str, operation: str) -> dict[str, Any]:
    path = f"/admin/v1/operations/{operation}/cancel"
    return nodes.nodes[asked].post(path, {}, **admin(nodes)).json


def operation(nodes: Cluster, asked: str, name: str) -> dict[str, Any]:
    return nodes.nodes[asked].get(f"/cluster/operations/{name}").json


def ended(nodes: Cluster, asked: str, name: str) -> dict[str, Any]:
    """Wait for an operation's end."""

    def over() -> dict[str, Any] | None:
        found = operation(nodes, asked, name)
        return found if found.get("state") in ENDED else None

    return until(over, "the operation's end")


def serves(nodes: Cluster, asked: str, names: set[str]) -> None:
    """Wait until exactly these nodes serve the model; nothing else is there but what is kept."""

    def right() -> bool:
        found = [i for i in nodes.get(asked, "instances") if i["state"] != "kept"]
        return {(i["node"], i["state"]) for i in found} == {(name, "serving") for name in names}

    until(right, f"instances on {sorted(names)}")


def tokens(nodes: Cluster, asked: str, prompt: str = "Once upon a time") -> list[int]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    reply = nodes.nodes[asked].post("/v1/completions", body)
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]["token_ids"]
