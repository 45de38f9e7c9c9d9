"""Long columns on disk: written piece by piece, and grouped by bucket without any access at random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 19
"""Entries or tokens that are computed at once."""

Array = NDArray[Any]


class Growing:
    """A one-dimensional `.npy` file that is written piece by piece."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._dtype, self._length = np.dtype(dtype), 0
        self._header()

    def append(self, values: Array) -> None:
        """Write some more values."""
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._length += len(values)

    def close(self) -> Array:
        """Write the length into the header, which leaves room for it, and return all values as a memory map."""
        self._file.seek(0)
        self._header()
        self._file.close()
        return np.asarray(np.load(self.path, mmap_mode="r"))

    def _header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def chunks(values: Array) -> Iterator[Array]:
    """Yield the values in pieces of `CHUNK`."""
    return (values[begin : begin + CHUNK] for begin in range(0, len(values), CHUNK))


def new_column(path: Path, dtype: Any, *shape: int) -> Array:
    """Return a new memory map of zeros."""
    return np.asarray(np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape))


def by_bucket(bucket: Array) -> Array:
    """Return the order that groups values by bucket, at most 65,536 of them, and keeps theirs within each."""
    return np.argsort(bucket.astype(np.uint16), kind="stable")  # a radix sort


class Spread:
    """Columns that are written chunk by chunk, each grouped by bucket, and read bucket by bucket.

    A bucket lies in the files as one run per chunk, so that nothing is accessed at random, whatever their size.
    """

    def __init__(self, folder: Path, buckets: int, columns: Mapping[str, Any]) -> None:
        self.buckets = buckets
        self._files = {name: Growing(folder / f"spread-{name}.npy", dtype) for name, dtype in columns.items()}
        self._sizes = [np.zeros(1, np.int64)]
        self._columns = dict[str, Array]()

    def add(self, bucket: Array, columns: Mapping[str, Array]) -> None:
        """Write some rows, given the bucket of each."""
        order = by_bucket(bucket)
        self._sizes.append(np.bincount(bucket, minlength=self.buckets))
        for name, values in columns.items():
            self._files[name].append(values[order])

    def close(self) -> None:
        """End writing, and begin reading."""
        self._ends = np.cumsum(np.concatenate(self._sizes))
        self._columns = {name: file.close() for name, file in self._files.items()}

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._ends[-1])

    def column(self, name: str, bucket: int) -> Array:
        """Return the values of a bucket, in the order in which they were added."""
        column = self._columns[name]
        return np.concatenate([column[:0], *(column[run] for run in self._runs(bucket))])

    def write(self, into: Array, bucket: int, values: Array) -> None:
        """Write values of a bucket's rows into a column that is ordered as these are."""
        done = 0
        for run in self._runs(bucket):
            size = run.stop - run.start
            into[run] = values[done : done + size]
            done += size

    def unlink(self) -> None:
        """Delete the files."""
        for file in self._files.values():
            file.path.unlink()

    def _runs(self, bucket: int) -> list[slice]:
        first = range(bucket, len(self._ends) - 1, self.buckets)
        return [slice(int(self._ends[i]), int(self._ends[i + 1])) for i in first]
