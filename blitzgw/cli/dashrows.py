"""The rows of `blitzgw top`: what its tables show of models, instances and nodes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from blitzgw.cli.grid import Column, Item
from blitzgw.cli.output import size
from blitzgw.cli.snapshot import Snapshot
from blitzgw.cli.tables import NODES as ALL_OF_NODES
from blitzgw.cli.units import count, duration

BAR_CELLS = 6
"""Characters of the bar of resident layers: with 30 layers, a step for each five."""

Row = dict[str, Any]


def instance_rows(snapshot: Snapshot) -> list[Row]:
    """Return the instances with what they decode and whom they help."""
    alone = {node["name"] for node in snapshot.nodes if len(node["devices"]) == 1}
    places = {each["id"]: _place(each, alone) for each in snapshot.instances}
    return [
        {**each, "place": places[each["id"]], "whom": _whom(each, places), "decode": _decode(each)}
        for each in snapshot.instances
        if each["state"] != "gone"
    ]


def model_rows(snapshot: Snapshot, instances: Sequence[Row]) -> list[Row]:
    """Return the models that are served, with what is measured of them and wanted."""
    whys = {why["model"]: why for why in snapshot.why}
    return [
        _model(model, whys.get(model["name"]), instances)
        for model in snapshot.models
        if model["prevails"]
    ]


def node_rows(snapshot: Snapshot, instances: Sequence[Row]) -> list[Row]:
    """Return the nodes with what runs on them."""
    rows = []
    for node in snapshot.nodes:
        own = [row for row in instances if row["node"] == node["name"]]
        busy = {key: sum(row[key] or 0 for row in own) for key in ("running", "waiting")}
        rows.append({**node, **busy})
    return rows


def _place(instance: Item, alone: Container[str]) -> str:
    """Return node and device, the latter only where it is one of several."""
    node = str(instance["node"])
    return node if node in alone else f"{node}/{instance['device']}"


def _whom(instance: Item, places: Mapping[str, str]) -> str:
    """Return where the instance is that this one helps, and which layers it runs for a pipeline."""
    whom = instance.get("helps")
    stage = instance.get("stage")
    told = [f"→ {places.get(whom, whom)}"] if whom else []
    if stage:
        told.append(f"[{stage[0]}, {stage[1]})")
    return " ".join(told)


def _decode(instance: Item) -> float | None:
    """Return tokens generated per second: each running sequence gets one a step."""
    step_s, running = instance["decode_step_s"], instance["running"]
    if running is None or (running and not step_s):
        return None
    return float(running / step_s) if running else 0.0


def _model(model: Item, why: Item | None, instances: Sequence[Row]) -> Row:
    own = [row for row in instances if row["model"] == model["name"]]
    serving = sum(row["state"] == "serving" for row in own)
    scaling = model.get("scaling") or {}
    terms = model.get("terms") or {}
    mode = scaling.get("mode") or (why["mode"] if why else terms.get("mode"))
    wish = model.get("wish")
    return {
        "name": model["name"],
        "mode": f"set to {wish}" if isinstance(wish, int) else mode,
        "present": scaling.get("present", serving),
        "wanted": scaling.get("wanted", why["now"]["wanted"] if why else None),
        "pressure": scaling.get("pressure"),
        "eta_s": scaling.get("eta_s"),
        "quantiles": why["quantiles"] if why else {},
        "targets": {"ttft": terms.get("ttft_s"), "tpot": terms.get("tpot_s")},
        "running": sum(row["running"] or 0 for row in own),
        "waiting": sum(row["waiting"] or 0 for row in own),
    }


def bar(item: Item) -> str:
    """Return the resident layers as a bar with the figures."""
    there, total = item["layers_resident"], item["layers_total"]
    filled = BAR_CELLS * min(there, total) // max(1, total)
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {there}/{total}"


def against(item: Item, what: str) -> str:
    """Return P50 and P90 of a latency, and its target, in one unit; ! marks a missed one."""
    p50, p90 = (item["quantiles"].get(f"{what}_p{p}_s") for p in (50, 90))
    target = item["targets"][what]
    if p50 is None and p90 is None:
        return "" if target is None else f"- of {_short(target)}"
    whole = max(s for s in (p50, p90, target) if s is not None) >= 1.0
    unit_s, unit = (1.0, "s") if whole else (1e-3, "ms")
    told = ["-" if s is None else _three(s / unit_s) for s in (p50, p90)]
    text = "/".join(told) + ("!" if _missed(item, what) else "")
    return f"{text}{unit}" if target is None else f"{text} of {target / unit_s:.3g}{unit}"


def _three(value: float) -> str:
    """Return three figures and no more, of less than 1 two decimals."""
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _short(seconds: float | None) -> str:
    return duration(seconds).replace(" ", "")


def _missed(item: Item, what: str) -> bool:
    p90, target = item["quantiles"].get(f"{what}_p90_s"), item["targets"][what]
    return p90 is not None and target is not None and p90 > target


def _alarming(what: str) -> Column:
    head = f"{what.upper()} P50/P90"
    return Column(
        head,
        lambda item: against(item, what),
        1 if what == "ttft" else 2,
        right=True,
        style=lambda item: "red" if _missed(item, what) else "",
    )


def _number(item: Item) -> str:
    present, wanted = item["present"], item["wanted"]
    return str(present) if wanted in (None, present) else f"{present}→{wanted}"


def _pressure(item: Item) -> str:
    return "" if item["pressure"] is None else f"{item['pressure']:.2f}"


def _share(item: Item) -> str:
    usage = item["kv_usage"]
    return "" if usage is None else f"{100 * usage:.0f}%"


def _count(key: str) -> Column:
    heads = {"running": "RUN", "waiting": "WAIT"}
    return Column(heads[key], lambda item: count(item[key]), right=True)


def _memory(node: Item) -> str:
    return size(node["host"]["free_bytes"]) if node["host"] else ""


MODELS = (
    Column("MODEL", lambda item: str(item["name"])),
    Column("MODE", lambda item: str(item["mode"] or ""), 5),
    Column("HAS", _number, right=True, style=lambda item: "yellow" if "→" in _number(item) else ""),
    Column(
        "PRESS",
        _pressure,
        4,
        right=True,
        style=lambda item: "red" if (item["pressure"] or 0.0) > 1 else "",
    ),
    Column("ETA", lambda item: _short(item["eta_s"]), 3, right=True),
    _alarming("ttft"),
    _alarming("tpot"),
    _count("running"),
    _count("waiting"),
)
INSTANCES = (
    Column("INSTANCE OF", lambda item: str(item["model"])),
    Column("ON", lambda item: str(item["place"])),
    Column("STATE", lambda item: str(item["state"])),
    Column("LAYERS", bar, 1),
    Column("HELPS", lambda item: str(item["whom"]), 2),
    _count("running"),
    _count("waiting"),
    Column("KV", _share, 1, right=True),
    Column("PREFILL/S", lambda item: count(item["prefill_tokens_per_s"]), 4, right=True),
    Column("TOKENS/S", lambda item: count(_whole(item["decode"])), 3, right=True),
)
_OF_NODES = {column.head: column for column in ALL_OF_NODES}
NODES = (
    _OF_NODES["NODE"],
    _OF_NODES["STATUS"],
    Column("INSTANCES", lambda item: str(item["instances"]), right=True),
    _count("running"),
    _count("waiting"),
    _OF_NODES["DEVICES"],
    _OF_NODES["COPIES"],
    Column("FREE", _memory, 4, right=True),
    _OF_NODES["HTTP"],
    _OF_NODES["UP"],
)


def _whole(value: float | None) -> float | None:
    return None if value is None else round(value)
