"""What the policy's verdicts say of themselves, to people and to programs."""

from __future__ import annotations

from blitzgw.scaling.bands import Band
from blitzgw.scaling.case import Case


def why_floor(case: Case) -> str:
    """Say why there have to be some at all."""
    if case.demand and not case.fleet.present:
        return f"{case.figures.held} requests are held and there is no instance"
    return f"at least {case.floor} are wanted and there are {case.level}"


def why_more(case: Case, cause: Band) -> str:
    """Say what makes more of them necessary."""
    figures = case.figures
    there = f"of {case.level} instances"
    if cause.name == "decode":
        return f"{figures.committed_tokens} tokens of KV are promised, more than the share {there}"
    if cause.name == "tpot":
        return f"{figures.running} requests decode, too many for the target {there}"
    if cause.name == "utilisation":
        return f"{figures.steady_tokens_per_s:.3g} prompt tokens arrive a second, too many {there}"
    if figures.prefill_tokens_per_s is None:
        return f"{figures.held + figures.waiting} requests wait, and no rate is known"
    return (
        f"{figures.backlog_tokens} prompt tokens are queued, "
        f"{figures.backlog_tokens / figures.prefill_tokens_per_s:.2g} s of one instance; "
        f"predicted TTFT {figures.predicted_ttft_s:.2g} s, target {case.terms.ttft_s:g} s"
    )


def basis(case: Case) -> tuple[str, dict[str, float]]:
    """Return how a verdict was worked out, and the figures that have gone into it, by name."""
    figures, fleet = case.figures, case.fleet
    return "; ".join(band.formula() for band in case.found), {
        "backlog_tokens": float(figures.backlog_tokens),
        "held_requests": float(figures.held),
        "committed_tokens": float(figures.committed_tokens),
        "running_requests": float(figures.running),
        "sustained_tokens_per_s": figures.sustained_tokens_per_s,
        "steady_tokens_per_s": figures.steady_tokens_per_s,
        "prefill_tokens_per_s": figures.prefill_tokens_per_s or 0.0,
        "kv_tokens": float(figures.kv_tokens),
        "predicted_ttft_s": figures.predicted_ttft_s,
        "ttft_target_s": case.terms.ttft_s,
        "idle_s": figures.idle_s,
        "load_s": fleet.ready_s,
        "serving_instances": float(fleet.serving),
        "coming_instances": float(len(fleet.coming)),
        "worth_instances": case.worth,
    }
