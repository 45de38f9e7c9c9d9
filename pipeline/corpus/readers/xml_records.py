"""XML files with many records: the elements at a path (`feed.entry`), read as a stream with their place in the file.

The columns of a record are the attributes and the child elements of its element. The value of an element is its text,
or an object where it has children and no text of its own; children with one name are a list. Prefixes of namespaces are
left out.

A place that is not well-formed costs the record around it, which goes to quarantine. Reading goes on at the next start
tag of a record, or where the element around the records ends, as if the beginning of the file stood before it. Several
XML documents may follow each other in one file.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO
from xml.parsers import expat

from pipeline.config.corpus import CorpusConfig
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.record_splitter import RECORD_LIMIT, RawRecord
from pipeline.corpus.readers.records import Record, Slice, make_record
from pipeline.corpus.readers.xml_layout import (
    ANOTHER_DOCUMENT,
    check_path,
    declared_encodings,
    encoding_of,
    local_name,
    open_xml,
)
from pipeline.corpus.readers.xml_parser import ElementParser

_Piece = tuple[RawRecord, dict[str, Any] | Unusable]
"""A record's bytes, and its columns or the reason for having none."""

_BLOCK = 1 << 16
_BEGINNING = 1 << 20
"""Bytes before the first record that may be parsed again."""
_LONGEST_TAG = 1000
_NOTHING = re.compile(rb"(?!)")
_MOST_BROKEN = 10_000
"""Broken places of a file after which it is given up: each costs its beginning once more."""

_NO_END, _DECLARATION, _EXPLODES = 3, 17, 43
"""Codes of errors of expat: the file ends too early, an XML declaration inside of it, entities that explode."""
_NESTING = (_NO_END, 7, 20)
"""Also: an end tag that does not match, CDATA without an end."""


def read_elements(part: Slice, config: CorpusConfig, path: str) -> Iterator[Record]:
    """Yield one record per element at a path; where the file is not well-formed, one that is unusable.

    Raises:
        UserError: there is no such element.
        OSError: entities in the file explode, or it is broken in too many places. The records before have been yielded.
    """
    row = part.row
    with declared_encodings(part, config), open_xml(part, config) as text:
        for piece, columns in _Reading(text.stream, path.split("."), encoding_of(config)).pieces():
            piece = piece._replace(offset=text.start + piece.offset)
            yield make_record(row, piece, partial(_given, columns), text)
            row += 1
    if row == part.row:
        check_path(part, config, path)


def _given(columns: Mapping[str, Any] | Unusable, _: RawRecord) -> Mapping[str, Any]:
    if isinstance(columns, Unusable):
        raise columns
    return columns


