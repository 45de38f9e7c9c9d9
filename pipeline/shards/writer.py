"""Writes shards so that a row takes little more space than it adds to the previous row.

Measured on 104,416 sites of Omni-MATH (one position in five; per site 15 bytes of text and 1.2 kB of context): a site's
context takes 9 bytes and its whole row 47, of which three scores take 10 and the continuation with boundaries 18.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.core.parquet import parquet_writer
from pipeline.shards.examples import Examples
from pipeline.shards.schema import SPLITS

ENCODINGS = {
    "site_id": "DELTA_BYTE_ARRAY",
    "position": "DELTA_BINARY_PACKED",
    "byte_offset": "DELTA_BINARY_PACKED",
    "entropy": "BYTE_STREAM_SPLIT",
    "nll": "BYTE_STREAM_SPLIT",
    "context": "DELTA_BYTE_ARRAY",
    "target": "DELTA_LENGTH_BYTE_ARRAY",
    "continuation": "DELTA_LENGTH_BYTE_ARRAY",
    "rank": "BYTE_STREAM_SPLIT",
    "token_lengths.list.element": "BYTE_STREAM_SPLIT",
}
ZSTD_LEVEL = 5


def write_shards(out: Path, examples: Examples, row_group: int, metadata: Mapping[str, str]) -> None:
    """Write `train.parquet` and `validation.parquet` to `out`, each only if it has rows.

    Args:
        out: the stage's scratch folder.
        examples: the examples to write.
        row_group: rows per row group, which a reader decodes to read one row.
        metadata: schema metadata, which tells where the rows come from.
    """
    for split in SPLITS:
        if not examples.counters[f"kept.{split}"]:
            continue
        path = out / f"{split}.parquet"
        with parquet_writer(path, examples.schema, metadata=metadata, encodings=ENCODINGS, level=ZSTD_LEVEL) as writer:
            for table in examples.tables(split, row_group):
                writer.write_table(table, row_group_size=row_group)
