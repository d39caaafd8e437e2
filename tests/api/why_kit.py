"""A cluster whose owners say why: decisions to be told, and a `ScalePort` that tells them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from blitzgw.core.scale import AUTOMATIC, DecisionFacts, WhyFacts
from blitzgw.core.view import ScaleTerms
from tests.support.scaling import STARTED_S, FakeScaling

TERMS = ScaleTerms("auto", 1.0, 0.1, 1, 8, 2.0, 600.0, 30.0, 3)
INPUTS = {
    "backlog_tokens": 18_400.0,
    "held_requests": 1.0,
    "prefill_tokens_per_s": 2_267.4,
    "predicted_ttft_s": 4.02,
    "ttft_target_s": 1.0,
    "worth_instances": 2.5,
}
QUANTILES = {
    "ttft_p50_s": 0.12,
    "ttft_p90_s": 1.64,
    "ttft_p99_s": 2.5,
    "tpot_p50_s": 0.021,
    "tpot_p90_s": 0.03,
    "tpot_p99_s": 0.041,
}


def decision(model="m", at_s=0.0, action="grow", present=1, wanted=3, **more):
    """A decision, `at_s` after the operations of tests/support/scaling.py."""
    facts = DecisionFacts(
        model, "node-2", STARTED_S + at_s, action, present, wanted, True,
        "18400 prompt tokens are queued, 8.1 s of one instance", "backlog_tokens / (rate × 0.5 s)",
        dict(INPUTS),
    )  # fmt: skip
    return replace(facts, **more)


def why(model="m", past=(), **more):
    """What an owner tells of a model; nothing is to be changed."""
    now = decision(model, 99.0, "hold", 3, 3, reason="the load is within what they are for")
    facts = WhyFacts(model, "node-2", "auto", TERMS, AUTOMATIC, now, dict(QUANTILES), tuple(past))
    return replace(facts, **more)


@dataclass
class ExplainingScaling(FakeScaling):
    """A `ScalePort` whose owners tell; `silent` ones do not answer."""

    told: dict[str, WhyFacts] = field(default_factory=dict)
    silent: bool = False
    automatic: bool = True
    """False: as it was told before operations could begin by themselves."""

    async def scale(self, model, instances, *, dry_run, strategy, policy):
        facts = await super().scale(
            model, max(0, instances), dry_run=dry_run, strategy=strategy, policy=policy
        )
        if instances == AUTOMATIC:
            self.asked[-1] = (model, AUTOMATIC, dry_run, strategy)
            self.known.pop(facts.id, None)
            return None if self.automatic else facts
        return facts

    async def why(self, model):
        return None if self.silent else self.told.get(model)

    async def whys(self):
        return () if self.silent else tuple(self.told[name] for name in sorted(self.told))
