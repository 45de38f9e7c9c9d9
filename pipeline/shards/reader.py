"""Reads shards with random access, in memory and open files that do not grow with their number.

Shape names: G row groups of all shards, R rows of a group.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.core.artifact import InputFile, content_hash
from pipeline.core.parquet import open_parquet, reading
from pipeline.selection.metadata import column_of
from pipeline.selection.sql import referenced_columns
from pipeline.selection.where import SCORE_COLUMNS, Column, filter_rows, parse_filter
from pipeline.shards.schema import SHARDS, boundaries_of

SITE_COLUMNS = {name: column for name, column in SCORE_COLUMNS.items() if name in SHARDS.names} | {
    "site_id": Column(pl.String(), "<doc_id>-<position>"),
    "token_class": Column(pl.String(), SCORE_COLUMNS["token_class"].meaning),
    "band": Column(pl.String(), "hardest band: none, easy, medium or hard"),
    "context_truncated": Column(pl.Boolean(), "whether the context has lost its beginning"),
}
"""Columns that `where` of a recipe may name for every manifest."""


def columns_of(files: Sequence[InputFile]) -> dict[str, Column]:
    """Return the columns that `where` may name for these shards: `SITE_COLUMNS` and metadata of the documents.

    Raises:
        IntegrityError: a file is missing, changed or damaged.
        UserError: a file is not a shard.
    """
    if not files:
        return dict(SITE_COLUMNS)
    path = files[0].verified()
    with reading(path), _open(path) as opened:
        return _columns(opened.schema_arrow)


def _columns(shards: pa.Schema) -> dict[str, Column]:
    return SITE_COLUMNS | {field.name: column_of(field) for field in list(shards)[len(SHARDS) :]}


@dataclass(frozen=True)
class Site:
    """A row of the shards with the columns that training and evaluation use (pipeline/shards/schema.py)."""

    site_id: str
    doc_id: str
    position: int
    entropy: float
    band: str
    field: str
    context: bytes
    target: bytes
    continuation: bytes
    boundaries: tuple[int, ...]
    token_class: str
    """Class of the token (`pipeline/selection/classes.py`)."""
    nll: float
    rank: int


PASS_RATE_COLUMNS = {
    "pass_rate": Column(pl.Float32(), "share of the policy's screening responses that were right; null: not screened"),
    "screened_length": Column(pl.Float32(), "mean tokens of those responses"),
}
"""Columns that `where` may also name after screening (`rpt screen`)."""


OPEN_FILES = 32
"""Most shards that a reader keeps open."""

_FILTERED_AT_ONCE = 1 << 20
"""Rows that a filter sees at once; it changes memory and speed, not the result."""

_ROW = "row number"
"""Name of a column that no document's metadata has: it is no identifier."""


