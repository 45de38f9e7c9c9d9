"""Sources: the files of a corpus and their bytes, from paths, globs, folders, the Hub and fsspec URLs."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

import fsspec
import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.core.hub import file_of, list_repository
from pipeline.core.progress import log
from pipeline.corpus.checksums import Checksums, VerifyingReader
from pipeline.corpus.splits import Layout, choose, layout_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
METADATA_BYTES = 4 << 20
"""Bytes of a metadata file that are read."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BOOKKEEPING = {
    "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "README.md", "LICENSE.md", "LICENSE.txt",
}  # fmt: skip
"""Files in a dataset's folder that describe the dataset and have no records."""

HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.*))?")
_MAGIC = re.compile(r"[*?\[]")


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
    checksums: Checksums | None = None
    """Checksums of the first scan; later reads refuse other content."""


def chosen_files(config: CorpusConfig, source: str) -> list[SourceFile]:
    """Return the files of one source that belong to the configuration and splits to read, and log which those are.

    Args:
        config: the configuration of this source.
        source: where it is.

    Raises:
        UserError: as in `find_files` and `choose`.
    """
    files, listing = _find(source, config.format, config.revision)
    choice = choose(
        [file.name for file in files],
        listing.layout,
        source,
        asked=listing.asked,
        splits=config.splits,
        configuration=config.configuration,
        held_out=config.validation.split,
    )
    for line in choice.lines():
        log(line)
    return [replace(file, held_out=file.name in choice.held_out) for file in files if file.name in choice.parts]


def find_files(source: str, format: str = "auto", revision: str | None = None) -> list[SourceFile]:
    """Return all files of a source, of whatever split, sorted by name.

    Args:
        source: path, glob, folder, `hf://datasets/owner/name[@revision][/path]` or fsspec URL. In a folder (or a Hub
            dataset), files with a known extension are taken, hidden ones are not.
        format: one of `FORMATS`' values, or `auto` to go by each file's name.
        revision: revision of the Hub dataset, if `source` does not give one.

    Raises:
        UserError: there are no files, an extension is unknown, or a file system cannot be reached.
    """
    return _find(source, format, revision)[0]


class Listing(NamedTuple):
    """The names of a source's files."""

    root: str
    names: Sequence[str]
    """Paths below `root`."""
    is_folder: bool
    """Whether a folder was listed, so that files without records may be among them."""
    asked: str = ""
    """The part of the source that names files: of a glob, what follows its last fixed folder; on the Hub, the path."""
    layout: Layout = Layout()


def _find(source: str, format: str, revision: str | None) -> tuple[list[SourceFile], Listing]:
    listing = list_source(source, revision)
    root, names, listed = listing[:3]
    files, ignored = [], []
    for found in sorted(names):
        name = _without_query(found) if root.startswith("http") else found
        kind, compression = kind_of(name)
        if listed and (kind is None or (format != "auto" and kind != format) or is_bookkeeping(name, names)):
            ignored.append(name)
            continue
        if format == "auto" and kind is None:
            known = ", ".join(FORMATS)
            raise UserError(
                "cannot infer the format from the file extension",
                where=name,
                hint=f"known: {known} (and .gz, .zst), or set corpus.format",
            )
        if name != _printable(name):
            raise UserError("the name of a file is not UTF-8", where=_printable(name), hint="rename it")
        files.append(SourceFile(name, f"{root}/{found}", cast(str, kind) if format == "auto" else format, compression))
    if not files:
        what = f"no {'data' if format == 'auto' else format} files in the source"
        looked_for = ", ".join(suffix for suffix, kind in FORMATS.items() if format in ("auto", kind))
        raise UserError(what, where=source, hint=f"extensions looked for: {looked_for} (and .gz, .zst)")
    if ignored:
        more = f" and {len(ignored) - 5} more" if len(ignored) > 5 else ""
        log(f"source       skipped (unrecognised file names): {', '.join(map(_printable, ignored[:5]))}{more}")
    return files, listing


def _without_query(path: str) -> str:
    """Return a path without its query, which may be a signature and must not get into tables."""
    return path.partition("?")[0]


