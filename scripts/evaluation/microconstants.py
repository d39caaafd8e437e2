"""What micro-benchmarks measure: each constant's name, how it is measured, and how it is told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BURST, BURST_TOKENS = 4, 4000
"""Prompts at once that make an owner decide: more than a second's work."""


@dataclass(slots=True)
class Constant:
    """What has been measured: `values` as they came, seconds on the wall unless it is a share."""

    how: str
    values: list[float] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """Return the median, how much the values differ, and how they were measured."""
        ordered = sorted(self.values)
        if not ordered:
            return {"value": None, "spread": None, "n": 0, "how": self.how}
        n = len(ordered)
        spread = [ordered[int(0.1 * (n - 1))], ordered[round(0.9 * (n - 1))]]
        middle = max(0.0, statistics.median(ordered))  # a difference may be less than its noise
        return {
            "value": round(middle, 6),
            "spread": [round(one, 6) for one in spread],
            "n": n,
            "how": self.how,
        }


OTHERS = ((2, 4, 6), (1, 2, 3, 4, 5, 6, 7))
"""Nodes that have requests of their own while another one's are measured: here all nodes share the
processors of one machine."""

BESIDE = {
    "request_local_s": "request_beside_s",
    "prefill_step_s": "prefill_beside_s",
    "step_overhead_s": "step_beside_s",
}


HOW = {
    "request_local_s": "send → first token of a prompt of one step, at an idle instance of the node"
    " that is asked, beyond the step",
    "request_remote_s": "more than that where the instance is another node's",
    "prefill_step_s": "each further step of a long prompt, beyond the cost formula",
    "step_overhead_s": "a step of a lone decode, beyond the cost formula",
    "request_beside_s": "more than request_local_s, for each other node that computes meanwhile",
    "prefill_beside_s": "more than prefill_step_s, for each other node that computes meanwhile",
    "step_beside_s": "more than step_overhead_s, for each other node that computes meanwhile",
    "token_back_s": "such a step where the instance is another node's: more than at the node",
    "plan_s": "decided → planned",
    "claim_s": "planned → claimed",
    "connect_s": "claimed → connected",
    "first_byte_s": "connected → first byte, over an idle link",
    "hop_s": "the last byte at one target → the last byte at the next one of its chain",
    "link_share": "weights over one idle shaped link / the payload that TCP can carry there",
    "serve_s": "last byte → the instance serves, at a worker that has computed before",
    "disk_first_byte_s": "claimed → first byte from a disk, at a worker that has read before",
    "first_read_s": "more than that at a worker that has not",
    "cores": "processors of the machine, which all nodes share",
    "disk_share": "weights from a paced disk / its rate",
    "message_s": "half of what an answer from another node takes more: it crosses a link twice",
    "demand_s": f"{BURST} prompts of {BURST_TOKENS} tokens come to a node → the owner has decided"
    " (what nodes measure as `decide`), less TELL_S, for which a node waits at most",
    "revive_s": "decided → a kept instance serves again",
    "gossip_lag_s": "an instance serves → another node, idle, tells so",
}


def table(found: Mapping[str, Any]) -> str:
    """Return what was measured as lines of text; seconds as milliseconds."""
    lines = [f"{'constant':<20}{'value':>11}{'p10 … p90':>22}{'n':>5}  how"]
    for name, one in found["constants"].items():
        if one["value"] is None:
            lines.append(f"{name:<20}{'-':>11}{'':>22}{0:>5}  {one['how']}")
            continue
        scale, unit = (1e3, " ms") if name.endswith("_s") else (1.0, "")
        low, high = (scale * end for end in one["spread"])
        value = f"{scale * one['value']:.3f}{unit}"
        lines.append(
            f"{name:<20}{value:>11}{f'{low:.3f} … {high:.3f}':>22}{one['n']:>5}  {one['how']}"
        )
    return "\n".join(lines)