class ShardReader:
    """Random access to the rows of published shards that match `where`.

    Memory: one bit per row of the shards, 32 bytes per row group, and the row groups that stay decoded. At most
    `OPEN_FILES` shards are open.

    Attributes:
        content: hash of the files' contents and of `where`; equal hashes mean the same rows in the same order.

    Example:
        reader = ShardReader(record.files("train"), "band = 'hard'")
        sites = [reader[i] for i in sites_of_step(len(reader), seed, step, per_step=256)]
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        where: str = "true",
        *,
        pass_rates: pl.DataFrame | None = None,
        cache_bytes: int = 1 << 29,
    ) -> None:
        """Verify shards, and find the rows that match.

        Args:
            files: published shards of one split, in shard order. Their sha256 is verified here, page checksums whenever
                a page is read.
            where: SQL over `columns_of` the files, and over `PASS_RATE_COLUMNS` if `pass_rates` are given. Only the
                columns that it names are read.
            pass_rates: results of `rpt screen` by `site_id`; null for sites that it lacks.
            cache_bytes: limit of the memory for decoded row groups; the least recently used ones are evicted.

        Raises:
            IntegrityError: a file is missing, changed or damaged.
            UserError: a file is not a shard, or `where` is not a valid expression or matches no site.
        """
        self._files = _OpenShards(files)
        columns = self._files.columns | (PASS_RATE_COLUMNS if pass_rates is not None else {})
        tree, expression = parse_filter(where, columns, "where")
        named = {column.name for column in referenced_columns(tree)}
        if pass_rates is not None and named & set(PASS_RATE_COLUMNS):
            named.add("site_id")
        else:
            pass_rates = None
        rows_G = self._files.rows_G
        self._bits_first_G = np.cumsum([0, *-(-rows_G // 8)])
        self._bits = np.zeros(self._bits_first_G[-1], np.uint8)
        count_G = self._match(expression, [name for name in self._files.columns if name in named], pass_rates)
        self._match_first_G = np.cumsum([0, *count_G])
        if not len(self):
            raise UserError(
                "no site to read",
                where=where,
                hint=f"{int(rows_G.sum()):,} sites in {len(files)} shards, but none matches",
            )
        self._cache: OrderedDict[int, dict[str, pa.Array]] = OrderedDict()
        self._cache_bytes = cache_bytes
        hashes = [file.sha256 or content_hash(file.path) for file in files]
        self.content = hashlib.sha256(canonical_json([hashes, where]).encode()).hexdigest()

    def __len__(self) -> int:
        return int(self._match_first_G[-1])

    def __getitem__(self, index: int) -> Site:
        """Return the site at `index` among the rows that match.

        Raises:
            IndexError: there is no such row.
            IntegrityError: a page of its shard does not match its checksum.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = int(np.searchsorted(self._match_first_G, index, side="right")) - 1
        row = int(self._matching(group)[index - self._match_first_G[group]])
        values = {name: column[row].as_py() for name, column in self._decode(group).items()}
        return Site(boundaries=boundaries_of(values.pop("token_lengths")), **values)

    def site_ids(self) -> Iterator[str]:
        """Yield the ids of all rows that match, in their order, without decoding contexts."""
        for group in np.flatnonzero(np.diff(self._match_first_G)).tolist():
            ids = self._files.read(group, ["site_id"])["site_id"]
            yield from ids.take(pa.array(self._matching(group))).to_pylist()

    def _match(self, expression: pl.Expr, columns: list[str], pass_rates: pl.DataFrame | None) -> NDArray[np.int64]:
        """Set the bits of the rows that match, and return their number [G] in each row group."""
        count_G = np.zeros(len(self._files.rows_G), np.int64)
        for groups in _runs(self._files.rows_G, _FILTERED_AT_ONCE):
            matches = self._filtered(groups, expression, columns, pass_rates)
            begin = 0
            for group in groups:
                match_R = matches[begin : begin + self._files.rows_G[group]]
                begin += len(match_R)
                self._bits[self._bits_first_G[group] : self._bits_first_G[group + 1]] = np.packbits(match_R)
                count_G[group] = np.count_nonzero(match_R)
        return count_G

    def _filtered(
        self, groups: range, expression: pl.Expr, columns: list[str], pass_rates: pl.DataFrame | None
    ) -> NDArray[np.bool_]:
        """Return whether each row of some row groups matches."""
        rows = int(self._files.rows_G[groups.start : groups.stop].sum())
        frame = pl.DataFrame({_ROW: np.arange(rows)})
        if columns:
            read = pa.concat_tables(self._files.read(group, columns) for group in groups)
            frame = frame.hstack(pl.DataFrame(pl.from_arrow(read)))
        if pass_rates is not None:
            frame = frame.join(pass_rates, on="site_id", how="left", maintain_order="left")
        matches = np.zeros(rows, bool)
        matches[filter_rows(frame, expression, "`where`")[_ROW].to_numpy()] = True
        return matches

    def _matching(self, group: int) -> NDArray[np.int64]:
        """Return the rows of a row group that match."""
        bits = self._bits[self._bits_first_G[group] : self._bits_first_G[group + 1]]
        return np.flatnonzero(np.unpackbits(bits))

    def _decode(self, group: int) -> dict[str, pa.Array]:
        """Return the columns of a row group, from the cache if present, and mark it as most recently used."""
        if group not in self._cache:
            table = self._files.read(group, _NAMES).combine_chunks()
            self._cache[group] = {name: table[name].chunk(0) for name in _NAMES}
            while len(self._cache) > 1 and sum(map(_size, self._cache.values())) > self._cache_bytes:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]


class _OpenShards:
    """The row groups of verified shards, of which the least recently used are closed.

    Attributes:
        columns: columns that `where` may name.
        rows_G: rows of every row group, in the order of the files.
    """

    def __init__(self, files: Sequence[InputFile]) -> None:
        self._files, self._paths = files, [file.verified() for file in files]
        self._verified = list(map(_state, self._paths))
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self.columns, rows, first = dict(SITE_COLUMNS), [], [0]
        for number in range(len(files)):
            opened = self._opened(number)
            if number == 0:
                self.columns = _columns(opened.schema_arrow)
            rows += [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            first.append(len(rows))
        self.rows_G, self._first_group = np.array(rows, np.int64), np.array(first)

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """Read columns of a row group, which is counted over all shards.

        Raises:
            IntegrityError: a page does not match its checksum.
        """
        number = int(np.searchsorted(self._first_group, group, side="right")) - 1
        with reading(self._paths[number]):
            return self._opened(number).read_row_group(group - int(self._first_group[number]), columns=columns)

    def _opened(self, number: int) -> pq.ParquetFile:
        if number not in self._open:
            path = self._paths[number]
            with reading(path):
                if (state := _state(path)) != self._verified[number]:  # perhaps another file by now
                    self._files[number].verified()
                    self._verified[number] = state
                self._open[number] = _open(path)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]


def _state(path: Path) -> tuple[int, int, int]:
    """Return what differs once a file was replaced or written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _open(path: Path) -> pq.ParquetFile:
    opened = open_parquet(path)
    if not pa.schema(list(opened.schema_arrow)[: len(SHARDS)]).equals(SHARDS):
        raise UserError("not a table of shards", where=path, hint="run `rpt data` again with this version")
    return opened


def _runs(rows_G: NDArray[np.int64], most: int) -> Iterator[range]:
    """Yield runs of consecutive row groups with about `most` rows each."""
    begin, rows = 0, 0
    for group, count in enumerate(rows_G.tolist()):
        rows += count
        if rows >= most or group == len(rows_G) - 1:
            yield range(begin, group + 1)
            begin, rows = group + 1, 0


def _size(columns: dict[str, pa.Array]) -> int:
    return sum(column.nbytes for column in columns.values())


_NAMES = [field.name for field in fields(Site) if field.name != "boundaries"] + ["token_lengths"]
