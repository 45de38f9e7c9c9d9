"""Fewer points of a long curve, for drawing. Shapes: N points, B buckets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POINTS = 800
"""Points of a curve that are sent to a page at most."""

Floats = NDArray[np.float64]


def extremes(value_N: Floats, points: int = POINTS) -> NDArray[np.int64]:
    """Return the indices, in order, of at most `points` values: the smallest and largest of even runs of the curve.

    The first and the last value are always among them, so that no peak, dip or end of a curve is lost.

    Example:
        >>> extremes(np.array([0, 0, 9, 0, 0, 0, -5, 0.0]), points=6).tolist()
        [0, 2, 6, 7]
    """
    count = len(value_N)
    if count <= points:
        return np.arange(count)
    first_B = np.linspace(0, count, max(points // 2 - 1, 1), endpoint=False).astype(np.int64)
    bucket_N = np.zeros(count, dtype=np.int64)
    bucket_N[first_B[1:]] = 1
    order_N = np.lexsort((value_N, np.cumsum(bucket_N)))  # by bucket, then by value
    last_B = np.append(first_B[1:], count) - 1
    return np.unique(np.concatenate([[0, count - 1], order_N[first_B], order_N[last_B]]))


def means(value_N: Floats, points: int = POINTS) -> Floats:
    """Return at most `points` values: the means of even runs. Curves of equal length are cut at the same places.

    Example:
        >>> means(np.array([1, 3, 5, 7.0]), points=2).tolist(), means(np.array([1, 2.0])).tolist()
        ([2.0, 6.0], [1.0, 2.0])
    """
    count = len(value_N)
    if count <= points:
        return value_N
    first_B = np.linspace(0, count, points, endpoint=False).astype(np.int64)
    return np.add.reduceat(value_N, first_B) / np.diff(np.append(first_B, count))
