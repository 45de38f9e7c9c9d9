"""The index of a scores record: its positions, sorted so that most rules are counted by table look-ups.

A *cell* is a (split, field, token class). Within a block of whole documents, positions are sorted by (cell, entropy).
The positions of a cell above a threshold are then one run of rows, whose length is in a table of counts at every
0.01 nats. Only conditions on other columns have to be read. The index contains the positions that a rule can select;
the others are only counted.

Files of a shard (plain little-endian columns have no header, so a part of one is a single read):

    documents.parquet   one row per document: its text, scores and record, number of positions, mean entropy
    cells.parquet       one row per (block, cell): its rows in the columns, and counts below each grid step
    <column>.bin        values of every position, in the order of the blocks; `reference_nll` only if there are any
    text.bin            concatenated UTF-8 texts of the documents
    folded.bin          the same in lower case, for searches
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.base import Config
from pipeline.core.artifact import Counters, Record, Shard
from pipeline.core.executor import Executor
from pipeline.core.parquet import parquet_writer, read_table
from pipeline.core.stage import Stage, run_stage, shards_of
from pipeline.selection.positions import SCORE_TABLE_COLUMNS, positions
from pipeline.selection.text import TextBytes

VERSION = 3

GRID: NDArray[np.float32] = (np.arange(301) / 100).astype(np.float32)
"""Entropies (nats) with stored counts; other thresholds are searched for in the column."""

CELL = ("split", "field", "token_class")

COLUMNS: Mapping[str, np.dtype] = {
    "entropy": np.dtype("<f4"),
    "entropy_partial": np.dtype("<f4"),
    "nll": np.dtype("<f4"),
    "rank": np.dtype("<i4"),
    "reference_nll": np.dtype("<f4"),
    "position": np.dtype("<i4"),
    "byte_offset": np.dtype("<i4"),
    "byte_end": np.dtype("<i4"),
    "document": np.dtype("<u4"),
}
"""Columns of positions. `document` is a row of the shard's `documents`; `byte_end` is the end of the token's last
character, which a token may share with the next one."""

DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("meta", pa.large_string(), nullable=False),
        pa.field("document_row", pa.int32(), nullable=False),
        pa.field("text_begin", pa.int64(), nullable=False),
        pa.field("text_end", pa.int64(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("positions", pa.int32(), nullable=False),
        pa.field("entropy_mean", pa.float32(), nullable=False),
    ]
)
"""Schema with one row per scored document, in the order of the scores.

