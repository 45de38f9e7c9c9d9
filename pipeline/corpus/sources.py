"""Sources: which files a corpus is, and their bytes. Local paths, globs, folders, the hub, and any fsspec URL."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, cast

import fsspec
import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.core.progress import log
from pipeline.corpus.checksums import Checksums, VerifyingReader

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BOOKKEEPING = {"dataset_infos.json", "dataset_info.json", "README.md", "LICENSE.md", "LICENSE.txt"}
"""Files of a data set's folder that describe it, and are no part of it."""

_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<path>.*))?")
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """A file of the corpus: `name` is relative to the source's root and goes into the tables, `url` does not."""

    name: str
    url: str
    format: str
    compression: str | None
    corpus: str = ""
    """Name of the one of `corpus.sources` that it belongs to, if there are several."""
    checksums: Checksums | None = None
    """Of what it held when it was surveyed: nothing else is read from then on."""


def corpus_files(config: CorpusConfig, source: str | None = None) -> list[SourceFile]:
    """The files of a corpus, sorted by name; those of several sources one after the other, with the source's name
    before theirs.

    Args:
        config: the manifest's.
        source: read this instead of `corpus.source`.

    Raises:
        UserError: as `find_files`, or one place is given for several sources.
    """
    if not config.sources:
        return find_files(source or config.source, config.format, config.revision)
    if source is not None:
        names = ", ".join(part.name for part in config.sources)
        raise UserError("--source is for a manifest with one source", where=source, hint=f"this one has {names}")
    return [
        replace(file, name=f"{part.name}/{file.name}", corpus=part.name)
        for part in config.sources
        for file in find_files(part.source, part.format, part.revision)
    ]


