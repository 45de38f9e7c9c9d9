"""Scores as a frame with one row a scored position: what selection filters and an audit looks at."""

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
"""What `positions` reads of the two tables."""

POSITIONS_AT_ONCE = 1_000_000
TOKEN_CLASS = pl.Enum(TOKEN_CLASSES)


def positions(documents: pa.Table, scores: pa.Table, *, at_once: int = POSITIONS_AT_ONCE) -> Iterator[pl.DataFrame]:
    """Every scored position, in frames of whole documents.

    Args:
        documents: `DOCUMENT_COLUMNS` of a shard.
        scores: `SCORE_TABLE_COLUMNS` of the same shard; its documents are among `documents`, in the same order.
        at_once: positions a frame holds, more only where one document does (memory, not results).

    Yields:
        Frames with the columns of `SCORE_COLUMNS` (`token_class` is a `TOKEN_CLASS`) and `inside_character`: whether
        the token begins within a character of the text. Rows are in document order, then by position.

    Raises:
        IntegrityError: scores of a document that the shard does not have.
    """
    row_of_document = pc.index_in(scores["doc_id"], documents["doc_id"])
    if row_of_document.null_count:
        raise IntegrityError("scores and documents are not of one corpus", hint="delete the score folder, run again")
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
    """Through polars: pyarrow would import pandas, which takes longer than what is asked."""
    return pl.Series(pl.from_arrow(column)).to_numpy()


def _places(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each token begins and ends, and where its document begins, in the bytes of all documents."""
    document = frame["text_start"]
    return (document + frame["byte_offset"]).to_numpy(), (document + frame["byte_end"]).to_numpy(), document.to_numpy()


def _explode(frame: pl.DataFrame) -> pl.DataFrame:
    """One row a token. A token begins where the one before it ends."""
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
    """Ranges of documents that hold at most `at_once` tokens together, or one document.

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
