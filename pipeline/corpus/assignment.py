"""Assignment of documents to splits and shards: the decisions that need the whole corpus at once.

They need its `doc_id`s and band keys, and the texts of the few that may be near-duplicates. De-duplication comes before
the split, so that no text can be in both; near-duplicates of validation documents leave training after the split.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.config.corpus import ValidationConfig
from pipeline.core.parquet import parquet_writer

ASSIGNMENT = pa.schema([pa.field("split", pa.string()), pa.field("dropped", pa.string())])
"""One row per candidate document, in source order: its split, or the reason why it leaves. A row group is a shard."""


def assign(doc_ids: pl.Series, held_out: pl.Series, rule: ValidationConfig, seed: int) -> pl.Series:
    """Return the split of every document, null where an earlier one has the same text.

    Args:
        doc_ids: [N] in source order.
        held_out: [N] whether its column or its file marks it as held out.
        rule: by column, by split, by fraction or by number of documents.
        seed: seed of the hash that chooses by fraction or number.

    Returns:
        [N] "train", "validation" or null.

    Example:
        >>> ids, no = pl.Series(["a", "b", "a"]), pl.Series([False, False, False])
        >>> assign(ids, no, ValidationConfig(documents=0), seed=0).to_list()
        ['train', 'train', None]
    """
    first = doc_ids.is_first_distinct()
    if rule.column is not None or rule.split is not None:
        chosen = held_out
    elif rule.fraction is not None:
        chosen = _draws(doc_ids, seed) < int(rule.fraction * 2**64)
    else:
        draws = _draws(doc_ids, seed).to_frame("draw").with_columns(first=first)
        order = draws.with_row_index("at").filter("first").sort("draw", "at")["at"].head(rule.documents or 0)
        chosen = pl.Series(np.isin(np.arange(len(doc_ids)), order.to_numpy()))
    split = pl.DataFrame({"first": first, "chosen": chosen}).select(
        pl.when("first").then(pl.when("chosen").then(pl.lit("validation")).otherwise(pl.lit("train")))
    )
    return split.to_series().rename("split")


def _draws(doc_ids: pl.Series, seed: int) -> pl.Series:
    """Return [N] numbers below 2^64, each from its doc_id and the seed alone, so that adding documents moves none."""
    draws = (hashlib.sha256(f"validation {seed} {doc}".encode()).digest()[:8] for doc in doc_ids)
    return pl.Series("draw", [int.from_bytes(draw, "big") for draw in draws], dtype=pl.UInt64)


def shard_starts(split: pl.Series, shard_documents: int) -> list[int]:
    """Return where shards begin: each has `shard_documents` documents that stay, with the duplicates between them.

    Example:
        >>> shard_starts(pl.Series([None, "train", "train", None, "train"], dtype=pl.String), 2)
        [0, 4]
    """
    kept = split.is_not_null().arg_true()
    return [0, *kept.gather_every(shard_documents)[1:].to_list()]


def write_assignment(path: Path, split: pl.Series, dropped: pl.Series, starts: list[int]) -> None:
    """Write the assignment, with one row group per shard."""
    columns = [column.to_arrow().cast(pa.string()) for column in (split, dropped)]
    table = pa.Table.from_arrays(columns, schema=ASSIGNMENT)
    with parquet_writer(path, ASSIGNMENT) as writer:
        for start, stop in zip(starts, [*starts[1:], len(split)], strict=True):
            writer.write_table(table.slice(start, stop - start), row_group_size=max(1, stop - start))
