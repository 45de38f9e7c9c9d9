"""Advantages of responses relative to their group. Shape names: P prompts, G responses per prompt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-6
"""Added to a group's standard deviation."""

Advantage = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def group_std(rewards_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return GRPO's advantage: (r − mean) / (std + ε) within each group.

    Source: DeepSeekMath, arXiv 2402.03300, section 4.1.2. The standard deviation is the sample standard deviation
    (ddof = 1, as in torch and verl). A group of equal rewards gets exactly 0.

    Example:
        >>> group_std(np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])).round(3).tolist()
        [[1.5, -0.5, -0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]
    """
    return mean_only(rewards_PG) / (rewards_PG.std(axis=1, ddof=1, keepdims=True) + EPSILON)


def mean_only(rewards_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Dr. GRPO's advantage (arXiv 2503.20783): r − mean. Groups with a small deviation are not weighted up.

    Example:
        >>> mean_only(np.array([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]])).tolist()
        [[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]]
    """
    # The mean of equal rewards may differ from them in its last bit; the advantage must be exactly 0.
    equal = (rewards_PG == rewards_PG[:, :1]).all(axis=1, keepdims=True)
    return np.where(equal, 0.0, rewards_PG - rewards_PG.mean(axis=1, keepdims=True))


def rloo(rewards_PG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the REINFORCE leave-one-out advantage (RLOO): r − mean of the group's *other* rewards.

    Source: arXiv 2402.14740, section 3.2. The baseline does not depend on the response that it is subtracted from, so
    the estimate is unbiased. It equals G / (G − 1) times `mean_only`.

    Example:
        >>> rloo(np.array([[1.0, 0.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]])).round(3).tolist()
        [[1.0, -0.333, -0.333, -0.333], [0.0, 0.0, 0.0, 0.0]]
    """
    size = rewards_PG.shape[1]
    return mean_only(rewards_PG) * (size / (size - 1))


ADVANTAGES: dict[str, Advantage] = {"group_std": group_std, "mean_only": mean_only, "rloo": rloo}
"""Advantage functions by the names that `objective.advantage` accepts."""
