"""Records: what a reader yields, with its location, its bytes and its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.encodings import DecodedFile
from pipeline.corpus.readers.record_splitter import RawRecord
from pipeline.corpus.sources.opening import SourceFile


@dataclass(frozen=True)
class Slice:
    """A part of a source file: bytes [start, stop) of lines or text, row groups [start, stop) of Parquet, or all.

    The bytes are those of the unpacked file.
    """

    file: SourceFile
    start: int = 0
    stop: int | None = None
    row: int = 0
    """Number of the first record: lines before it (JSON lines, text by line), documents (text), rows (Parquet)."""


class Record(NamedTuple):
    """A record: `value` has its columns or the reason for having none; `raw` is None without own bytes (Parquet)."""

    row: int
    where: str
    raw: bytes | None
    value: Mapping[str, Any] | Unusable


def make_record(
    row: int, piece: RawRecord, parse: Callable[[RawRecord], Mapping[str, Any]], stream: DecodedFile
) -> Record:
    """Return the record of a piece of a stream, which `parse` gives its columns or raises `Unusable`.

    Its raw bytes and its offset are those of the source, in the source's encoding.
    """
    origin = stream.origin(piece)
    where = f"byte {origin.offset}"
    if piece.size > len(piece.data):
        whole = Unusable("too_long", f"{piece.size} bytes, of which the first {len(piece.data)} are kept here")
        return Record(row, where, origin.data, whole)
    try:
        at_origin = piece if origin is piece else piece._replace(offset=origin.offset)
        return Record(row, where, origin.data, parse(at_origin))
    except Unusable as why:
        return Record(row, where, origin.data, why)


def utf8(raw: bytes) -> str:
    """Return the text of UTF-8 bytes.

    Raises:
        Unusable: `not_utf8`. Bytes that another encoding does not have are such ones as well.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unusable("not_utf8", f"byte {error.start} of the record: {error.reason}") from error
