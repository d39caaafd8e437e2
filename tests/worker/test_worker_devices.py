"""What a device is asked besides steps."""

from __future__ import annotations

import pytest
import torch

from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.engine.native import build
from blitzgw.worker.devices import open_device, poisons_context


@pytest.mark.parametrize(
    ("message", "poisons"),
    [
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA driver error: unspecified launch failure", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", False),
        ("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'", False),
        ("CUDA driver error: out of memory", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("position 70 lies beyond its block table", False),
    ],
)
def test_a_lack_of_memory_is_no_reason_to_begin_anew(message, poisons):
    assert poisons_context(message) is poisons


def test_kernels_are_compiled_before_a_model_is_waited_for(monkeypatch):
    asked = []
    monkeypatch.setattr(build, "library", lambda: asked.append(True))
    open_device(DeviceSpec("c0", DeviceKind.CPU, threads=torch.get_num_threads()), 1.0)
    assert asked == [True]
