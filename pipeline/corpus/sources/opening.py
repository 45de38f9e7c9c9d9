"""Files of a source, and how their bytes are opened."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, cast

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from pipeline.config.errors import UserError, first_line
from pipeline.core.hub import file_of
from pipeline.corpus.sources.archives import Member, open_member
from pipeline.corpus.sources.checksums import Checksums, VerifyingReader
from pipeline.corpus.sources.unpacking import COMPRESSIONS, decompress

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".xml": "xml",
    ".orc": "orc",
    ".feather": "feather",
}
HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.*))?")


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus; `name`, relative to the source's root, goes into the tables, `url` does not."""

    name: str
    url: str
    format: str
    compression: str | None
    corpus: str = ""
    """Name of its source in `corpus.sources`, if there are several."""
    held_out: bool = False
    """Whether it belongs to the split that `corpus.validation.split` holds out."""
    builder: str = ""
    """Builder of `datasets` that reads it (format `dataset` only)."""
    streamed: bool = False
    """Whether that reads it from afar, without a copy on this machine."""
    rows: tuple[tuple[int, int], ...] | None = None
    """Ranges [start, stop) of the rows that are read of it, if not all are (format `dataset` only)."""
    checksums: Checksums | None = None
    """Checksums of the first scan; later reads refuse other content."""
    member: Member | None = None
    """In the archive at `url`."""


def kind_of(name: str) -> tuple[str | None, str | None]:
    """Return (format, compression) by a file's name, with None for an unknown one.

    Example:
        >>> kind_of("part-1.jsonl.gz"), kind_of("notes.docx")
        (('jsonl', 'gzip'), (None, None))
    """
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    return FORMATS.get(path.with_suffix("").suffix if compression else path.suffix), compression


def open_raw(file: SourceFile) -> BinaryIO:
    """Open a file's stored bytes, seekable; they are verified while they are read if its checksums are known."""
    raw = _open(file)
    if file.checksums is None:
        return raw
    return cast(BinaryIO, io.BufferedReader(VerifyingReader(raw, file.checksums, file.name), 1 << 16))


def _open(file: SourceFile) -> BinaryIO:
    if file.member:
        archive = replace(file, name=file.name.removesuffix(f"/{file.member.name}"), member=None)
        return open_member(partial(_open, archive), archive.name, content_key(archive), file.member)
    if file.url.startswith("file://"):
        path = file.url.removeprefix("file://")
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(
                "not a regular file, so it cannot be read twice", where=file.name, hint="write its content to a file"
            )
        return open(path, "rb")
    if match := HUB.fullmatch(file.url):
        return open(file_of(match["repo"], "dataset", match["revision"], match["path"]), "rb")
    return cast(BinaryIO, fsspec.open(file.url, "rb").open())


def content_key(file: SourceFile) -> str:
    """Return a string that changes when the stored file does, as far as its file system tells."""
    if HUB.fullmatch(file.url):
        return file.url  # pinned to a commit
    fs, path = url_to_fs(file.url)
    return str(fs.ukey(path))


def open_file(file: SourceFile, max_unpacked_bytes: int) -> BinaryIO:
    """Open a file's bytes, decompressed and buffered. A truncated or damaged stream raises OSError on reading."""
    return decompress(open_raw(file), file.compression, file.name, max_unpacked_bytes)


LONG_WINDOW = "its zstd window is over 128 MiB (`zstd --long`): compress it again without, `zstd -d --long=31` reads it"


@contextmanager
def source_errors(where: str) -> Iterator[None]:
    """Convert errors of file systems and damaged files into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("source file not found", where=where, hint="check corpus.source or --source") from error
    except ImportError as error:
        raise UserError("a package for this kind of source is missing", where=where, hint=str(error)) from error
    except (OSError, EOFError, pa.ArrowException) as error:
        hint = LONG_WINDOW if "too much memory for decoding" in str(error) else first_line(error)
        raise UserError("source cannot be read", where=where, hint=hint) from error


def printable(name: str) -> str:
    """Return a name that can be printed and stored: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
