"""Sampling of tokens: the noise of a response, and a token from logits. Shape names: R rows, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.random_keys import random_key, random_keys


@dataclass(frozen=True)
class SamplingParams:
    """Parameters for sampling the responses of a batch."""

    seeds_R: NDArray[np.uint64]
    """Seed of each response (`rollout_seed`)."""
    temperature: float
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: int
    """Maximum length of a response."""
    eos_ids: frozenset[int]
    """Token ids that end a response."""

    def noise(self) -> NDArray[np.float32]:
        """Return the uniform noise [R, max_new_tokens] of all tokens, for `sample_token`."""
        return uniform(self.seeds_R[:, None], np.arange(self.max_new_tokens))


def rollout_seed(seed: int, step: int, site_id: str, sample: int) -> int:
    """Return the seed of one response.

    Example:
        >>> rollout_seed(0, 0, "d-1", 0) == rollout_seed(0, 0, "d-1", 1)
        False
    """
    return random_key("rollout", seed, step, site_id, sample)


def uniform(seeds: NDArray[np.uint64], index: int | NDArray[np.integer]) -> NDArray[np.float32]:
    """Return the `index`-th draw in [0, 1) of each seed's stream, in steps of 2⁻²⁴; several indices are broadcast.

    Example:
        >>> [f"{u:.3f}" for u in uniform(np.array([1, 2], dtype=np.uint64), 0)]
        ['0.567', '0.591']
    """
    return (random_keys(seeds, np.asarray(index)) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def sample_token(logits_RV: Tensor, temperature: float, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution; return it with its log-probability.

    Temperature 0 takes the most likely token (the first if several are equal), with its log-probability at temperature
    1.

    Args:
        logits_RV: logits of any floating type; converted to fp32.
        temperature: divisor of the logits.
        uniform_R: uniform noise in [0, 1).

    Returns:
        ids [R] int64, and their log-probabilities [R] float32 at the temperature.
    """
    logits_RV = logits_RV.float()
    if temperature not in (0, 1):
        logits_RV = logits_RV / temperature
    probabilities_RV = logits_RV.softmax(dim=-1)
    if temperature == 0:
        ids_R = logits_RV.argmax(dim=-1)
    else:
        cumulative_RV = probabilities_RV.cumsum(dim=-1)
        # The point is at most (1 − 2⁻²⁴) of the total, which fp32 rounds below it. So there is a first column above
        # the point, and its probability is not 0.
        point_R = uniform_R * cumulative_RV[:, -1]
        ids_R = torch.searchsorted(cumulative_RV, point_R[:, None], right=True)[:, 0]
    return ids_R, probabilities_RV.gather(1, ids_R[:, None])[:, 0].log_()
