"""The learning-rate schedule."""

from __future__ import annotations

from pipeline.config.training import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """Return the learning rate of a step's updates: it rises linearly over `warmup_steps`, then stays constant.

    Example:
        >>> [learning_rate(OptimizerConfig(lr=1.0, warmup_steps=4), step) for step in (0, 1, 3, 4, 100)]
        [0.25, 0.5, 1.0, 1.0, 1.0]
    """
    return config.lr * min(1.0, (step + 1) / max(config.warmup_steps, 1))
