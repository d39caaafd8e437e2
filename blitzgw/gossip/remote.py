"""Requests of this node at instances of other nodes: the ingress' end of a peer link."""

from __future__ import annotations

import logging
from collections.abc import Callable

from blitzgw.core.clock import Clock
from blitzgw.core.instance import InstanceState
from blitzgw.core.peer import Abort, Declined, Loss, Lost, Submit, Tokens
from blitzgw.core.ports import Outlook, PlainIngress
from blitzgw.core.record import record
from blitzgw.core.request import GenerationRequest, PlainToken
from blitzgw.core.view import InstanceFacts, LoadFacts, NodeView
from blitzgw.errors import (
    GenerationFailed,
    InvalidRequest,
    Outdated,
    Overloaded,
    ProtocolError,
    RequestError,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownModel,
)
from blitzgw.gossip.links import Links

log = logging.getLogger(__name__)

UNKNOWN_DISTANCE_S = 0.001
"""Round trip assumed of a peer without a link: a network between hosts, and a link to be opened."""

REPORT_LAG_S = 0.05
"""How old the figures of a load report may be when it arrives: what was submitted later than that
is taken not to be in them."""

CORRECTION_S = 1.0
"""How long a submission counts on top of what the peer says: by then a report has come even by
gossip, and one that has not says that nothing has changed."""

OnPeerLost = Callable[[str, str], None]
"""Takes a boot id and the reason why its link broke; takes its instances out of the router."""

_ERRORS: dict[str, type[RequestError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        Unauthorized,
        UnknownModel,
        TooLarge,
        Overloaded,
        Unavailable,
        Outdated,
        GenerationFailed,
    )
}


class TooLong(Unavailable):
    """For what does not fit a message: an instance of this node may take it, no other one will.

    It is a refusal, so that a router asks the others; a client that hears of it in the end is told
    that its request is too large.
    """

    status, kind, code = TooLarge.status, TooLarge.kind, TooLarge.code


@record(frozen=True, slots=True)
class _Whereabouts:
    """Where a request is: at this instance of that process, with this attempt."""

    boot: str
    instance: str
    attempt: int


class RemoteIngress:
    """Knows which requests are at which peer and passes on what peers say of those, to a router.

    What a peer says of a request that is not, or no longer, there is dropped.
    """

    def __init__(self, links: Links, router: PlainIngress, on_peer_lost: OnPeerLost) -> None:
        self._links, self._router, self._on_peer_lost = links, router, on_peer_lost
        self._away: dict[str, _Whereabouts] = {}

    def submit(self, node: NodeView, facts: InstanceFacts, request: GenerationRequest) -> None:
        """Send a request to an instance. Raises Unavailable where the link is known to be broken.

        Raises TooLong for a request that no message can hold.
        """
        if not self._links.usable(node.boot):
            raise Unavailable(f"the link to node {node.name} is broken", retry_after_s=1.0)
        try:
            message = Submit(facts.id, facts.claim, request)
            self._links.send(node.boot, (node.host, node.port), message)
        except ProtocolError as error:
            raise TooLong("the request is too long to be sent to another node") from error
        former = self._away.get(request.id)
        self._away[request.id] = _Whereabouts(node.boot, facts.id, request.attempt)
        if former is not None and former.attempt != request.attempt:
            self._links.send(former.boot, None, Abort(request.id, former.attempt))

    def abort(self, boot: str, request_id: str, attempt: int) -> None:
        """Stop a request at a peer, if it is there."""
        if self._is_at(boot, request_id, attempt):
            del self._away[request_id]
            self._links.send(boot, None, Abort(request_id, attempt))

    def on_tokens(self, boot: str, message: Tokens) -> None:
        """Pass on the tokens of requests that are at this peer."""
        events = message.events
        if not all(self._is_at(boot, e.request_id, e.attempt) for e in events):
            events = [e for e in events if self._is_at(boot, e.request_id, e.attempt)]
        for event in events:
            if event.finish is not None:
                self._away.pop(event.request_id, None)
        if events:
            self._router.on_tokens(events)

    def on_plain(self, boot: str, tokens: list[PlainToken]) -> None:
        """Pass on tokens of requests that are at this peer. This runs for every token."""
        find = self._away.get
        for token in tokens:
            where = find(token[0])
            if where is None or where.boot != boot or where.attempt != token[1]:
                tokens = [each for each in tokens if self._is_at(boot, each[0], each[1])]
                break
        if tokens:
            self._router.on_plain(tokens)

    def on_declined(self, boot: str, message: Declined) -> None:
        """Pass on that an instance does not take a request, with the error it was refused with."""
        if self._is_at(boot, message.request_id, message.attempt):
            del self._away[message.request_id]
            error = rebuilt(message)
            self._router.on_declined(message.request_id, message.attempt, error)

    def on_lost(self, boot: str, message: Lost) -> None:
        """Pass on that requests have ended there without an answer."""
        losses = [x for x in message.losses if self._is_at(boot, x.request_id, x.attempt)]
        for loss in losses:
            del self._away[loss.request_id]
        if losses:
            self._router.on_lost(losses, message.reason, planned=message.planned)

    def link_lost(self, boot: str, reason: str) -> None:
        """Take back all that is at a peer, after its instances have been taken out of the router.

        Else the router would send it there again.
        """
        losses = [Loss(i, w.attempt) for i, w in self._away.items() if w.boot == boot]
        for loss in losses:
            del self._away[loss.request_id]
        self._on_peer_lost(boot, reason)
        if losses:
            self._router.on_lost(losses, f"peer lost: {reason}")

    def forget(self, instance: str) -> None:
        """Stop all that is at an instance; call it before the router takes the requests back."""
        for request_id, where in [*self._away.items()]:
            if where.instance == instance:
                self.abort(where.boot, request_id, where.attempt)

    def count(self, boot: str) -> int:
        """Return how many requests are at a peer."""
        return sum(where.boot == boot for where in self._away.values())

    def _is_at(self, boot: str, request_id: str, attempt: int) -> bool:
        where = self._away.get(request_id)
        return where is not None and where.boot == boot and where.attempt == attempt


