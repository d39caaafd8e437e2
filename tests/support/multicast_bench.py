"""What all questions to a testbed share: the model, the links, how often; what they find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import multicast
from tests.support.gateways import ClusterFailed, Gateways, Roles
from tests.support.multicast import OperationFailed, Round, Setting
from tests.support.multicast_report import Verdict
from tests.support.testbed import Spec, Testbed, testbed

UNFIT = "does not apply"
"""Said of a strategy that cannot be for these sources and targets."""


@dataclass
class Findings:
    """Rows, what they show, and what went wrong."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Bench:
    """What all questions share: the model, the links, how often."""

    def __init__(self, model: Path, setting: Setting, cores: float = 0.0) -> None:
        self.model, self.setting, self.cores = model, setting, cores
        self.failures: list[str] = []
        self.notes: list[str] = []

    @contextlib.contextmanager
    def bed(self, nodes: int, fast: tuple[tuple[int, int], ...] = ()) -> Iterator[Testbed]:
        spec = Spec(nodes, self.setting.rate_mbit, self.setting.mtu, fast, self.cores)
        with testbed(spec) as made:
            yield made

    @contextlib.contextmanager
    def cluster(
        self,
        nodes: int,
        sources: int = 1,
        *,
        fast: tuple[tuple[int, int], ...] = (),
        host_copies: int = 0,
        definers: int = 0,
    ) -> Iterator[Gateways]:
        """Nodes of which the first so many serve the model."""
        with self.bed(nodes, fast) as bed:
            made = Gateways(bed, Roles(self.model, sources, host_copies, definers))
            made.start_all()
            yield made

    def rounds(self, made: Gateways, strategy: str, targets: int) -> list[Round]:
        """Measure one cell so often. Raises OperationFailed where no round has succeeded."""
        tried = [self.round(made, strategy, targets) for _ in range(self.setting.rounds)]
        return self.succeeded(tried)

    def succeeded(self, tried: Sequence[Round | None]) -> list[Round]:
        found = [one for one in tried if one is not None]
        if not found:
            raise OperationFailed([*self.notes, *self.failures][-1])
        return found

    def round(self, made: Gateways, strategy: str, targets: int) -> Round | None:
        """Measure one operation; None: there is none, and `failures` or `notes` say why.

        Nodes begin anew after a failure, and where the sources are not as they were.
        """
        sources = made.roles.sources
        try:
            found = multicast.one_round(made, self.setting, strategy, sources, targets)
        except (OperationFailed, ClusterFailed) as failure:
            if UNFIT in str(failure):  # nothing has happened
                note = str(failure).rpartition(": strategy ")[2]
                self.notes += [note] if note not in self.notes else []
                return None
            self.fail(made, f"{strategy} to {targets}: {failure}")
            return None
        if made.holders() != made.sources():
            self.setting.progress("other nodes are the sources now: beginning anew")
            made.restart()
        text = f"{strategy or 'any'} to {targets}: {found.seconds:.3f} s"
        self.setting.progress(f"{text}, predicted {found.predicted_seconds:.3f} s")
        return found

    def fail(self, made: Gateways, text: str) -> None:
        """Note a failure with the ends of logs, and begin anew."""
        self.failures.append(text)
        self.setting.progress(f"FAILED {text}\n{made.tails()}")
        made.restart()
