"""What assignment knows of every candidate document: columns in files that are mapped into memory.

A mapped file takes memory only for the parts in use, and the system may take that back. Shape names: N candidates of
all tables, in source order; T tables; B band keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.artifact import InputFile
from pipeline.core.parquet import count_rows, read_table

AT_ONCE = 1 << 20
"""Documents that a pass over all of them holds at once; it changes memory and speed, not the result."""


def mapped(path: Path, dtype: Any, shape: int | tuple[int, ...]) -> NDArray[Any]:
    """Return a new array of zeros in a file; the file is as long as the array, which must not be empty."""
    return np.memmap(path, dtype=dtype, mode="w+", shape=shape)


def spans(count: int, at_once: int) -> Iterator[slice]:
    """Yield consecutive spans of at most `at_once` of `count` documents."""
    for begin in range(0, count, at_once):
        yield slice(begin, min(count, begin + at_once))


def parts_by_key(
    key_N: NDArray[np.uint64], scratch: Path | None = None, at_once: int = AT_ONCE
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of all documents in parts of about `at_once`, so that rows with equal keys are in one part.

    A part is a range of keys. Keys are bits of a hash, so the parts are even. Rows are in order within each. All rows
    are visited twice, whatever the number of parts.

    Args:
        key_N: a key of each document.
        scratch: a folder for a file with all rows, which the next call replaces; None: in memory.
        at_once: about how many rows a part has.
    """
    count = -(-len(key_N) // at_once)
    if count <= 1:
        yield np.arange(len(key_N))
        return
    size_C = np.zeros(count, np.int64)
    for span in spans(len(key_N), at_once):
        size_C += np.bincount(_part(key_N[span], count), minlength=count)
    end_C = np.cumsum(size_C)
    free_C = end_C - size_C  # the next free place of each part
    row_N = mapped(scratch / "parts", np.int64, len(key_N)) if scratch else np.zeros(len(key_N), np.int64)
    for span in spans(len(key_N), at_once):
        part_P = _part(key_N[span], count)
        order = np.argsort(part_P, kind="stable")
        here_C = np.bincount(part_P, minlength=count)
        first_C = np.cumsum(here_C) - here_C
        row_N[np.repeat(free_C - first_C, here_C) + np.arange(len(order))] = order + span.start
        free_C += here_C
    for begin, end in zip(end_C - size_C, end_C, strict=True):
        yield np.array(row_N[begin:end])


def _part(key_P: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Return the number of the part, of `count` equal ranges of keys, that each key is in."""
    return (((key_P >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def keys_of(doc_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return the two halves [N, 2] of each doc_id. Rows are ordered as the doc_ids are.

    Example:
        >>> keys_of(["00000000000000010000000000000002"]).tolist()
        [[1, 2]]
    """
    return np.frombuffer(bytes.fromhex("".join(doc_ids)), ">u8").astype(np.uint64).reshape(-1, 2)


def doc_ids_of(key_N2: NDArray[np.uint64]) -> list[str]:
    """Return the doc_ids that have these halves."""
    digits = key_N2.astype(">u8").tobytes().hex()
    return [digits[begin : begin + 32] for begin in range(0, len(digits), 32)]


class Candidates:
    """Identity and origin of every candidate document.

    Attributes:
        key_N2: the halves of each doc_id.
        held_out_N: whether its record or its file marks it as held out.
        source_row_N: its row in its source file.
        file_N: number of its source file in `files`.
        files: names of the source files.
        first_T: number of each table's first candidate, and at the end the number of all.
    """

    def __init__(self, tables: Sequence[InputFile], folder: Path) -> None:
        """Read the tables of candidates, one at a time.

        Args:
            tables: tables `documents` of `read`, in order.
            folder: an empty folder for the columns.
        """
        self.first_T = np.cumsum([0, *map(count_rows, tables)])
        total = int(self.first_T[-1])
        self.key_N2 = mapped(folder / "key", np.uint64, (total, 2))
        self.held_out_N = mapped(folder / "held_out", np.bool_, total)
        self.source_row_N = mapped(folder / "source_row", np.int64, total)
        self.file_N = mapped(folder / "file", np.int32, total)
        numbers: dict[str, int] = {}
        for table, here in zip(tables, self.spans(), strict=True):
            rows = read_table(table, ["doc_id", "source_file", "source_row", "held_out"])
            self.key_N2[here] = keys_of(rows["doc_id"].to_pylist())
            self.held_out_N[here] = rows["held_out"].to_numpy()
            self.source_row_N[here] = rows["source_row"].to_numpy()
            names = rows["source_file"].combine_chunks().dictionary_encode()
            codes = [numbers.setdefault(name, len(numbers)) for name in names.dictionary.to_pylist()]
            self.file_N[here] = np.array(codes, np.int32)[names.indices.to_numpy()]
        self.files = list(numbers)

    def __len__(self) -> int:
        return len(self.key_N2)

    def spans(self) -> list[slice]:
        """Return the candidates of each table."""
        return [slice(int(a), int(b)) for a, b in zip(self.first_T[:-1], self.first_T[1:], strict=True)]

    def origin(self, row_M: NDArray[np.int64]) -> pl.DataFrame:
        """Return `doc_id`, `source_file` and `source_row` of some candidates."""
        return pl.DataFrame(
            {
                "doc_id": pl.Series(doc_ids_of(self.key_N2[row_M]), dtype=pl.String),
                "source_file": pl.Series([self.files[number] for number in self.file_N[row_M]], dtype=pl.String),
                "source_row": pl.Series(np.array(self.source_row_N[row_M]), dtype=pl.Int64),
            }
        )


def read_bands(
    tables: Sequence[InputFile], candidates: Candidates, count: int, folder: Path
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the band keys [B, N] of all candidates, and [N] whether a candidate has any, which needs words.

    Args:
        tables: tables `bands` of `near`, in order.
        candidates: the candidates.
        count: band keys of a document.
        folder: a folder for the columns.
    """
    key_BN: NDArray[np.uint64] = mapped(folder / "bands", np.uint64, (count, len(candidates)))
    has_words_N: NDArray[np.bool_] = mapped(folder / "has_words", np.bool_, len(candidates))
    for table, here in zip(tables, candidates.spans(), strict=True):
        column: pa.ChunkedArray = read_table(table, ["bands"])["bands"]
        row = here.start
        for chunk in column.chunks:
            have = row + np.flatnonzero(chunk.value_lengths().to_numpy())
            key_BN[:, have] = chunk.flatten().to_numpy().reshape(len(have), count).T
            has_words_N[have] = True
            row += len(chunk)
    return key_BN, has_words_N
