"""What a scheduler is told, and what it answers with. Past tense in, imperative out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blitzgw.core.live import LivePolicy, Purpose, Said
from blitzgw.core.messages import StepFailed
from blitzgw.core.parcels import DropParcels, ParcelArrived, ParcelsSent
from blitzgw.core.peer import Loss
from blitzgw.core.record import record
from blitzgw.core.request import GenerationRequest, TokenEvent
from blitzgw.core.span import Span
from blitzgw.core.step import KvGeometry, Step, StepResult
from blitzgw.errors import RequestError


@dataclass(frozen=True, slots=True)
class ServedInstance:
    """A complete instance as its scheduler sees it.

    `max_num_seqs` sequences run at once (no more than there are slots, no more than
    `max_batched_tokens`, which is the number of tokens in one step). More slots than that keep
    more prefixes.
    """

    id: str
    model: str
    n_layers: int
    eos_ids: tuple[int, ...]
    max_model_len: int
    kv: KvGeometry
    max_num_seqs: int
    max_batched_tokens: int
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """All layers are resident and the worker takes steps."""

    instance: ServedInstance


@dataclass(frozen=True, slots=True)
class InstanceRemoved:
    """An instance takes no more steps. Post its UnloadModel first: its KV is given away at once."""

    instance: str


@dataclass(frozen=True, slots=True)
class InstanceOpened:
    """An instance has its KV memory and will have its layers: it may help, and serves nobody yet.

    `InstanceReady` follows when it is complete, or `InstanceRemoved`.
    """

    instance: ServedInstance


@record(frozen=True, slots=True)
class LayersResident:
    """The first `layers` layers of an instance that is loading, and the embedding, may run."""

    instance: str
    layers: int


@dataclass(frozen=True, slots=True)
class StageAssigned:
    """An instance that is loading is a stage of a pipeline, and runs this span for it.

    Its pairings of `Purpose.STAGE` join it to its neighbours: guest of the next, host of the one
    before. The first and the last are known by their spans.
    """

    instance: str
    span: Span


@dataclass(frozen=True, slots=True)
class StageResident:
    """An instance has what its stage needs: its layers; the embedding or the head at either end."""

    instance: str


@dataclass(frozen=True, slots=True)
class PairingOpened:
    """Two instances are joined (core/live.py); `here` is the one of this worker.

    `guest`: the one here has attached to the other, and its parcels go there; else they come. The
    road's edge has the name of the pairing.
    """

    pairing: str
    purpose: Purpose
    here: str
    there: str
    guest: bool
    policy: LivePolicy = LivePolicy.STOP
    back_bytes_per_s: float = 0.0
    """At most so much comes back to the guest, by a road of its own; 0: not known, or no road."""


@dataclass(frozen=True, slots=True)
class PairingClosed:
    """The link, the road or the other end of a pairing is gone, or it has said `Detach`."""

    pairing: str
    reason: str


@dataclass(frozen=True, slots=True)
class MoveOut:
    """Move running sequences to the other end of a pairing, those first that will last longest.

    `count` of them at most; with `queued`, as many waiting ones are given to it as well.
    """

    pairing: str
    count: int
    queued: bool = False


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: told once a second while `Scheduler.expects_ticks`."""


@record(frozen=True, slots=True)
class RequestArrived:
    """A request for one instance."""

    instance: str
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class RequestAborted:
    """Nobody wants an attempt's tokens any more. Unknown ids and other attempts are ignored."""

    request_id: str
    attempt: int


@record(frozen=True, slots=True)
class StepCompleted:
    """The worker has carried out a step."""

    result: StepResult


@record(frozen=True, slots=True)
class StepsRepeated:
    """The worker has carried out several steps, each of which only repeated the one before it.

    At most `Scheduler.repeats` of them. `tokens` are, for each sequence that decodes in the order
    of its rows, one for each step; none of them ends it. They took `durations_s`. The steps in
    flight are now the last ones that would have been posted, their numbers raised accordingly: no
    `RunStep` tells of that.
    """

    instance: str
    tokens: tuple[tuple[int, ...], ...]
    durations_s: tuple[float, ...]


@record(frozen=True, slots=True)
class RunStep:
    """Post a step to the worker, in the order in which these effects stand."""

    step: Step


@dataclass(slots=True)
class EmitTokens:
    """Hand over what one step produced."""

    events: Sequence[TokenEvent]


@dataclass(frozen=True, slots=True)
class Lose:
    """Tell the router that these requests have ended here without an answer: it may retry them.

    `planned`: they are given away, which is no failed attempt; a loss that names an instance says
    to whom.
    """

    losses: tuple[Loss, ...]
    reason: str
    planned: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """Send a message to the other end of its pairing."""

    message: Said


@dataclass(frozen=True, slots=True)
class EndPairing:
    """A pairing has served its purpose, or cannot: tell the other end `Detach` and close the road.

    No `PairingClosed` follows.
    """

    pairing: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the submission with an error; nothing of the request is kept."""

    request_id: str
    error: RequestError


Event = (
    RequestArrived
    | RequestAborted
    | StepCompleted
    | StepsRepeated
    | StepFailed
    | InstanceOpened
    | LayersResident
    | StageAssigned
    | StageResident
    | InstanceReady
    | InstanceRemoved
    | PairingOpened
    | PairingClosed
    | ParcelArrived
    | ParcelsSent
    | MoveOut
    | Ticked
    | Said
)
Effect = RunStep | EmitTokens | Lose | Refuse | Say | EndPairing | DropParcels
