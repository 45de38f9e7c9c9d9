r"""Splitting byte streams into records: lines, elements of a JSON array, documents of a text file.

Records are split only at b"\n": U+0085, U+2028 and form feeds occur inside real records, and `str.splitlines` would
split them there. Every result is a `RawRecord`, so that a record can be traced to its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

RECORD_LIMIT = 64 << 20
"""Bytes per record that are kept in memory. Of longer records only the beginning is kept, and they are quarantined."""


class RawRecord(NamedTuple):
    """The bytes at `offset` of the (decompressed) file; `size` is the full length, more than that of `data` if cut."""

    offset: int
    data: bytes
    size: int


def lines(stream: BinaryIO, start: int = 0, stop: int | None = None, limit: int = RECORD_LIMIT) -> Iterator[RawRecord]:
    r"""Yield lines with their b"\n", from a stream positioned at `start`, as long as they begin before `stop`."""
    while stop is None or start < stop:
        data = stream.readline(limit)
        if not data:
            return
        size, last = len(data), data
        while not last.endswith(b"\n") and (last := stream.readline(limit)):
            size += len(last)
        yield RawRecord(start, data, size)
        start += size


def documents(pieces: Iterable[RawRecord], document_bytes: int) -> Iterator[RawRecord]:
    r"""Yield paragraphs, which end at blank lines, packed into documents of at most `document_bytes`.

    A longer paragraph is a document of its own. Each document begins at a line that is not blank, so splitting that
    resumes at the start of a document gives the same documents.

    Example:
        >>> text = [RawRecord(0, b"one\n", 4), RawRecord(4, b"\n", 1), RawRecord(5, b"two\n", 4)]
        >>> text += [RawRecord(9, b"three\n", 6)]
        >>> [piece.data for piece in documents(text, 100)], [piece.data for piece in documents(text, 9)]
        ([b'one\n\ntwo\nthree\n'], [b'one\n', b'two\nthree\n'])
    """
    document, gap = None, b""
    for paragraph, after in _paragraphs(pieces):
        end = paragraph.offset + paragraph.size
        if document and end - document.offset <= document_bytes:
            document = RawRecord(document.offset, document.data + gap + paragraph.data, end - document.offset)
        else:
            if document:
                yield document
            document = paragraph
        gap = after
    if document:
        yield document


def _paragraphs(pieces: Iterable[RawRecord], limit: int = RECORD_LIMIT) -> Iterator[tuple[RawRecord, bytes]]:
    """Yield runs of lines that are not blank, each with the blank lines after it."""
    offset, size, text, gap = 0, 0, bytearray(), bytearray()
    for piece in pieces:
        if not piece.data.strip() and piece.size == len(piece.data):
            gap += piece.data if size else b""
            continue
        if gap:
            yield RawRecord(offset, bytes(text), size), bytes(gap)
            size, text, gap = 0, bytearray(), bytearray()
        offset = offset if size else piece.offset
        size += piece.size
        text += piece.data[: limit - len(text)]
    if size:
        yield RawRecord(offset, bytes(text), size), bytes(gap)


_OUTSIDE = re.compile(rb'["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def array_elements(
    stream: BinaryIO, base: int = 0, limit: int = RECORD_LIMIT, *, alone: bool = True
) -> Iterator[RawRecord]:
    """Yield the elements of the JSON array in `stream`, split by brackets and quotes only: a broken one is isolated.

    Args:
        stream: where the array begins.
        base: offset of that place in the file.
        limit: bytes per record that are kept.
        alone: whether nothing may come after the array. If something may, it is not read.

    Raises:
        OSError: the stream does not begin with `[`, or ends before its brackets close.
    """
    element, size, start = bytearray(), 0, 0  # of the current element: kept bytes, full size, offset
    depth, quoted, escaped = 0, False, False
    while block := stream.read(1 << 20):
        # Outside of strings only brackets, commas and quotes matter, inside only quotes and backslashes: `search` jumps
        # from one to the next, which is what makes this fast in Python.
        position = begin = 0  # `begin`: start of the part of `block` that is not yet in `element`
        if escaped:
            position, escaped = 1, False
        while match := (_INSIDE if quoted else _OUTSIDE).search(block, position):
            position, mark = match.end(), match[0]
            if quoted:
                if mark == b"\\":
                    escaped = position == len(block)
                    position += 1
                else:
                    quoted = False
            elif mark == b'"':
                quoted = True
            elif mark in b"[{":
                depth += 1
                if depth == 1:
                    if mark != b"[" or block[begin : position - 1].strip():
                        raise OSError("not a JSON array")
                    begin, start = position, base + position
            elif depth == 0:
                raise OSError("not a JSON array")
            else:
                depth -= mark in b"]}"
                if depth == 0 or (depth == 1 and mark == b","):
                    size += position - 1 - begin
                    element += block[begin : position - 1][: limit - len(element)]
                    if element.strip() or mark == b",":
                        yield RawRecord(start, bytes(element), size)
                    begin, start, element, size = position, base + position, bytearray(), 0
                    if depth == 0 and not alone:
                        return
        size += len(block) - begin
        element += block[begin:][: limit - len(element)]
        base += len(block)
    if depth or element.strip():
        raise OSError("the JSON array is truncated, or has brackets or quotes that do not match")
