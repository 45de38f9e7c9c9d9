"""Text files: documents by line, by blank lines, or whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.readers.encodings import DecodedFile
from pipeline.corpus.readers.record_splitter import RECORD_LIMIT, RawRecord, documents, lines
from pipeline.corpus.readers.records import Record, Slice, make_record, utf8


def read_text(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield records of one column, `text`; the byte offset is kept as metadata `byte_offset`."""
    with DecodedFile(part.file, config, inside=part.start > 0) as text:
        for row, piece in enumerate(text_records(text, part, config), part.row):
            if piece.data.strip():
                yield make_record(row, piece, _columns, text)


def _columns(piece: RawRecord) -> Mapping[str, Any]:
    return {"text": utf8(piece.data).rstrip("\r\n"), "byte_offset": piece.offset}


def text_records(text: DecodedFile, part: Slice, config: CorpusConfig) -> Iterator[RawRecord]:
    """Return the documents of a text file. By line, blank lines count as rows (as in JSON lines) but are no records."""
    if config.document_break == "file":
        return iter([whole(text)])
    pieces = lines_of(text, part)
    return documents(pieces, config.document_bytes) if config.document_break == "blank_lines" else pieces


def whole(text: DecodedFile) -> RawRecord:
    """Return a file as one piece."""
    data = text.stream.read(RECORD_LIMIT)
    size = len(data)
    while more := text.stream.read(1 << 20):
        size += len(more)
    return RawRecord(text.start, data, size)


def lines_of(text: DecodedFile, part: Slice) -> Iterator[RawRecord]:
    """Return the lines of a slice."""
    if part.start:
        skip_to(text.stream, text.start, part.start)
    return lines(text.stream, part.start or text.start, part.stop)


def skip_to(stream: BinaryIO, position: int, start: int) -> None:
    """Move a stream forward from `position` to `start`, by reading where it cannot seek."""
    if stream.seekable():
        stream.seek(start)
        return
    while position < start and (block := stream.read(min(1 << 20, start - position))):
        position += len(block)
