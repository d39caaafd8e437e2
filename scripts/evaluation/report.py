"""What a replay has found: its summary, as a table and as JSON lines.

TTFT, TPOT, TBT     of answers that have a first token, are whole and have more than one, have any
                    gap; how many are left out is told
given up            under way, or not yet sent, when ^C came
tokens/s            all tokens that came / from the first arrival's time to the last token
attained            answered whole and in time / offered, or sent so far where ^C came first
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson

from blitzgw.cli.output import columns, printable
from blitzgw.sim.evaluation.arrivals import Objective
from blitzgw.sim.evaluation.record import MAX_LAG_S, Answer
from blitzgw.sim.evaluation.statistics import quantile
from blitzgw.sim.evaluation.summary import met
from scripts.evaluation.reply import Reply

TOLD_ERRORS = 5
"""Kinds of errors that a summary tells, the most frequent first."""


@dataclass(slots=True)
class Sheet:
    """A file of JSON lines: what it is about, each reply, the summary.

    Replies are kept in memory until `flush`, which a thread may call: a slow disk delays nobody.
    """

    file: Path | None
    about: dict[str, Any]
    replies: list[Reply] = field(default_factory=list)
    _lines: BinaryIO | None = None
    _written: int = 0

    def __enter__(self) -> Self:
        if self.file:
            self._lines = self.file.open("wb")
            self._write({"type": "about", **self.about})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._lines:
            self._lines.close()

    def keep(self, reply: Reply) -> None:
        """Take a reply that has ended."""
        self.replies.append(reply)

    def flush(self) -> None:
        """Write what has come. Raises OSError. By one thread at a time."""
        while self._lines and self._written < len(self.replies):
            self._write(_line(self.replies[self._written]))
            self._written += 1
        if self._lines:
            self._lines.flush()

    def close(self, summary: dict[str, Any]) -> None:
        """Write what is left, and the summary."""
        self.flush()
        if self._lines:
            self._write({"type": "summary", **summary})
            self._lines.flush()

    def _write(self, line: dict[str, Any]) -> None:
        assert self._lines
        self._lines.write(orjson.dumps(line) + b"\n")


def summary(
    replies: Sequence[Reply],
    offered: int,
    seconds: float,
    objective: Objective | None = None,
    under_way: int = 0,
) -> dict[str, Any]:
    """Return figures; those that nothing can tell are nan. `seconds`: of the window.

    `under_way`: how many had been sent and were not over when the run ended.
    """
    answers = [reply.answer for reply in replies]
    outcomes = Counter(answer.outcome for answer in answers)
    ttft = [answer.first_s for answer in answers if answer.first_s >= 0]
    tpot = [answer.tpot_s for answer in answers if answer.ok and answer.tokens > 1]
    tbt = [gap for answer in answers for gap in answer.gaps_s]
    lag_p99 = quantile((answer.lag_s for answer in answers if answer.lag_s), 0.99)
    ended_s = max((a.at_s + max(0.0, a.last_s) for a in answers), default=0.0)
    ok = [answer for answer in answers if answer.ok]
    return {
        "offered": offered,
        "requests": len(answers),
        "under_way": under_way,
        "not_sent": offered - len(answers) - under_way,
        **{name: outcomes[name] for name in ("ok", "refused", "failed", "timeout")},
        "ttft_mean": sum(ttft) / len(ttft) if ttft else math.nan,
        **{f"ttft_p{share}": quantile(ttft, share / 100) for share in (50, 90, 99)},
        "ttft_left_out": len(answers) - len(ttft),
        "tpot_left_out": sum(not answer.ok for answer in answers),
        **{f"tpot_p{share}": quantile(tpot, share / 100) for share in (50, 99)},
        "tbt_p99": quantile(tbt, 0.99),
        "tbt_max": max(tbt, default=math.nan),
        "window_s": seconds,
        "seconds": ended_s,
        "requests_per_s": len(ok) / ended_s if ended_s else 0.0,
        "prompt_tokens_per_s": _total(ok, "prompt_tokens") / ended_s if ended_s else 0.0,
        "tokens_per_s": _total(answers, "tokens") / ended_s if ended_s else 0.0,
        "lag_p99": lag_p99,
        "void": lag_p99 > MAX_LAG_S,
        "attainment": attained(answers, objective) if objective else math.nan,
        "slo_times": objective.times if objective else math.nan,
        "prompts_off": sum(_is_off(reply) for reply in replies),
        "errors": Counter(a.error for a in answers if a.error).most_common(TOLD_ERRORS),
    }


def attained(answers: Sequence[Answer], objective: Objective) -> float:
    """Return the share of answers that came whole and in time; nan where there are none."""
    good = sum(met(answer, objective) for answer in answers)
    return good / len(answers) if answers else math.nan


def table(found: dict[str, Any]) -> str:
    """Return a summary as lines for a terminal."""
    ended = f"{found['ok']:,} ok, {found['refused']:,} refused, {found['failed']:,} failed"
    rows = [
        ("requests", f"{found['requests']:,} of {found['offered']:,}: {ended}, "
                     f"{found['timeout']:,} timed out"),
        ("TTFT", f"mean {found['ttft_mean']:.3f}   p50 {found['ttft_p50']:.3f}   "
                 f"p90 {found['ttft_p90']:.3f}   p99 {found['ttft_p99']:.3f} s"
                 f"{_left_out(found['ttft_left_out'], 'without a token')}"),
        ("TPOT", f"p50 {found['tpot_p50'] * 1e3:.2f}   p99 {found['tpot_p99'] * 1e3:.2f} ms"
                 f"{_left_out(found['tpot_left_out'], 'not whole')}"),
        ("TBT", f"p99 {found['tbt_p99'] * 1e3:.2f}   max {found['tbt_max'] * 1e3:.2f} ms"),
        ("rates", f"{found['requests_per_s']:.2f} requests/s, "
                  f"{found['prompt_tokens_per_s']:,.0f} prompt tokens/s, "
                  f"{found['tokens_per_s']:,.0f} tokens/s over {found['seconds']:.1f} s"),
    ]  # fmt: skip
    if left := found["under_way"] + found["not_sent"]:
        told = f"{found['under_way']:,} under way, {found['not_sent']:,} not sent"
        rows.insert(1, ("given up", f"{left:,}: {told}"))
    if not math.isnan(found["attainment"]):
        within = f"within {found['slo_times']:g} × what each takes alone"
        rows.append(("attained", f"{found['attainment']:.2%} {within}"))
    verdict = f"   VOID: above {MAX_LAG_S * 1e3:g} ms" if found["void"] else ""
    rows.append(("own lag", f"p99 {found['lag_p99'] * 1e3:.2f} ms{verdict}"))
    if found["prompts_off"]:
        off = f"{found['prompts_off']:,} were counted otherwise by the endpoint"
        rows.append(("prompts", off))
    rows += [("error", f"{count:,} × {printable(error)}") for error, count in found["errors"]]
    return columns(rows)


def _left_out(count: int, why: str) -> str:
    return f"   ({count:,} {why} left out)" if count else ""


def _total(answers: Sequence[Answer], name: str) -> int:
    return sum(getattr(answer, name) for answer in answers)


def _is_off(reply: Reply) -> bool:
    return reply.prompt_counted not in (-1, reply.answer.prompt_tokens)


def _line(reply: Reply) -> dict[str, Any]:
    line = {
        "type": "request",
        "number": reply.number,
        "request_id": reply.request_id,
        "endpoint": reply.endpoint,
        "status": reply.status,
        "finish": reply.finish,
        "prompt_counted": reply.prompt_counted,
        **asdict(reply.answer),
        "gaps_s": [round(gap, 6) for gap in reply.answer.gaps_s],
    }
    if reply.token_ids:
        line["token_ids"] = reply.token_ids
    return line
