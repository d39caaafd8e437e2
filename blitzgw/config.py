"""What a node is told: frozen dataclasses, one per section of the configuration file.

`config.example.toml` explains every knob and holds every default; a test keeps the two together.
A default of "" or 0 often means "automatic": `configfile` puts in what that comes to on this
machine where it is a matter of configuration (names, folders, devices), and leaves it where it
depends on what is loaded (memory, threads, a model's length).

A field's annotation says what it accepts: a description that completes the sentence "VALUE is
not …", and a function where something can be written in several ways (`"4GiB"`, `"bf16"`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from blitzgw.core.instance import DeviceKind, DeviceSpec, PacedCost
from blitzgw.core.model import Dtype
from blitzgw.core.view import ScaleTerms

DAY_S = 86_400
"""Seconds: the longest time-out that can be meant; more is a slip of the unit."""

_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
"""Factors of sizes: KiB is 1024 bytes, KB 1000, and a bare K is KiB."""

DTYPE_SPELLINGS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}
"""Other names of dtypes, vLLM's among them."""


def parse_size(value: object) -> object:
    """Turn `"4GiB"`, `"512 MB"` or `"16k"` into bytes; anything else is returned as it is."""
    amount = _amount(value, _UNITS)
    return value if amount is None else int(amount)


_RATE_UNITS = {
    f"{prefix}{suffix}": factor * 1000**power
    for power, prefix in enumerate(("", "k", "m", "g", "t"))
    for suffix, factor in (("bit", 1 / 8), ("bit/s", 1 / 8), ("b", 1.0), ("b/s", 1.0))
}
"""Bytes per second: Mbit is 10⁶ bits, MB 10⁶ bytes; nothing is 1024 of anything on a wire."""


def parse_rate(value: object) -> object:
    """Turn `"400Mbit"`, `"10 Gbit/s"` or `"1.5GB/s"` into bytes per second, or return it as is."""
    amount = _amount(value, _RATE_UNITS)
    return value if amount is None else amount


def _amount(value: object, units: Mapping[str, float]) -> float | None:
    """Return a number with one of the units; None for anything else."""
    if not isinstance(value, str):
        return None
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([a-z/]*)", value.strip().lower(), re.ASCII)
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _dtype(value: object) -> object:
    return DTYPE_SPELLINGS.get(value, value) if isinstance(value, str) else value


_NAME = r"[!-~\u00a1-\U0010ffff]([ -~\u00a1-\U0010ffff]*[!-~\u00a1-\U0010ffff])?"
"""One line without control characters that neither begins nor ends with a space."""

OptionalPath = Annotated[str, Meta(pattern=rf"^({_NAME})?$", description="a path")]
Label = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9._-]*$", description="made of letters, digits and . _ - only")
]
Name = Annotated[str, Meta(pattern=rf"^{_NAME}$", description="a name")]
OptionalName = Annotated[str, Meta(pattern=rf"^({_NAME})?$", description="a name")]
Names = Annotated[tuple[Name, ...], Meta(description='a list of names such as ["a", "b"]')]
Count = Annotated[int, Meta(ge=1, le=1 << 31, description="a whole number, 1 or more")]
Natural = Annotated[int, Meta(ge=0, le=1 << 31, description="a whole number, 0 or more")]
Seconds = Annotated[float, Meta(ge=0, le=DAY_S, description="a number of seconds, 0 to 86400")]
Port = Annotated[int, Meta(ge=0, le=65535, description="a port, 0 to 65535 (0: any free one)")]
Interval = Annotated[float, Meta(ge=0.01, le=60, description="a number of seconds, 0.01 to 60")]
Factor = Annotated[float, Meta(gt=0, le=1000, description="a factor above 0, up to 1000")]
Size = Annotated[
    int,
    Meta(ge=0, lt=1 << 62, description='a size: a number of bytes, or text such as "4GiB"'),
    parse_size,
]
Rate = Annotated[
    float,
    Meta(ge=0, lt=1e15, description='a rate: bytes per second, or text such as "10Gbit"'),
    parse_rate,
]
Keys = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^[!-~]+$")], ...],
    Meta(description="a list of keys of printable ASCII without spaces"),
]
Routes = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^/\S*$")], ...],
    Meta(description='a list of paths that begin with "/"'),
]
Digest = Annotated[
    str, Meta(pattern=r"^([0-9a-f]{64})?$", description="a digest of 64 hexadecimal digits")
]
Copies = Annotated[int, Meta(ge=0, le=4096, description="a whole number, 0 to 4096")]
Level = Annotated[
    Literal["debug", "info", "warning", "error"],
    Meta(description="one of debug, info, warning, error"),
    _lower,
]
Kind = Annotated[
    Literal["auto", "cpu", "cuda", "paced"],
    Meta(description="one of auto, cpu, cuda, paced"),
    _lower,
]
Live = Annotated[
    Literal["auto", "stop", "best-effort", "zigzag", "pipeline"],
    Meta(description="one of auto, stop, best-effort, zigzag, pipeline"),
    _lower,
]
Strategy = Annotated[
    Literal[
        "auto", "star", "chain", "multi-chain", "binomial", "lanes", "disk-shards", "disk", "host"
    ],
    Meta(
        description="one of auto, star, chain, multi-chain, binomial, lanes, disk-shards, disk,"
        " host"
    ),
    _lower,
]
Scaling = Annotated[
    Literal["manual", "advise", "auto"],
    Meta(description="one of manual, advise, auto"),
    _lower,
]
Target = Annotated[
    float, Meta(gt=0, le=DAY_S, description="a number of seconds above 0, up to 86400")
]
Instances = Annotated[int, Meta(ge=0, le=4096, description="a whole number, 0 to 4096")]
Priority = Annotated[int, Meta(ge=-1000, le=1000, description="a whole number, -1000 to 1000")]
DtypeName = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    Meta(description="one of auto, bfloat16, float16, float32"),
    _dtype,
]


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The process itself. After `load`, `name` and `cache_dir` are never empty."""

    name: Label = ""
    cache_dir: OptionalPath = ""
    log_level: Level = "info"
    dilation: Factor = 1.0
    drain_timeout_s: Seconds = 30.0


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The client plane. After `load`, `api_keys` also holds the keys of `api_key_file`.

    `admin_key_file` is never empty after `load`; its key is read, or made, when the node starts.
    """

    host: Name = "127.0.0.1"
    port: Port = 8000
    reuse_port: bool = False
    api_keys: Keys = field(default=(), repr=False)
    api_key_file: OptionalPath = ""
    public_routes: Routes = ("/", "/health", "/ready", "/ping", "/version")
    max_body_bytes: Size = 16 << 20
    max_connections: Count = 8192
    body_timeout_s: Seconds = 30.0
    max_stream_buffer_bytes: Size = 1 << 20
    max_queue: Count = 512
    max_wait_s: Seconds = 0.0
    admin_key_file: OptionalPath = ""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """The control plane: where peers are, and what happens to requests when instances are lost.

    The cluster's keys are in `Config.cluster_keys`; without any, a node is a cluster of one. After
    `load`, `join` holds HOST:PORT or [IPv6]:PORT. An empty `advertise` is settled when the node
    starts, because it may depend on the route to a seed.
    """

    host: Name = "127.0.0.1"
    port: Port = 0
    advertise: OptionalName = ""
    join: Names = ()
    key_file: OptionalPath = ""
    probe_interval_s: Interval = 0.25
    max_attempts: Count = 3
    hold_timeout_s: Seconds = 60.0


