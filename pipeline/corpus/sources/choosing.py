"""Which files of a folder or an archive are taken, in what format, and what is said of those that are left out."""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from fsspec.utils import glob_translate

from pipeline.config.errors import UserError
from pipeline.core.progress import log
from pipeline.corpus.sources.opening import FORMATS, SourceFile, kind_of, open_file, printable, source_errors
from pipeline.corpus.sources.unpacking import COMPRESSIONS

_BOOKKEEPING = re.compile(
    r"(dataset_(infos?|dict)\.json|(readme|licen[cs]e|copying|notice|contributing|changelog|authors|citation|code_of_conduct|"
    r"security)(\.(md|txt|rst|cff))?)",
    re.IGNORECASE,
)
"""Files in a data set's folder that describe it and have no records."""

_HEAD = 8192
"""Bytes in which a binary file has a zero byte, as git judges it."""


class Choice:
    """A choice of files, one after the other, with an account of what it leaves out."""

    def __init__(
        self,
        format: str,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        *,
        listed: bool = True,
        names: Collection[str] = (),
    ) -> None:
        """Begin a choice.

        Args:
            format: as `corpus.format`.
            include: globs of files to take; none: all.
            exclude: globs of files to leave out.
            listed: whether a folder was listed, so that files may be left out.
            names: all files of the source.
        """
        self.format, self.include, self.exclude, self.listed, self.names = format, include, exclude, listed, names
        self._left: dict[str, list[SourceFile]] = {}

    def format_of(self, file: SourceFile) -> str | None:
        """Return the format in which a file is read, or None if it is left out.

        Raises:
            UserError: the file was not found in a folder but named, and nothing tells its format.
        """
        kind = kind_of(file.name)[0]
        if not self.listed:
            if self.format == "auto" and kind is None:
                raise UserError(
                    "cannot infer the format from the file extension",
                    where=printable(file.name),
                    hint=f"known: {', '.join(FORMATS)} (and {', '.join(COMPRESSIONS)}), or set corpus.format",
                )
            return kind if self.format == "auto" else self.format
        why = self._reason(file, kind)
        if why:
            self._left.setdefault(why, []).append(file)
            return None
        return kind if self.format == "auto" else self.format

    def _reason(self, file: SourceFile, kind: str | None) -> str | None:
        """Return why a file is left out."""
        if is_hidden(file.name, "." if self.format == "text" else (".", "_")):
            return "hidden"
        if not self.includes(file.name):
            return "not in corpus.include" if self.include else "in corpus.exclude"
        if self.format == "text":
            return "binary" if _is_binary(file) else None
        if is_bookkeeping(file.name, self.names):
            return "about the data set"
        if self.include and self.format != "auto" and kind in (None, "text"):
            return None  # who names files and their format means these
        if kind is None:
            return _UNKNOWN
        return None if self.format in ("auto", kind) else "of another format"

    def includes(self, name: str) -> bool:
        """Return whether the globs take a file.

        Example:
            >>> choice = Choice("auto", ["*.py", "docs/**/*.md"], ["test_*"])
            >>> [choice.includes(name) for name in ("a/b.py", "docs/x/y.md", "x/y.md", "a/test_b.py")]
            [True, True, False, False]
        """
        return (not self.include or matches(name, self.include)) and not matches(name, self.exclude)

    def report(self, source: str, taken: Sequence[SourceFile]) -> None:
        """Log what was left out.

        Raises:
            UserError: no file is left, or most were left out because nobody could tell what they are.
        """
        unknown = self._left.get(_UNKNOWN, [])
        if self.format == "auto" and len(unknown) > len(taken) and not _smaller(unknown, taken):
            raise UserError(
                f"{len(unknown)} of {len(unknown) + len(taken)} files of the source would be left out",
                where=source,
                hint=f"it holds {_kinds([*unknown, *taken])}. To read some of them: {_as_format(unknown, 'jsonl')} (or "
                "another format; corpus.format: text takes every text file)",
            )
        if not taken:
            what = f"no {'data' if self.format == 'auto' else self.format} files in the source"
            looked_for = ", ".join(suffix for suffix, kind in FORMATS.items() if self.format in ("auto", kind))
            left = ", ".join(f"{len(files)} {why}" for why, files in self._left.items())
            hint = f"extensions looked for: {looked_for} (and {', '.join(COMPRESSIONS)})"
            hint += f"; left out: {left}" if left else ""
            hint += f"; to read those of unknown format: {_as_format(unknown, self.format)}" if unknown else ""
            raise UserError(what, where=source, hint=hint)
        for why, files in self._left.items():
            named = ", ".join(printable(file.name) for file in files[:5])
            more = f" and {len(files) - 5:,} more" if len(files) > 5 else ""
            log(f"source       left out, {why}: {named}{more}")


def is_bookkeeping(name: str, names: Collection[str]) -> bool:
    """Return whether a file of a folder with these names is hidden or describes the data set."""
    path = PurePosixPath(name)
    if path.name == "state.json" and str(path.with_name("dataset_info.json")) in names:
        return True  # of a folder that `save_to_disk` wrote
    return bool(_BOOKKEEPING.fullmatch(path.name)) or is_hidden(name, (".", "_"))


def is_hidden(name: str, prefixes: str | tuple[str, ...]) -> bool:
    """Return whether a part of a path begins with one of the prefixes."""
    return any(part.startswith(prefixes) for part in PurePosixPath(name).parts)


_UNKNOWN = "of unknown format"


def matches(name: str, globs: Sequence[str]) -> bool:
    """Return whether a glob matches; one without `/` is compared with the last part of the name."""
    own = name.rpartition("/")[2]
    return any(re.match(glob_translate(glob), name if "/" in glob else own) for glob in globs)


def _is_binary(file: SourceFile) -> bool:
    with source_errors(printable(file.name)), open_file(file, 1 << 30) as stream:
        head = stream.read(_HEAD)
    return b"\0" in head and not head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def _smaller(some: Sequence[SourceFile], others: Sequence[SourceFile]) -> bool:
    """Return whether the files on this machine are fewer bytes than others; False where it cannot be told."""
    if not all(file.url.startswith("file://") and not file.member for file in [*some, *others]):
        return False
    sizes = [sum(os.path.getsize(file.url.removeprefix("file://")) for file in files) for files in (some, others)]
    return sizes[0] < sizes[1]


def _as_format(files: Sequence[SourceFile], format: str) -> str:
    """Return what the manifest must say for files of unknown format to be read.

    Example:
        >>> _as_format([SourceFile(name, "", "", None) for name in ("a.ipynb", "b.ipynb", "x/Makefile")], "json")
        "corpus.include: ['*.ipynb'] with corpus.format: json"
    """
    suffix, _ = Counter(PurePosixPath(file.name).suffix for file in files).most_common(1)[0]
    own = min(PurePosixPath(file.name).name for file in files if PurePosixPath(file.name).suffix == suffix)
    glob = f"*{suffix}" if suffix else re.sub(r"\d+", "*", own)
    return f"corpus.include: ['{printable(glob)}'] with corpus.format: {format}"


def _kinds(files: Sequence[SourceFile]) -> str:
    """Return the number of files by extension, the most frequent first.

    Example:
        >>> _kinds([SourceFile(name, "", "", None) for name in ("a.docx", "b.docx", "Makefile")])
        '2 .docx, 1 without extension'
    """
    counts = Counter(PurePosixPath(file.name).suffix.lower() or "without extension" for file in files)
    return ", ".join(f"{count:,} {printable(suffix)}" for suffix, count in counts.most_common(8))
