"""Compressed streams, unpacked within bounds."""

from __future__ import annotations

import io
import lzma
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

from pipeline.config.errors import UserError
from pipeline.corpus.sources.raw_reader import OwningReader

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
"""Compression by the last extension of a file's name."""

EXPANSION = 100
"""Largest ratio of unpacked to packed size for files that unpack to more than `corpus.max_unpacked_bytes`.

Text has about 10, logs about 50, and files crafted to fill memory or disk have thousands.
"""

XZ_MEMORY = 128 << 20
"""Bytes that the dictionary of an xz file may take; `xz -9` needs 65 MiB."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def decompress(raw: BinaryIO, compression: str | None, name: str, most: int) -> BinaryIO:
    """Return a stream unpacked and buffered; one that is truncated or damaged raises OSError on reading.

    Args:
        raw: the packed bytes. Closed with the result.
        compression: one of `COMPRESSIONS`' values, or None.
        name: name of the file, for messages.
        most: bytes it may unpack to; more are refused beyond 100 times its packed size, on reading.
    """
    stream = raw if compression is None else _Unpacking(raw, compression, name, most)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20))


class _Unpacking(OwningReader):
    """A decompressing stream that counts its bytes, because a small file may be crafted to unpack without end."""

    def __init__(self, raw: BinaryIO, compression: str, name: str, most: int) -> None:
        self.raw, self.name, self.most = raw, name, most
        # Arrow notices truncation, where zstandard's own reader ends silently. It has no xz.
        self.stream: _Readable = (
            _Xz(raw) if compression == "xz" else pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression)
        )
        self.size = 0

    def take(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.size += len(data)
        if self.size > self.most:
            check_unpacked(self.size, self.raw.tell(), self.most, self.name)
        return data


class _Xz:
    """The unpacked bytes of an xz file: `lzma.LZMAFile` with a limit of memory."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw = raw
        self.packed = raw.read(1 << 16)
        self.stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY) if self.packed else None

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and none only at the end."""
        data = b""
        while self.stream and not data:
            if self.stream.needs_input and not self.packed:
                self.packed = self.raw.read(1 << 16)
                if not self.packed:
                    raise OSError("truncated xz stream")
            try:
                data, self.packed = self.stream.decompress(self.packed, size), b""
            except lzma.LZMAError as error:
                raise OSError(f"xz: {error}") from error
            if self.stream.eof:
                self._next_stream(self.stream.unused_data)
        return data

    def _next_stream(self, packed: bytes) -> None:
        """Begin the stream after the current one, if there is one; zeros may stand between them."""
        while not (packed := packed.lstrip(b"\0")):
            if not (packed := self.raw.read(1 << 16)):
                self.stream = None
                return
        self.packed, self.stream = packed, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)


def check_unpacked(unpacked: int, packed: int, most: int, name: str) -> None:
    """Refuse content that unpacks to more than `most` bytes and to more than 100 times its packed size."""
    if unpacked > max(most, EXPANSION * packed):
        raise UserError(
            f"{packed:,} bytes unpack to {unpacked:,} or more",
            where=name,
            hint=f"it may be crafted to fill memory or disk; if not, raise corpus.max_unpacked_bytes ({most:,})",
        )