@dataclass(frozen=True, slots=True)
class NetworkEntry:
    """A further network of this node's workers, as written in [transfer] networks."""

    name: Label
    host: Name
    rate: Rate = 0.0


@dataclass(frozen=True, slots=True)
class TransferConfig:
    """The data plane: how weights move between workers.

    After `load`, `host` is never empty; 0 leaves `rate` to what the interface says.
    """

    host: OptionalName = ""
    rate: Rate = 0.0
    networks: Annotated[
        tuple[NetworkEntry, ...],
        Meta(description='a list such as [{ name = "fast", host = "10.1.0.1", rate = "100Gbit" }]'),
    ] = ()
    max_weight_rate: Rate = 0.0
    max_disk_rate: Rate = 0.0
    max_host_rate: Rate = 0.0
    encrypt: bool = True
    zone: Label = ""
    copies_dir: OptionalPath = ""


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """One [[devices]] as written; `load` makes `DeviceSpec`s of it, several where it is auto."""

    id: Label = ""
    kind: Kind = "auto"
    index: Natural = 0
    threads: Natural = 0
    kv_bytes: Size = 0
    cost: PacedCost = field(default_factory=PacedCost)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model to serve. After `load`, `name` and `devices` (ids) are never empty."""

    name: OptionalName = ""
    path: Name = "smollm2-135m"
    aliases: Names = ()
    dtype: DtypeName = "auto"
    max_model_len: Natural = 0
    max_num_seqs: Count = 64
    max_batched_tokens: Count = 512
    prefix_caching: bool = True
    devices: Names = ()
    load_at_start: bool = True
    digest: Digest = ""
    host_copies: Copies = 1
    host_cache_s: Seconds = 0.0
    strategy: Strategy = "auto"
    live: Live = "auto"
    scaling: Scaling = "manual"
    ttft_target_s: Target = 1.0
    tpot_target_s: Target = 0.1
    min_instances: Instances = 1
    max_instances: Instances = 0
    scale_down_after_s: Seconds = 2.0
    idle_to_zero_s: Seconds = 0.0
    keep_s: Seconds = 30.0
    priority: Priority = 0

    @property
    def scale_terms(self) -> ScaleTerms:
        """What its owner in the cluster is told of its scaling."""
        return ScaleTerms(
            mode=self.scaling,
            ttft_s=self.ttft_target_s,
            tpot_s=self.tpot_target_s,
            min_instances=self.min_instances,
            max_instances=self.max_instances,
            patience_s=self.scale_down_after_s,
            idle_to_zero_s=self.idle_to_zero_s,
            keep_s=self.keep_s,
            priority=self.priority,
            host_cache_s=self.host_cache_s,
        )

    @property
    def forced_dtype(self) -> Dtype | None:
        """The dtype to load with; None: device and checkpoint choose."""
        return None if self.dtype == "auto" else Dtype(self.dtype)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a node is told. `warnings` are for the operator, one sentence each.

    `cluster_keys` are none, one or two: they seal what goes between nodes, the first one what is
    sent, any what is received.
    """

    node: NodeConfig = NodeConfig()
    http: HttpConfig = HttpConfig()
    cluster: ClusterConfig = ClusterConfig()
    transfer: TransferConfig = TransferConfig()
    devices: tuple[DeviceSpec, ...] = (DeviceSpec("cpu0", DeviceKind.CPU),)
    models: tuple[ModelConfig, ...] = (ModelConfig("smollm2-135m", devices=("cpu0",)),)
    warnings: tuple[str, ...] = ()
    cluster_keys: tuple[str, ...] = field(default=(), repr=False)
