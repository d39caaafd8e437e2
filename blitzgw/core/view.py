"""What a node publishes about itself, and the frozen picture of the cluster that deciders read.

Each fact is an entry of its node's state, under a key that says what it is about: `node`,
`host`, `device/ID`, `model/NAME`, `copy/WEIGHTS`, `instance/ID`, `load/ID`, `wish/MODEL`,
`scale/MODEL`. Facts that change often stand apart from those that do not, so that a change is a
small one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from blitzgw.core.instance import DeviceKind, InstanceState, Role
from blitzgw.core.membership import DEFINITIONS, LIVING, MEMBERSHIP
from blitzgw.core.picture import Picture
from blitzgw.core.record import record
from blitzgw.core.rumours import Status
from blitzgw.core.span import Span


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A process. `http` is the base URL of its API; `software` the versions of its own parts.

    A draining node takes no new requests from others.
    """

    name: str
    http: str
    draining: bool = False
    software: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device. `claim` is raised by its own node whenever what it is used for begins anew.

    `software` are the versions of what drives it, on which peers must agree to exchange tensors.
    """

    id: str
    kind: DeviceKind
    name: str
    memory_bytes: int
    claim: int
    software: dict[str, str] = field(default_factory=dict)
    data_ports: dict[str, int] = field(default_factory=dict)
    """Where its worker listens for other workers, by the name of the network."""


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """A node's interface for the data plane; `name` is what all nodes on that network call it.

    Rates are of payload, in each direction; 0: not known. `reserved_tx` and `reserved_rx` are
    promised to scale operations, `serving_tx` is what requests (KV, activations) send now. Each of
    its workers sends `weights_tx` of weights at most, over all networks; 0: no limit.
    """

    name: str
    host: str
    rate_bytes_per_s: float = 0.0
    reserved_tx_bytes_per_s: float = 0.0
    reserved_rx_bytes_per_s: float = 0.0
    serving_tx_bytes_per_s: float = 0.0
    weights_tx_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A node's machine. `free_bytes` is what a host copy could take, in coarse steps.

    `zone` says which nodes are near; "" is none.
    """

    free_bytes: int
    zone: str = ""
    networks: tuple[NetworkFacts, ...] = ()
    disk_bytes_per_s: float = 0.0
    """What reading checkpoints has come to of late, or may come to at most; 0: not known."""
    host_bytes_per_s: float = 0.0
    """What a device may take from host memory at most; 0: as fast as it goes."""


@dataclass(frozen=True, slots=True)
class CopyFacts:
    """A host copy of the weights of that root, or one being made. `device` is whose worker has it.

    `blobs` is what is resident: bit i of the hexadecimal number is blob i. One that is `cached` is
    what an instance leaves behind for a while: it can be taken from, and is not to be counted on.
    """

    weights: str
    model: str
    device: str
    size_bytes: int
    blobs: str = "0"
    complete: bool = False
    cached: bool = False


@dataclass(frozen=True, slots=True)
class ScaleTerms:
    """What an operator wants of a model's scaling.

    `mode` is a `core.scale.ScaleMode`. `ttft_s` and `tpot_s` are the targets: 90 of 100 requests
    are to get their first token, and each further one on average, within that. `max_instances` 0:
    as many as devices take. `patience_s` is for how long fewer instances have to suffice before one
    goes; 0 for `idle_to_zero_s` is never. For `keep_s` after its end an instance can be revived,
    for `host_cache_s` after that its weights stay in its machine's memory. Of two models that want
    a device the one with the higher `priority` has it.
    """

    mode: str = "manual"
    ttft_s: float = 1.0
    tpot_s: float = 0.1
    min_instances: int = 1
    max_instances: int = 0
    patience_s: float = 2.0
    idle_to_zero_s: float = 0.0
    keep_s: float = 30.0
    priority: int = 0
    host_cache_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model that a node defines. `digest` names its card (core/card.py) in the whole cluster.

    `since_s` is when the definition was made, in seconds of the Unix epoch. `weights` is the root
    of its manifest (core/manifest.py), `disk` whether the node has the checkpoint itself.
    `host_copies` is how many copies the cluster is to keep in host memory.
    """

    name: str
    digest: str
    layers: int
    since_s: int
    aliases: tuple[str, ...] = ()
    weights: str = ""
    disk: bool = False
    host_copies: int = 0
    max_num_seqs: int = 0
    max_batched_tokens: int = 0
    prefix_caching: bool = True
    """How its instances batch, also on nodes that do not define it; 0: as by default."""
    strategy: str = "auto"
    """How weights get to new instances, where that is possible; auto: the quickest way."""
    live: str = "auto"
    """What its loading instances do: a `core.live.LivePolicy`, or `auto`."""
    scaling: ScaleTerms = ScaleTerms()
    """When it gets more instances or fewer."""


@record(frozen=True, slots=True)
class InstanceFacts:
    """An instance: a model on a device, at a claim of that device. `digest` is its model's."""

    id: str
    model: str
    digest: str
    device: str
    claim: int
    state: InstanceState
    layers_resident: int
    layers_total: int
    role: Role = Role.BOTH
    weights: str = ""
    """The root of the manifest of its weights."""
    blobs: str = "0"
    """The blobs that it can give to others: bit i of the hexadecimal number is blob i."""
    helps: str = ""
    """The instance that it works for while it loads."""
    stage: Span | None = None
    """The layers that it runs for a pipeline while that loads; the first stage leads it."""
    open: bool = False
    """Whether it leads a pipeline all of which is there: while it loads it takes requests that
    nobody else does."""

    @property
    def leads(self) -> bool:
        """Whether it is the first stage of a pipeline, which keeps requests while it loads."""
        return self.stage is not None and self.stage.start == 0