class RemoteInstance:
    """A `core.ports.InstancePort` for an instance of another node, as this node sees it."""

    def __init__(
        self,
        ingress: RemoteIngress,
        links: Links,
        clock: Clock,
        node: NodeView,
        facts: InstanceFacts,
        load: LoadFacts | None = None,
    ) -> None:
        self._ingress, self._links, self._clock = ingress, links, clock
        self._open = self._reluctant = False
        self.update(node, facts)
        self._load = load or LoadFacts(facts.id)
        self._heard_s = node.heard_s
        self._sent: list[tuple[float, int]] = []  # a deque of nothing takes ten times as much

    @property
    def instance(self) -> str:
        """The instance's id."""
        return self._facts.id

    @property
    def model(self) -> str:
        """The name of the model that it serves."""
        return self._facts.model

    @property
    def digest(self) -> str:
        """The digest of the model's definition."""
        return self._facts.digest

    @property
    def boot(self) -> str:
        """The process that has it."""
        return self._node.boot

    def update(self, node: NodeView, facts: InstanceFacts) -> bool:
        """Take what the directory says of the node and the instance by now.

        Returns whether it has begun to take requests.
        """
        before = self._open
        self._node, self._facts = node, facts
        self._open, self._reluctant = _is_open(node, facts), facts.state is InstanceState.LOADING
        return self._open and not before

    def update_load(self, load: LoadFacts) -> None:
        """Take the instance's load, which has just arrived: by gossip or in a report."""
        self._load, self._heard_s = load, self._clock.now()
        self._settle(self._heard_s - REPORT_LAG_S)

    def outlook(self) -> Outlook:
        """Return how busy it is: what it said last, and what has been sent there since."""
        now = self._clock.now()
        self._settle(now - CORRECTION_S)
        rtt_s = self._links.rtt_s(self._node.boot)
        return Outlook(
            queued_tokens=self._load.queued_tokens + sum(tokens for _, tokens in self._sent),
            prefill_tokens_per_s=self._load.prefill_tokens_per_s,
            distance_s=UNKNOWN_DISTANCE_S if rtt_s is None else rtt_s,
            age_s=max(0.0, now - self._heard_s),
            open=self._open,
            reluctant=self._reluctant,
        )

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request; raises Unavailable where it is known that it cannot get there."""
        self._ingress.submit(self._node, self._facts, request)
        self._sent.append((self._clock.now(), len(request.tokens)))

    def abort(self, request_id: str, attempt: int) -> None:
        """Stop a request and free what it holds; unknown ones are ignored."""
        self._ingress.abort(self._node.boot, request_id, attempt)

    def _settle(self, limit_s: float) -> None:
        """Forget submissions from before a moment."""
        sent = self._sent
        while sent and sent[0][0] <= limit_s:
            del sent[0]


def _is_open(node: NodeView, facts: InstanceFacts) -> bool:
    """Tell whether an instance takes requests, by what the directory says of it and its node."""
    leads = facts.state is InstanceState.LOADING and facts.leads and facts.open
    serves = facts.state is InstanceState.SERVING or leads
    draining = node.facts is not None and node.facts.draining
    return serves and node.living and not draining


def rebuilt(declined: Declined) -> RequestError:
    """Return the error that an instance has refused a request with; unknown: Unavailable."""
    cls = _ERRORS.get(declined.code, Unavailable)
    return cls(declined.message, param=declined.param, retry_after_s=declined.retry_after_s)
