"""The live policy of an operation: what was ordered or configured, or what is predicted to be best.

`auto` compares `zigzag` with `stop` by the mean completion of what waits at the homes
(planner/live.py). Before a home's speed is measured it takes `zigzag`, which gains, or loses
little, where a handoff costs less than the compute that it saves. `best-effort` is only followed on
request, and so is `pipeline` where there is a home. From zero there is none: what counts then is
when the first request can be served, and targets make pipelines where that is sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blitzgw.core.live import LivePolicy
from blitzgw.core.plan import Links, Prediction, node_of
from blitzgw.core.view import ClusterView
from blitzgw.scaling.homes import Home, homes_of
from blitzgw.scaling.planner.live import Backlog, mean, stop, zigzag
from blitzgw.scaling.planner.pipelines import Pipeline, alone_s
from blitzgw.scaling.planner.rates import usable_tx
from blitzgw.scaling.survey import ModelDefinition

AUTO = "auto"
"""The policy that leaves the choice to the prediction."""

POLICIES = (AUTO, *(policy.value for policy in LivePolicy))
"""What an order or a configuration can name."""

MAX_REQUESTS = 32
"""That are walked through for a prediction: of more, several count as one. With as many layers, and
MAX_HELPERS of each of MAX_HOMES, it takes an event loop some 20 ms at most."""

MAX_HELPERS = 4
"""Of one home that a prediction is made for: more share a queue that is soon empty."""

MAX_HOMES = 4
"""That a prediction is made for: those with the most queued."""

MAX_LAYERS = 32
"""That are walked through: of more, several count as one."""

MIN_TOKENS_PER_S, MAX_TOKENS_PER_S = 1e-3, 1e12
"""Of a home: what it says of itself and is not within is not known."""

LIKELY_TOKENS = 512
"""Of a prompt where nothing waits and a backlog has to be supposed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A policy, why, and what the mean completion of what waits is predicted to be, in seconds."""

    policy: LivePolicy
    reason: str
    means: Mapping[str, float]

    def text(self) -> str:
        """Return it as an event tells it."""
        if not self.means:
            return f"live policy {self.policy}: {self.reason}"
        chosen = f"live policy {self.policy}: predicted mean {self.means[self.policy]:.3g} s"
        others = [f"{name} {s:.3g} s" for name, s in self.means.items() if name != self.policy]
        return ", ".join([chosen, *others]) + (f" ({self.reason})" if self.reason else "")


def decide(
    wanted: str,
    definition: ModelDefinition,
    view: ClusterView,
    links: Links,
    prediction: Prediction,
    pairs: Mapping[str, Home],
) -> Decision:
    """Return the policy for targets (workers) that help these homes.

    `wanted` is what was ordered, empty: what the model's definition says.
    """
    policy = wanted or configured_policy(definition, view)
    if policy != AUTO:
        how = "as ordered" if wanted else "as configured"
        return Decision(LivePolicy(policy), how, {})
    helpers: dict[str, list[str]] = {}
    for worker, home in sorted(pairs.items()):
        helpers.setdefault(home.id, []).append(worker)
    homes = {home.id: home for home in pairs.values()}
    busiest = sorted(homes.values(), key=lambda home: (-home.queued_tokens, home.id))
    found: list[tuple[int, float, float]] = []
    for home in busiest[:MAX_HOMES]:
        case = _case(definition, home, helpers[home.id], prediction, links)
        if case is not None:
            found.append((home.queued_tokens or 1, mean(zigzag(*case)), mean(stop(*case))))
    if not found:
        return Decision(LivePolicy.ZIGZAG, "how fast its home computes is not known yet", {})
    return _better(found, supposed=not any(home.queued_tokens for home in busiest))


def from_zero(pipelines: Sequence[Pipeline], prediction: Prediction, *, n_targets: int) -> Decision:
    """Return the policy for targets that no complete instance gives work to."""
    if n_targets < 2:
        reason = "no complete instance serves that could be helped"
        return Decision(LivePolicy.STOP, reason, {})
    alone = f"a target is complete after {alone_s(prediction.arrivals):.3g} s"
    if not pipelines:
        reason = f"nobody serves, and targets are together no sooner than {alone}"
        return Decision(LivePolicy.STOP, reason, {})
    ready_s = min(pipeline.ready_s for pipeline in pipelines)
    text = f"nobody serves: targets have the model together after {ready_s:.3g} s, {alone}"
    return Decision(LivePolicy.PIPELINE, text, {})


def _better(found: Sequence[tuple[int, float, float]], *, supposed: bool) -> Decision:
    """Choose by the means of homes, each with its weight."""
    total = sum(weight for weight, _, _ in found)
    means = {
        LivePolicy.ZIGZAG.value: sum(weight * s for weight, s, _ in found) / total,
        LivePolicy.STOP.value: sum(weight * s for weight, _, s in found) / total,
    }
    zigzags = means[LivePolicy.ZIGZAG] <= means[LivePolicy.STOP]
    policy = LivePolicy.ZIGZAG if zigzags else LivePolicy.STOP
    return Decision(policy, "of a full queue: now none waits" if supposed else "", means)


def configured_policy(definition: ModelDefinition, view: ClusterView) -> str:
    """Return what the oldest definition of a model says; what nobody understands is `auto`."""
    facts = view.oldest_definition(definition.name, definition.digest)
    return facts.live if facts is not None and facts.live in POLICIES else AUTO


def objection(policy: str, definition: ModelDefinition, view: ClusterView) -> tuple[str, str]:
    """Return (code, why) a policy cannot be ordered, two empty texts where it can."""
    if policy not in ("", *POLICIES):
        return "bad_request", f"there is no live policy {policy!r}: {', '.join(POLICIES)}"
    if policy in ("", AUTO, LivePolicy.STOP):
        return "", ""
    if policy == LivePolicy.PIPELINE and len(definition.blob_bytes) < 4:
        return "bad_request", "live policy 'pipeline' needs a model of two layers or more"
    if policy != LivePolicy.PIPELINE and not homes_of(definition, view, ()):
        text = f"live policy {policy!r} needs a complete instance of {definition.name!r} to help"
        return "no_capacity", f"{text}, and none serves: leave it out, or order 'stop'"
    return "", ""


def _case(
    definition: ModelDefinition,
    home: Home,
    helpers: Sequence[str],
    prediction: Prediction,
    links: Links,
) -> tuple[list[list[float]], Backlog] | None:
    """Return when layers arrive at a home's helpers, and what waits there; None: not known."""
    load, n_layers = home.placed.load, len(definition.blob_bytes) - 2
    rate = load.prefill_tokens_per_s if load is not None else None
    if load is None or rate is None or n_layers < 1:
        return None
    if not MIN_TOKENS_PER_S <= rate <= MAX_TOKENS_PER_S:
        return None
    step = -(-n_layers // MAX_LAYERS)
    ends = [*range(step, n_layers, step), n_layers]  # the last layer of each group, as a blob
    arrivals = [
        [max(prediction.arrivals[worker][at - step + 1 : at + 1]) for at in ends]
        for worker in helpers[:MAX_HELPERS]
        if worker in prediction.arrivals
    ]
    if not arrivals:
        return None
    requests, tokens = _waiting(load.waiting, load.queued_tokens, rate * prediction.complete_s)
    link = min(_link(worker, home, links) for worker in helpers[:MAX_HELPERS])
    return arrivals, Backlog(
        requests,
        layer_s=tokens / rate / len(ends),
        hidden_s=tokens * definition.hidden_bytes / link,
        kv_layer_s=tokens * definition.kv_layer_bytes * n_layers / len(ends) / link,
    )


def _waiting(requests: int, tokens: int, full: float) -> tuple[int, float]:
    """Return how many requests of how many tokens wait.

    Where none does, as many as the home computes meanwhile (`full`): the policy is for the case
    that load comes.
    """
    if tokens <= 0:
        tokens = max(1, int(full))
        requests = -(-tokens // LIKELY_TOKENS)
    counted = min(max(1, requests), MAX_REQUESTS)
    return counted, tokens / counted


def _link(source: str, home: Home, links: Links) -> float:
    """Return the best rate from a worker to a home, in bytes per second."""
    ends = node_of(source), node_of(home.placed.worker)
    if ends[0] == ends[1]:
        return links.local_bytes_per_s
    rates = [
        min(usable_tx(tx), rx.rx_bytes_per_s)
        for network in home.networks
        if (tx := links.ports.get((ends[0], network))) is not None
        and (rx := links.ports.get((ends[1], network))) is not None
    ]
    return max(1.0, max(rates, default=1.0))