class _Window:
    """The bytes of a stream that are still needed, by their offset."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.base, self.data = stream, 0, bytearray()
        self._head = b""  # the beginning of a piece that is longer than what is kept

    @property
    def end(self) -> int:
        """Offset up to which the stream has been read."""
        return self.base + len(self.data)

    def more(self) -> bool:
        """Read on, and return whether there was something."""
        block = self.stream.read(_BLOCK)
        self.data += block
        return bool(block)

    def after(self, place: int) -> bytes:
        """Return what has been read after an offset, or the next block; nothing at the end of the stream."""
        if place == self.end:
            self.more()
        return bytes(self.data[place - self.base :])

    def piece(self, begin: int, stop: int) -> RawRecord:
        """Return the bytes between two offsets, of more than `RECORD_LIMIT` the first ones."""
        data = bytes(self.data[begin - self.base : stop - self.base]) if begin >= self.base else self._head
        return RawRecord(begin, data[:RECORD_LIMIT], stop - begin)

    def forget(self, needed: int, begun: int | None = None) -> None:
        """Keep what comes from an offset on, and the beginning of the piece that begins at `begun`."""
        if begun is not None and begun >= self.base:
            if needed - begun <= RECORD_LIMIT:
                needed = begun
            else:
                self._head = bytes(self.data[begun - self.base :][:RECORD_LIMIT])
        needed = max(needed, self.base)
        del self.data[: needed - self.base]
        self.base = needed

    def last(self, mark: bytes, low: int, high: int) -> int | None:
        """Return the offset of the last mark that begins at `low` or later and at `high` at the latest."""
        at = self.data.rfind(mark, max(low - self.base, 0), max(high - self.base, 0) + len(mark))
        return None if at < 0 else self.base + at

    def after_space(self, place: int, codec: str) -> int:
        """Return the offset of what comes after white space at an offset."""
        space = {"utf-16-le": rb"(?:\s\0)*", "utf-16-be": rb"(?:\0\s)*"}.get(codec, rb"\s*")
        match = re.compile(space).match(self.data, place - self.base) if place >= self.base else None
        return self.base + match.end() if match else place

    def find(self, pattern: re.Pattern[bytes], place: int, unit: int, begun: int) -> int | None:
        """Return the offset of the first match from `place` on that is a multiple of `unit`; None if there is none.

        What comes from `begun` on is kept, as by `forget`.
        """
        while True:
            for match in pattern.finditer(self.data, max(place - self.base, 0)):
                if (self.base + match.start()) % unit == 0:
                    return self.base + match.start()
            place = max(place, self.end - len(pattern.pattern))  # a match may lie on the border of two blocks
            self.forget(place, begun)
            if not self.more():
                return None


class _Reading:
    """The pieces of a file: its records, and what is broken."""

    def __init__(self, stream: BinaryIO, path: Sequence[str], encoding: str | None) -> None:
        self.path, self.encoding = path, encoding
        self.window, self.parser = _Window(stream), ElementParser(path, encoding)
        self._head = self.window.after(0)[:4]
        self._document = 0  # where the current XML document begins
        self._known = False  # whether the place of its first record is known
        self._before: bytes | None = None  # what comes before the first record of a document
        self._tags: tuple[str, ...] = tuple(path)  # names with prefixes of that record and what it lies in
        self._count = self._broken = 0

    def pieces(self) -> Iterator[_Piece]:
        """Yield the pieces in order."""
        place: int | None = 0
        while place is not None:
            block = self.window.after(place)
            place += len(block)
            try:
                self.parser.feed(block)
            except expat.ExpatError as error:
                place = yield from self._recover(error)
                continue
            yield from self._found()
            if not block:
                return
            self.window.forget(self.parser.place, self._needed())

    def _needed(self) -> int:
        """Return the offset from which on bytes may belong to a piece that is not complete."""
        if not self._known:
            return self._document
        return self.parser.stop if self.parser.begun is None else self.parser.begun

    def _found(self) -> Iterator[_Piece]:
        if self.parser.first is not None and not self._known:
            self._learn(self.parser.first, self.parser.tags)
        for begin, stop, columns in self.parser.take():
            self._count += 1
            yield self.window.piece(begin, stop), columns

    def _learn(self, first: int, tags: tuple[str, ...]) -> None:
        """Remember what comes before the first record of a document."""
        before = self.window.piece(self._document, first)
        self._before = before.data if before.size <= _BEGINNING else None
        self._known, self._tags = True, tags

    def _recover(self, error: expat.ExpatError) -> Generator[_Piece, None, int | None]:
        """Yield what is broken, and return the offset where a new parser goes on, or None at the end of the file."""
        window, parser, codec = self.window, self.parser, self._codec()
        place = max(window.end if error.code == _NO_END else parser.place, parser.start)
        end_of_tag, tag = ">".encode(codec), "<".encode(codec)
        if (end := window.last(end_of_tag, parser.start, place - 1)) is not None:
            parser.close(end + len(end_of_tag))
        yield from self._found()
        if error.code in ANOTHER_DOCUMENT and place > parser.start and self._begins_document(place, error.code, codec):
            self._document, self._known = place, False
            return self._go_on(place, b"")

        begin, search = self._broken_from(place, error.code, codec)
        if not self._known and parser.between and (name := self._tag_at(begin, codec)):
            self._learn(begin, (*parser.open, name))
        if error.code == _EXPLODES or (self._known and self._before is None) or self._broken == _MOST_BROKEN:
            raise OSError(f"not well-formed XML, after {self._count:,} records: {error}")
        if self._before is None:  # nothing tells where records are
            begin, next_ = self._document, window.find(_NOTHING, search, 1, self._document)
        else:
            next_ = window.find(self._pattern(codec), search, len(tag), begin)
        lost = window.piece(begin, window.end if next_ is None else next_)
        if next_ is None or lost.data.strip(b" \t\r\n\0"):
            yield lost, Unusable("not_xml", f"{expat.ErrorString(error.code)}, at byte {place}")
        self._broken += 1
        return None if next_ is None else self._go_on(next_, self._before or b"")

    def _broken_from(self, place: int, code: int, codec: str) -> tuple[int, int]:
        """Return where a broken piece begins, and from where on the next record is sought, for an error at a place."""
        window, parser, begun = self.window, self.parser, self.parser.begun
        if begun is not None:
            begin = begun
        elif self._known:  # since the last record all may have been misread
            begin = window.after_space(parser.stop, codec)
        else:
            begin = window.last("<".encode(codec), parser.stop, place - 1) or place
        search = place
        if code in _NESTING and not parser.nested:
            # What ends too early or never may lie far back, and all later records seem to lie in it.
            search = begin if begun is None else begin + 1
        return begin, max(search, parser.start + 1)  # so that each parser begins after the one before

    def _go_on(self, place: int, before: bytes) -> int:
        nested = self.parser.nested
        self.parser = ElementParser(self.path, self.encoding, place, before)
        self.parser.nested = nested
        self.window.forget(place)
        return place

    def _codec(self) -> str:
        """Return the encoding of the file, for searching tags in its bytes."""
        if self._head.startswith((codecs.BOM_UTF16_LE, b"<\0")):
            return "utf-16-le"
        if self._head.startswith((codecs.BOM_UTF16_BE, b"\0<")):
            return "utf-16-be"
        return self.encoding or self.parser.declared

    def _tag_at(self, place: int, codec: str) -> str | None:
        """Return the name, with its prefix, of the start tag of a document's first record, if it is at an offset."""
        text = self.window.after(place)[:_LONGEST_TAG].decode(codec, "replace")
        found = re.match(r"<([^\s/>]+)", text)
        if not found or local_name(found[1]) != self.path[-1]:
            return None
        before = self.window.piece(self._document, place).data
        return None if _tags_pattern([f"<{found[1]}"], codec).search(before) else found[1]

    def _begins_document(self, place: int, code: int, codec: str) -> bool:
        """Return whether another document of the same kind begins at an offset."""
        pattern = _tags_pattern(["<?xml", "<!DOCTYPE", f"<{self._tags[0]}"], codec)
        while self.window.end < place + len(pattern.pattern) and self.window.more():
            pass
        return code == _DECLARATION or pattern.match(self.window.data, place - self.window.base) is not None

    def _pattern(self, codec: str) -> re.Pattern[bytes]:
        """Return what a start tag of a record, or the end tag of the element around it, begins with."""
        return _tags_pattern([f"<{self._tags[-1]}", *(f"</{name}" for name in self._tags[-2:-1])], codec)


def _tags_pattern(tags: Sequence[str], codec: str) -> re.Pattern[bytes]:
    after = {"utf-16-le": rb"(?=[\s/>]\0)", "utf-16-be": rb"(?=\0[\s/>])"}.get(codec, rb"(?=[\s/>])")
    return re.compile(b"(?:" + b"|".join(re.escape(tag.encode(codec, "replace")) for tag in tags) + b")" + after)
