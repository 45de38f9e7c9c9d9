"""The structure of a JSON file that is one object, read as a stream: its keys, its lists, and the way into one."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

from pipeline.corpus.readers.record_splitter import RECORD_LIMIT, RawRecord

_OUTSIDE = re.compile(rb'["\[\]{}:]')
_INSIDE = re.compile(rb'["\\]')
_KEY = 4096
"""Bytes of a string that are kept; a longer one is no key that anybody names."""
_MOST = 10_000
"""Keys and lists that are remembered."""


@dataclass
class Structure:
    """What an object holds."""

    keys: set[str] = field(default_factory=set)
    """Its own keys."""
    lists: dict[str, bool] = field(default_factory=dict)
    """Dotted paths of the lists in it and in objects inside it → whether the first element is an object."""
    several: bool = False
    """Whether anything comes after it."""


class _Marks:
    """The brackets, colons and strings of a JSON stream with their offsets, and what has not been read yet."""

    def __init__(self, stream: BinaryIO, base: int) -> None:
        self.stream, self.block, self.base, self.position = stream, b"", base, 0

    def __iter__(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield (mark, offset, text): for a string the mark is its first quote and `text` what stands in it."""
        while True:
            match = _OUTSIDE.search(self.block, self.position)
            if match is None:
                if not self._next_block():
                    return
                continue
            self.position = match.end()
            offset = self.base + match.start()
            yield match[0], offset, self._string() if match[0] == b'"' else b""

    def _next_block(self) -> bool:
        self.base += len(self.block)
        self.block, self.position = self.stream.read(1 << 20), 0
        return bool(self.block)

    def _string(self) -> bytes:
        """Return the string whose first quote was just read, as it is written."""
        text, begin = bytearray(), self.position
        while True:
            match = _INSIDE.search(self.block, self.position)
            if match is not None and match[0] == b'"':
                text += self.block[begin : match.start()][: _KEY - len(text)]
                self.position = match.end()
                return bytes(text)
            skip = 2 if match is not None else 0
            until = match.start() if match is not None else len(self.block)
            self.position = until + skip
            while self.position >= len(self.block):
                text += self.block[begin:][: max(0, _KEY - len(text))]
                over = self.position - len(self.block)
                if not self._next_block():
                    raise OSError("a string of the JSON object is not closed")
                begin, self.position = 0, over

    def rest(self, offset: int) -> BinaryIO:
        """Return the stream from an offset of the last block on."""
        head = self.block[offset - self.base :]
        return cast(BinaryIO, _Joined(head, self.stream))


class _Joined(io.RawIOBase):
    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self.head, self.stream = head, stream

    def read(self, size: int = -1) -> bytes:
        head, self.head = self.head, b""
        return head or self.stream.read(size)


class _Event(NamedTuple):
    kind: str
    """`key` of the outermost object, `list` where one begins, or `objects` where its first element is an object."""
    path: str
    offset: int


def _walk(marks: _Marks) -> Iterator[_Event]:
    """Yield what there is in the first value, by way of objects only, and end where the value does."""
    keys: list[str] = []  # of the open objects
    inside, last = 0, b""  # brackets that are open in a list; the last string, or `[` where a list has just begun
    for mark, offset, text in marks:
        if inside:
            if last == b"[" and mark == b"{":
                yield _Event("objects", ".".join(keys), offset)
            last = b""
            inside += mark in (b"[", b"{")
            inside -= mark in (b"]", b"}")
        elif mark == b'"':
            last = text
        elif mark == b":":
            keys[-1:] = [_key(last)]
            if len(keys) == 1:
                yield _Event("key", keys[0], offset)
        elif mark == b"{":
            keys.append("")
        elif mark == b"[":
            yield _Event("list", ".".join(keys), offset)
            inside, last = 1, mark
        else:
            keys[-1:] = []
            if not keys:
                return
    raise OSError("the JSON object is truncated, or has brackets or quotes that do not match")


def _key(raw: bytes) -> str:
    try:
        return str(json.loads(b'"' + raw + b'"', strict=False))
    except ValueError:
        return raw.decode("utf-8", "replace")


def survey(stream: BinaryIO) -> Structure:
    """Return what the JSON object at the start of a stream holds, with no more of it in memory than its keys.

    Raises:
        OSError: it is truncated, or its brackets do not match.
    """
    about, marks = Structure(), _Marks(stream, 0)
    for kind, path, _ in _walk(marks):
        if kind == "key" and len(about.keys) < _MOST:
            about.keys.add(path)
        elif kind == "objects" or (kind == "list" and len(about.lists) < _MOST):
            about.lists[path] = kind == "objects"
    rest = marks.block[marks.position :].strip()
    while not rest and (block := stream.read(1 << 20)):
        rest = block.strip()
    about.several = bool(rest)
    return about


def list_at(stream: BinaryIO, start: int, path: str) -> tuple[BinaryIO, int]:
    """Return the stream from the bracket of the list at a path on, and its offset, where the stream is at `start`.

    Raises:
        OSError: there is no such list.
    """
    marks = _Marks(stream, start)
    for kind, found, offset in _walk(marks):
        if kind == "list" and found == path:
            return marks.rest(offset), offset
    raise OSError(f"no list at {path}")


def values(stream: BinaryIO, start: int, limit: int = RECORD_LIMIT) -> Iterator[RawRecord]:
    """Yield JSON objects that stand one after the other, each over as many lines as it likes.

    Raises:
        OSError: the last one is truncated, or brackets do not match.
    """
    depth, begin, size = 0, start, 0
    data = bytearray()
    quoted, escaped, base = False, False, start
    for block in iter(lambda: stream.read(1 << 20), b""):
        position = at = 0
        if escaped:
            position, escaped = 1, False
        while match := (_INSIDE if quoted else _OUTSIDE).search(block, position):
            position, mark = match.end(), match[0]
            if quoted and mark == b"\\":
                escaped = position == len(block)
                position += 1
            elif mark == b'"':
                quoted = not quoted
            elif mark in b"[{":
                if not depth:
                    _check_between(block[at : match.start()])
                    at, begin = match.start(), base + match.start()
                depth += 1
            elif mark in b"]}" and depth:
                depth -= 1
                if depth == 0:
                    size += position - at
                    data += block[at:position][: limit - len(data)]
                    yield RawRecord(begin, bytes(data), size)
                    data, size, at = bytearray(), 0, position
        if depth:
            size += len(block) - at
            data += block[at:][: limit - len(data)]
        else:
            _check_between(block[at:])
        base += len(block)
    if depth:
        raise OSError("the JSON object is truncated, or has brackets or quotes that do not match")


def _check_between(text: bytes) -> None:
    if text.strip(b" \t\r\n,\x1e"):
        raise OSError(f"{text.strip()[:40]!r} stands outside of the JSON objects")
