"""Tables of Arrow: rows as records, and the formats Arrow, ORC and Feather. Parquet has a file of its own."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.documents import to_json
from pipeline.corpus.readers.arrow_values import Broken, column_values
from pipeline.corpus.readers.record_splitter import RECORD_LIMIT
from pipeline.corpus.readers.records import Record, Slice
from pipeline.corpus.sources.opening import SourceFile, open_file, open_raw
from pipeline.corpus.sources.unpacking import check_unpacked

BATCH_ROWS = 256
_FILE_MAGIC = b"ARROW1\0\0"
"""Start of an Arrow file with a footer. What follows is a stream, which is how it is read here."""


def open_seekable(file: SourceFile, max_unpacked_bytes: int) -> BinaryIO:
    """Open a file that is read from its end, through a temporary file if it is compressed as a whole."""
    if not file.compression:
        return open_raw(file)
    whole = tempfile.SpooledTemporaryFile(RECORD_LIMIT)  # noqa: SIM115 (closed by its reader)
    with open_file(file, max_unpacked_bytes) as stream:
        while block := stream.read(1 << 20):
            whole.write(block)
    whole.seek(0)
    return cast(BinaryIO, whole)


def row_record(row: int, where: str, values: dict[str, Any]) -> Record:
    """Return the record of a row's values; one with a broken value is unusable, and its raw bytes are its JSON."""
    broken = next((value.why for value in values.values() if isinstance(value, Broken)), None)
    if broken is None:
        return Record(row, where, None, values)
    there = {name: value.value if isinstance(value, Broken) else value for name, value in values.items()}
    return Record(row, where, to_json(there).encode(), broken)


def read_arrow(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the rows of an Arrow stream or file."""
    with open_file(part.file, config.max_unpacked_bytes) as stream:
        row = 0
        for batch in arrow_batches(stream):
            for values in zip(*map(column_values, batch.columns), strict=True):
                yield row_record(row, f"row {row}", dict(zip(batch.schema.names, values, strict=True)))
                row += 1


def arrow_batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow stream or file, in order; strings as bytes, because they may not be UTF-8.

    Raises:
        pa.ArrowException: it is damaged, or ends before its last batch. Offsets in it are checked before they are used.
    """
    if cast(io.BufferedReader, stream).peek(len(_FILE_MAGIC)).startswith(_FILE_MAGIC):
        stream.read(len(_FILE_MAGIC))
    with pa.ipc.open_stream(pa.PythonFile(stream, "r")) as batches:
        for batch in batches:
            batch = pa.RecordBatch.from_arrays(list(map(_as_bytes, batch.columns)), batch.schema.names)
            batch.validate(full=True)
            yield batch


def _as_bytes(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def read_orc(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the rows of an ORC file, stripe by stripe. A stripe is in memory as a whole."""
    from pyarrow import orc

    with open_seekable(part.file, config.max_unpacked_bytes) as raw:
        table = orc.ORCFile(pa.PythonFile(raw, "r"))
        packed = raw.seek(0, 2)
        _check_names(table.schema, part.file)
        stripes = ((f"stripe {n}", table.read_stripe(n)) for n in range(table.nstripes))
        yield from _rows(stripes, packed, part.file, config.max_unpacked_bytes)


def read_feather(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the rows of a Feather file (version 2, which is Arrow's IPC file), batch by batch."""
    with open_seekable(part.file, config.max_unpacked_bytes) as raw:
        if raw.read(4) == b"FEA1":
            hint = "write it again: pyarrow.feather.write_feather(pyarrow.feather.read_table(old), new)"
            raise UserError("a Feather file of version 1", where=part.file.name, hint=hint)
        packed = raw.seek(0, 2)
        table = pa.ipc.open_file(pa.PythonFile(raw, "r"))
        _check_names(table.schema, part.file)
        batches = ((f"batch {n}", table.get_batch(n)) for n in range(table.num_record_batches))
        yield from _rows(batches, packed, part.file, config.max_unpacked_bytes)


def _rows(parts: Iterator[tuple[str, pa.RecordBatch]], packed: int, file: SourceFile, most: int) -> Iterator[Record]:
    row = 0
    for where, batch in parts:
        check_unpacked(batch.nbytes, packed, most, f"{file.name}, {where}")
        for begin in range(0, batch.num_rows, BATCH_ROWS):
            columns = [column_values(column) for column in batch.slice(begin, BATCH_ROWS).columns]
            for values in zip(*columns, strict=True):
                yield row_record(row, where, dict(zip(batch.schema.names, values, strict=True)))
                row += 1


def _check_names(schema: pa.Schema, file: SourceFile) -> None:
    if doubled := doubled_name(pa.struct(schema)):
        raise UserError("two columns have one name", where=file.name, hint=f"rename one `{doubled}`")


def doubled_name(kind: pa.DataType) -> str | None:
    """Return a name that two fields of one structure share, or None."""
    fields = [kind.field(i) for i in range(kind.num_fields)]
    names = [field.name for field in fields]
    if pa.types.is_struct(kind) and len(set(names)) < len(names):
        return next(name for name in names if names.count(name) > 1)
    return next(filter(None, (doubled_name(field.type) for field in fields)), None)
