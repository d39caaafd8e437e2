"""What is simulated: models and their requests, machines, what things take, what fails.

All seconds are undilated, rates are of payload, in bytes/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import blake2b
from math import inf
from typing import Any

from blitzgw.config import ModelConfig, NodeConfig
from blitzgw.core.layout import LAYOUT_VERSION
from blitzgw.core.scale import ScaleMode
from blitzgw.core.view import ModelFacts
from blitzgw.scaling.survey import ModelDefinition
from blitzgw.scheduler.events import ServedInstance
from blitzgw.sim.cluster.profiles import Profile
from blitzgw.sim.evaluation.arrivals import Arrival
from blitzgw.sim.evaluation.conditions import MAX_TOKENS
from blitzgw.sim.evaluation.ladder import System

UNDILATED = frozenset({"link_share", "disk_share", "host_share", "cores"})
"""Of `Latencies`: no times, the same under any dilation."""

MEMORY_BYTES = 512 << 30
"""Of a machine, for host copies, and of a device: memory is no limit here, devices are."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """What things take besides computing and the bytes on a link, in seconds; measured or guessed.

    The defaults are those of a node on a quiet machine, to within a factor of two; a validation
    measures them (scripts/validate_sim). Shares are of nominal rates.
    """

    message_s: float = 0.0005
    """One way over a peer link, both event loops included."""
    request_local_s: float = 0.004
    """From a client's send to its first token, besides steps: HTTP, tokenizer, routing."""
    request_remote_s: float = 0.001
    """More than that where another node has the instance."""
    token_back_s: float = 0.0
    """More for each further token from another node."""
    step_overhead_s: float = 0.0003
    """From the end of a step to the beginning of the next, beyond the cost model."""
    prefill_step_s: float = 0.0
    """The same for a step with tokens of a prompt."""
    request_beside_s: float = 0.0
    """More for a request, for each other node that computes at the time: where they share cores."""
    step_beside_s: float = 0.0
    """More for a step that only decodes, likewise."""
    prefill_beside_s: float = 0.0
    """More for a step with tokens of a prompt, likewise."""
    report_s: float = 0.05
    """How old the figures are by which a router chooses among other nodes' instances."""
    demand_s: float = 0.001
    """From a demand's sending until its owner has decided."""
    plan_s: float = 0.002
    """From a decision to the plan, when claims are sent."""
    claim_s: float = 0.003
    """From that until the owner knows that the devices are claimed; two messages at least."""
    connect_s: float = 0.005
    """From that until both ends of an edge are connected; a message at least."""
    first_byte_s: float = 0.002
    """From that until the first byte is there."""
    disk_first_byte_s: float = 0.002
    """From a claim until a disk gives its first byte, in a process that has read before."""
    first_read_s: float = 0.0
    """More for the first read of a process, of computing: it loads what reads checkpoints."""
    cores: float = inf
    """Processors that all nodes share in this: those of a testbed in one machine."""
    hop_s: float = 0.0
    """By how much a relay is behind its source; a piece's time at least."""
    check_s: float = 0.001
    """From a blob's last byte until it is checked and its layer may run."""
    serve_s: float = 0.002
    """From the last blob until the instance takes requests, on a worker that is warm."""
    revive_s: float = 0.002
    """From the order to revive an instance until it takes requests."""
    gossip_lag_s: float = 0.097
    """From a change at a node until others see it."""
    link_share: float = 1.0
    """Of a link's rate, what weights come to."""
    disk_share: float = 1.0
    """Of a disk's rate, what reading comes to."""
    host_share: float = 1.0
    """Of host memory's rate, what copying comes to."""

    @classmethod
    def measured(cls, values: Mapping[str, float], dilation: float = 1.0) -> Latencies:
        """Return what was measured on the wall clock under a dilation; other names are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(
            **{
                name: value if name in UNDILATED else value / dilation
                for name, value in values.items()
                if name in known
            }
        )


@dataclass(frozen=True, slots=True)
class Failures:
    """What goes wrong, drawn from the run's seed."""

    crashes_per_node_hour: float = 0.0
    down_s: tuple[float, float] = (10.0, 30.0)
    """For how long a process that has crashed is not there: uniformly."""
    slow_links_per_node_hour: float = 0.0
    slow_factor: float = 0.25
    """What is left of the rate of a port that has become slow."""
    slow_s: tuple[float, float] = (10.0, 60.0)
    detect_s: tuple[float, float] = (0.6, 2.0)
    """From a crash until all others take it for dead: SWIM's probes and suspicion."""
    noticed_s: float = 0.05
    """From a crash until those that have a connection to it notice: it is reset."""


