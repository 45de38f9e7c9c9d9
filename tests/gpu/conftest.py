"""Tests of what runs on a GPU: on a real one where there is one, else on a pretended one (`simulated.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch

from pipeline.core.hardware import runs_triton
from pipeline.grpo import drawing, kernel_decoder, kernel_head, logprobs
from tests.gpu.simulated import SimulatedGpu, simulated_gpu

collect_ignore = ["compile_kernels.py"]
"""A program that needs Triton."""


USE_KERNELS = (drawing, kernel_decoder, logprobs)


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu | None]:
    """There is a GPU; what it gives is the pretended one, or None where it is real."""
    if torch.cuda.is_available():
        yield None
        return
    with simulated_gpu() as simulated, ExitStack() as stack:
        for module in USE_KERNELS:
            stack.enter_context(patch.object(module, "runs_triton", lambda _: False))
        yield simulated


@pytest.fixture
def kernels(gpu: SimulatedGpu | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding takes its kernels; else they are left out where the GPU is pretended, for the interpreter is slow."""
    pytest.importorskip("triton", reason="triton is not installed: kernels for GPUs are not tested")
    for module in USE_KERNELS:
        monkeypatch.setattr(module, "runs_triton", runs_triton)
    for module in (drawing, kernel_decoder, kernel_head):
        module.proven.cache_clear()
