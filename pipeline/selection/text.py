"""The UTF-8 bytes of a column of documents as one array, for vectorised lookups of byte offsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class TextBytes:
    """The bytes of documents end to end. Shapes: D documents, B bytes in total."""

    data_B: NDArray[np.uint8]
    starts_D: NDArray[np.int64]
    """Offset in `data_B` at which each document begins."""

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> TextBytes:
        """Build from a string column; a large_string column in one chunk is not copied."""
        text = pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in column.chunks] or [_EMPTY])
        _, offsets, data = text.buffers()
        starts_D = np.frombuffer(offsets, dtype=np.int64)[text.offset : text.offset + len(text)] if len(text) else _NONE
        return cls(np.frombuffer(data or b"", dtype=np.uint8), starts_D)

    def inside_character(self, at: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the byte at each offset into `data_B` continues a character; False at the end of the data.

        Example:
            >>> TextBytes.of(pa.chunked_array([["né"]])).inside_character(np.array([0, 1, 2, 3])).tolist()
            [False, False, True, False]
        """
        if not len(self.data_B):
            return np.zeros(len(at), dtype=bool)
        byte = self.data_B[np.minimum(at, len(self.data_B) - 1)]
        return (at < len(self.data_B)) & (byte & 0xC0 == 0x80)


_EMPTY = pa.nulls(0, pa.large_string())
_NONE = np.zeros(0, dtype=np.int64)
