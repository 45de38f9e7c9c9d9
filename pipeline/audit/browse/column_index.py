"""An opened index: small tables are in memory, columns are read in parts as queries need them.

Shape names: R (block, cell) rows of the index, C cells, D documents, N runs, G grid steps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.audit.browse.index import CELL, COLUMNS, GRID, folded
from pipeline.core.artifact import InputFile, Record
from pipeline.core.parquet import read_table
from pipeline.selection.metadata import metadata_frame

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Slices:
    """Runs of positions in the columns. Shape: N runs."""

    shard_N: Int64
    begin_N: Int64
    end_N: Int64

    @property
    def rows(self) -> int:
        """Return the total number of positions."""
        return int((self.end_N - self.begin_N).sum())

    def take(self, which: NDArray[Any]) -> Slices:
        """Return some of the runs."""
        return Slices(self.shard_N[which], self.begin_N[which], self.end_N[which])

    @classmethod
    def join(cls, parts: Sequence[Slices]) -> Slices:
        """Return all runs of several slices, sorted by shard and position, with adjacent runs merged."""
        shard_N, begin_N, end_N = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in parts)])
            for name in ("shard_N", "begin_N", "end_N")
        )
        order = np.lexsort((begin_N, shard_N))
        shard_N, begin_N, end_N = shard_N[order], begin_N[order], end_N[order]
        joins = (shard_N[1:] == shard_N[:-1]) & (begin_N[1:] == end_N[:-1])
        head, tail = np.concatenate([[True], ~joins])[: len(order)], np.concatenate([~joins, [True]])[: len(order)]
        return cls(shard_N[head], begin_N[head], end_N[tail])


class ColumnIndex:
    """Index of one scores record.

    Attributes:
        cells: One row per cell, columns `split`, `field`, `token_class`.
        cell_R: Cell of each index row; its positions are `begin_R` to `end_R` of shard `shard_R`.
        documents: One row per document, in the order of the scores: columns `index.DOCUMENTS` and `shard`.
        first_document_S: Number of each shard's first document.
        counters: Counters of the index.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.counters = record.counters
        tables = [read_table(file) for file in record.files("cells")]
        sizes = [table.num_rows for table in tables]
        table = pa.concat_tables(tables)
        names = pl.DataFrame(pl.from_arrow(table.select(CELL)))
        self.cells = names.unique(maintain_order=True).sort(CELL).with_row_index("cell")
        self.cell_R = names.join(self.cells, on=CELL, how="left", maintain_order="left")["cell"].to_numpy()
        self.shard_R = np.repeat(np.arange(len(sizes)), sizes)
        self.begin_R = table["begin"].to_numpy()
        self.end_R = table["end"].to_numpy()
        self._below_RG = _counts(table["below"])
        self._up_to_RG = _counts(table["up_to"])
        frames = [pl.DataFrame(pl.from_arrow(read_table(file))) for file in record.files("documents")]
        self.documents = pl.concat(
            [frame.with_columns(shard=pl.lit(shard, dtype=pl.Int32)) for shard, frame in enumerate(frames)]
        ).with_row_index("document")
        self.first_document_S = np.cumsum([0, *(frame.height for frame in frames)])
        self._files = {
            name: [record.file(name, shard) for shard in record.shards] for name in [*COLUMNS, "text", "folded"]
        }
        self._metadata: dict[tuple[str, str], pl.Series] = {}

    @cached_property
    def document_of(self) -> dict[str, int]:
        """Return the number of each document by its id."""
        return dict(zip(self.documents["doc_id"], range(self.documents.height), strict=True))

    def cut(self, entropy: np.float32, side: Literal["left", "right"]) -> Int64:
        """Return the number [R] of positions per index row with entropy < (side "left") or ≤ ("right") `entropy`."""
        step = int(np.searchsorted(GRID, entropy))
        if step < len(GRID) and GRID[step] == entropy:
            return (self._below_RG if side == "left" else self._up_to_RG)[:, step].astype(np.int64)
        low_R = self._up_to_RG[:, step - 1].astype(np.int64) if step else np.zeros(len(self.begin_R), np.int64)
        high_R = self._below_RG[:, step] if step < len(GRID) else self.end_R - self.begin_R
        cut_R = low_R.copy()
        for r in np.flatnonzero(high_R > low_R):
            between = self._read("entropy", self.shard_R[r], self.begin_R[r] + low_R[r], self.begin_R[r] + high_R[r])
            cut_R[r] += np.searchsorted(between, entropy, side=side)
        return cut_R

    def up_to(self, split: str) -> Int64:
        """Return the number [G] of positions of a split with an entropy of at most each grid step."""
        ours = self.cells.filter(pl.col("split") == split)["cell"].to_numpy()
        return self._up_to_RG[np.isin(self.cell_R, ours)].sum(axis=0, dtype=np.int64)

    def positions(self, split: str) -> int:
        """Return the number of positions of a split."""
        ours = self.cells.filter(pl.col("split") == split)["cell"].to_numpy()
        return int((self.end_R - self.begin_R)[np.isin(self.cell_R, ours)].sum())

    def runs(self, rows: Int64, begin_N: Int64, end_N: Int64) -> Slices:
        """Return the runs of positions begin:end of some index rows, without empty ones."""
        runs = Slices(self.shard_R[rows], self.begin_R[rows] + begin_N, self.begin_R[rows] + end_N)
        return runs.take(end_N > begin_N)

    def read(self, column: str, slices: Slices) -> NDArray:
        """Return the concatenated values of a column in some runs; `document` is numbered over all shards."""
        parts = [
            self._read(column, shard, begin, end)
            for shard, begin, end in zip(slices.shard_N, slices.begin_N, slices.end_N, strict=True)
        ]
        values = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, COLUMNS[column]), *parts])
        if column == "document":
            first_N = self.first_document_S[slices.shard_N]
            return values + np.repeat(first_N, slices.end_N - slices.begin_N).astype(np.uint32)
        return values

    def metadata(self, name: str, kind: str) -> pl.Series:
        """Return the metadata `name` of every document; it is read once.

        Raises:
            UserError: A value does not have type `kind`.
        """
        if (name, kind) not in self._metadata:
            documents = self.documents
            frame = metadata_frame(documents["doc_id"], documents["meta"], {name: kind})
            self._metadata[name, kind] = frame[name]
        return self._metadata[name, kind]

    def texts(self, shard: int) -> pl.Series:
        """Return the lower-case texts of a shard's documents, memory-mapped from the file."""
        rows = self.documents[int(self.first_document_S[shard]) : int(self.first_document_S[shard + 1])]
        offsets = np.concatenate([rows["text_begin"].to_numpy(), rows["text_end"].to_numpy()[-1:]])
        if offsets[-1:] == 0 or not rows.height:
            return pl.Series("text", [""] * rows.height, dtype=pl.String)
        with pa.memory_map(str(self._path("folded", shard))) as file:
            buffers = [None, pa.py_buffer(offsets), file.read_buffer()]
        return pl.Series("text", pl.from_arrow(pa.Array.from_buffers(pa.large_string(), rows.height, buffers)))

    def occurrences(self, shard: int, text: str) -> tuple[Int64, Int64]:
        """Return (document, byte of it) [N] wherever a shard's texts have some text, ignoring case, in their order."""
        wanted = folded(text).encode()
        rows = self.documents[int(self.first_document_S[shard]) : int(self.first_document_S[shard + 1])]
        if not wanted or not rows.height or not rows["text_end"][-1]:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        with self._path("folded", shard).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            # A look-ahead finds occurrences that overlap, too.
            at_N = np.array([hit.start() for hit in re.finditer(b"(?=%s)" % re.escape(wanted), data)], dtype=np.int64)
        begin_D, end_D = rows["text_begin"].to_numpy(), rows["text_end"].to_numpy()
        row_N = np.searchsorted(begin_D, at_N, side="right") - 1
        inside_N = at_N + len(wanted) <= end_D[row_N]
        row_N, at_N = row_N[inside_N], at_N[inside_N]
        return row_N + self.first_document_S[shard], at_N - begin_D[row_N]

    def text(self, document: int, most: int) -> str:
        """Return the first `most` bytes of a document, without a partial character at the end."""
        row = self.documents.row(document, named=True)
        size = min(row["text_end"] - row["text_begin"], most)
        file = _opened(self._path("text", row["shard"]))
        return os.pread(file.descriptor, size, row["text_begin"]).decode(errors="ignore")

    def around(self, document: int, begin: int, end: int, most: int) -> tuple[str, str]:
        """Return the whole characters in the `most` bytes of a document before byte `begin` and after byte `end`."""
        row = self.documents.row(document, named=True)
        file = _opened(self._path("text", row["shard"]))
        first, past = max(begin - most, 0), min(end + most, row["text_end"] - row["text_begin"])
        before = os.pread(file.descriptor, begin - first, row["text_begin"] + first)
        after = os.pread(file.descriptor, past - end, row["text_begin"] + end)
        return before.decode(errors="ignore"), after.decode(errors="ignore")

    def tokens(self, shard: int, document_N: Int64, begin_N: Int64, end_N: Int64) -> pl.Series:
        """Return the texts [N] between two bytes of documents of a shard; both must begin a character."""
        start_N = self.documents["text_begin"].to_numpy()[document_N] + begin_N
        offsets = np.concatenate([[0], np.cumsum(end_N - begin_N)]).astype(np.int64)
        if not offsets[-1]:
            return pl.Series("token", [""] * len(begin_N), dtype=pl.String)
        with pa.memory_map(str(self._path("text", shard))) as file:
            data_B = np.frombuffer(file.read_buffer(), np.uint8)
            at = np.repeat(start_N - offsets[:-1], end_N - begin_N) + np.arange(offsets[-1])
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data_B[at])]
        return pl.Series("token", pl.from_arrow(pa.Array.from_buffers(pa.large_string(), len(begin_N), buffers)))

    def _read(self, column: str, shard: int, begin: int, end: int) -> NDArray[Any]:
        dtype = COLUMNS[column]
        if self._files[column][shard] is None:  # these scores do not have this column
            return np.full(int(end - begin), np.nan, dtype)
        file = _opened(self._path(column, int(shard)))
        begin, size = int(begin) * dtype.itemsize, int(end - begin) * dtype.itemsize
        return np.frombuffer(os.pread(file.descriptor, size, begin), dtype)

    def _path(self, column: str, shard: int) -> Path:
        file = self._files[column][shard]
        assert file is not None, f"no {column} in shard {shard}"
        return verified_once(file)


class _Opened:
    """An open file. It is closed when no thread uses it any more, even if another thread has evicted it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)


@lru_cache(maxsize=64)
def _opened(path: Path) -> _Opened:
    """Return an open file of a column; the most recently used ones stay open."""
    return _Opened(path)


@cache
def verified_once(file: InputFile) -> Path:
    """Return the path of a published file and check its hash the first time, because pages read the same files often.

    Raises:
        IntegrityError: The file differs from its recorded hash.
    """
    return file.verified()


def _counts(column: pa.ChunkedArray) -> NDArray[np.int32]:
    """Return a column of fixed-size lists as an array [R, G]."""
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), len(GRID))
