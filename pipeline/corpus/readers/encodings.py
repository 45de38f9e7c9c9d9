"""Text in other encodings than UTF-8, read as UTF-8 with the way back to the bytes of the source.

Readers split and parse UTF-8 alone. A file in another encoding is decoded block by block, and each block is encoded
again: only where that gives the same bytes can the offset and the bytes of a record be told afterwards. Bytes that the
encoding does not have become surrogates, which no record may contain, so that they go to quarantine like bytes that
are not UTF-8.
"""

from __future__ import annotations

import codecs
import io
from collections import deque
from typing import BinaryIO, NamedTuple, cast

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.readers.record_splitter import RECORD_LIMIT, RawRecord
from pipeline.corpus.sources.opening import SourceFile, open_file
from pipeline.corpus.sources.raw_reader import OwningReader

BLOCK = 1 << 16
_KEPT = RECORD_LIMIT + (8 << 20)
"""Bytes of the decoded text that are kept, to find the place of a record's start when its end is read."""

_MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
"""Byte order marks."""


class DecodedFile:
    """The unpacked bytes of a source file as UTF-8, without a byte order mark: `stream` is what readers read."""

    def __init__(self, file: SourceFile, config: CorpusConfig, *, inside: bool = False) -> None:
        """Open a file; `inside` if reading begins after its start, so that there is no byte order mark to look for."""
        raw = open_file(file, config.max_unpacked_bytes)
        encoding, mark = "utf-8", 0
        try:
            if not inside:
                encoding, mark = _encoding_of(cast(io.BufferedReader, raw), file, config.encoding)
        except BaseException:
            raw.close()
            raise
        raw.read(mark)
        self.start = mark
        """Bytes of the byte order mark, where the text begins."""
        self.stream: BinaryIO = raw
        self._decoding: _Decoding | None = None
        if encoding != "utf-8":
            self._decoding = _Decoding(raw, encoding, file.name, mark)
            self.stream = cast(BinaryIO, io.BufferedReader(self._decoding, 1 << 20))
            self.start = 0

    def origin(self, piece: RawRecord) -> RawRecord:
        """Return the offset and the bytes of a piece in the source. Pieces must be given in order."""
        return piece if self._decoding is None else self._decoding.origin(piece)

    def __enter__(self) -> DecodedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()


class _Block(NamedTuple):
    """Decoded text: where it begins in the stream of UTF-8 and in the source."""

    offset: int
    source: int
    data: bytes


class _Decoding(OwningReader):
    """A stream of UTF-8 from one of another encoding."""

    def __init__(self, raw: BinaryIO, encoding: str, name: str, start: int) -> None:
        self.raw, self.encoding, self.name = raw, encoding, name
        self.errors = "surrogatepass" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder(encoding)(self.errors)
        self._blocks: deque[_Block] = deque()
        self._kept = 0
        self._end = (0, start)  # of the last block, in the stream and in the source
        self._told = (0, start)  # the last place that `origin` gave
        self._rest = b""
        self._pending = b""  # bytes of the source that are not decoded yet

    def take(self, size: int) -> bytes:
        while not self._rest:
            packed = self.raw.read(BLOCK)
            self._pending += packed
            try:
                text = self._decoder.decode(packed, final=not packed)
            except UnicodeDecodeError as error:
                raise OSError(f"not {self.encoding}: {error.reason}, near byte {self._end[1] + error.start}") from error
            self._add(text)
            if not packed:
                break
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _add(self, text: str) -> None:
        back = text.encode(self.encoding, self.errors)
        if not self._pending.startswith(back):
            raise UserError(
                f"{self.encoding} has two forms of a character, so that records could not be traced to their bytes",
                where=f"{self.name}, near byte {self._end[1]}",
                hint=f"convert it: iconv -f {self.encoding} -t UTF-8, and leave out corpus.encoding",
            )
        self._pending = self._pending[len(back) :]
        self._rest = text.encode("utf-8", "surrogatepass")
        self._blocks.append(_Block(*self._end, self._rest))
        self._end = (self._end[0] + len(self._rest), self._end[1] + len(back))
        self._kept += len(self._rest)
        while self._kept > _KEPT:
            self._kept -= len(self._blocks.popleft().data)

    def origin(self, piece: RawRecord) -> RawRecord:
        start = self._source_offset(piece.offset)
        # The end as well, so that a record which is too long to be kept still begins where the one before it ended.
        self._source_offset(piece.offset + piece.size)
        text = piece.data.decode("utf-8", "surrogatepass" if piece.size == len(piece.data) else "ignore")
        data = text.encode(self.encoding, self.errors)
        return RawRecord(start, data, len(data))

    def _source_offset(self, offset: int) -> int:
        """Return the place in the source of one in the stream; earlier blocks are forgotten."""
        while self._blocks and self._blocks[0].offset + len(self._blocks[0].data) <= offset:
            self._kept -= len(self._blocks.popleft().data)
        if self._blocks and self._blocks[0].offset <= offset:
            block = self._blocks[0]
            text = block.data[: offset - block.offset].decode("utf-8", "surrogatepass")
            self._told = (offset, block.source + len(text.encode(self.encoding, self.errors)))
        elif not self._blocks and offset == self._end[0]:
            self._told = self._end
        return self._told[1]


