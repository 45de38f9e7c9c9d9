"""Rewards and penalties on a response's length in tokens."""

from __future__ import annotations


def token_budget(step: int, first: int, decay: float, over_steps: int, least: int) -> float:
    """Return RMT's token budget of a step (arXiv 2509.24375): max(least, first · decay^(step / over_steps)).

    Example:
        >>> [round(token_budget(step, 800, 0.2, 100, 1)) for step in (0, 50, 100)]
        [800, 358, 160]
    """
    return max(float(least), first * decay ** (step / over_steps))


def triangular(length: int, budget: float) -> float:
    """Return RMT's length reward: 1 at the budget, falling linearly to 0 at zero tokens and at twice the budget.

    The paper describes a triangle over the length; that it ends at twice the budget is our interpretation.

    Example:
        >>> [triangular(length, 100.0) for length in (0, 50, 100, 150, 200, 300)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """
    return max(0.0, 1.0 - abs(length - budget) / budget)


def overlong_penalty(length: int, limit: int, margin: int) -> float:
    """Return DAPO's soft overlong punishment (arXiv 2503.14476, equation 13).

    It is 0 up to `limit - margin` tokens, then falls linearly to −1 at `limit`.

    Args:
        length: tokens of the response.
        limit: maximum tokens of a response.
        margin: tokens before the limit over which the penalty grows.

    Example:
        >>> [overlong_penalty(length, limit=100, margin=20) for length in (80, 85, 100)]
        [0.0, -0.25, -1.0]
    """
    return min(0.0, (limit - margin - length) / margin)