`document_row`: its row in the documents table; `text_begin`, `text_end`: its bytes in `text.bin`; `positions`: number
of tokens that a rule can select.
"""

COUNTS = pa.list_(pa.field("element", pa.int32(), nullable=False), len(GRID))
CELLS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in CELL),
        pa.field("begin", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("below", COUNTS, nullable=False),
        pa.field("up_to", COUNTS, nullable=False),
    ]
)
"""Schema with one row per cell of a block: its rows in the columns, counts of entropies < and ≤ each step."""


def index(documents: Record, scores: Record, *, work: Path, executor: Executor) -> Record:
    """Run the stage that writes the index; counters `tokens` = `not_scorable` + `inside_character` + `positions`."""
    shards = shards_of({"documents": documents, "scores": scores}, {})
    inputs = {"documents": documents.content, "scores": scores.content}
    return run_stage(Stage("browse", VERSION, run, unit="tokens"), Config(), shards, inputs, work, executor)


def run(config: Config, shard: Shard, out: Path) -> Counters:
    """Write the index of one shard from its documents and scores."""
    documents = read_table(shard.files["documents"])
    scores = read_table(shard.files["scores"], SCORE_TABLE_COLUMNS)
    doc_ids = pl.Series("doc_id", scores["doc_id"].to_pylist(), dtype=pl.String)
    counters: Counter[str] = Counter({"documents": len(doc_ids), "tokens": 0, "positions": 0})
    counters |= Counter({"not_scorable": 0, "inside_character": 0})
    spread = _Spread(len(doc_ids))
    row = pc.index_in(scores["doc_id"], documents["doc_id"]).combine_chunks()
    taken = documents.take(row).append_column("document_row", row)
    text = TextBytes.of(taken["text"])
    end_T = scores["token_ends"].combine_chunks().flatten().to_numpy()
    referred = scores["reference_nll"].combine_chunks().flatten()
    stored = [name for name in COLUMNS if name != "reference_nll" or referred.null_count < len(referred)]
    files = {name: (out / f"{name}.bin").open("wb") for name in stored}
    # Each block is appended to its columns' files at once, so that memory holds one block and not the shard.
    with parquet_writer(out / "cells.parquet", CELLS) as cells:
        for frame in positions(documents, scores):
            ends = pl.Series("byte_end", end_T[counters["tokens"] : counters["tokens"] + frame.height])
            block = _whole_characters(_block(frame.with_columns(ends), doc_ids, counters, spread), text)
            if block.height:
                cells.write_table(_cells(block, counters["positions"] - block.height))
            for name, file in files.items():
                file.write(block[name].to_numpy().astype(COLUMNS[name]).tobytes())
    for file in files.values():
        file.close()
    (out / "text.bin").write_bytes(text.data_B.tobytes())
    (out / "folded.bin").write_bytes("".join(map(folded, taken["text"].to_pylist())).encode())
    with parquet_writer(out / "documents.parquet", DOCUMENTS) as writer:
        writer.write_table(_documents(taken, scores, text, spread))
    return dict(counters)


def folded(text: str) -> str:
    """Return `text` in lower case, except characters whose lower case has another length in UTF-8.

    Example:
        >>> folded("CAFÉ İ")
        'café İ'
    """
    # A search returns byte offsets into the text as it is, so both must have the same bytes at the same places.
    lower = text.lower()
    if len(lower.encode()) == len(text.encode()) and len(lower) == len(text):
        return lower
    return "".join(c.lower() if len(c.lower().encode()) == len(c.encode()) else c for c in text)


class _Spread:
    """Number of positions and sum of entropies of every document. Shape: D documents of the shard."""

    def __init__(self, documents: int) -> None:
        self.positions_D = np.zeros(documents, dtype=np.int64)
        self.entropy_D = np.zeros(documents, dtype=np.float64)

    def add(self, document: NDArray[np.integer], entropy: NDArray[np.floating]) -> None:
        self.positions_D += np.bincount(document, minlength=len(self.positions_D))
        self.entropy_D += np.bincount(document, weights=entropy, minlength=len(self.entropy_D))


def _block(frame: pl.DataFrame, doc_ids: pl.Series, counters: Counter[str], spread: _Spread) -> pl.DataFrame:
    """Return the selectable positions of some whole documents, sorted by (cell, entropy)."""
    # Each token is counted once: as not scorable, else as inside a character, else as a position.
    counters["tokens"] += frame.height
    scorable = frame.filter(pl.col("entropy").is_finite())
    counters["not_scorable"] += frame.height - scorable.height
    block = scorable.filter(~pl.col("inside_character"))
    counters["inside_character"] += scorable.height - block.height
    counters["positions"] += block.height
    row = pl.col("doc_id").replace_strict(doc_ids, pl.int_range(len(doc_ids), eager=True), return_dtype=pl.UInt32)
    # Sorting compares the codes of an Enum instead of strings; sorted categories keep the order alphabetical.
    names = block.select(pl.col(CELL).cast(pl.String))
    ordered = [names[name].cast(pl.Enum(names[name].unique().sort())) for name in CELL]
    # `document` and `position` break ties of entropy, so that equal inputs give equal bytes.
    block = block.with_columns(row.alias("document"), *ordered).sort(*CELL, "entropy", "document", "position")
    spread.add(block["document"].to_numpy(), block["entropy"].to_numpy())
    return block


def _whole_characters(block: pl.DataFrame, text: TextBytes) -> pl.DataFrame:
    """Move `byte_end` of tokens that end inside a character to its end."""
    start_P, end_P = text.starts_D[block["document"].to_numpy()], block["byte_end"].to_numpy().astype(np.int64)
    for _ in range(3):  # a character has at most four bytes
        end_P = end_P + text.inside_character(start_P + end_P)
    return block.with_columns(byte_end=pl.Series(end_P))


def _cells(block: pl.DataFrame, first: int) -> pa.Table:
    """Return the `CELLS` rows of a block whose positions begin at `first` in the columns."""
    cells = block.group_by(CELL, maintain_order=True).len()
    ends = np.cumsum(cells["len"].to_numpy()).astype(np.int64)
    begins = ends - cells["len"].to_numpy()
    entropy = block["entropy"].to_numpy()
    runs = [entropy[begin:end] for begin, end in zip(begins, ends, strict=True)]
    # Both sides of each step are stored, because a rule may say `>` or `>=`.
    counts = {
        "below": np.stack([np.searchsorted(run, GRID, side="left") for run in runs]),
        "up_to": np.stack([np.searchsorted(run, GRID, side="right") for run in runs]),
    }
    lists = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(n.astype(np.int32).reshape(-1)), type=COUNTS)
        for name, n in counts.items()
    }
    arrays = {name: cells[name].to_arrow() for name in CELL} | {
        "begin": pa.array(begins + first),
        "end": pa.array(ends + first),
        **lists,
    }
    return pa.table({f.name: arrays[f.name].cast(f.type) for f in CELLS}, schema=CELLS)


def _documents(documents: pa.Table, scores: pa.Table, text: TextBytes, spread: _Spread) -> pa.Table:
    """Return the `DOCUMENTS` rows of the scored documents."""
    count_D = spread.positions_D
    arrays = {
        "text_begin": pa.array(text.starts_D),
        "text_end": pc.add(pa.array(text.starts_D), pc.binary_length(documents["text"])),
        "tokens": pc.list_value_length(scores["token_ends"]),
        "positions": pa.array(count_D),
        "entropy_mean": pa.array(spread.entropy_D / np.maximum(count_D, 1)),
    }
    columns = {f.name: arrays[f.name] if f.name in arrays else documents[f.name] for f in DOCUMENTS}
    return pa.table({name: column.cast(DOCUMENTS.field(name).type) for name, column in columns.items()}, DOCUMENTS)
