"""Draw the sites whose groups are most likely to have a gradient, and some of all, with known probabilities.

A draw looks at `sites.candidates` times as many sites as it takes, the next ones in the order of the epoch. A share
`sites.floor` of it is drawn uniformly from them, the rest are those with the highest forecasts. Every candidate has a
known probability of being drawn, so means over the drawn sites can be corrected to what uniform drawing would give.

Shape names: M candidates of a draw, D sites drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNIT = 1 << 40
"""Length of a certain candidate on the line of a draw (`systematic`)."""


def inclusion(probability_M: NDArray[np.float64], take: int, floor: float) -> NDArray[np.float64]:
    """Return the probability [M] with which each candidate is drawn; they sum to `take`.

    Of equal forecasts the first candidates count as higher.

    Example:
        >>> inclusion(np.array([0.1, 0.9, 0.5, 0.2]), take=2, floor=0.2).round(3).tolist()
        [0.1, 0.9, 0.9, 0.1]
    """
    share = take / len(probability_M)
    highest = np.argsort(-probability_M, kind="stable")[:take]
    inclusion_M = np.full(len(probability_M), floor * share)
    inclusion_M[highest] += 1 - floor
    return inclusion_M


def systematic(inclusion_M: NDArray[np.float64], start: float) -> NDArray[np.int64]:
    """Draw without replacement with these probabilities (to 1 / `UNIT` per candidate), which sum to the number drawn.

    The candidates lie on a line, each as long as its probability; drawn are those under `start`, `start` + 1, …
    Source: Madow, "On the theory of systematic sampling, II", Annals of Mathematical Statistics 20, 1949.

    Args:
        inclusion_M: probabilities, at most 1 each.
        start: uniform in [0, 1).

    Example:
        >>> systematic(np.array([0.5, 0.25, 0.25, 1.0]), start=0.6).tolist()
        [1, 3]
    """
    # In whole units, because sums of floats round: a candidate could be drawn twice, or one that does not exist.
    take = round(float(inclusion_M.sum()))
    length_M = np.minimum(np.rint(inclusion_M * UNIT).astype(np.int64), UNIT)
    missing = take * UNIT - int(length_M.sum())
    length_M[length_M.argmin() if missing > 0 else length_M.argmax()] += missing
    return np.searchsorted(np.cumsum(length_M), int(start * UNIT) + UNIT * np.arange(take), side="right")
