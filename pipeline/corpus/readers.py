"""Readers: the records of a slice of a source file, each with its location, its bytes and its columns.

A record that cannot be parsed is still a record, with the reason as its value. Therefore these are readers of our own
over Arrow and the standard library: `datasets` (tried: 5.2) stops at a line that is not JSON, reads the text "7" of a
mixed column as a number, takes the last of two values under one name, and keeps neither bytes nor offsets.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, NamedTuple, cast

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.arrow_source import arrow_batches
from pipeline.corpus.arrow_values import Broken, column_values
from pipeline.corpus.documents import to_json
from pipeline.corpus.parquet_source import open_parquet, row_group_rows
from pipeline.corpus.quarantine import TO_UTF8, Unusable
from pipeline.corpus.record_splitter import RECORD_LIMIT, RawRecord, array_elements, documents, lines
from pipeline.corpus.sources import SourceFile, open_file, open_raw, source_errors

BOM = b"\xef\xbb\xbf"

CSV_ROW_LIMIT = 16 << 20
"""Bytes after which an unfinished CSV row counts as broken; most likely a quote is never closed."""


@dataclass(frozen=True)
class Slice:
    """A part of a source file: bytes [start, stop) of lines or text, row groups [start, stop) of Parquet, or all."""

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


def read_records(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the records of a slice, in file order.

    Raises:
        UserError: the file cannot be read: missing, truncated, damaged, or not of its format.
    """
    with source_errors(part.file.name):
        yield from _READERS[part.file.format](part, config)


# ------------------------------------------------------------------------------------------- JSON and text


