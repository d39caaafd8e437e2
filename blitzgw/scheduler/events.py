"""What a scheduler is told, and what it answers with. Past tense in, imperative out."""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.messages import StepFailed
from blitzgw.core.peer import Loss
from blitzgw.core.request import GenerationRequest, TokenEvent
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
class RequestArrived:
    """A request for one instance."""

    instance: str
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class RequestAborted:
    """Nobody wants an attempt's tokens any more. Unknown ids and other attempts are ignored."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StepCompleted:
    """The worker has carried out a step."""

    result: StepResult


@dataclass(frozen=True, slots=True)
class RunStep:
    """Post a step to the worker, in the order in which these effects stand."""

    step: Step


@dataclass(slots=True)
class EmitTokens:
    """Hand over what one step produced."""

    events: list[TokenEvent]


@dataclass(frozen=True, slots=True)
class Lose:
    """Tell the router that these requests have ended here without an answer: it may retry them."""

    losses: tuple[Loss, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer the submission with an error; nothing of the request is kept."""

    request_id: str
    error: RequestError


Event = (
    RequestArrived | RequestAborted | StepCompleted | StepFailed | InstanceReady | InstanceRemoved
)
Effect = RunStep | EmitTokens | Lose | Refuse