def _encoding_of(raw: io.BufferedReader, file: SourceFile, encoding: str) -> tuple[str, int]:
    """Return the encoding of a file, with its byte order, and the size of its byte order mark.

    Raises:
        UserError: a byte order mark or zero bytes contradict `encoding`, or UTF-16 has no byte order.
    """
    head, name = raw.peek(4096)[:4096], codecs.lookup(encoding).name.removesuffix("-sig")
    if found := next((about for mark, about in _BINARY.items() if head.startswith(mark)), None):
        what = f"the file is {found[0]}, by its first bytes, and would be read as {file.format}"
        hint = f"let its name end in {found[1]}, or leave it out by corpus.exclude"
        raise UserError(what, where=file.name, hint=hint)
    # UTF-32 first: its mark of little-endian begins with that of UTF-16.
    marked = next((known for known in reversed(_MARKS) if head.startswith(_MARKS[known])), None)
    if name in ("utf-16", "utf-32"):
        if marked is None or not marked.startswith(name):
            looks = _looks_like(head)
            hint = f"corpus.encoding: {name}-le or {name}-be" + (f"; it looks like {looks}" if looks else "")
            raise UserError(f"{name} without a byte order mark", where=file.name, hint=f"write {hint}")
        return marked, len(_MARKS[marked])
    if name == "utf-8":
        if marked not in (None, "utf-8"):
            raise UserError(f"the file is {marked}, by its first bytes", where=file.name, hint=_SET.format(marked[:6]))
        if marked is None and (looks := _looks_like(head)):
            raise UserError(f"the file looks like {looks}", where=file.name, hint=_SET.format(looks))
    return name, len(_MARKS[name]) if marked == name else 0


_BINARY = {
    b"\x1f\x8b": ("gzip", ".gz"),
    b"PK\x03\x04": ("zip", ".zip"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst"),
    b"BZh91AY&SY": ("bz2", ".bz2"),
    b"\xfd7zXZ\0": ("xz", ".xz"),
    b"PAR1\x15": ("Parquet", ".parquet"),
    b"ARROW1\0\0": ("Arrow", ".arrow"),
}
"""Formats and the ends of their names, by the bytes with which a file begins. No text begins so."""

_SET = "set corpus.encoding: {}"


def _looks_like(head: bytes) -> str | None:
    """Return the form of UTF-16 that zero bytes at every other place suggest: mostly of ASCII characters."""
    pairs = len(head) // 2
    low, high = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if pairs >= 8 and 2 * max(low, high) > pairs and 10 * min(low, high) < pairs:
        return "utf-16-le" if high > low else "utf-16-be"
    return None
