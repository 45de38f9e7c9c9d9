"""The whole of a long document in a strip: its mean scores and kept positions in bins, and its hardest positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.selection.positions import SELECTABLE

LONG = 400
"""Tokens from which on a document gets a strip; a shorter one is seen at once."""
BINS = 240
HARDEST = 20


def minimap(positions: pl.DataFrame, kept_T: NDArray[np.bool_]) -> dict[str, list[Any]] | None:
    """Return the means of a document's positions in `BINS` equal parts; None for a short document.

    Args:
        positions: All positions of the document [T], with `entropy`, `nll` and `rank`.
        kept_T: Whether each is kept.

    Returns:
        `entropy` and `nll` in nats and `rank` (geometric means of 1 + rank, less 1), each null where nothing is scored;
        `kept`, a count. Bin i has the positions from ⌈iT/BINS⌉ on.
    """
    if positions.height < LONG:
        return None
    bin_T = np.arange(positions.height) * BINS // positions.height
    frame = positions.select(
        pl.col("entropy", "nll").fill_nan(None).cast(pl.Float64),
        (1 + pl.col("rank").cast(pl.Float64)).log().alias("rank"),
        bin=pl.Series(bin_T),
        kept=pl.Series(kept_T),
    )
    means = pl.col("entropy", "nll", "rank").mean()
    bins = frame.group_by("bin", maintain_order=True).agg(means, pl.col("kept").sum())
    bins = bins.with_columns(pl.col("rank").exp() - 1).with_columns(pl.col("entropy", "nll", "rank").round(3))
    return bins.drop("bin").to_dict(as_series=False)


def hardest(positions: pl.DataFrame) -> list[int]:
    """Return the `HARDEST` positions of highest entropy that a rule can keep, in the order of the text.

    Args:
        positions: Positions of a document, with `position`, `entropy` and `inside_character`.
    """
    selectable = positions.filter(SELECTABLE)
    most = selectable.sort("entropy", "position", descending=[True, False]).head(HARDEST)
    return most["position"].sort().to_list()
