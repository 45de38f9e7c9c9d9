"""Tests of what runs on a GPU: on a real one where there is one, else on a pretended one (`simulated.py`)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.gpu.simulated import SimulatedGpu, simulated_gpu

collect_ignore = ["compile_kernels.py"]
"""A program that needs Triton."""

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are defined, Triton's own among them


@pytest.fixture
def gpu() -> Iterator[SimulatedGpu | None]:
    """There is a GPU; what it gives is the pretended one, or None where it is real."""
    if torch.cuda.is_available():
        yield None
        return
    with simulated_gpu() as simulated:
        yield simulated
