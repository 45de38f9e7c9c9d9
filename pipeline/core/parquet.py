"""Parquet as every stage writes and reads it: explicit schemas, zstd, page checksums, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.artifact import InputFile
from pipeline.core.errors import IntegrityError

ROW_GROUP = 2048


def write_rows(
    path: Path,
    schema: pa.Schema,
    rows: Iterable[Mapping[str, Any]],
    *,
    metadata: Mapping[str, str] | None = None,
    row_group: int = ROW_GROUP,
    delta_columns: tuple[str, ...] = (),
) -> int:
    """Stream `rows` into a Parquet file, a row group at a time. Returns the number of rows.

    Args:
        path: file to create (in a stage's scratch folder; publishing is the runner's).
        schema: explicit; a row that lacks a column or has another one is an error, never a silent null.
        rows: mappings with exactly the schema's columns.
        metadata: schema metadata (tokenizer, proxy, versions, fingerprint).
        row_group: rows a row group.
        delta_columns: binary columns written with DELTA_BYTE_ARRAY: each value costs what it adds to the one before.
    """
    count, buffer = 0, []
    with parquet_writer(path, schema, metadata=metadata, delta_columns=delta_columns) as writer:
        for row in rows:
            if row.keys() != set(schema.names):
                raise ValueError(f"row has columns {sorted(row)}, schema has {sorted(schema.names)}")
            buffer.append(row)
            if len(buffer) == row_group:
                writer.write_table(pa.Table.from_pylist(buffer, schema=schema), row_group_size=row_group)
                count, buffer = count + len(buffer), []
        if buffer:
            writer.write_table(pa.Table.from_pylist(buffer, schema=schema), row_group_size=row_group)
    return count + len(buffer)


def parquet_writer(
    path: Path, schema: pa.Schema, *, metadata: Mapping[str, str] | None = None, delta_columns: tuple[str, ...] = ()
) -> pq.ParquetWriter:
    """A writer with the house's settings, for callers that hold Arrow tables already."""
    dictionary = [name for name in schema.names if name not in delta_columns] if delta_columns else True
    return pq.ParquetWriter(
        path,
        schema.with_metadata(metadata),
        compression="zstd",
        use_dictionary=dictionary,
        column_encoding=dict.fromkeys(delta_columns, "DELTA_BYTE_ARRAY") or None,
        write_page_checksum=True,
        write_statistics=True,
        store_schema=True,
    )


def read_table(file: InputFile, columns: list[str] | None = None) -> pa.Table:
    """Read a published file: sha256 and page checksums are verified.

    Raises:
        IntegrityError: the file is missing, changed or damaged; the message names it.
    """
    path = file.verified()
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError("damaged Parquet file", where=path, mend=str(error).splitlines()[0]) from error
