"""Compares two selections of the same documents: do two proxies find the same positions hard?"""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.config.errors import UserError
from pipeline.core.artifact import Record

PLACE = ("doc_id", "byte_offset")
"""What names a position whatever the tokenizer."""


def agreement(first: Record, second: Record, selectable: int) -> dict[str, Any]:
    """Return how far two selections agree on the training sites.

    Memory grows with the sites of `second`.

    Args:
        first: record of a selection.
        second: record of another one, of the same documents.
        selectable: number of training positions that `first` could have kept.

    Returns:
        `first`, `second` and `both`: numbers of training sites; `jaccard`: those of both over those of either; and
        `kappa` (Cohen): 1 for equal selections, 0 for what two random ones of these sizes share.

    Raises:
        UserError: `second` is not a selection, or is one of other documents.
    """
    if second.stage != "select":
        raise UserError(
            "not a selection", where=second.directory, hint="`select.certificate.second` names work/NAME/select/HASH"
        )
    if second.inputs["documents"] != first.inputs["documents"]:
        raise UserError("selection of other documents", where=second.directory, hint="select from the same corpus")
    one, other = _places(first), _places(second)
    sizes = [frame.select(pl.len()).collect(engine="streaming").item() for frame in (one, other)]
    both = one.join(other, on=PLACE, how="semi").select(pl.len()).collect(engine="streaming").item()
    return {"first": sizes[0], "second": sizes[1], "both": both} | _measures(sizes[0], sizes[1], both, selectable)


def _places(selection: Record) -> pl.LazyFrame:
    sites = pl.scan_parquet([file.verified() for file in selection.files("sites")])
    return sites.filter(pl.col("split") == "train").select(PLACE)


def _measures(first: int, second: int, both: int, selectable: int) -> dict[str, float | None]:
    """Return the measures of agreement.

    Example:
        >>> _measures(4, 4, 2, 16)  # by chance 10 of 16 decisions are equal, and 12 are
        {'jaccard': 0.3333, 'kappa': 0.3333}
    """
    equal = 1 - (first + second - 2 * both) / max(selectable, 1)
    p, q = (size / max(selectable, 1) for size in (first, second))
    chance = p * q + (1 - p) * (1 - q)
    either = first + second - both
    return {
        "jaccard": round(both / either, 4) if either else None,
        "kappa": round((equal - chance) / (1 - chance), 4) if chance < 1 else None,
    }
