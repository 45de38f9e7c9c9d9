"""The shards' table: what a training example is on disk."""

from __future__ import annotations

import pyarrow as pa

from pipeline.selection.sites import SITES

SPLITS = ("train", "validation")
"""The tables of shards, named as the split they hold."""

SHARDS = pa.schema(
    [
        *SITES,
        pa.field("context", pa.binary(), nullable=False),
        pa.field("target", pa.binary(), nullable=False),
        pa.field("continuation", pa.binary(), nullable=False),
        pa.field("boundaries", pa.list_(pa.field("element", pa.int32(), nullable=False)), nullable=False),
        pa.field("context_truncated", pa.bool_(), nullable=False),
    ]
)
"""A row is a site as the policy meets it; rows are in document order, then by position.

context: UTF-8 bytes of the document before the site, without their beginning if `context_truncated`.
target: bytes of the policy's token at the site; may end inside a character.
continuation: bytes of the target and the policy tokens after it; may end inside a character.
boundaries: cumulative byte lengths of the continuation's tokens: L of the paper's prefix-matching reward.
"""
