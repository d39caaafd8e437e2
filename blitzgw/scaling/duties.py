"""What a steward wants instances to do while they load: effects, as those of events.py."""

from __future__ import annotations

from dataclasses import dataclass

from blitzgw.core.live import LivePolicy
from blitzgw.core.span import Span


@dataclass(frozen=True, slots=True)
class PairInstance:
    """Let an instance that is being brought up help `home` while it loads, and nobody else.

    Said again of the same pair it changes nothing. It is over when the instance is complete or
    gone.
    """

    device: str
    instance: str
    home: str
    policy: LivePolicy


@dataclass(frozen=True, slots=True)
class UnpairInstance:
    """Let an instance that is being brought up help nobody."""

    device: str
    instance: str


@dataclass(frozen=True, slots=True)
class StageInstance:
    """Let an instance that is being brought up be a stage of a pipeline and run `span` for it.

    `next` is the instance of the stage behind it, on whatever node; empty: it is the last. Said
    again of the same stage it changes nothing.
    """

    device: str
    instance: str
    span: Span
    next: str


@dataclass(frozen=True, slots=True)
class UnstageInstance:
    """Let an instance be no stage any more: another one of its pipeline is gone."""

    device: str
    instance: str
