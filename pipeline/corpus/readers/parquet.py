"""Parquet files of a source: rows per row group, checked against the footer and limited in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.readers.arrow_values import column_values
from pipeline.corpus.readers.records import Record, Slice
from pipeline.corpus.readers.tables import doubled_name, open_seekable, row_record
from pipeline.corpus.sources.opening import SourceFile
from pipeline.corpus.sources.unpacking import check_unpacked

BATCH_ROWS = 256
_WIDTH = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12, "BYTE_ARRAY": 4}
"""Bytes per value in memory, by physical type; for strings that of the offset."""


def read_parquet(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the rows of a slice of row groups."""
    with open_parquet(part.file, config.max_unpacked_bytes) as table:
        row = part.row
        for group in range(part.start, table.num_row_groups if part.stop is None else part.stop):
            for values in row_group_rows(table, group, part.file.name, config.max_unpacked_bytes):
                yield row_record(row, f"row group {group}", values)
                row += 1


def open_parquet(file: SourceFile, max_unpacked_bytes: int) -> pq.ParquetFile:
    """Open a Parquet file, through a temporary file if it is compressed as a whole, because it is read from the end.

    Raises:
        UserError: two of its columns have one name, or it unpacks to far more than its size.
    """
    raw = open_seekable(file, max_unpacked_bytes)
    try:
        table = pq.ParquetFile(raw, page_checksum_verification=True)
        if repeated := _repeated_dictionaries(table):
            table = pq.ParquetFile(raw, page_checksum_verification=True, read_dictionary=repeated)
        doubled = doubled_name(pa.struct(table.schema_arrow))
    except UnicodeDecodeError as error:
        raise UserError("the name of a column is not UTF-8", where=file.name, hint="rename it") from error
    if doubled:
        raise UserError("two columns have one name", where=file.name, hint=f"rename one `{doubled}`")
    return table


def row_group_rows(table: pq.ParquetFile, group: int, name: str, most: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a row group, each as values by column name.

    Args:
        table: the file.
        group: number of the row group.
        name: name of the file, for messages.
        most: bytes that it may unpack to; larger ones are refused beyond 100 times their packed size.

    Raises:
        UserError: it holds more or fewer rows than its footer says, or unpacks to far more than its size.
    """
    about = table.metadata.row_group(group)
    columns = [about.column(i) for i in range(about.num_columns)]
    packed = sum(column.total_compressed_size for column in columns)
    widths = [_WIDTH.get(c.physical_type, table.schema.column(i).length) for i, c in enumerate(columns)]
    unpacked = [max(c.total_uncompressed_size, c.num_values * w) for c, w in zip(columns, widths, strict=True)]
    where = f"{name}, row group {group}"
    check_unpacked(sum(unpacked), packed, most, where)
    rows = size = 0
    largest = max((c.total_uncompressed_size for c in columns if c.has_dictionary_page), default=0)
    batch_rows = max(
        1, min(BATCH_ROWS, most // 8 // max(largest, 1))
    )  # every row may have the dictionary's longest value
    for batch in table.iter_batches(batch_size=batch_rows, row_groups=[group]):
        size += sum(map(_decoded_bytes, batch.columns))
        check_unpacked(size, packed, most, where)
        names, values = batch.schema.names, [column_values(column) for column in batch.columns]
        for row in zip(*values, strict=True):
            yield dict(zip(names, row, strict=True))
        rows += batch.num_rows
    flat = {column.num_values for i, column in enumerate(columns) if not table.schema.column(i).max_repetition_level}
    if {rows, *flat} != {about.num_rows}:
        held = ", ".join(f"{count:,}" for count in sorted({rows, *flat} - {about.num_rows}))
        raise UserError(
            f"{held} rows where the footer says {about.num_rows:,}",
            where=where,
            hint="the file is damaged, or its writer has a bug: write it again",
        )


def _repeated_dictionaries(table: pq.ParquetFile) -> list[str]:
    """Return columns of strings inside lists that have dictionaries, which bound memory if they are kept on reading."""
    found = set()
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        for column in map(about.column, range(about.num_columns)):
            found.add(column.path_in_schema) if column.has_dictionary_page else None
    columns = map(table.schema.column, range(len(table.schema.names)))
    return [c.path for c in columns if c.path in found and c.physical_type == "BYTE_ARRAY" and c.max_repetition_level]


def _decoded_bytes(array: pa.Array) -> int:
    """Return the bytes of a column after dictionaries are expanded."""
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary.cast(pa.large_binary()))
        return int(pc.sum(pc.take(pc.cast(lengths, pa.int64()), array.indices)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(_decoded_bytes(array.field(i)) for i in range(array.type.num_fields))
    if pa.types.is_map(array.type):
        return _decoded_bytes(array.keys) + _decoded_bytes(array.items)
    if any(is_it(array.type) for is_it in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        return _decoded_bytes(array.flatten())
    return int(array.nbytes)
