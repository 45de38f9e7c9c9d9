"""Parquet for all stages: explicit schemas, zstd, page checksums, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import IntegrityError, UserError, first_line, refused
from pipeline.core.artifact import InputFile

ROW_GROUP = 2048

_BATCH = 256
"""Rows of a batch; it changes no result."""


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Mapping[str, Any]]) -> int:
    """Stream `rows` into a Parquet file, one row group at a time, and return their number.

    A row that lacks a column of the schema, or has another one, is an error, never a silent null.
    """
    count, buffer = 0, []
    with parquet_writer(path, schema) as writer:
        for row in rows:
            if row.keys() != set(schema.names):
                raise ValueError(f"row has columns {sorted(row)}, schema has {sorted(schema.names)}")
            buffer.append(row)
            if len(buffer) == ROW_GROUP:
                writer.write_table(pa.Table.from_pylist(buffer, schema=schema), row_group_size=ROW_GROUP)
                count, buffer = count + len(buffer), []
        if buffer:
            writer.write_table(pa.Table.from_pylist(buffer, schema=schema), row_group_size=ROW_GROUP)
    return count + len(buffer)


def parquet_writer(
    path: Path,
    schema: pa.Schema,
    *,
    metadata: Mapping[str, str] | None = None,
    encodings: Mapping[str, str] | None = None,
    level: int | None = None,
) -> pq.ParquetWriter:
    """Return a writer with the same settings, for callers that have Arrow tables already."""
    encoded = {leaf.split(".")[0] for leaf in encodings or ()}
    dictionary = [name for name in schema.names if name not in encoded] if encoded else True
    return pq.ParquetWriter(
        path,
        schema.with_metadata(metadata),
        compression="zstd",
        compression_level=level,
        use_dictionary=dictionary,
        column_encoding=dict(encodings) if encodings else None,
        write_page_checksum=True,
        write_statistics=True,
        store_schema=True,
    )


def write_tables(
    path: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    *,
    metadata: Mapping[str, str] | None = None,
    row_group: int = ROW_GROUP,
) -> None:
    """Write tables one after the other, in row groups of `row_group` rows wherever a table ends."""
    waiting = schema.empty_table()
    with parquet_writer(path, schema, metadata=metadata) as writer:

        def write(rows: pa.Table) -> None:
            writer.write_table(rows.combine_chunks(), row_group_size=row_group)  # chunks would end pages

        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= row_group:
                write(waiting.slice(0, row_group))
                waiting = waiting.slice(row_group)
        if len(waiting):
            write(waiting)


def read_table(file: InputFile, columns: list[str] | None = None) -> pa.Table:
    """Read a published file and verify its sha256 and page checksums.

    Raises:
        IntegrityError: the file is missing, changed or damaged; the message names it.
        UserError: the system does not let it be read.
    """
    path = file.verified()
    with reading(path), open_parquet(path) as opened:
        table = opened.read(columns)
        return table if columns is None else table.select(columns)


def read_batches(file: InputFile, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Verify a published file as `read_table` does, and return its rows in batches, so that memory holds few of them.

    Raises:
        IntegrityError: the file is missing, changed or damaged; the message names it.
        UserError: the system does not let it be read.
    """
    return _batches(file.verified(), columns)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with reading(path), open_parquet(path) as opened:
        yield from opened.iter_batches(_BATCH, columns=columns)


def read_rows(file: InputFile, start: int, stop: int, columns: list[str] | None = None) -> pa.Table:
    """Read rows [start, stop) of a published file, and only the row groups that hold them.

    Page checksums are verified; the sha256 of the whole file is not, because many shards may read parts of one file.

    Raises:
        IntegrityError: the file is missing or damaged; the message names it.
        UserError: the system does not let it be read.
    """
    with reading(file.path), open_parquet(file.path) as table:
        groups, skipped = _groups_of(table.metadata, start, stop)
        return table.read_row_groups(groups, columns=columns).slice(skipped, stop - start)


def read_rows_in_turn(file: InputFile, start: int, stop: int) -> pa.Table:
    """Read rows [start, stop) as `read_rows` does, for callers that read one span after the other.

    The last row group stays in memory for the next call, unless the file is changed meanwhile: where spans are shorter
    than row groups, each would be unpacked several times.

    Raises:
        IntegrityError: the file is missing or damaged; the message names it.
        UserError: the system does not let it be read.
    """
    path = file.path
    with reading(path), open_parquet(path) as table:
        groups, skipped = _groups_of(table.metadata, start, stop)
        status = path.stat()
        state = (status.st_size, status.st_mtime_ns, status.st_ino)
        parts = [_row_group(path, state, group) for group in groups]
        return pa.concat_tables([table.schema_arrow.empty_table(), *parts]).slice(skipped, stop - start)


@lru_cache(1)
def _row_group(path: Path, state: tuple[int, ...], group: int) -> pa.Table:
    with open_parquet(path) as table:
        return table.read_row_group(group)


def _groups_of(metadata: pq.FileMetaData, start: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that hold rows [start, stop), and how many rows of the first one come before."""
    groups: list[int] = []
    begin = skipped = 0
    for group in range(metadata.num_row_groups):
        end = begin + metadata.row_group(group).num_rows
        if begin < stop and end > start:
            skipped = skipped if groups else start - begin
            groups.append(group)
        begin = end
    return groups, skipped


def count_rows(file: InputFile) -> int:
    """Return the number of rows of a published file, of which only the footer is read.

    Raises:
        IntegrityError: the file is missing or damaged; the message names it.
        UserError: the system does not let it be read.
    """
    with reading(file.path):
        return int(pq.read_metadata(file.path).num_rows)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file whose page checksums are verified when a page is read."""
    return pq.ParquetFile(path, page_checksum_verification=True)  # `pq.read_table` would import pandas


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the published file that could not be read, and the reason.

    Raises:
        IntegrityError: its content is not what a Parquet file has.
        UserError: the system refuses, for lack of permission, memory or free descriptors: the file may be whole.
    """
    try:
        yield
    except (OSError, KeyError, pa.ArrowException) as error:
        if (why := refused(error)) is not None:
            raise UserError("file cannot be read", where=path, hint=why) from error
        raise IntegrityError("damaged Parquet file", where=path, hint=first_line(error)) from error
