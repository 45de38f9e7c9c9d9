"""XML files with many records: the elements at a path (`feed.entry`), read as a stream with their place in the file.

The columns of a record are the attributes and the child elements of its element. The value of an element is its text,
or an object where it has children and no text of its own; children with one name are a list. Prefixes of namespaces are
left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, BinaryIO, NamedTuple
from xml.parsers import expat

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.encodings import DecodedFile
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.record_splitter import RECORD_LIMIT, RawRecord
from pipeline.corpus.readers.records import Record, Slice, make_record
from pipeline.corpus.rendering import outermost
from pipeline.corpus.template import Template

WHOLE = frozenset({"text", "root"})
"""Columns of a file that is one record."""

_BLOCK = 1 << 16
_LOOK = 4 << 20
"""Bytes of a file from which its structure is told."""
_PATHS = 1000
"""Paths that are remembered."""
_SHOWN = 6
_MANY = 20
"""Elements of one path from which on they may be records."""


@dataclass
class _Node:
    """An open element of a record."""

    name: str
    attributes: dict[str, str]
    children: dict[str, list[Any]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    """All text in it, that of its children included."""
    own: bool = False
    """Whether it has text outside of its children."""

    def value(self) -> Any:
        if self.children and not self.own:
            inside = {name: values[0] if len(values) == 1 else values for name, values in self.children.items()}
            return {**self.attributes, **inside}
        text = "".join(self.text).strip()
        return self.attributes if self.attributes and not text else text

    def columns(self) -> dict[str, Any]:
        value = self.value()
        return value if isinstance(value, dict) else {**self.attributes, "text": value}


class _Found(NamedTuple):
    start: int
    stop: int
    columns: dict[str, Any] | Unusable


class _Records:
    """The elements at a path, from blocks of bytes."""

    def __init__(self, path: Sequence[str], encoding: str | None) -> None:
        self.path, self.open, self.nodes = list(path), list[str](), list[_Node]()
        self.found: list[_Found] = []
        self._start = self._size = 0
        self._done: dict[str, Any] | Unusable | None = None  # of an element that ends where the next event begins
        self._unknown = ""  # a reference of the record to what is not in the file
        self.parser = expat.ParserCreate(encoding)
        self.parser.StartElementHandler = self._begin
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.CommentHandler = lambda _: self._close()
        self.parser.DefaultHandlerExpand = self._other
        self.parser.ProcessingInstructionHandler = lambda *_: self._close()

    @property
    def begun(self) -> int | None:
        """Offset of the record that has begun and not ended."""
        return self._start if self.nodes or self._done is not None else None

    def feed(self, block: bytes) -> list[_Found]:
        """Return the records that end in a block; an empty block ends the file."""
        self.parser.Parse(block, not block)
        if not block:
            self._close()
        found, self.found = self.found, []
        return found

    def _close(self) -> None:
        if self._done is not None:
            self.found.append(_Found(self._start, self.parser.CurrentByteIndex, self._done))
            self._done = None

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self._close()
        self.open.append(_local(name))
        if self.nodes or (len(self.open) == len(self.path) and self.open == self.path):
            if not self.nodes:
                self._start, self._size = self.parser.CurrentByteIndex, 0
            self.nodes.append(_Node(self.open[-1], {_local(key): value for key, value in attributes.items()}))

    def _end(self, _: str) -> None:
        self._close()
        self.open.pop()
        if self.nodes:
            node = self.nodes.pop()
            if self.nodes and self._size > RECORD_LIMIT:  # it goes to quarantine
                return
            if self.nodes:
                self.nodes[-1].children.setdefault(node.name, []).append(node.value())
                self.nodes[-1].text += node.text
            else:
                missing = Unusable("not_xml", f"the file does not say what {self._unknown} is")
                self._done = missing if self._unknown else node.columns()
                self._unknown = ""

    def _text(self, text: str) -> None:
        self._close()
        self._size += len(text)
        if self.nodes and self._size <= RECORD_LIMIT:
            self.nodes[-1].text.append(text)
            self.nodes[-1].own |= not text.isspace()

    def _other(self, text: str) -> None:
        self._close()
        if self.nodes and text.startswith("&"):
            self._unknown = text


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def read_elements(part: Slice, config: CorpusConfig, path: str) -> Iterator[Record]:
    """Yield one record per element at a path.

    Raises:
        UserError: there is no such element.
        OSError: the file is not well-formed; the records before that place have been yielded.
    """
    row = part.row
    with _opened(part, config) as text:
        for piece, columns in _pieces(text.stream, text.start, path.split("."), _encoding(config)):
            yield make_record(row, piece, partial(_given, columns), text)
            row += 1
    if row == part.row:
        what = f"`corpus.records` names the element `{path}`, which does not exist"
        raise UserError(what, where=part.file.name, hint=f"its elements: {_listed(survey(part, config))}")


def _opened(part: Slice, config: CorpusConfig) -> DecodedFile:
    """Open a file: its own bytes if it declares its encoding, else UTF-8."""
    return DecodedFile(part.file, config, inside=config.encoding == "utf-8")


def _encoding(config: CorpusConfig) -> str | None:
    """Return the encoding of the bytes that are read; None where the file declares it."""
    return None if config.encoding == "utf-8" else "utf-8"


def _given(columns: Mapping[str, Any] | Unusable, _: RawRecord) -> Mapping[str, Any]:
    if isinstance(columns, Unusable):
        raise columns
    return columns


def _pieces(
    stream: BinaryIO, start: int, path: Sequence[str], encoding: str | None
) -> Iterator[tuple[RawRecord, dict[str, Any] | Unusable]]:
    records = _Records(path, encoding)
    kept, base, count = bytearray(), 0, 0  # the bytes from `base` on
    head = b""  # the beginning of a record that is longer than what is kept
    for block in chain(iter(partial(stream.read, _BLOCK), b""), [b""]):
        kept += block
        try:
            found = records.feed(block)
        except expat.ExpatError as error:
            raise OSError(f"not well-formed XML, after {count:,} records: {error}") from error
        for begin, stop, columns in found:
            data = head if begin < base else bytes(kept[begin - base : stop - base])[:RECORD_LIMIT]
            yield RawRecord(start + begin, data, stop - begin), columns
            count, head = count + 1, b""
        needed = max(base, records.parser.CurrentByteIndex)
        if records.begun is not None and records.begun >= base and needed - records.begun <= RECORD_LIMIT:
            needed = records.begun
        elif records.begun is not None and records.begun >= base:
            head = bytes(kept[records.begun - base :][:RECORD_LIMIT])
        del kept[: needed - base]
        base = needed


# ------------------------------------------------------------------------------------------- how it is found


@dataclass
class Survey:
    """The elements of the beginning of a file: how often each path occurs, and the columns that it would have."""

    counts: Counter[str] = field(default_factory=Counter)
    columns: dict[str, dict[str, None]] = field(default_factory=dict)


def survey(part: Slice, config: CorpusConfig) -> Survey:
    """Return the elements of the first few mebibytes of a file. What is not well-formed ends it."""
    about, open_ = Survey(), list[str]()

    def begin(name: str, attributes: dict[str, str]) -> None:
        open_.append(_local(name))
        path = ".".join(open_)
        if path in about.columns or len(about.columns) < _PATHS:
            about.counts[path] += 1
            about.columns.setdefault(path, {}).update(dict.fromkeys(map(_local, attributes)))
            if (parent := path.rpartition(".")[0]) in about.columns:
                about.columns[parent][open_[-1]] = None

    parser = expat.ParserCreate(_encoding(config))
    parser.StartElementHandler = begin
    parser.EndElementHandler = lambda _: open_.pop()
    with _opened(part, config) as text:
        left = _LOOK
        try:
            while left > 0 and (block := text.stream.read(_BLOCK)):
                parser.Parse(block)
                left -= len(block)
        except expat.ExpatError:
            pass
    return about


def find_elements(part: Slice, config: CorpusConfig) -> str | None:
    """Return the path of the elements that are a file's records; None if the file is one record.

    They are those that the manifest names, or those that have the columns of the template.

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
    what = f"no element of this XML file has the columns of `corpus.text` ({', '.join(sorted(columns))})"
    raise UserError(what, where=part.file.name, hint=f"its elements: {_listed(about)}")


def describe_xml(part: Slice, config: CorpusConfig) -> str:
    """Return which elements were found to be the records, or that there may be some, to be told to the user."""
    path = find_elements(part, config)
    if path is not None:
        return "" if config.records is not None else f"its records are the elements `{path}` (corpus.records)"
    about = survey(part, config)
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