def kind_of(name: str) -> tuple[str | None, str | None]:
    """Return (format, compression) by a file's name, with None for an unknown one.

    Example:
        >>> kind_of("part-1.jsonl.gz"), kind_of("notes.docx")
        (('jsonl', 'gzip'), (None, None))
    """
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    return FORMATS.get(path.with_suffix("").suffix if compression else path.suffix), compression


def _printable(name: str) -> str:
    """Return a name that can be printed and stored: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_bookkeeping(name: str, names: Sequence[str]) -> bool:
    """Return whether a file of a folder with these names is hidden or describes the data set."""
    path = PurePosixPath(name)
    if path.name == "state.json" and str(path.with_name("dataset_info.json")) in names:
        return True  # of a folder that `save_to_disk` wrote
    return path.name in _BOOKKEEPING or any(part.startswith((".", "_")) for part in path.parts)


def list_source(source: str, revision: str | None = None) -> Listing:
    """Return the names of all files of a path, a folder, a glob, a Hub dataset or an fsspec URL.

    Raises:
        UserError: it cannot be listed.
    """
    return _list_hub(source, revision) if source.startswith("hf://") else _list(source)


def _list(source: str) -> Listing:
    if source.startswith("data:"):
        raise UserError("a data: URL cannot be a source", where=source[:80], hint="write its content to a file")
    with source_errors(source):
        try:
            fs, path = url_to_fs(source)
            return _list_with(fs, path.rstrip("/"), source)
        except (UserError, OSError, ImportError):
            raise
        except ValueError as error:
            raise UserError("unknown kind of source", where=source, hint=_first_line(error)) from error
        except Exception as error:  # fsspec's file systems pass on their libraries' errors
            what = f"{type(error).__name__}: {_first_line(error)}"
            raise UserError("source cannot be listed", where=source, hint=what) from error


def _list_with(fs: AbstractFileSystem, path: str, source: str) -> Listing:
    kind = _kind(fs, path)
    hidden: tuple[str, ...] = ()
    if kind == "directory":
        root, paths = path, fs.find(path)
        steps, hidden = ["**"], (".", "_")
    elif kind is not None:
        root, paths = path.rpartition("/")[0], [path]
        steps = []
    elif magic := _MAGIC.search(path):
        root, paths = path[: magic.start()].rpartition("/")[0], fs.glob(path)
        paths = [found for found in paths if _kind(fs, found) != "directory"]
        steps = path.removeprefix(root).strip("/").split("/")
        steps = steps if steps[-1] == "**" else steps[:-1]
    else:
        raise FileNotFoundError(source)
    if isinstance(fs, LocalFileSystem) and kind != "file":
        _check_listable(root or "/", steps, hidden)
    if not paths and kind is None:
        raise UserError("the glob matches no file", where=source, hint="check corpus.source")
    names = [str(found).removeprefix(root).lstrip("/") for found in paths]
    layout = _layout(names, lambda name: fs.open(f"{root}/{name}", "rb")) if kind == "directory" else Layout()
    asked = "" if kind == "directory" else path.removeprefix(root).strip("/")
    return Listing(fs.unstrip_protocol(root), names, kind == "directory", asked, layout)


def _layout(names: Sequence[str], open_: Callable[[str], BinaryIO]) -> Layout:
    """Return the layout that the metadata of a data set describe, if it has some."""
    texts = []
    for name in ("README.md", "dataset_dict.json", "dataset_infos.json"):
        text = b""
        if name in names:
            with open_(name) as file:
                text = file.read(METADATA_BYTES)
        texts.append(text.decode(errors="replace"))
    return layout_of(*texts)


def _check_listable(folder: str, steps: Sequence[str], hidden: tuple[str, ...]) -> None:
    """Refuse folders without permission to list them, because fsspec skips them silently.

    Args:
        folder: the folder to check.
        steps: patterns of the folders below it that are searched; `**` is all.
        hidden: prefixes of the names of folders that are not searched.

    Raises:
        UserError: one cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return  # no files to find
    except PermissionError as error:
        hint = "change its permissions, or name the files with a glob"
        raise UserError("a folder of the source cannot be listed", where=_printable(folder), hint=hint) from error
    for entry in folders if steps else ():
        if entry.name.startswith(hidden):
            continue
        if steps[0] == "**":
            _check_listable(entry.path, steps, hidden)
        elif fnmatchcase(entry.name, steps[0]):
            _check_listable(entry.path, steps[1:], hidden)


