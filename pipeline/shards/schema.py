"""The schema of shards: a training example on disk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pyarrow as pa

from pipeline.selection.sites import SITES

SPLITS = ("train", "validation")
"""Names of the shards' tables, one per split."""

SHARDS = pa.schema(
    [
        *SITES,
        pa.field("context", pa.binary(), nullable=False),
        pa.field("target", pa.binary(), nullable=False),
        pa.field("continuation", pa.binary(), nullable=False),
        pa.field("token_lengths", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("context_truncated", pa.bool_(), nullable=False),
    ]
)
"""One row per site, in document order, then by position.

context: UTF-8 bytes of the document before the site, without their beginning if `context_truncated`.
target: bytes of the policy's token at the site; may end inside a character.
continuation: bytes of the target and the policy tokens after it; may end inside a character.
token_lengths: byte lengths of the continuation's tokens. Their cumulative sums are L of the paper's prefix-matching
    reward (`boundaries_of`). Lengths of neighbouring rows overlap, unlike their sums, and so take one byte per row
    instead of eight.
entropy, nll: rounded up to a multiple of `SCORE_STEP`. No threshold on that grid distinguishes them from the exact
    values of the sites table, and they take half the space.
"""


def shards_schema(sites: pa.Schema) -> pa.Schema:
    """Return `SHARDS` with the columns that sites have from their documents: the name of the source, and metadata."""
    return pa.schema([*SHARDS, *(field for field in sites if field.name not in SITES.names)])


SCORE_STEP = 1 / 1024
"""Resolution of stored scores, in nats."""


def boundaries_of(token_lengths: Sequence[int]) -> tuple[int, ...]:
    """Return the cumulative byte lengths of a continuation's tokens, at which a prediction may end.

    Example:
        >>> boundaries_of([3, 1, 4])
        (3, 4, 8)
    """
    return tuple(accumulate(token_lengths))
