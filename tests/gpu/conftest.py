"""Tests of what runs on a GPU: on a real one where there is one, else on a pretended one (`simulated.py`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.simulated import SimulatedGpu, simulated_gpu

collect_ignore = ["compile_kernels.py"]
"""A program that needs Triton."""


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu | None]:
    """There is a GPU; what it gives is the pretended one, or None where it is real."""
    if torch.cuda.is_available():
        yield None
        return
    with simulated_gpu() as simulated:
        yield simulated
