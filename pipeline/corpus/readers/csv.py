"""CSV and TSV: rows with the columns of a header, or numbered ones."""

from __future__ import annotations

import csv
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from pipeline.config.corpus import CorpusConfig, CsvConfig
from pipeline.config.errors import UserError
from pipeline.corpus.quarantine import TO_UTF8, Unusable
from pipeline.corpus.readers.encodings import DecodedFile
from pipeline.corpus.readers.record_splitter import RawRecord, lines
from pipeline.corpus.readers.records import Record, Slice, make_record, utf8

CSV_ROW_LIMIT = 16 << 20
"""Bytes after which an unfinished CSV row counts as broken; most likely a quote is never closed."""

_LOOK = 100
"""First lines of a file from which its dialect is found."""

_DELIMITERS = {"csv": ",;\t|", "tsv": "\t"}


@dataclass(frozen=True)
class Dialect:
    """How the cells of a file are written. `quote` is None where no cell is quoted."""

    delimiter: str
    quote: str | None
    escape: str | None

    def reader(self, source: Iterator[str]) -> Iterator[list[str]]:
        """Return the rows of lines; a broken one raises `csv.Error`."""
        return csv.reader(
            source,
            strict=True,
            delimiter=self.delimiter,
            quotechar=self.quote,
            quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            escapechar=self.escape,
        )

    def __str__(self) -> str:
        named = {"\t": "tab", ",": "comma", ";": "semicolon"}.get(self.delimiter, repr(self.delimiter))
        return f"delimiter {named}, " + ("no quotes" if self.quote is None else f"quotes {self.quote}")


def read_csv(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the rows of a file. The header is not counted as a row.

    A quote that is never closed would swallow the rest of the file: when a row breaks, only its first line is
    rejected, and reading goes on at the next line.
    """
    csv.field_size_limit(CSV_ROW_LIMIT)
    with DecodedFile(part.file, config) as text:
        source = _Lines(lines(text.stream, text.start))
        dialect = _dialect(source, config.csv, part.file.format)
        rows = _rows(source, dialect, text)
        names = _header(rows, part.file.name) if config.csv.header else None
        if names == []:
            return
        for row, record in enumerate(rows):
            if not isinstance(record.value, Unusable):
                cells = record.value[""]
                names = names or [str(n) for n in range(len(cells))]
                record = record._replace(value=_named(cells, names, config.csv.header))
            yield record._replace(row=row)


def _named(cells: list[str], names: list[str], header: bool) -> Mapping[str, Any] | Unusable:
    if len(cells) == len(names):
        return dict(zip(names, cells, strict=True))
    other = "the header" if header else "the first row"
    return Unusable("not_csv", f"{len(cells)} cells, {other} has {len(names)}")


def _header(rows: Iterator[Record], file: str) -> list[str]:
    """Return the names of the columns, none for an empty file.

    Raises:
        UserError: the first row is broken, or names a column twice.
    """
    header = next(rows, None)
    if header is None:
        return []
    if isinstance(header.value, Unusable):
        hint = TO_UTF8 if header.value.reason == "not_utf8" else header.value.detail
        raise UserError("the header line is not CSV in the encoding of the corpus", where=file, hint=hint)
    names: list[str] = header.value[""]
    if len(set(names)) < len(names):
        hint = f"{', '.join(names)}. Without a header line: set corpus.csv.header: false, and name columns {{0}}, {{1}}"
        raise UserError("the header names a column twice", where=file, hint=hint)
    return names


def dialect_of(part: Slice, config: CorpusConfig) -> Dialect:
    """Return how a file's cells are written, found from its first lines where the manifest does not say."""
    with DecodedFile(part.file, config) as text:
        return _dialect(_Lines(lines(text.stream, text.start)), config.csv, part.file.format)


def _dialect(source: _Lines, config: CsvConfig, format: str) -> Dialect:
    head = source.peek(_LOOK)
    delimiters = _DELIMITERS[format] if config.delimiter == "auto" else config.delimiter
    unsure = ('"', None) if format == "tsv" else ('"',)
    quotes = {"auto": unsure, "none": (None,)}.get(config.quote, (config.quote,))
    candidates = [Dialect(delimiter, quote, config.escape) for quote in quotes for delimiter in delimiters]
    # The first of the best: quotes before none, commas before others.
    return max(candidates, key=lambda dialect: _fit(dialect, head))


def _fit(dialect: Dialect, head: list[str]) -> float:
    """Return the share of the first rows that have as many cells as the very first; 0 if that has only one."""
    widths: list[int] = []
    try:
        for cells in dialect.reader(iter(head)):
            widths += [len(cells)] if cells else []
    except csv.Error as error:
        # The last row may go on below the lines at hand, so that its quote is not closed here.
        if "unexpected end of data" not in str(error) or len(head) < _LOOK:
            widths += [0]
    return Counter(widths)[widths[0]] / len(widths) if widths and widths[0] > 1 else 0.0


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

    def peek(self, count: int) -> list[str]:
        """Return the next lines, which stay."""
        self.returned.extend(islice(self.pieces, count - len(self.returned)))
        return [piece.data.decode("utf-8", "surrogateescape") for piece in self.returned]

    def take(self) -> list[RawRecord]:
        """Return the lines of the row that just ended, and start a new row."""
        row, self.row, self.size = self.row, [], 0
        return row


def _rows(source: _Lines, dialect: Dialect, text: DecodedFile) -> Iterator[Record]:
    """Yield rows as {"": cells}, without blank lines."""
    reader = dialect.reader(source)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            first, *rest = source.take()
            source.returned.extendleft(reversed(rest))
            reader = dialect.reader(source)
            yield make_record(0, first, partial(_broken, str(error)), text)
            continue
        row = source.take()
        if cells:
            raw = b"".join(piece.data for piece in row)
            yield make_record(0, RawRecord(row[0].offset, raw, len(raw)), partial(_cells, cells), text)


def _broken(why: str, piece: RawRecord) -> Mapping[str, Any]:
    raise Unusable("not_csv", why)


def _cells(cells: list[str], piece: RawRecord) -> Mapping[str, Any]:
    utf8(piece.data)
    return {"": cells}
