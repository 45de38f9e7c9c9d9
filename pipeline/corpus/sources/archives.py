"""Zip and tar archives: their members, and the bytes of a member. Nothing is ever extracted under a name of theirs."""

from __future__ import annotations

import io
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from pipeline.corpus.sources.raw_reader import OwningReader, RawReader
from pipeline.corpus.sources.unpacking import check_unpacked, decompress

ARCHIVES = {
    ".zip": ("zip", None),
    ".tar": ("tar", None),
    ".tar.gz": ("tar", "gzip"),
    ".tgz": ("tar", "gzip"),
    ".tar.bz2": ("tar", "bz2"),
    ".tar.xz": ("tar", "xz"),
    ".tar.zst": ("tar", "zstd"),
}
"""(kind, compression as a whole) by the end of the name."""

MOST = 1 << 30
"""As `corpus.max_unpacked_bytes`, for a compressed tar and the members of a zip."""


class Member(NamedTuple):
    """A file in an archive: in a tar its bytes [start, start + size); `size` is unpacked."""

    name: str
    start: int
    size: int


def archive_kind(name: str) -> tuple[str, str | None] | None:
    """Return (`zip` or `tar`, compression as a whole) by an archive's name, or None if it is no archive.

    Example:
        >>> archive_kind("books.tar.gz"), archive_kind("a.zip"), archive_kind("books.gz")
        (('tar', 'gzip'), ('zip', None), None)
    """
    ends = PurePosixPath(name.lower()).suffixes
    return ARCHIVES.get("".join(ends[-2:]), ARCHIVES.get(ends[-1]) if ends else None)


def members(open_raw: Callable[[], BinaryIO], name: str, key: str) -> list[Member]:
    """Return the regular files of an archive, in its order.

    Args:
        open_raw: opens the archive's stored bytes.
        name: its name, by whose end it is read.
        key: changes when its content does.

    Raises:
        OSError: it is damaged.
    """
    kind, compression = cast(tuple[str, str | None], archive_kind(name))
    with _archive_errors():
        if kind == "zip":
            entries = _zip(_Opened(open_raw, name, key)).infolist()
            return [Member(entry.filename, 0, entry.file_size) for entry in entries if not entry.is_dir()]
        with _tar(open_raw, name, key, compression) as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            return [Member(entry.name, entry.offset_data, entry.size) for entry in tar if entry.isreg()]


_SAMPLE = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<field>[^/]+)")
_MANY_RECORDS = {"jsonl", "ndjson", "csv", "tsv", "parquet", "arrow", "orc", "feather"}


def is_web_dataset(names: Sequence[str]) -> bool:
    """Return whether the members of a tar, in its order, are samples: one name with several extensions, each time.

    Example:
        >>> is_web_dataset(["0.json", "0.txt", "1.json", "1.txt"]), is_web_dataset(["0.txt", "1.txt"])
        (True, False)
        >>> is_web_dataset(["train.csv", "train.jsonl", "test.csv", "test.jsonl"])
        False
    """
    parts = [_SAMPLE.fullmatch(name) for name in names if not name.rpartition("/")[2].startswith(".")]
    found = [(part["key"], part["field"].lower()) for part in parts if part]
    samples = [{field for _, field in group} for _, group in groupby(found, itemgetter(0))]
    if len(found) < len(parts) or len(samples) < 2 or len({key for key, _ in found}) < len(samples):
        return False
    fields = samples[0]
    return len(fields) > 1 and not fields & _MANY_RECORDS and all(sample == fields for sample in samples)


def open_member(open_raw: Callable[[], BinaryIO], name: str, key: str, member: Member) -> BinaryIO:
    """Open the bytes of a member, seekable. Arguments as in `members`.

    Raises:
        OSError: the archive is damaged, or the member is encrypted.
        UserError: it unpacks to far more than its size.
    """
    kind, compression = cast(tuple[str, str | None], archive_kind(name))
    with _archive_errors():
        if kind == "zip":
            archive = _zip(_Opened(open_raw, name, key))
            entry = archive.getinfo(member.name)
            check_unpacked(entry.file_size, entry.compress_size, MOST, f"{name}/{member.name}")
            return cast(BinaryIO, io.BufferedReader(_Unzipped(cast(zipfile.ZipExtFile, archive.open(entry)))))
        raw = _tar(open_raw, name, key, compression)
        return cast(BinaryIO, io.BufferedReader(_Window(raw, member.start, member.size)))


class _Opened:
    """How to open an archive; two are equal if it is the same one with the same content."""

    def __init__(self, open_raw: Callable[[], BinaryIO], name: str, key: str) -> None:
        self.open_raw, self.name, self.key = open_raw, name, key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opened) and (self.name, self.key) == (other.name, other.key)

    def __hash__(self) -> int:
        return hash((self.name, self.key))


@lru_cache(4)
def _zip(of: _Opened) -> zipfile.ZipFile:
    """Return an open zip archive; its list of members is read once. Threads may read members of it at the same time."""
    return zipfile.ZipFile(of.open_raw())


def _tar(open_raw: Callable[[], BinaryIO], name: str, key: str, compression: str | None) -> BinaryIO:
    """Return the bytes of an archive that is not compressed."""
    if compression is None:
        return open_raw()
    return cast(BinaryIO, io.BufferedReader(_Copy(_unpacked(_Opened(open_raw, name, key), compression))))


@lru_cache(1)
def _unpacked(of: _Opened, compression: str) -> BinaryIO:
    """Return a temporary file with the unpacked archive; without it each member would be read from the start."""
    whole = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the next one takes its place)
    with decompress(of.open_raw(), compression, of.name, MOST) as stream:
        while block := stream.read(1 << 20):
            whole.write(block)
    whole.flush()
    return cast(BinaryIO, whole)


class _Copy(RawReader):
    """A file read from a position of its own, so that several threads can share it."""

    def __init__(self, shared: BinaryIO) -> None:
        self.shared, self.position = shared, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = os.fstat(self.shared.fileno()).st_size if whence == io.SEEK_END else 0
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: end}[whence]
        return self.position

    def take(self, size: int) -> bytes:
        data = os.pread(self.shared.fileno(), size, self.position)
        self.position += len(data)
        return data


class _Window(OwningReader):
    """The bytes [start, start + size) of a file."""

    def __init__(self, raw: BinaryIO, start: int, size: int) -> None:
        self.raw, self.start, self.size = raw, start, size
        raw.seek(start)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.size}[whence]
        return self.raw.seek(self.start + place) - self.start

    def tell(self) -> int:
        return self.raw.tell() - self.start

    def take(self, size: int) -> bytes:
        left = self.size - self.tell()
        data = self.raw.read(min(size, left)) if left > 0 else b""
        if left > 0 and size and not data:
            raise OSError("truncated tar archive")
        return data


class _Unzipped(RawReader):
    """A member of a zip archive, whose errors of reading are `OSError`s like those of all other streams."""

    def __init__(self, stream: zipfile.ZipExtFile) -> None:
        self.stream = stream

    def seekable(self) -> bool:
        return self.stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _archive_errors():
            return self.stream.seek(offset, whence)

    def take(self, size: int) -> bytes:
        with _archive_errors():
            return self.stream.read(size)


@contextmanager
def _archive_errors() -> Iterator[None]:
    """Convert the errors of archives into `OSError`."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError, EOFError, KeyError) as error:
        raise OSError(f"archive: {error}") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma", "_lzma"):
            raise OSError(f"archive: {error}") from error
        raise
