"""Turns scores into frames with one row per position, which selection filters and audits display."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.errors import IntegrityError
from pipeline.selection.classes import TOKEN_CLASSES, token_classes
from pipeline.selection.text import TextBytes

DOCUMENT_COLUMNS = ["doc_id", "text"]
POSITION_COLUMNS = ["field", "entropy", "entropy_partial", "nll", "rank", "reference_nll"]
SCORE_TABLE_COLUMNS = ["doc_id", "split", "token_ends", *POSITION_COLUMNS]
"""Columns of the scores table that `positions` reads."""

POSITIONS_AT_ONCE = 1_000_000
TOKEN_CLASS = pl.Enum(TOKEN_CLASSES)

SELECTABLE = pl.col("entropy").is_finite().fill_null(False) & ~pl.col("inside_character")
"""Expression over `positions`: a rule can keep the position."""


def positions(documents: pa.Table, scores: pa.Table, *, at_once: int = POSITIONS_AT_ONCE) -> Iterator[pl.DataFrame]:
    """Yield every position of the scores table, in frames of whole documents.

    Args:
        documents: `DOCUMENT_COLUMNS` of a shard.
        scores: `SCORE_TABLE_COLUMNS` of the same shard; its documents are among `documents`, in the same order.
        at_once: maximum positions per frame, unless one document has more; affects memory, not results.

    Yields:
        Frames with the columns of `SCORE_COLUMNS` (`token_class` is a `TOKEN_CLASS`) and `inside_character`: true if
        the token begins inside a character of the text. Rows are in document order, then by position.

    Raises:
        IntegrityError: the shard lacks a document that has scores.
    """
    row_of_document = pc.index_in(scores["doc_id"], documents["doc_id"])
    if row_of_document.null_count:
        raise IntegrityError(
            "scores and documents are from different corpora", hint="delete the score folder and run again"
        )
    text = TextBytes.of(documents["text"])
    starts = text.starts_D[_numbers(row_of_document)]
    lengths = _numbers(pc.list_value_length(scores["token_ends"]))
    frame = pl.DataFrame(pl.from_arrow(scores)).with_columns(text_start=pl.Series(starts, dtype=pl.Int64))
    for begin, end in _batches(lengths, at_once):
        exploded = _explode(frame[begin:end])
        begin_P, end_P, document_P = _places(exploded)
        codes = pl.Series(token_classes(text, begin_P, end_P, document_P), dtype=pl.UInt8)
        yield exploded.with_columns(
            inside_character=pl.Series(text.inside_character(begin_P)),
            token_class=codes.cat.to(TOKEN_CLASS),
        ).drop("text_start", "byte_end")


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Convert a column by polars, because pyarrow would import pandas, which takes longer than the conversion."""
    return pl.Series(pl.from_arrow(column)).to_numpy()


def _places(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the offsets of each token's begin and end and of its document's begin, in the bytes of all documents."""
    document = frame["text_start"]
    return (document + frame["byte_offset"]).to_numpy(), (document + frame["byte_end"]).to_numpy(), document.to_numpy()


def _explode(frame: pl.DataFrame) -> pl.DataFrame:
    """Return one row per token, which begins where the token before it ends."""
    length = pl.col("token_ends").list.len()
    per_position = ["position", "byte_offset", "byte_end", *POSITION_COLUMNS]
    return (
        frame.lazy()
        .filter(length > 0)
        .with_columns(
            tokens=length.cast(pl.Int32),
            position=pl.int_ranges(0, length, dtype=pl.Int32),
            byte_offset=pl.col("token_ends").list.shift(1),
            byte_end=pl.col("token_ends"),
        )
        .drop("token_ends")
        .explode(per_position)
        .with_columns(pl.col("byte_offset").fill_null(0), excess_loss=pl.col("nll") - pl.col("reference_nll"))
        .collect()
    )


def _batches(lengths: np.ndarray, at_once: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of documents with at most `at_once` tokens together, or of one document.

    Example:
        >>> list(_batches(np.array([3, 3, 9, 1]), 6))
        [(0, 2), (2, 3), (3, 4)]
    """
    begin, total = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > begin and total + length > at_once:
            yield begin, i
            begin, total = i, 0
        total += length
    if begin < len(lengths):
        yield begin, len(lengths)