def _read_json_lines(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    with open_file(part.file, config.max_unpacked_bytes) as stream:
        yield from _json_records(_lines(stream, part), part.row)


def _read_json(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the elements of an array of objects, or of JSON lines, which many files named `.json` hold."""
    with open_file(part.file, config.max_unpacked_bytes) as stream:
        skipped = _skip_bom(stream)
        head = cast(io.BufferedReader, stream).peek(1 << 16).lstrip()
        if head.startswith(b"["):
            elements = array_elements(stream)
            yield from _json_records((piece._replace(offset=piece.offset + skipped) for piece in elements), part.row)
        else:
            yield from _json_records(lines(stream, skipped), part.row)


def _json_records(pieces: Iterable[RawRecord], first_row: int) -> Iterator[Record]:
    for row, piece in enumerate(pieces, first_row):
        if piece.data.strip():
            yield _record(row, piece, parse_json_object)


def parse_json_object(raw: bytes) -> Mapping[str, Any]:
    """Return the JSON object in `raw`. NaN and infinities become null, as in most readers.

    Raises:
        Unusable: `not_utf8`, `not_json`, `not_an_object`, or `duplicate_key` (two values under one name, at any depth:
            which one is meant is unknown).
    """
    repeated: set[str] = set()

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            names = [name for name, _ in pairs]
            repeated.update(name for name in names if names.count(name) > 1)
        return tree

    try:
        value = json.loads(_utf8(raw), strict=False, object_pairs_hook=collect, parse_constant=lambda _: None)
    except RecursionError as error:
        raise Unusable("not_json", "nested too deeply") from error
    except ValueError as error:
        raise Unusable("not_json", str(error)) from error
    if not isinstance(value, dict):
        raise Unusable("not_an_object", f"a {type(value).__name__}")
    if repeated:
        raise Unusable("duplicate_key", ", ".join(f"`{name}`" for name in sorted(repeated)))
    return value


def _read_text(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield records of one column, `text`; the byte offset is kept as metadata `byte_offset`."""
    with open_file(part.file, config.max_unpacked_bytes) as stream:
        for row, piece in enumerate(text_records(stream, part, config), part.row):
            if piece.data.strip():
                yield _record(row, piece, partial(_text, piece.offset))


def _text(offset: int, raw: bytes) -> Mapping[str, Any]:
    return {"text": _utf8(raw).rstrip("\r\n"), "byte_offset": offset}


def text_records(stream: BinaryIO, part: Slice, config: CorpusConfig) -> Iterator[RawRecord]:
    """Return the documents of a text file. By line, blank lines count as rows (as in JSON lines) but are no records."""
    if config.document_break == "file":
        return _whole(stream)
    pieces = _lines(stream, part)
    return documents(pieces, config.document_bytes) if config.document_break == "blank_lines" else pieces


def _whole(stream: BinaryIO) -> Iterator[RawRecord]:
    offset = _skip_bom(stream)
    data = stream.read(RECORD_LIMIT)
    size = len(data)
    while more := stream.read(1 << 20):
        size += len(more)
    yield RawRecord(offset, data, size)


def _lines(stream: BinaryIO, part: Slice) -> Iterator[RawRecord]:
    if part.start:
        stream.seek(part.start)
        return lines(stream, part.start, part.stop)
    return lines(stream, _skip_bom(stream), part.stop)


def _skip_bom(stream: BinaryIO) -> int:
    """Skip a byte order mark at the start of `stream` and return its size in bytes."""
    return len(stream.read(3)) if cast(io.BufferedReader, stream).peek(3)[:3] == BOM else 0


def _record(row: int, piece: RawRecord, parse: Callable[[bytes], Mapping[str, Any]]) -> Record:
    where = f"byte {piece.offset}"
    if piece.size > len(piece.data):
        whole = Unusable("too_long", f"{piece.size} bytes, of which the first {len(piece.data)} are kept here")
        return Record(row, where, piece.data, whole)
    try:
        return Record(row, where, piece.data, parse(piece.data))
    except Unusable as why:
        return Record(row, where, piece.data, why)


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unusable("not_utf8", f"byte {error.start} of the record: {error.reason}") from error


# ----------------------------------------------------------------------------------------------------- CSV


def _read_csv(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the rows of a CSV file with a header, quotes as in RFC 4180. The header is not counted as a row.

    A quote that is never closed would swallow the rest of the file: when a row breaks, only its first line is
    rejected, and reading goes on at the next line.
    """
    csv.field_size_limit(CSV_ROW_LIMIT)
    with open_file(part.file, config.max_unpacked_bytes) as stream:
        source = _Lines(lines(stream, _skip_bom(stream)))
        header = next(_csv_rows(source), None)
        if header is None:
            return
        if isinstance(header.value, Unusable):
            hint = TO_UTF8 if header.value.reason == "not_utf8" else header.value.detail
            raise UserError("the header line is not CSV in UTF-8", where=part.file.name, hint=hint)
        names = header.value[""]
        if len(set(names)) < len(names):
            raise UserError("the header names a column twice", where=part.file.name, hint=", ".join(names))
        for row, record in enumerate(_csv_rows(source)):
            if isinstance(record.value, Unusable):
                yield record._replace(row=row)
                continue
            cells = record.value[""]
            if len(cells) == len(names):
                value: Mapping[str, Any] | Unusable = dict(zip(names, cells, strict=True))
            else:
                value = Unusable("not_csv", f"{len(cells)} cells, the header has {len(names)}")
            yield record._replace(row=row, value=value)


class _Lines:
    """An iterator of lines for `csv.reader` that remembers the lines of the current row and can take lines back."""

    def __init__(self, pieces: Iterator[RawRecord]) -> None:
        self.pieces = pieces
        self.returned: deque[RawRecord] = deque()
        self.row: list[RawRecord] = []
        self.size = 0  # bytes of the current row so far

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        piece = self.returned.popleft() if self.returned else next(self.pieces)
        self.row.append(piece)
        self.size += piece.size
        if self.size > CSV_ROW_LIMIT:
            raise csv.Error(f"more than {CSV_ROW_LIMIT} bytes before the row ends")
        return piece.data.decode("utf-8", "surrogateescape")

    def take(self) -> list[RawRecord]:
        """Return the lines of the row that just ended, and start a new row."""
        row, self.row, self.size = self.row, [], 0
        return row


def _csv_rows(source: _Lines) -> Iterator[Record]:
    """Yield rows as {"": cells}, without blank lines."""
    reader = csv.reader(source, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            first, *rest = source.take()
            source.returned.extendleft(reversed(rest))
            reader = csv.reader(source, strict=True)
            yield Record(0, f"byte {first.offset}", first.data, Unusable("not_csv", str(error)))
            continue
        row = source.take()
        if cells:
            raw = b"".join(piece.data for piece in row)
            piece = RawRecord(row[0].offset, raw, len(raw))
            yield _record(0, piece, partial(_cells, cells))


def _cells(cells: list[str], raw: bytes) -> Mapping[str, Any]:
    _utf8(raw)
    return {"": cells}


# ------------------------------------------------------------------------------------------------- Parquet


def _read_arrow(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    with open_file(part.file, config.max_unpacked_bytes) as stream:
        row = 0
        for batch in arrow_batches(stream):
            for values in zip(*map(column_values, batch.columns), strict=True):
                yield _row(row, f"row {row}", dict(zip(batch.schema.names, values, strict=True)))
                row += 1


def _read_dataset(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    from pipeline.corpus.dataset_source import dataset_rows  # its library takes a second to import

    if part.file.checksums is not None:
        with open_raw(part.file) as raw:  # the library opens the file itself: verify its content first
            while raw.read(1 << 20):
                pass
    for row, values in enumerate(dataset_rows(part.file)):
        yield _row(row, f"row {row}", values)


def _row(row: int, where: str, tree: dict[str, Any]) -> Record:
    """Return the record of a row's values; one with a broken value is unusable, and its raw bytes are its JSON."""
    broken = next((value.why for value in tree.values() if isinstance(value, Broken)), None)
    if broken is None:
        return Record(row, where, None, tree)
    there = {k: v.value if isinstance(v, Broken) else v for k, v in tree.items()}
    return Record(row, where, to_json(there).encode(), broken)


def _read_parquet(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    with open_parquet(part.file, config.max_unpacked_bytes) as table:
        row = part.row
        for group in range(part.start, table.num_row_groups if part.stop is None else part.stop):
            for tree in row_group_rows(table, group, part.file.name, config.max_unpacked_bytes):
                yield _row(row, f"row group {group}", tree)
                row += 1


_READERS: Mapping[str, Callable[[Slice, CorpusConfig], Iterator[Record]]] = {
    "jsonl": _read_json_lines,
    "json": _read_json,
    "text": _read_text,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "dataset": _read_dataset,
}
