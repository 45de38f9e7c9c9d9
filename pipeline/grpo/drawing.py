"""Drawing tokens: the noise of a response, and a token from logits. Shape names: R rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.hardware import runs_triton
from pipeline.grpo.proof import agrees
from pipeline.selection.keys import key_of, keys

Draw = Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor]]
"""Logits [R, V], a temperature and numbers [R] in [0, 1) → ids [R] int64 and their log-probabilities [R] in fp32."""


@dataclass(frozen=True)
class Drawing:
    """How the responses of a batch are drawn."""

    seeds_R: NDArray[np.uint64]
    """Of each response (`rollout_seed`)."""
    temperature: float
    """0 is greedy."""
    room: int
    """Most tokens of a response."""
    eos_ids: frozenset[int]
    """They end a response."""

    def noise(self) -> NDArray[np.float32]:
        """Of every token of every response [R, room]: what `draw` takes."""
        return uniform(self.seeds_R[:, None], np.arange(self.room))


def rollout_seed(seed: int, step: int, site_id: str, sample: int) -> int:
    """The seed of one response.

    Example:
        >>> rollout_seed(0, 0, "d-1", 0) == rollout_seed(0, 0, "d-1", 1)
        False
    """
    return key_of("rollout", seed, step, site_id, sample)


def uniform(seeds: NDArray[np.uint64], index: int | NDArray[np.integer]) -> NDArray[np.float32]:
    """The `index`-th draw in [0, 1) of every seed's stream, in steps of 2⁻²⁴; many indices are broadcast.

    Example:
        >>> [f"{u:.3f}" for u in uniform(np.array([1, 2], dtype=np.uint64), 0)]
        ['0.567', '0.591']
    """
    return (keys(seeds, np.asarray(index)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def draw(logits_RV: Tensor, temperature: float, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution, and its log-probability at that temperature.

    Temperature 0 takes the most likely token (of equals, the first); its log-probability is that at temperature 1.

    Returns:
        ids [R] int64, logprobs [R] float32.
    """
    logits_RV = logits_RV.float()
    if temperature not in (0, 1):
        logits_RV = logits_RV / temperature
    probabilities_RV = logits_RV.softmax(dim=-1)
    if temperature == 0:
        ids_R = logits_RV.argmax(dim=-1)
    else:
        cumulative_RV = probabilities_RV.cumsum(dim=-1)
        # At most (1 − 2⁻²⁴) of the total, which fp32 rounds below it: the first column above has a probability.
        point_R = uniform_R * cumulative_RV[:, -1]
        ids_R = torch.searchsorted(cumulative_RV, point_R[:, None], right=True)[:, 0]
    return ids_R, probabilities_RV.gather(1, ids_R[:, None])[:, 0].log_()


def fastest_draw(device: torch.device) -> Draw:
    """`draw`, or kernels that are found to do the same."""
    if runs_triton(device.type) and proven(device):
        from pipeline.grpo import drawing_triton

        return drawing_triton.draw
    return draw


@cache
def proven(device: torch.device) -> bool:
    """Whether the kernels draw here as `draw` does."""
    from pipeline.grpo import drawing_triton

    found, expected = (partial(_tried, way, device) for way in (drawing_triton.draw, draw))
    return agrees(found, expected, "tokens are drawn by PyTorch's operations")


@torch.inference_mode()
def _tried(draw: Draw, device: torch.device) -> list[Tensor]:
    """Where in the cumulative distribution tokens of a few rows lie: rounding may move one to a neighbour."""
    logits_RV = torch.randn(16, 9000, generator=torch.Generator().manual_seed(0)).mul_(3).to(device)
    noise_R = torch.from_numpy(uniform(np.arange(16, dtype=np.uint64), 0)).to(device)
    found = []
    for temperature in (0.0, 0.7):
        ids_R, logprobs_R = draw(logits_RV, temperature, noise_R)
        expected_RV = (logits_RV / (temperature or 1)).log_softmax(dim=-1)
        found.append(expected_RV.exp().cumsum(dim=-1).gather(1, ids_R[:, None]))
        found.append(1 + logprobs_R - expected_RV.gather(1, ids_R[:, None])[:, 0])
    return found
