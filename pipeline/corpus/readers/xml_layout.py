"""Which elements of an XML file are its records: those that the manifest names, or that have the template's columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from xml.parsers import expat

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.readers.encodings import DecodedFile
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.rendering import outermost
from pipeline.corpus.template import Template

WHOLE = frozenset({"text", "root"})
"""Columns of a file that is one record."""

ANOTHER_DOCUMENT = (9, 17)
"""Codes of the error of expat where another root element, or another XML declaration, comes after the root element."""

_BLOCK = 1 << 16
_LOOK = 4 << 20
"""Bytes of a file from which its structure is told."""
_PATHS = 1000
"""Paths that are remembered."""
_SHOWN = 6
_DECLARED = re.compile(rb"""encoding\s*=\s*["']([\w.-]+)""")
_MANY = 20
"""Elements of one path from which on they may be records."""


def open_xml(part: Slice, config: CorpusConfig) -> DecodedFile:
    """Open a file: its own bytes if it declares its encoding, else UTF-8."""
    return DecodedFile(part.file, config, inside=config.encoding == "utf-8")


def encoding_of(config: CorpusConfig) -> str | None:
    """Return the encoding of the bytes that are read; None where the file declares it."""
    return None if config.encoding == "utf-8" else "utf-8"


@contextmanager
def declared_encodings(part: Slice, config: CorpusConfig) -> Iterator[None]:
    """Convert the error of a parser that lacks the encoding which a file declares into a `UserError`."""
    try:
        yield
    except (LookupError, ValueError) as error:
        with open_xml(part, config) as text:
            declared = _DECLARED.search(text.stream.read(_BLOCK))
        if declared is None:
            raise
        name = declared[1].decode()
        hint = f"set corpus.encoding: {name}, or what Python calls it ({error})"
        raise UserError(f"the file declares the encoding {name}", where=part.file.name, hint=hint) from error


def local_name(name: str) -> str:
    """Return a name without its prefix."""
    return name.rpartition(":")[2]


@dataclass
class Survey:
    """The elements of the beginning of a file: how often each path occurs, and the columns that it would have."""

    counts: Counter[str] = field(default_factory=Counter)
    columns: dict[str, dict[str, None]] = field(default_factory=dict)
    broken: bool = False
    """Whether it ends at a place that is not well-formed."""
    another: bool = False
    """Whether it ends where another XML document begins."""


def survey(part: Slice, config: CorpusConfig) -> Survey:
    """Return the elements of the first few mebibytes of a file. What is not well-formed ends it."""
    about, open_ = Survey(), list[str]()

    def begin(name: str, attributes: dict[str, str]) -> None:
        open_.append(local_name(name))
        path = ".".join(open_)
        if path in about.columns or len(about.columns) < _PATHS:
            about.counts[path] += 1
            about.columns.setdefault(path, {}).update(dict.fromkeys(map(local_name, attributes)))
            if (parent := path.rpartition(".")[0]) in about.columns:
                about.columns[parent][open_[-1]] = None

    parser = expat.ParserCreate(encoding_of(config))
    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: open_.pop()
    with declared_encodings(part, config), open_xml(part, config) as text:
        left = _LOOK
        try:
            while left > 0:
                block = text.stream.read(_BLOCK)
                parser.Parse(block, not block)
                left = left - len(block) if block else 0
        except expat.ExpatError as error:
            about.broken, about.another = True, error.code in ANOTHER_DOCUMENT and bool(about.counts)
    return about


def find_elements(part: Slice, config: CorpusConfig) -> str | None:
    """Return the path of the elements that are a file's records; None if the file is one record.

    They are those that the manifest names, or those that have the columns of the template. A file that is not
    well-formed from its beginning is one record, which goes to quarantine.

    Raises:
        UserError: no elements, or several, have the columns of the template.
    """
    if config.records is not None:
        return config.records.replace("[]", "")
    columns = {outermost(column) for column in Template.parse(config.text).columns}
    if columns <= WHOLE:
        return None
    about = survey(part, config)
    fit = [path for path, names in about.columns.items() if columns <= names.keys()]
    fit = [path for path in fit if not any(path.startswith(f"{other}.") for other in fit)]
    if len(fit) == 1:
        return fit[0]
    if fit:
        hint = f"set corpus.records to one of: {', '.join(fit[:_SHOWN])}"
        raise UserError("several elements have the columns of `corpus.text`", where=part.file.name, hint=hint)
    if about.broken and not about.another and max(about.counts.values(), default=0) < 2:
        return None
    what = f"no element of this XML file has the columns of `corpus.text` ({', '.join(sorted(columns))})"
    raise UserError(what, where=part.file.name, hint=f"its elements: {_listed(about)}")


def check_path(part: Slice, config: CorpusConfig, path: str) -> None:
    """Refuse a path at which a file has no element, unless the element around it is there and empty.

    Raises:
        UserError: the path is wrong.
    """
    about, around = survey(part, config), path.rpartition(".")[0]
    if around in about.columns and not about.columns[around]:
        return
    what = f"`corpus.records` names the element `{path}`, which does not exist"
    raise UserError(what, where=part.file.name, hint=f"its elements: {_listed(about)}")


def describe_xml(part: Slice, config: CorpusConfig) -> str:
    """Return which elements were found to be the records, or that there may be some, to be told to the user."""
    path = find_elements(part, config)
    if path is not None:
        return "" if config.records is not None else f"its records are the elements `{path}` (corpus.records)"
    about = survey(part, config)
    if about.another:
        root = next(iter(about.counts))
        return f"several XML documents, one after the other. To make each a record: corpus.records: {root}"
    repeated = {p: n for p, n in about.counts.items() if n >= _MANY and p.count(".") <= 2 and about.columns[p]}
    if not repeated:
        return ""
    path = max(repeated, key=lambda name: repeated[name])
    return f"one document. If each `{path}` ({repeated[path]:,} or more) is a record: corpus.records: {path}"


def _listed(about: Survey) -> str:
    """Return the most frequent elements that have columns, with these."""
    shown = [(path, count) for path, count in about.counts.most_common() if about.columns[path]][:_SHOWN]
    columns = {path: ", ".join(list(about.columns[path])[:8]) for path, _ in shown}
    return "; ".join(f"`{path}` ({count:,}): {columns[path]}" for path, count in shown) or "none"
