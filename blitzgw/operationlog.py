"""What becomes of the operations that this node owns, as lines of its log."""

from __future__ import annotations

import logging

from blitzgw.scaling.effects import OperationEnded, Record

log = logging.getLogger(__name__)


def record(effect: Record) -> None:
    """Write down something that has happened to an operation."""
    event = effect.event
    log.info(
        "operation id=%s model=%s what=%s about=%s at_s=%.3f detail=%s",
        effect.operation, effect.model, event.what, event.about, event.at_s, event.detail,
    )  # fmt: skip


def record_end(effect: OperationEnded) -> None:
    """Write down how an operation has ended."""
    level = logging.INFO if effect.state == "done" else logging.WARNING
    log.log(
        level, "operation_ended id=%s model=%s state=%s reason=%s",
        effect.operation, effect.model, effect.state, effect.reason,
    )  # fmt: skip
