"""The base of the raw streams that stand between the bytes of a source file and its reader."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RawReader(io.RawIOBase):
    """A raw stream, of which a subclass returns the next bytes."""

    def take(self, size: int) -> bytes | memoryview:
        """Return at most `size` of the next bytes, and none only at the end."""
        raise NotImplementedError

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read into a buffer and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.take(len(view))
        view[: len(data)] = data
        return len(data)


class OwningReader(RawReader):
    """A raw stream that is closed together with the file below it."""

    raw: BinaryIO

    def close(self) -> None:
        """Close this stream and the file."""
        if not self.closed:
            self.raw.close()
        super().close()
