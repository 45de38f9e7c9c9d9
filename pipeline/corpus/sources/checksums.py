"""Block checksums of a source file, and a stream that verifies them while it is read."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from typing import BinaryIO

from pipeline.config.errors import UserError
from pipeline.corpus.sources.raw_reader import OwningReader, RawReader

BLOCK_BYTES = 1 << 20
"""Bytes per block."""

_DIGITS = 32
"""Hexadecimal digits of a block's hash."""


@dataclass(frozen=True)
class Checksums:
    """The content of a file: its sha256, its size, and a hash of every block of `block_bytes` bytes."""

    sha256: str
    size: int
    block_bytes: int
    blocks: str
    """Hexadecimal hashes of the blocks, concatenated."""
    first: int = 0
    """Number of the first block in `blocks`."""

    @property
    def end(self) -> int:
        """Return the bytes from the start of the file to the end of the last block in `blocks`."""
        return min(self.size, (self.first + len(self.blocks) // _DIGITS) * self.block_bytes)

    def part(self, start: int, stop: int | None) -> Checksums:
        """Return the checksums of only the blocks that hold bytes [start, stop), which is all that a slice needs."""
        first = start // self.block_bytes
        last = -(-min(self.size, stop or self.size) // self.block_bytes)
        return replace(self, blocks=self.blocks[_DIGITS * first : _DIGITS * last], first=first)


class HashingReader(RawReader):
    """A stream that is read once from start to end, and hashed meanwhile."""

    def __init__(self, raw: BinaryIO, block_bytes: int = BLOCK_BYTES) -> None:
        self.raw, self.block_bytes, self.size = raw, block_bytes, 0
        self._sha256 = hashlib.sha256()
        self._block = _block_hash()
        self._blocks: list[str] = []

    def take(self, size: int) -> bytes:
        """Read at most to the end of the current block, and hash what is read."""
        data = self.raw.read(min(size, self.block_bytes - self.size % self.block_bytes))
        self._sha256.update(data)
        self._block.update(data)
        self.size += len(data)
        if data and self.size % self.block_bytes == 0:
            self._blocks.append(self._block.hexdigest())
            self._block = _block_hash()
        return data

    def checksums(self) -> Checksums:
        """Return the checksums of what was read."""
        last = [self._block.hexdigest()] if self.size % self.block_bytes else []
        return Checksums(self._sha256.hexdigest(), self.size, self.block_bytes, "".join(self._blocks + last))


class VerifyingReader(OwningReader):
    """A seekable stream over a file that was hashed before: each block is verified before any of it is returned.

    It ends at the recorded size of the file, or with the last block whose hash is known.

    Raises:
        UserError: on reading, if a block differs from its hash, or the file is longer or shorter.
    """

    def __init__(self, raw: BinaryIO, checksums: Checksums, name: str) -> None:
        self.raw, self.of, self.name = raw, checksums, name
        self._position = 0
        self._raw_position: int | None = 0  # None: unknown, so seek before reading
        self._number, self._block = -1, b""

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it; the next read loads its block."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.of.end}[whence]
        self._position = max(0, start + offset)
        return self._position

    def take(self, size: int) -> bytes | memoryview:
        """Return bytes up to the end of the current block, after verifying it."""
        if self._position >= self.of.end:
            return b""
        number, begin = divmod(self._position, self.of.block_bytes)
        if number != self._number:
            self._load(number)
        data = memoryview(self._block)[begin : begin + size]
        self._position += len(data)
        return data

    def _load(self, number: int) -> None:
        start = number * self.of.block_bytes
        size = min(self.of.block_bytes, self.of.size - start)
        if start != self._raw_position:
            self.raw.seek(start)
        last = start + size == self.of.size
        data = _read(self.raw, size + last)  # one more byte at the end, to notice appended data
        self._raw_position = start + len(data)
        recorded = self.of.blocks[_DIGITS * (number - self.of.first) :][:_DIGITS]
        if len(data) != size or _block_hash(data).hexdigest() != recorded:
            raise UserError(
                "source changed while it was read",
                where=self.name,
                hint="run again when nothing writes to it (`touch` it if that does not help), or read a copy: --source",
            )
        self._number, self._block = number, data


def _block_hash(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=_DIGITS // 2)


def _read(raw: BinaryIO, size: int) -> bytes:
    """Return `size` bytes, fewer only at the end of the stream; `read` of a raw stream may return fewer anywhere."""
    parts = []
    while size and (part := raw.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
