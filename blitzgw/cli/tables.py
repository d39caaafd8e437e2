"""What `blitzgw inspect` shows of nodes, instances, models and requests: answers as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blitzgw.cli.grid import Column, Item, cell_text, grid, guarded
from blitzgw.cli.output import helps, size

if TYPE_CHECKING:
    from rich.console import RenderableType

BAR_CELLS = 8
"""Characters of a loading instance's bar: a step for each few layers."""


@guarded
def table(what: str, answer: Item, width: int) -> RenderableType:
    """Return an answer as a table of at most `width` characters, where that is possible.

    Raises BlitzError for an answer that is formed differently.
    """
    from rich.console import Group  # noqa: PLC0415  keeps --help quick

    items = answer[what]
    shown = grid(COLUMNS[what], items, width) if items else f"no {what}"
    return Group(shown, *_notes(answer))


def _notes(answer: Item) -> list[RenderableType]:
    from rich.text import Text  # noqa: PLC0415

    if not answer.get("unanswered"):
        return []
    names = ", ".join(map(str, answer["unanswered"]))
    return [Text(f"no answer from {cell_text(names).plain}", style="yellow")]


def age(seconds: float | None) -> str:
    """Return a duration in its largest unit: 3s, 4m, 5h, 6d."""
    if seconds is None:
        return ""
    for limit, unit, unit_s in ((120, "s", 1), (7200, "m", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, seconds) / unit_s:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def layers(item: Item) -> str:
    """Return the resident layers, with a bar while some are missing."""
    there, total = item["layers_resident"], item["layers_total"]
    if there >= total or item["state"] != "loading":
        return f"{there}/{total}"
    filled = BAR_CELLS * there // max(1, total)
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {there}/{total}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _known(key: str) -> Callable[[Item], str]:
    return lambda item: "" if item[key] is None else str(item[key])


def _count(key: str) -> Callable[[Item], str]:
    return lambda item: _number(item[key])


def _devices(node: Item) -> str:
    """Return the kinds of devices, how many of each, and their memory."""
    devices = node["devices"]
    kinds = Counter(device["kind"] for device in devices)
    memory = sum(device["memory_bytes"] for device in devices)
    parts = [kind if n == 1 else f"{n} {kind}" for kind, n in sorted(kinds.items())]
    return ", ".join(parts) + (f" {size(memory)}" if memory else "")


def _status(node: Item) -> str:
    return f"{node['status']}, draining" if node["draining"] else str(node["status"])


def _uptime(node: Item) -> str:
    if node["status"] not in ("alive", "suspect"):
        return ""
    return age(datetime.now(UTC).timestamp() - node["started"])


def _kv(instance: Item) -> str:
    usage = instance["kv_usage"]
    return "" if usage is None else f"{100 * usage:.0f}%"


def _step(instance: Item) -> str:
    step_s = instance["decode_step_s"]
    return "" if step_s is None else f"{_number(1000 * step_s)}ms"


def _in_state(*states: str) -> Callable[[Item], str]:
    return lambda model: str(sum(model["instances"].get(state, 0) for state in states))


def _kept(model: Item) -> str:
    """Return how many host copies a model has of those wanted, and how many for a while only."""
    cached = f"+{model['host_cached']}" if model["host_cached"] else ""
    return f"{model['host_copies']}{cached}/{model['host_copies_wanted']}"


def _copies(node: Item) -> str:
    """Return how many host copies a node has, and what they take; one being made counts too."""
    copies = node["copies"]
    return f"{len(copies)}, {size(sum(c['size_bytes'] for c in copies))}" if copies else ""


def _free(node: Item) -> str:
    return size(node["host"]["free_bytes"]) if node["host"] else ""


def _short(key: str) -> Callable[[Item], str]:
    """Show the beginning of a digest."""
    return lambda item: (item[key] or "")[:10]


def _wanted(model: Item) -> str:
    """Return how many instances a model's owner wants, where nodes tell."""
    scaling = model.get("scaling")
    return "" if scaling is None else str(scaling["wanted"])


def _others(model: Item) -> str:
    counts = {s: n for s, n in model["instances"].items() if s not in ("serving", "loading")}
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))


def _remark(model: Item) -> str:
    if not model["conflict"]:
        return ""
    return "conflict: in use" if model["prevails"] else "conflict: not served"


def _progress(request: Item) -> str:
    return f"{request['output_tokens']}/{request['max_tokens']}"


NODES = (
    Column("NODE", _known("name")),
    Column("STATUS", _status),
    Column("DEVICES", _devices, 2),
    Column("MODELS", lambda node: str(len(node["models"])), 3, right=True),
    Column("INSTANCES", _count("instances"), 1, right=True),
    Column("HTTP", _known("http"), 1),
    Column("PEERS AT", _known("address"), 5),
    Column("COPIES", _copies, 3, right=True),
    Column("FREE", _free, 4, right=True),
    Column("ZONE", lambda node: (node["host"] or {}).get("zone") or "", 6),
    Column("UP", _uptime, 2, right=True),
    Column("CHANGED", lambda node: age(node["state_age_s"]), 7, right=True),
    Column("BOOT", _known("boot"), 6),
)
INSTANCES = (
    Column("MODEL", _known("model")),
    Column("NODE", _known("node")),
    Column("DEVICE", _known("device"), 1),
    Column("STATE", _known("state")),
    Column("LAYERS", layers, right=True),
    Column("HELPS", helps, 2),
    Column("RUN", _count("running"), right=True),
    Column("WAIT", _count("waiting"), right=True),
    Column("KV", _kv, 1, right=True),
    Column("QUEUED", _count("queued_tokens"), 3, right=True),
    Column("TOK/S", _count("prefill_tokens_per_s"), 4, right=True),
    Column("STEP", _step, 2, right=True),
    Column("CHANGED", lambda instance: age(instance["load_age_s"]), 7, right=True),
    Column("WEIGHTS", _short("weights"), 8),
    Column("ID", _known("id"), 6),
)
MODELS = (
    Column("MODEL", _known("name")),
    Column("SERVING", _in_state("serving"), right=True),
    Column("LOADING", _in_state("loading"), right=True),
    Column("WANTED", _wanted, 2, right=True),
    Column("OTHERS", _others, 2),
    Column("LAYERS", _count("layers"), 3, right=True),
    Column("COPIES", _kept, 4, right=True),
    Column("NODES", lambda model: " ".join(model["nodes"]), 5),
    Column("ALIASES", lambda model: " ".join(model["aliases"]), 6),
    Column("DIGEST", _short("digest"), 1),
    Column("WEIGHTS", _short("weights"), 7),
    Column("DISKS", lambda model: " ".join(model["disks"]), 8),
    Column("NOTE", _remark),
)
REQUESTS = (
    Column("REQUEST", _known("id")),
    Column("MODEL", _known("model"), 2),
    Column("INGRESS", _known("ingress"), 3),
    Column("INSTANCE", lambda request: request["instance"] or "held", 1),
    Column("TRY", _count("attempt"), 5, right=True),
    Column("PROMPT", _count("prompt_tokens"), 4, right=True),
    Column("OUTPUT", _progress, right=True),
    Column("AGE", lambda request: age(request["age_s"]), right=True),
)
COLUMNS = {"nodes": NODES, "instances": INSTANCES, "models": MODELS, "requests": REQUESTS}