def find_files(source: str, format: str = "auto", revision: str | None = None) -> list[SourceFile]:
    """The files of a source, sorted by name.

    Args:
        source: path, glob, folder, `hf://datasets/owner/name[@revision][/path]` or fsspec URL. Of a folder (or a hub
            data set), the files with a known extension are taken, and hidden ones left out.
        format: one of `FORMATS`' values, or `auto` to go by each file's name.
        revision: of the hub data set, if `source` does not give one.

    Raises:
        UserError: nothing there, an extension that says no format, or a file system that cannot be reached.
    """
    root, names, listed = _list_hub(source, revision) if source.startswith("hf://") else _list(source)
    files, ignored = [], []
    for found in sorted(names):
        name = _without_query(found) if root.startswith("http") else found
        kind, compression = kind_of(name)
        if listed and (kind is None or (format != "auto" and kind != format) or _is_bookkeeping(name)):
            ignored.append(name)
            continue
        if format == "auto" and kind is None:
            known = ", ".join(FORMATS)
            raise UserError(
                "extension says no format", where=name, hint=f"known: {known} (and .gz, .zst), or set corpus.format"
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
        log(f"source       no data by their names, and left out: {', '.join(map(_printable, ignored[:5]))}{more}")
    return files


def _without_query(path: str) -> str:
    """A path without its query, which may be a signature: tables hold what it is called."""
    return path.partition("?")[0]


def kind_of(name: str) -> tuple[str | None, str | None]:
    """(format, compression) that a file's name says, None for what it does not say.

    Example:
        >>> kind_of("part-1.jsonl.gz"), kind_of("notes.docx")
        (('jsonl', 'gzip'), (None, None))
    """
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    return FORMATS.get(path.with_suffix("").suffix if compression else path.suffix), compression


def _printable(name: str) -> str:
    """A name as it can be printed and stored: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _is_bookkeeping(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[-1] in _BOOKKEEPING or any(part.startswith((".", "_")) for part in parts)


def _list(source: str) -> tuple[str, Sequence[str], bool]:
    """(root, names below it, whether a folder was listed) of a path or fsspec URL."""
    if source.startswith("data:"):
        raise UserError("a data: URL is no source", where=source[:80], hint="write what it holds to a file")
    with source_errors(source):
        try:
            fs, path = url_to_fs(source)
            return _list_with(fs, path.rstrip("/"), source)
        except (UserError, OSError, ImportError):
            raise
        except ValueError as error:
            raise UserError("unknown kind of source", where=source, hint=_first_line(error)) from error
        except Exception as error:  # fsspec's file systems raise whatever their libraries do
            what = f"{type(error).__name__}: {_first_line(error)}"
            raise UserError("source cannot be listed", where=source, hint=what) from error


def _list_with(fs: AbstractFileSystem, path: str, source: str) -> tuple[str, Sequence[str], bool]:
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
    return fs.unstrip_protocol(root), names, kind == "directory"


def _check_listable(folder: str, steps: Sequence[str], hidden: tuple[str, ...]) -> None:
    """Refuse a folder that may not be listed: fsspec leaves it out without a word.

    Args:
        folder: where files are looked for.
        steps: patterns of the folders below it that are looked into; `**` is all.
        hidden: beginnings of the names of folders that are not.

    Raises:
        UserError: one cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return  # nothing is there to be found
    except PermissionError as error:
        mend = "give yourself the right to read it, or name the files with a glob"
        raise UserError("a folder of the source cannot be listed", where=_printable(folder), hint=mend) from error
    for entry in folders if steps else ():
        if entry.name.startswith(hidden):
            continue
        if steps[0] == "**":
            _check_listable(entry.path, steps, hidden)
        elif fnmatchcase(entry.name, steps[0]):
            _check_listable(entry.path, steps[1:], hidden)


def _kind(fs: AbstractFileSystem, path: str) -> str | None:
    """ "file", "directory" or None. (`isdir` would download a file that lies behind http, to look for links in it.)"""
    try:
        return str(fs.info(path)["type"])
    except FileNotFoundError:
        return None


def _list_hub(source: str, revision: str | None) -> tuple[str, Sequence[str], bool]:
    """The same for a data set of the hub. Its files are fetched into the hub's cache, and pinned to the commit."""
    from huggingface_hub import snapshot_download

    match = _HUB.fullmatch(source.rstrip("/"))
    if match is None:
        raise UserError("not a data set of the hub", where=source, hint="write hf://datasets/owner/name[/path]")
    repo, path = match["repo"], match["path"]
    wanted = [path, f"{path}/*"] if path else [f"*{suffix}{end}" for suffix in FORMATS for end in ("", *COMPRESSIONS)]
    revision = match["revision"] or revision
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        mend = f"{_first_line(error)} A local copy can be given with --source"
        raise UserError("data set of the hub cannot be fetched", where=source, hint=mend) from error
    found = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    if path:
        found = [name for name in found if fnmatchcase(name, path) or name.startswith(f"{path}/")]
    listed = not path or (path not in found and not _MAGIC.search(path))
    return f"hf://datasets/{repo}@{folder.name}", found, listed


def open_raw(file: SourceFile) -> BinaryIO:
    """The file's bytes as they lie there, seekable; verified while they are read if its checksums are known."""
    raw = _open(file)
    if file.checksums is None:
        return raw
    return cast(BinaryIO, io.BufferedReader(VerifyingReader(raw, file.checksums, file.name), 1 << 16))


def _open(file: SourceFile) -> BinaryIO:
    if file.url.startswith("file://"):
        path = file.url.removeprefix("file://")
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError("not a file that can be read twice", where=file.name, hint="write what it gives to a file")
        return open(path, "rb")
    if match := _HUB.fullmatch(file.url):
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(match["repo"], match["path"], repo_type="dataset", revision=match["revision"])
        return open(path, "rb")
    return cast(BinaryIO, fsspec.open(file.url, "rb").open())


def open_file(file: SourceFile, max_unpacked_bytes: int) -> BinaryIO:
    """The file's bytes, decompressed and buffered. A truncated or damaged stream raises OSError while it is read."""
    return decompressed(open_raw(file), file, max_unpacked_bytes)


def decompressed(raw: BinaryIO, file: SourceFile, max_unpacked_bytes: int) -> BinaryIO:
    """`raw` through its compression. (Arrow's streams notice truncation; zstandard's own reader ends silently.)"""
    stream = raw if file.compression is None else _Unpacking(raw, file, max_unpacked_bytes)
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20))


class _Unpacking(io.RawIOBase):
    """A compressed stream, whose bytes are counted: a small file may be made to unpack without end."""

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
"""Of files that become larger than `corpus.max_unpacked_bytes`: times their size that they may become. Text becomes ten
times its compressed size, logs fifty times; what is made to fill memory or disk becomes thousands of times its size."""


def check_unpacked(unpacked: int, packed: int, most: int, name: str) -> None:
    """Refuse what unpacks to more than `most` bytes, and to more than 100 times its size."""
    if unpacked > max(most, EXPANSION * packed):
        raise UserError(
            f"{packed:,} bytes unpack to {unpacked:,} or more",
            where=name,
            hint=f"most likely it was made to fill memory or disk; if not, raise corpus.max_unpacked_bytes ({most:,})",
        )


LONG_WINDOW = "its zstd window is over 128 MiB (`zstd --long`): compress it again without, `zstd -d --long=31` reads it"


@contextmanager
def source_errors(where: str) -> Iterator[None]:
    """Turn what file systems and damaged files raise into an error the user can act on."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("source file not found", where=where, hint="check corpus.source or --source") from error
    except ImportError as error:
        raise UserError("a package for this kind of source is missing", where=where, hint=str(error)) from error
    except (OSError, EOFError, pa.ArrowException) as error:
        mend = LONG_WINDOW if "too much memory for decoding" in str(error) else _first_line(error)
        raise UserError("source cannot be read", where=where, hint=mend) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
