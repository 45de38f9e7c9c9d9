"""The first scan of a source file: its hash, its columns, and how it is cut into slices."""

from __future__ import annotations

import codecs
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import BinaryIO, cast

from pipeline.config.corpus import CorpusConfig
from pipeline.core.progress import log
from pipeline.corpus.readers.csv import dialect_of
from pipeline.corpus.readers.dispatch import is_cut_by_bytes, read_records
from pipeline.corpus.readers.json import check_prose, describe
from pipeline.corpus.readers.parquet import open_parquet
from pipeline.corpus.readers.record_splitter import documents, lines
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.readers.xml_layout import describe_xml
from pipeline.corpus.sources.checksums import Checksums, HashingReader
from pipeline.corpus.sources.opening import SourceFile, open_file, open_raw, source_errors

SLICE_BYTES = 64 << 20
"""Bytes per slice, the unit of reading: the first record that begins this far after the last cut begins a new slice."""

PIECES = 16
"""Most slices of a compressed file. Each is unpacked from the start: on average half of the file for nothing, which
costs less than what parsing costs."""

_PEEK = 100
"""Records that are read to learn a file's columns."""


@dataclass(frozen=True)
class Scan:
    """The result of the first scan of a source file. `columns` is empty if its first records have none."""

    file: SourceFile
    sha256: str
    columns: tuple[str, ...]
    slices: tuple[Slice, ...]
    found: str = ""
    """What the content told of how to read it, which neither the file's name nor the manifest says."""


def scan(file: SourceFile, config: CorpusConfig, slice_bytes: int = SLICE_BYTES) -> Scan:
    """Read a file once and return its sha256 (of the stored bytes), its columns and its slices.

    The files of the slices have checksums, so that a later change of the file is an error when it is read again.

    JSON lines and text are cut between records, Parquet between row groups; other files are one slice, because the
    start of a record is only known by reading from the start of the file. A compressed file is cut only if it is larger
    than a slice, and into few pieces, because each is unpacked from the start.

    Raises:
        UserError: the file cannot be read.
    """
    if file.streamed:  # its identity is the commit in its address: reading it here would read it twice over the network
        return scanned(file, [(0, 0)], _columns(file, config))
    with source_errors(file.name), open_raw(file) as raw:
        hashing = HashingReader(raw)
        stream = cast(BinaryIO, io.BufferedReader(hashing, 1 << 20))
        cuts = [(0, 0)]
        if file.compression is None and is_cut_by_bytes(file, config):
            cuts = list(_byte_cuts(stream, file, config, slice_bytes))
        while stream.read(1 << 20):
            pass
    file = replace(file, checksums=(checksums := hashing.checksums()))
    with source_errors(file.name):
        if file.format == "parquet":
            cuts = list(_row_group_cuts(file, config, slice_bytes))
        elif file.compression and checksums.size > slice_bytes and is_cut_by_bytes(file, config):
            log(f"source       {file.name}: unpacking {checksums.size >> 20:,} MiB once, to cut it into pieces")
            with open_file(file, config.max_unpacked_bytes) as unpacked:
                cuts = thin(list(_byte_cuts(unpacked, file, config, slice_bytes)))
        found = _found(Slice(file), config)
    return scanned(file, cuts, _columns(file, config), found)


def scanned(file: SourceFile, cuts: Sequence[tuple[int, int]], columns: tuple[str, ...], found: str = "") -> Scan:
    """Return the scan of a file that was cut at these (start, rows before it); without checksums it is streamed."""
    stops = [*(start for start, _ in cuts[1:]), None]
    slices = [Slice(file, start, stop, row) for (start, row), stop in zip(cuts, stops, strict=True)]
    if file.checksums is None:
        return Scan(file, hashlib.sha256(file.url.encode()).hexdigest(), columns, tuple(slices), found)
    if file.compression is None and file.format != "parquet":  # every slice of Parquet needs the footer
        slices = [_with_own_checksums(part) for part in slices]
    return Scan(file, file.checksums.sha256, columns, tuple(slices), found)


def log_found(surveys: Sequence[Scan]) -> None:
    """Log what was found in files that their names and the manifest do not say, once for all files alike."""
    files: dict[str, list[str]] = {}
    for about in surveys:
        if about.found:
            files.setdefault(about.found, []).append(about.file.name)
    for found, names in files.items():
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        log(f"source       {names[0]}{more}: {found}")


