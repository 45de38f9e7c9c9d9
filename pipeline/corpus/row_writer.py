"""A Parquet writer that takes rows one by one, for readers that fill two tables at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from pipeline.core.parquet import ROW_GROUP, parquet_writer

GROUP_BYTES = 16 << 20
"""Bytes of rows at which a row group ends, if not at `ROW_GROUP` rows, which bounds memory."""


class RowWriter:
    """A context manager that collects rows and writes them one row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = parquet_writer(path, schema)
        self.rows: list[Mapping[str, Any]] = []
        self.size = 0

    def add(self, row: Mapping[str, Any], size: int) -> None:
        """Add a row of about `size` bytes."""
        self.rows.append(row)
        self.size += size
        if len(self.rows) >= ROW_GROUP or self.size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.size = [], 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.rows:
            self._flush()
        self.writer.close()
