"""Sources: the files of a corpus, from paths, globs, folders, archives, the Hub and fsspec URLs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import BinaryIO, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError, first_line
from pipeline.core.hub import file_of, list_repository
from pipeline.core.progress import log
from pipeline.corpus.sources.archives import archive_kind, is_web_dataset, members
from pipeline.corpus.sources.choosing import Choice, matches
from pipeline.corpus.sources.opening import (
    HUB,
    SourceFile,
    content_key,
    kind_of,
    open_raw,
    printable,
    source_errors,
)
from pipeline.corpus.sources.splits import Layout, choose, layout_of

METADATA_BYTES = 4 << 20
"""Bytes of a metadata file that are read."""
_MAGIC = re.compile(r"[*?\[]")
_IN_ARCHIVE = re.compile(r"(?:zip|tar)://(?P<members>.*?)::(?P<archive>.+)")


class Listing(NamedTuple):
    """The names of a source's files; the URL of one is `{root}/{name}{chain}`."""

    root: str
    names: Sequence[str]
    """Paths below `root`."""
    is_folder: bool
    """Whether a folder was listed, so that files without records may be among them."""
    asked: str = ""
    """The part of the source that names files: of a glob, what follows its last fixed folder; on the Hub, the path."""
    layout: Layout = Layout()
    chain: str = ""

    def files(self) -> list[SourceFile]:
        """Return them as files whose format is not told yet."""
        web = self.root.startswith("http")  # a query may be a signature and must not get into tables
        named = [(name.partition("?")[0] if web else name, f"{self.root}/{name}{self.chain}") for name in self.names]
        return [SourceFile(name, url, "", kind_of(name)[1]) for name, url in sorted(named)]


def chosen_files(config: CorpusConfig, source: str) -> list[SourceFile]:
    """Return the files of one source that belong to the configuration and splits to read, and log which those are.

    Args:
        config: the configuration of this source.
        source: where it is.

    Raises:
        UserError: as in `find_files` and `choose`.
    """
    files, listing = _find(source, config.format, config.revision, config.include, config.exclude)
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


def find_files(
    source: str,
    format: str = "auto",
    revision: str | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[SourceFile]:
    """Return all files of a source, of whatever split, sorted by name, and log what is left out of a folder.

    Args:
        source: path, glob, folder, archive, `hf://datasets/owner/name[@revision][/path]` or fsspec URL. In a folder (or
            a Hub dataset, or an archive), files with a known extension are taken, hidden ones are not.
        format: one of `FORMATS`' values, or `auto` to go by each file's name. `text` takes all that is no binary file.
        revision: revision of the Hub dataset, if `source` does not give one.
        include: globs of files to take; none: all.
        exclude: globs of files to leave out.

    Raises:
        UserError: there are no files, an extension is unknown, a file system cannot be reached, or most of a folder
            would be left out.
    """
    return _find(source, format, revision, include, exclude)[0]


def _find(
    source: str, format: str, revision: str | None, include: Sequence[str], exclude: Sequence[str]
) -> tuple[list[SourceFile], Listing]:
    # Who names a format or members wants the files in the tar, not its samples.
    whole = format == "auto" and not include
    files, listing = _found(source, revision, whole=whole)
    choice = Choice(format, include, exclude, listed=listing.is_folder, names={file.name for file in files})
    files = [replace(file, format=kind) for file in files if (kind := file.format or choice.format_of(file))]
    choice.report(source, files)
    for file in files:
        if file.name != printable(file.name):
            raise UserError("the name of a file is not UTF-8", where=printable(file.name), hint="rename it")
    return files, listing


def _found(source: str, revision: str | None, *, whole: bool) -> tuple[list[SourceFile], Listing]:
    """Return all files of a source, those of archives in their place; an archive counts as a folder.

    A tar that is a WebDataset stays `whole`, if that is asked for.
    """
    inside = _IN_ARCHIVE.fullmatch(source)
    place = inside["archive"] if inside else source
    listing = list_source(place, revision)
    files = listing.files()
    archives = [file for file in files if archive_kind(file.name)]
    if inside and not archives:
        ends = "it must end in .zip, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .tar.zst"
        raise UserError("source cannot be listed", where=source, hint=f"no archive by its name: {ends}")
    with source_errors(source):
        found = [
            part for file in files for part in (_members(file, whole and not inside) if file in archives else [file])
        ]
    if inside and inside["members"]:
        found = [file for file in found if file.member and matches(file.member.name, [inside["members"]])]
        if not found:
            raise UserError("the glob matches no member of the archive", where=source, hint="check corpus.source")
    return found, listing._replace(is_folder=listing.is_folder or (bool(archives) and not inside))


def _members(file: SourceFile, whole: bool) -> list[SourceFile]:
    inside = members(partial(open_raw, file), file.name, content_key(file))
    if whole and not file.name.lower().endswith(".zip") and is_web_dataset([member.name for member in inside]):
        return [replace(file, format="dataset", compression=None, builder="webdataset")]
    return [
        replace(file, name=f"{file.name}/{member.name}", compression=kind_of(member.name)[1], member=member)
        for member in sorted(set(inside))
    ]


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
            raise UserError("unknown kind of source", where=source, hint=first_line(error)) from error
        except Exception as error:  # fsspec's file systems pass on their libraries' errors
            what = f"{type(error).__name__}: {first_line(error)}"
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
    if "::" not in source:
        return Listing(fs.unstrip_protocol(root), names, kind == "directory", asked, layout)
    # In a chain (`simplecache::s3://…`) the first link with a path of its own names the file.
    links = source.split("::")
    at = next((n for n, link in enumerate(links) if link.partition("://")[2]), len(links) - 1)
    scheme = "://".join(links[at].split("://")[:-1])
    before, after = "".join(f"{link}::" for link in links[:at]), "".join(f"::{link}" for link in links[at + 1 :])
    place = f"{scheme}://{root.lstrip('/')}" if scheme else root
    return Listing(before + place, names, kind == "directory", asked, layout, after)


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
        raise UserError("a folder of the source cannot be listed", where=printable(folder), hint=hint) from error
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