@dataclass(frozen=True)
class ModelSetup:
    """A model: what it is on a device, its configuration, and its requests in order of time.

    `disk` nodes define it and have its checkpoint, 0: all. `mean` and `full` instances are what it
    has from the start where a system says so; a `full` of 0: as many as its bounds allow, or as its
    share of devices. Its requests ask for `max_tokens`, which cuts longer answers.
    """

    name: str
    profile: Profile
    arrivals: tuple[Arrival, ...]
    config: ModelConfig
    disk: int = 0
    mean: int = 0
    full: int = 0
    max_tokens: int = MAX_TOKENS

    @cached_property
    def definition(self) -> ModelDefinition:
        """What scaling knows of it."""
        profile = self.profile
        return ModelDefinition(
            name=self.name,
            digest=_name_of("card", self.name),
            weights=_name_of("weights", self.name),
            blob_bytes=profile.blob_bytes,
            hidden_bytes=profile.hidden_bytes,
            kv_layer_bytes=profile.kv_token_bytes // max(1, profile.layers),
        )

    @cached_property
    def prefixes(self) -> bool:
        """Whether the trace tells which prompts begin alike."""
        return any(arrival.blocks for arrival in self.arrivals)

    @property
    def manual(self) -> bool:
        """Whether no policy decides how many instances it has."""
        return self.config.scale_terms.mode == ScaleMode.MANUAL

    def served(self, instance: str) -> ServedInstance:
        """Return an instance of it as its scheduler sees it."""
        return self.profile.served(instance, self.name, self.config, prefixes=self.prefixes)

    def facts(self, since_s: int) -> ModelFacts:
        """Return what a node publishes of it that has the checkpoint."""
        config = self.config
        return ModelFacts(
            name=self.name,
            digest=self.definition.digest,
            layers=self.profile.layers,
            since_s=since_s,
            weights=self.definition.weights,
            disk=True,
            host_copies=config.host_copies,
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
            prefix_caching=config.prefix_caching,
            strategy=config.strategy,
            live=config.live,
            scaling=config.scale_terms,
        )


@dataclass(frozen=True)
class ClusterSetup:
    """A run. Rates are nominal; `latencies` say what is left of them.

    Clients go round the first `ingresses` nodes. Requests arrive until `duration_s`; a client
    gives up after `patience_s` without a first token. What an instance has may go on for
    `drain_timeout_s` while it drains ([node] drain_timeout_s).
    """

    system: System
    models: tuple[ModelSetup, ...]
    nodes: int
    link_bytes_per_s: float
    disk_bytes_per_s: float
    host_bytes_per_s: float
    duration_s: float
    seed: int = 1
    devices_per_node: int = 1
    local_bytes_per_s: float = 4e9
    ingresses: int = 1
    patience_s: float = 120.0
    drain_timeout_s: float = NodeConfig().drain_timeout_s
    latencies: Latencies = Latencies()
    failures: Failures = Failures()
    keep_gaps: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return self.nodes * self.devices_per_node

    def initial(self, model: ModelSetup) -> int:
        """Return how many instances a model has at the start."""
        config, share = model.config, max(1, self.devices // len(self.models))
        most = model.full or min(config.max_instances or share, share)
        if self.system.initial == "full":
            return most
        if self.system.initial == "mean":
            return min(most, max(1, model.mean))
        return min(most, config.min_instances)


SOFTWARE = {"layout": str(LAYOUT_VERSION)}
"""What workers tell of their versions."""


def _name_of(kind: str, model: str) -> str:
    """Return a digest for a card or weights that have no bytes."""
    return blake2b(f"{kind} of {model}".encode(), digest_size=32).hexdigest()
