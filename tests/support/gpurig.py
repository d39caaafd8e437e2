"""A GPU's engine with a CPU in its place, in a rig; and sequences that have been prefilled."""

from __future__ import annotations

import random
from unittest.mock import patch

import torch

from blitzgw.core.model import Dtype
from blitzgw.engine.gpu.engine import GpuEngine
from blitzgw.engine.torch_layer import TorchKernels
from tests.support.capturing import RecordingShell, gathered
from tests.support.engines import GREEDY, Rig

DRAW = random.Random(21)
PROMPTS = [[DRAW.randrange(3, 300) for _ in range(n)] for n in (1, 16, 45, 130, 7)]
SLOTS = [3, 0, 5, 1, 6]


class GpuRig(Rig):
    """A `Rig` with a GPU's engine, whose clock the test moves."""

    def __init__(self, folder, dtype=Dtype.FLOAT32):
        self.shell, self.time = RecordingShell(), 0.0
        super().__init__(folder, dtype, context=256, new_engine=self._new)

    def _new(self, spec, kv, device):
        self.choice = gathered(spec)
        arguments = (spec, kv, device, None, lambda: self.time, self.shell, lambda: self.choice)
        with patch("blitzgw.engine.decoder.choose_kernels", lambda spec, _: TorchKernels(spec)):
            return GpuEngine(*arguments)  # a GPU has none of a CPU's kernels to begin with

    def capture_all(self):
        """Use moments until there is nothing to do; return how many there were."""
        moments = 0
        while (wait_s := self.engine.moment_s()) is not None:
            self.time += wait_s
            self.engine.use_moment()
            moments += 1
        return moments

    def kv_of_all(self):
        return torch.stack([part for i in self.whole.layers() for part in self.engine._kv.layer(i)])


def filled(rig, sampling=GREEDY):
    """Sequences of all prompts, each prefilled in its slot."""
    sequences = [
        rig.sequence(p, slot, sampling, choice=slot) for p, slot in zip(PROMPTS, SLOTS, strict=True)
    ]
    for sequence in sequences:
        rig.prefill(sequence)
    return sequences


def rms(a, b):
    """The error of the worst row, in the answers' deviations."""
    return float(((a - b).square().mean(-1).sqrt() / b.std()).max())
