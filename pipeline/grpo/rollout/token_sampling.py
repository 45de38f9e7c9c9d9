"""Drawing tokens: the noise of a response, and a token from logits. Shape names: R rows, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.random_keys import random_key, random_keys


@dataclass(frozen=True)
class SamplingParams:
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
        """Of every token of every response [R, room]: what `sample_token` takes."""
        return uniform(self.seeds_R[:, None], np.arange(self.room))


def rollout_seed(seed: int, step: int, site_id: str, sample: int) -> int:
    """The seed of one response.

    Example:
        >>> rollout_seed(0, 0, "d-1", 0) == rollout_seed(0, 0, "d-1", 1)
        False
    """
    return random_key("rollout", seed, step, site_id, sample)


def uniform(seeds: NDArray[np.uint64], index: int | NDArray[np.integer]) -> NDArray[np.float32]:
    """The `index`-th draw in [0, 1) of every seed's stream, in steps of 2⁻²⁴; many indices are broadcast.

    Example:
        >>> [f"{u:.3f}" for u in uniform(np.array([1, 2], dtype=np.uint64), 0)]
        ['0.567', '0.591']
    """
    return (random_keys(seeds, np.asarray(index)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def sample_token(logits_RV: Tensor, temperature: float, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverting the cumulative distribution, and its log-probability at that temperature.

    Temperature 0 takes the most likely token (of equals, the first); its log-probability is that at temperature 1.

    Args:
        logits_RV: of any floating type; computed with in fp32.
        temperature: logits are divided by it.
        uniform_R: numbers in [0, 1).

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
