"""Reads shards with random access, and decides which rows each training step takes.

Rows stay sorted on disk, where neighbours share their contexts. Only indices are shuffled, as a pure function of
(seed, epoch), so a resumed run, or a run on another number of ranks, takes the same rows in the same steps.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config.base import canonical_json
from pipeline.config.errors import IntegrityError, UserError
from pipeline.core.artifact import InputFile, content_hash
from pipeline.core.random_keys import random_key, random_keys
from pipeline.selection.metadata import column_of
from pipeline.selection.where import SCORE_COLUMNS, Column, filter_rows, row_filter
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
    files[0].verified()
    with _open(files[0]) as opened:
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


PASS_RATE_COLUMNS = {
    "pass_rate": Column(pl.Float32(), "share of the policy's screening responses that were right; null: not screened"),
    "screened_length": Column(pl.Float32(), "mean tokens of those responses"),
}
"""Columns that `where` may also name after screening (`rpt screen`)."""


class ShardReader:
    """Random access to the rows of published shards that match `where`.

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
        """Open and verify shards, and find the rows that match.

        Args:
            files: published shards of one split, in shard order. Their sha256 is verified here, page checksums whenever
                a page is read.
            where: SQL over `columns_of` the files, and over `PASS_RATE_COLUMNS` if `pass_rates` are given.
            pass_rates: results of `rpt screen` by `site_id`; null for sites that it lacks.
            cache_bytes: limit of the memory for decoded row groups; the least recently used ones are evicted.

        Raises:
            IntegrityError: a file is missing, changed or damaged.
            UserError: a file is not a shard, or `where` is not a valid expression or matches no site.
        """
        self._paths = [file.verified() for file in files]
        self._files = [_open(file) for file in files]
        self._columns = _columns(self._files[0].schema_arrow) if files else dict(SITE_COLUMNS)
        expression = row_filter(where, self._columns | (PASS_RATE_COLUMNS if pass_rates is not None else {}), "where")
        counts = [[f.metadata.row_group(g).num_rows for g in range(f.num_row_groups)] for f in self._files]
        self._groups = [(f, g) for f, groups in enumerate(counts) for g in range(len(groups))]
        self._group_first = np.cumsum([0, *(count for groups in counts for count in groups)])
        self._rows = self._matching(expression, pass_rates)
        if not len(self._rows):
            raise UserError(
                "no site to read",
                where=where,
                hint=f"{self._group_first[-1]:,} sites in {len(files)} shards, but none matches",
            )
        self._cache: OrderedDict[int, dict[str, pa.Array]] = OrderedDict()
        self._cache_bytes = cache_bytes
        hashes = [file.sha256 or content_hash(file.path) for file in files]
        self.content = hashlib.sha256(canonical_json([hashes, where]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Site:
        """Return the site at `index` among the rows that match.

        Raises:
            IndexError: there is no such row.
            IntegrityError: a page of its shard does not match its checksum.
        """
        if not 0 <= index < len(self._rows):
            raise IndexError(index)
        row = self._rows[index]
        group = int(np.searchsorted(self._group_first, row, side="right")) - 1
        columns = self._decode(group)
        values = {name: column[row - self._group_first[group]].as_py() for name, column in columns.items()}
        return Site(boundaries=boundaries_of(values.pop("token_lengths")), **values)

    def site_ids(self) -> list[str]:
        """Return the ids of all rows that match, in their order, without decoding contexts."""
        ids = pa.concat_tables([self._read(f, g, ["site_id"]) for f, g in self._groups])["site_id"]
        return ids.take(pa.array(self._rows)).to_pylist()

    def _matching(self, expression: pl.Expr, pass_rates: pl.DataFrame | None) -> NDArray[np.int64]:
        """Return the indices of the rows that match, counted over all files."""
        tables = [self._read(f, g, list(self._columns)) for f, g in self._groups]
        if not tables:
            return np.zeros(0, dtype=np.int64)
        frame = pl.DataFrame(pl.from_arrow(pa.concat_tables(tables))).with_row_index("row")
        if pass_rates is not None:
            frame = frame.join(pass_rates, on="site_id", how="left", maintain_order="left")
        return filter_rows(frame, expression, "`where`")["row"].to_numpy().astype(np.int64)

    def _decode(self, group: int) -> dict[str, pa.Array]:
        """Return the columns of a row group, from the cache if present, and mark it as most recently used."""
        if group not in self._cache:
            table = self._read(*self._groups[group], _NAMES).combine_chunks()
            self._cache[group] = {name: table[name].chunk(0) for name in _NAMES}
            while len(self._cache) > 1 and sum(map(_size, self._cache.values())) > self._cache_bytes:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]

    def _read(self, file: int, group: int, columns: list[str]) -> pa.Table:
        try:
            return self._files[file].read_row_group(group, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self._paths[file], error) from error


def _open(file: InputFile) -> pq.ParquetFile:
    try:
        opened = pq.ParquetFile(file.path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file.path, error) from error
    if not pa.schema(list(opened.schema_arrow)[: len(SHARDS)]).equals(SHARDS):
        raise UserError("not a table of shards", where=file.path, hint="run `rpt data` again with this version")
    return opened


def _damaged(path: object, error: Exception) -> IntegrityError:
    return IntegrityError("damaged Parquet file", where=path, hint=str(error).splitlines()[0])


def _size(columns: dict[str, pa.Array]) -> int:
    return sum(column.nbytes for column in columns.values())


_NAMES = [field.name for field in fields(Site) if field.name != "boundaries"] + ["token_lengths"]


# --------------------------------------------------------------------------------------------------- order


@lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order [n] in which an epoch takes the rows 0…n−1: by their random keys. The array is read-only.

    Example:
        >>> permutation(6, seed=0, epoch=0).tolist(), permutation(6, seed=0, epoch=1).tolist()
        ([3, 5, 2, 4, 0, 1], [5, 2, 3, 0, 4, 1])
    """
    order = np.argsort(random_keys(random_key("epoch", seed, epoch), np.arange(n)), kind="stable")
    order.setflags(write=False)
    return order


def sites_of_step(reader_len: int, seed: int, step: int, per_step: int) -> NDArray[np.int64]:
    """Return the rows [per_step] that step `step` (from 0) takes, on all ranks together.

    Steps go through the permutations of epochs 0, 1, … one after another. An epoch takes every row once, and a step may
    end one epoch and begin the next.

    Example:
        >>> steps = [sites_of_step(6, seed=0, step=step, per_step=4) for step in range(3)]
        >>> np.concatenate(steps).tolist() == [*permutation(6, 0, 0).tolist(), *permutation(6, 0, 1).tolist()]
        True
    """
    draws = np.arange(step * per_step, (step + 1) * per_step)
    epochs = draws // reader_len
    return np.concatenate(
        [permutation(reader_len, seed, int(e))[draws[epochs == e] % reader_len] for e in np.unique(epochs)]
    )
