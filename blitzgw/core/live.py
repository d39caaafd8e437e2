"""What two schedulers say to each other while a request's layers are split between instances.

A *pairing* joins two instances for a purpose, from `Attach` to `Detach` or the end of the link or
of a worker. It has a *road*: a data-plane edge on which parcels (hidden states, KV) go from the
instance that attaches to the one that it attaches to. Tickets name what a parcel is for, and are
given out by whoever receives, so that nothing comes that nobody has made room for.

A helper's purpose is to work on its home's queue:

    Attach, Attached · Pull → Lend · Recall → Handoff | Nothing · Offer · Withdraw
    Finished, Detach

An instance that gives running sequences away (draining, evening out) attaches to their new one:

    Attach, Attached · Move → Room | NoRoom · Moved · Withdraw · Detach

The taking end says `Withdraw` when all parcels of a sequence have arrived, or nobody wants them:
only then does the giving end say `Detach`, which would discard what is still on the road.

Receivers that together have all layers serve whole requests before any of them is complete: each
attaches to the next, and hidden states go down the road; sampled tokens come back up. The first is
the *lead*: it helps a home as well, and keeps what it gets from there.

    Attach, Attached · StageReady · Reserve → Reserved | NoRoom · Pass → Sampled · Withdraw · Detach

A request is *queued*, *lent* or *here*, and only its home changes that. Whatever names an attempt
that is not the present one is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from blitzgw.core.request import GenerationRequest, Logprobs, Stage
from blitzgw.core.span import Span
from blitzgw.core.transfer import EdgeTerms


class LivePolicy(StrEnum):
    """What an instance that is still loading does for its home."""

    STOP = "stop"
    """Nothing, until it is complete."""
    BEST_EFFORT = "best-effort"
    """It runs the layers that it has of each request once, half of them at most, and passes on."""
    ZIGZAG = "zigzag"
    """It advances requests layer by layer, as layers come; the home takes the earliest in flight at
    whatever layer it has reached."""
    PIPELINE = "pipeline"
    """Receivers that together have all layers serve whole requests."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A worker that is loading, `node/device`, and the complete instance that it helps."""

    worker: str
    home: str


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a pipeline: a worker `node/device` that is loading, and its span of layers."""

    worker: str
    span: Span


BACK = "-back"
"""Ends the name of the road from the host of a pairing to its guest."""


def back_of(pairing: str) -> str:
    """Return the name of a pairing's road back."""
    return pairing + BACK


def pairing_of(edge: str) -> str:
    """Return the pairing that a road is of, whichever way it leads."""
    return edge.removesuffix(BACK)


class Purpose(StrEnum):
    """What a pairing is for."""

    HELP = "help"
    MOVE = "move"
    STAGE = "stage"


@dataclass(frozen=True, slots=True)
class Road:
    """How the worker of the attached instance takes parcels: it dials `host:port`.

    `edge.weights` is `core.parcels.PARCELS`; the id of the edge is that of the pairing.
    """

    edge: EdgeTerms
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Attach:
    """`guest` asks to be joined to `host` (instances): to help it, or to move sequences to it.

    `claim` is that of the host's device as the guest's node knows it. `Attached` or `Detach` is
    the answer; nothing else is said before.
    """

    pairing: str
    purpose: Purpose
    guest: str
    host: str
    claim: int
    road: Road
    policy: LivePolicy = LivePolicy.STOP
    layers: int = 0
    """The model's number of layers, which must agree."""
    back: Road | None = None
    """Between stages: how the worker of `guest` takes parcels, which dials too."""


@dataclass(frozen=True, slots=True)
class Attached:
    """The host is joined."""

    pairing: str


@dataclass(frozen=True, slots=True)
class Detach:
    """The pairing is over, at once: what was lent or on its way falls back to where it came from.

    After `Finished` that is nothing.
    """

    pairing: str
    reason: str


# A helper and its home.


@dataclass(frozen=True, slots=True)
class Pull:
    """The helper takes requests as long as it has fewer than this in flight.

    So many, of so many tokens together (one is taken whatever its length). It replaces what was
    said before.
    """

    pairing: str
    requests: int
    tokens: int
    keeps: bool = False
    """Whether it serves them itself, so that none comes back."""