def _kind(fs: AbstractFileSystem, path: str) -> str | None:
    """Return "file", "directory" or None, by `info`: `isdir` would download a file over HTTP to look for links."""
    try:
        return str(fs.info(path)["type"])
    except FileNotFoundError:
        return None


def _list_hub(source: str, revision: str | None) -> Listing:
    """Return the files of a Hub dataset, pinned to the commit that the revision means."""
    match = HUB.fullmatch(source.rstrip("/"))
    if match is None:
        raise UserError("not a dataset on the Hub", where=source, hint="write hf://datasets/owner/name[/path]")
    repo, path = match["repo"], match["path"]
    commit, found = list_repository(repo, "dataset", match["revision"] or revision)
    layout = _layout(found, lambda name: file_of(repo, "dataset", commit, name).open("rb"))
    if path:
        found = [name for name in found if fnmatchcase(name, path) or name.startswith(f"{path}/")]
    listed = not path or (path not in found and not _MAGIC.search(path))
    return Listing(f"hf://datasets/{repo}@{commit}", found, listed, path or "", layout)


def open_raw(file: SourceFile) -> BinaryIO:
    """Open a file's stored bytes, seekable; they are verified while they are read if its checksums are known."""
    raw = _open(file)
    if file.checksums is None:
        return raw
    return cast(BinaryIO, io.BufferedReader(VerifyingReader(raw, file.checksums, file.name), 1 << 16))


def _open(file: SourceFile) -> BinaryIO:
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


def open_file(file: SourceFile, max_unpacked_bytes: int) -> BinaryIO:
    """Open a file's bytes, decompressed and buffered. A truncated or damaged stream raises OSError on reading."""
    return decompressed(open_raw(file), file, max_unpacked_bytes)


def decompressed(raw: BinaryIO, file: SourceFile, max_unpacked_bytes: int) -> BinaryIO:
    """Return `raw` decompressed, by Arrow, which notices truncation (zstandard's own reader ends silently)."""
    stream = raw if file.compression is None else _Unpacking(raw, file, max_unpacked_bytes)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20))


class _Unpacking(io.RawIOBase):
    """A decompressing stream that counts its bytes, because a small file may be crafted to unpack without end."""

    def __init__(self, raw: BinaryIO, file: SourceFile, most: int) -> None:
        self.raw, self.name, self.most = raw, file.name, most
        self.stream = pa.CompressedInputStream(pa.PythonFile(raw), file.compression)
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count: int = self.stream.readinto(buffer)
        self.size += count
        if self.size > self.most:
            check_unpacked(self.size, self.raw.tell(), self.most, self.name)
        return count

    def close(self) -> None:
        if not self.closed:
            self.stream.close()
            self.raw.close()
        super().close()


EXPANSION = 100
"""Largest ratio of unpacked to packed size for files that unpack to more than `corpus.max_unpacked_bytes`.

Text has about 10, logs about 50, and files crafted to fill memory or disk have thousands.
"""


def check_unpacked(unpacked: int, packed: int, most: int, name: str) -> None:
    """Refuse content that unpacks to more than `most` bytes and to more than 100 times its packed size."""
    if unpacked > max(most, EXPANSION * packed):
        raise UserError(
            f"{packed:,} bytes unpack to {unpacked:,} or more",
            where=name,
            hint=f"it may be crafted to fill memory or disk; if not, raise corpus.max_unpacked_bytes ({most:,})",
        )


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
        hint = LONG_WINDOW if "too much memory for decoding" in str(error) else _first_line(error)
        raise UserError("source cannot be read", where=where, hint=hint) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
