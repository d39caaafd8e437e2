"""What is logged of an unexpected error: where, never its message, which could quote a prompt."""

from __future__ import annotations

import logging
import traceback

logger = logging.getLogger(__name__)

FRAMES = 4
"""Innermost frames of the traceback that a log line shows."""


def log_failure(event: str, request_id: str, error: Exception) -> None:
    """Log the kind of an error and the lines that it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    where = " ".join(f"{frame.filename}:{frame.lineno}" for frame in frames)
    logger.error("%s id=%s error=%s at=%s", event, request_id, type(error).__name__, where)