@dataclass(frozen=True, slots=True)
class Lend:
    """The helper may work on a request, which remains its home's. Its parcels carry `ticket`."""

    pairing: str
    request: GenerationRequest
    ticket: int


@dataclass(frozen=True, slots=True)
class Recall:
    """The home goes on with a lent request, for which it has reserved KV of all layers."""

    pairing: str
    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Handoff:
    """A recalled request comes back with layers `[0, layer)` computed for its whole prompt.

    With `layer` > 0 the hidden states at `layer` and the KV below are on the road by its ticket.
    """

    pairing: str
    request_id: str
    attempt: int
    layer: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """The helper has not got a request (any more): for its home it is queued again, in front."""

    pairing: str
    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Offer:
    """The helper has done for a request what it will (`best-effort`, `pipeline`)."""

    pairing: str
    request_id: str
    attempt: int
    layer: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Whatever is held of a request for this pairing can go: nobody wants it, or all is there."""

    pairing: str
    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Kept:
    """A request that an instance keeps, by id and attempt: its ingress is told to send it there."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The helper is complete and keeps what it has in flight; nothing more is lent to it.

    The home tells the ingress of each to submit it to the helper, which goes on meanwhile. A recall
    that crosses this message is void.
    """

    pairing: str
    kept: tuple[Kept, ...]


# Sequences that move.


@dataclass(frozen=True, slots=True)
class Move:
    """May a running sequence come? `request.tokens` are all that are known when this is said."""

    pairing: str
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Room:
    """It may: there is KV for `tokens` positions, by this ticket."""

    pairing: str
    request_id: str
    attempt: int
    ticket: int
    tokens: int


@dataclass(frozen=True, slots=True)
class NoRoom:
    """It may not, now."""

    pairing: str
    request_id: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The KV of positions `[0, tokens)` has gone: the sequence is the receiver's.

    Its ingress is told to submit it there; until then the receiver keeps it.
    """

    pairing: str
    request_id: str
    attempt: int
    tokens: int


# Stages of a pipeline: the guest is the earlier one.


@dataclass(frozen=True, slots=True)
class StageReady:
    """The host, and every stage behind it, has the layers of its span: requests may come.

    It replaces what was said before: others may stand behind the host now, or none.
    """

    pairing: str
    stages: tuple[Stage, ...] = ()
    """The host, and those behind it; empty: one of them is not there any more."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """Make room for `tokens` positions of a request, at the host and at all stages behind it."""

    pairing: str
    request: GenerationRequest
    tokens: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """There is room; hidden states for the host come by `ticket`. `NoRoom` where there is none."""

    pairing: str
    request_id: str
    attempt: int
    ticket: int


@dataclass(frozen=True, slots=True)
class Pass:
    """The hidden states of positions `[start, stop)` are on the road, for the host's span.

    `token` is the one at `start` where it was sampled (`stop` is `start + 1` then); -1: they are of
    the prompt. With `sample` the last stage samples the token after them.
    """

    pairing: str
    request_id: str
    attempt: int
    start: int
    stop: int
    sample: bool
    token: int = -1


@dataclass(frozen=True, slots=True)
class Sampled:
    """The last stage has sampled a token, which each stage passes up to the lead."""

    pairing: str
    request_id: str
    attempt: int
    position: int
    token: int
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Return:
    """The guest goes on by itself with a request, of which `tokens` positions are computed.

    Their KV of the host's layers, and of all stages behind it, is to come by this ticket of the
    road back. The host computes nothing more of it, and holds it until `Withdraw`.
    """

    pairing: str
    request_id: str
    attempt: int
    ticket: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Keep:
    """A helper serves these lent requests by itself from now on, and pulls more.

    As with `Finished`, the home tells the ingress of each to submit it to the helper.
    """

    pairing: str
    kept: tuple[Kept, ...]


Said = (
    Pull
    | Lend
    | Recall
    | Handoff
    | Nothing
    | Offer
    | Withdraw
    | Finished
    | Move
    | Room
    | NoRoom
    | Moved
    | StageReady
    | Reserve
    | Reserved
    | Pass
    | Sampled
    | Keep
    | Return
)
"""What deciders say to each other."""

LiveMessage = Attach | Attached | Detach | Said
"""All of it; the first three are the shells' business."""
