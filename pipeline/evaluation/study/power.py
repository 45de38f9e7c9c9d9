"""Power: how large a true difference must be for a comparison to see it, and how many seeds would see a smaller one.

A comparison sees a difference if its 95 % interval leaves out 0. The variances that it has measured are taken for the
true ones, so with few seeds the figures are rough. They say what a comparison without a result could have missed.
"""

from __future__ import annotations

from collections.abc import Callable

from scipy.special import nctdtrinc

from pipeline.evaluation.intervals import t_quantile

POWER = 0.8
"""Probability with which a difference is to be seen."""
AIM = 0.05
"""True difference, as a share, that a comparison is to see unless another is asked for: five points."""
MOST_SEEDS = 100
"""Most seeds that are tried."""


def detectable(error: float, freedom: float) -> float:
    """Return the smallest true difference that is seen with the probability `POWER`, by the noncentral t.

    Args:
        error: standard error of the measured difference, in its units.
        freedom: degrees of freedom of that error.

    Example:
        >>> round(detectable(1.0, 1e6), 2), round(detectable(1.0, 2), 2)  # 1.96 + 0.84 if the error is known well
        (2.8, 5.65)
    """
    return error * float(nctdtrinc(freedom, 1 - POWER, t_quantile(freedom)))


def seeds_needed(error_of: Callable[[int], tuple[float, float]], aim: float = AIM) -> int | None:
    """Return the fewest seeds with which a true difference of `aim` is seen; None if `MOST_SEEDS` do not suffice.

    Args:
        error_of: returns error and degrees of freedom with so many seeds, from two on.
        aim: the difference, as a share.
    """
    return next((n for n in range(2, MOST_SEEDS + 1) if detectable(*error_of(n)) <= aim), None)
