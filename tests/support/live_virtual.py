"""What virtual time says of a burst: when the first request that was handed over is complete.

Virtual time begins with the first layer at the helper, while the home begins a prompt. On nodes the
home has been at it before: it runs what it had posted before the helper was joined, whole prompts.
So virtual time is put where the first layer arrives or, if that is later, one prompt before the end
of what was posted:

    expected = max(first layer, (POSTED − 1) · prompt) + virtual

What was posted when the helper was joined is taken to be what was posted at the send: a join takes
less than a prompt.
"""

from __future__ import annotations

from blitzgw.core.live import LivePolicy
from blitzgw.sim.live import HOME, LiveOutcome, LiveSetup, simulate_live
from tests.support.live import Timing

POSTED = 2
"""Steps that a scheduler has posted to its worker at once; here each is one prompt."""


def first_handed_over(outcome: LiveOutcome) -> float:
    """Return when the first request is complete that the home has taken over above layer 0.

    In layer times; -1: there is none.
    """
    taken = {one.request for one in outcome.work if one.worker == HOME and one.span.start > 0}
    helped = {one.request for one in outcome.work if one.worker != HOME}
    return min((outcome.completion[request] for request in taken & helped), default=-1.0)


def expected_s(
    policy: str, pace: Timing, layers: int, requests: int, in_flight: int, first_layer_s: float
) -> float:
    """Return when the first helped request should be complete, in seconds from the send.

    0: nobody helps by this policy, or it is not one that is simulated.
    """
    if policy not in {LivePolicy.ZIGZAG.value, LivePolicy.BEST_EFFORT.value}:
        return 0.0
    setup = LiveSetup(layers, requests, pace.load_over_compute, LivePolicy(policy), in_flight)
    virtual = first_handed_over(simulate_live(setup))
    if virtual < 0:
        return 0.0
    return max(first_layer_s, (POSTED - 1) * pace.prompt_s) + virtual * pace.layer_s
