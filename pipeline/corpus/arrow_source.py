"""Arrow files of a source, as `save_to_disk` of `datasets` writes them: batch by batch, each checked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, cast

import pyarrow as pa

_FILE_MAGIC = b"ARROW1\0\0"
"""Start of an Arrow file with a footer. What follows is a stream, which is how it is read here."""


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
