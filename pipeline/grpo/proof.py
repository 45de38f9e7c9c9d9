"""Kernels for GPUs are tried before they are used: compilers, drivers and GPUs are more than anybody has tested."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Tried = Callable[[], Sequence[Tensor]]
"""What some computation makes of a small example."""

MOST = 0.05
"""Of a tensor's largest value. What is wrong with a kernel is not small, 16 bits are rounded often."""


def agrees(found: Tried, expected: Tried, otherwise: str) -> bool:
    """Whether one computation makes what another does; if it does not, or fails, a warning says why.

    Args:
        found: by kernels.
        expected: by PyTorch's operations.
        otherwise: what is done without the kernels, for the warning.
    """
    try:
        gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(found(), expected(), strict=True)]
        gap = float(torch.stack(gaps).max())  # not a number if any is not
        wrong = None if gap < MOST else f"off by {gap:.2g} of the largest value"
    except Exception as error:  # whatever a compiler raises
        wrong = str(error)
    if wrong:
        warnings.warn(f"{otherwise}: the kernels are wrong here: {wrong}", stacklevel=3)
    return wrong is None