def _found(part: Slice, config: CorpusConfig) -> str:
    if part.file.format == "text" and config.format == "auto":
        check_prose(part, config)
    if part.file.format == "json":
        return describe(part, config)
    if part.file.format == "xml":
        return describe_xml(part, config)
    if part.file.format in ("csv", "tsv"):
        return str(dialect_of(part, config))
    if part.file.builder == "webdataset":
        return "a WebDataset: a record is a sample, with a column for each extension"
    return ""


def thin(cuts: list[tuple[int, int]], most: int = PIECES) -> list[tuple[int, int]]:
    """Return at most so many of the cuts, evenly.

    Example:
        >>> thin([(0, 0), (10, 1), (20, 2), (30, 3), (40, 4)], 3)
        [(0, 0), (20, 2), (40, 4)]
    """
    step = -(-len(cuts) // most)
    return cuts[::step]


def _byte_cuts(stream: BinaryIO, file: SourceFile, config: CorpusConfig, slice_bytes: int) -> Iterator[tuple[int, int]]:
    by_line = file.format == "jsonl" or config.document_break == "line"
    return (_line_cuts if by_line else _text_cuts)(stream, file, config, slice_bytes)


def checksums_of(file: SourceFile) -> Checksums:
    """Return the checksums of a file's stored bytes.

    Raises:
        UserError: it cannot be read.
    """
    with source_errors(file.name), open_raw(file) as raw:
        hashing = HashingReader(raw)
        while hashing.read(1 << 20):
            pass
    return hashing.checksums()


def _with_own_checksums(part: Slice) -> Slice:
    assert part.file.checksums is not None
    checksums = part.file.checksums.part(part.start, part.stop)
    return replace(part, file=replace(part.file, checksums=checksums))


def skip_bom(stream: BinaryIO) -> int:
    """Skip a byte order mark at the start of a stream of UTF-8 and return its size in bytes."""
    marked = cast(io.BufferedReader, stream).peek(3).startswith(codecs.BOM_UTF8)
    return len(stream.read(3)) if marked else 0


def _columns(file: SourceFile, config: CorpusConfig) -> tuple[str, ...]:
    records = islice(read_records(Slice(file), config), _PEEK)
    names = [name for record in records if isinstance(record.value, Mapping) for name in record.value]
    return tuple(dict.fromkeys(names))


def _line_cuts(stream: BinaryIO, file: SourceFile, config: CorpusConfig, slice_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, lines before it) of each slice."""
    yield 0, 0
    offset, rows, due = 0, 0, slice_bytes
    cut: tuple[int, int] | None = None  # becomes a slice once a byte is seen after it
    while block := stream.read(1 << 20):
        if cut:
            yield cut
            cut = None
        counted = 0
        # Cut after the first line feed at byte `due` − 1 or later, so that a line which begins at `due` begins a slice.
        # Lines are counted per block, which is much faster than reading line by line.
        while (newline := block.find(b"\n", max(due - 1 - offset, counted))) >= 0:
            rows += block.count(b"\n", counted, newline + 1)
            counted = newline + 1
            cut, due = (offset + counted, rows), offset + counted + slice_bytes
            if counted < len(block):
                yield cut
                cut = None
        rows += block.count(b"\n", counted)
        offset += len(block)


def _text_cuts(stream: BinaryIO, file: SourceFile, config: CorpusConfig, slice_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, documents before it) of each slice."""
    yield 0, 0
    due = slice_bytes
    skipped = skip_bom(stream)
    for row, piece in enumerate(documents(lines(stream, skipped), config.document_bytes)):
        if row and piece.offset >= due:
            yield piece.offset, row
            due = piece.offset + slice_bytes


def _row_group_cuts(file: SourceFile, config: CorpusConfig, slice_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (row group, rows before it) of each slice."""
    yield 0, 0
    with open_parquet(file, config.max_unpacked_bytes) as table:
        rows = size = 0
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            if size >= slice_bytes:
                yield group, rows
                size = 0
            rows += about.num_rows
            size += about.total_byte_size