@record(frozen=True, slots=True)
class LoadFacts:
    """The load of an instance. `queued_tokens` wait or are not yet computed; rates are measured.

    `kv_usage` is within [0, 1]; `link_bytes_per_s` what the instance's worker sends to peers.
    `number` rises with every change that the node tells, by whatever way: of two figures the one
    with the higher number is the newer. 0: not told.
    """

    instance: str
    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    kv_usage: float = 0.0
    prefill_tokens_per_s: float | None = None
    decode_step_s: float | None = None
    link_bytes_per_s: float = 0.0
    number: int = 0
    kv_tokens: int = 0
    """What its KV can hold, in tokens; 0: not told."""
    kv_committed_tokens: int = 0
    """What is promised of that: of each request that runs or waits here, its prompt and the smaller
    of `max_tokens` and the 95th percentile of what requests have generated of late."""


@dataclass(frozen=True, slots=True)
class ScaleWish:
    """How many instances an operator wants of a model, `core.scale.AUTOMATIC`: as policy decides.

    Of two wishes that with the greater (`stamp`, `writer`) holds. Each of the nodes that would own
    the model next publishes it too, so that it outlives the writer.
    """

    model: str
    wanted: int
    stamp: int
    writer: str


@record(frozen=True, slots=True)
class ScaleFacts:
    """What a model's owner tells of its scaling: how many it has and wants, and how hard pressed.

    `pressure` is the predicted P90 of TTFT over its target, coarsely. `ready_s` is the Unix time at
    which the next instance is expected to serve, 0: none is on its way. `since_s` is when this node
    took itself for the owner, in Unix seconds: of two that do, the later one is.
    """

    model: str
    mode: str
    present: int
    wanted: int
    pressure: float = 0.0
    ready_s: float = 0.0
    since_s: float = 0.0
    reason: str = ""


Fact = (
    NodeFacts
    | HostFacts
    | DeviceFacts
    | ModelFacts
    | CopyFacts
    | InstanceFacts
    | LoadFacts
    | ScaleWish
    | ScaleFacts
)


def blobs_in(mask: str) -> frozenset[int]:
    """Return the blobs of a fact's mask; of one that is no hexadecimal number, none."""
    try:
        bits = int(mask[:MASK_DIGITS], 16)
    except ValueError:
        return frozenset()
    return frozenset(i for i in range(bits.bit_length()) if bits >> i & 1)


def mask_of(blobs: Iterable[int]) -> str:
    """Return blobs as the mask of a fact."""
    return f"{sum(1 << i for i in set(blobs)):x}"


MASK_DIGITS = 1056
"""Of a mask: 4096 layers and both ends, rounded up."""


@record(frozen=True, slots=True)
class NodeView:
    """One member, as another node sees it. `heard_s` is when its state last changed here.

    `facts` is None until the node's own entry has arrived.
    """

    boot: str
    name: str
    host: str
    port: int
    status: Status
    started_s: int
    facts: NodeFacts | None = None
    devices: Mapping[str, DeviceFacts] = field(default_factory=dict)
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    instances: Mapping[str, InstanceFacts] = field(default_factory=dict)
    loads: Mapping[str, LoadFacts] = field(default_factory=dict)
    copies: Mapping[str, CopyFacts] = field(default_factory=dict)
    wishes: Mapping[str, ScaleWish] = field(default_factory=dict)
    """What operators want, as this node knows it, by model."""
    scaling: Mapping[str, ScaleFacts] = field(default_factory=dict)
    """Of the models that it owns, by name."""
    host_facts: HostFacts | None = None
    heard_s: float = 0.0

    @property
    def living(self) -> bool:
        """Whether it is believed to run."""
        return self.status in (Status.ALIVE, Status.SUSPECT)


@record(frozen=True, slots=True)
class ClusterView:
    """The cluster at one moment, by boot id; `local` is the node that holds this view.

    `picture` is what it has in common with all views of the same nodes: give it where there are
    such, or where one is known that came before.
    """

    local: str
    nodes: Mapping[str, NodeView]
    picture: Picture = field(default_factory=Picture, repr=False, compare=False)

    def __post_init__(self) -> None:
        """See to it that the picture is one of these nodes."""
        if self.picture.nodes is not self.nodes:
            object.__setattr__(self, "picture", Picture(self.nodes, self.picture))

    def living(self) -> Iterator[NodeView]:
        """Yield the nodes that are believed to run, this one included."""
        living = self.picture.recall(LIVING)
        return iter(living)

    def oldest_definition(self, name: str, digest: str) -> ModelFacts | None:
        """Return what the living node says of a definition that has had it for longest."""
        return self.picture.recall(DEFINITIONS).oldest(name, digest)

    def namesakes(self) -> dict[str, list[NodeView]]:
        """Return, by name, the living nodes that share one, the eldest first.

        Of several at one address the youngest counts: the others have died, which is not known yet.
        """
        shared = self.picture.recall(MEMBERSHIP).namesakes
        return {name: [self.nodes[boot] for boot in shared[name]] for name in sorted(shared)}


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """A request under way, as its ingress knows it. `instance` is empty while it is held."""

    id: str
    model: str
    ingress: str
    instance: str
    attempt: int
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    age_s: float


@dataclass(frozen=True, slots=True)
class RequestList:
    """Requests of the whole cluster, the oldest first; `truncated`: there are more.

    `unanswered` are the names of the nodes that did not tell theirs, sorted.
    """

    requests: tuple[RequestFacts, ...]
    unanswered: tuple[str, ...] = ()
    truncated: bool = False
