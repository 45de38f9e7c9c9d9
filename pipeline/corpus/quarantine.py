"""Quarantine: unusable records with their bytes, their origin and the reason, so that nothing is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa

QUARANTINE = pa.schema(
    [
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("raw", pa.large_binary(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
"""Table `quarantine`. `reason` is one of a few words, to count by; `detail` tells where and what exactly."""

TO_UTF8 = "name the encoding of the files: corpus.encoding: latin-1 (or cp1252, utf-16, gb18030, …)"
"""Hint for a file in another encoding."""


@dataclass(frozen=True)
class Rejected:
    """A row of the quarantine table. `raw` has the record's bytes as in the source."""

    source_file: str
    source_row: int
    raw: bytes
    reason: str
    detail: str


class Unusable(Exception):
    """Raised when a record cannot become a document, with the reason. It is caught per record and never shown."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason, detail)


def quarantine_table(rejected: Iterable[Rejected]) -> pa.Table:
    """Return rows of the quarantine table."""
    return pa.Table.from_pylist([asdict(row) for row in rejected], schema=QUARANTINE)
