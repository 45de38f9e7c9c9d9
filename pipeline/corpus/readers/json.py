"""JSON: lines, an array, or one object with the records in a list inside it."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, cast

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.encodings import DecodedFile
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.json_structure import Structure, list_at, survey, values
from pipeline.corpus.readers.record_splitter import RawRecord, array_elements, lines
from pipeline.corpus.readers.records import Record, Slice, make_record, utf8
from pipeline.corpus.readers.text import lines_of
from pipeline.corpus.template import Template

_LOOK = 20
"""First lines that are looked at to tell JSON lines from one value over many lines."""


def read_json_lines(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield one record per line.

    Raises:
        UserError: the file is one value over many lines.
    """
    with DecodedFile(part.file, config, inside=part.start > 0) as text:
        pieces = lines_of(text, part)
        head = [] if part.start else list(islice(pieces, _LOOK))
        if what := _printed_over_lines(head):
            hint = "name it .json or set corpus.format: json"
            raise UserError(f"not JSON lines but one JSON {what} over many lines", where=part.file.name, hint=hint)
        yield from _records(chain(head, pieces), part.row, text)


def _printed_over_lines(head: Iterable[RawRecord]) -> str | None:
    """Return what begins on the first of some lines and goes on below, if none of them is an object by itself."""
    full = [piece.data.strip() for piece in head if piece.data.strip()]
    if len(full) < 2 or full[0][:1] not in b"[{" or any(map(_is_json, full[:1])) or any(map(_is_object, full)):
        return None
    return "array" if full[0].startswith(b"[") else "object"


def read_json(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the elements of an array, JSON lines, or the elements of the list of one object (`corpus.records`).

    An object that has the columns of the template is a record itself.

    Raises:
        UserError: no list of the object, or more than one, can be that of the records.
    """
    with DecodedFile(part.file, config) as text:
        pieces = _pieces(part, config, text)
        if pieces is not None:
            return (yield from pieces)
    about = object_layout(part, config)
    with DecodedFile(part.file, config) as text:
        if about.records is None:
            yield from _records(values(text.stream, text.start), part.row, text)
        else:
            rest, offset = list_at(text.stream, text.start, about.records)
            yield from _records(array_elements(rest, offset, alone=False), part.row, text, elements=True)


def _pieces(part: Slice, config: CorpusConfig, text: DecodedFile) -> Iterator[Record] | None:
    """Return the records of an array or of lines; None for an object that has to be looked at as a whole."""
    stream = cast(io.BufferedReader, text.stream)
    head = stream.peek(1 << 16).lstrip()
    if head.startswith(b"["):
        if config.records is not None:
            what = "corpus.records is for files that are one object, and this one is a list"
            raise UserError(what, where=part.file.name, hint="leave it out")
        return _records(array_elements(stream, text.start), part.row, text, elements=True)
    pieces = lines(stream, text.start)
    # Not more than two lines that are not blank are needed to tell.
    first = list(_until_full(pieces, 2))
    full = [piece.data for piece in first if piece.data.strip()]
    is_lines = not head.startswith(b"{") or (len(full) == 2 and any(map(_is_object, full)))
    return _records(chain(first, pieces), part.row, text) if is_lines else None


def _until_full(pieces: Iterator[RawRecord], count: int) -> Iterator[RawRecord]:
    for piece in pieces:
        yield piece
        count -= bool(piece.data.strip())
        if not count:
            return


class Layout(NamedTuple):
    """Where the records of an object are: `records` is the path of their list; None: the object is a record."""

    records: str | None
    found: bool
    """Whether that path was found, not given."""


def object_layout(part: Slice, config: CorpusConfig) -> Layout:
    """Return where the records of a JSON file are that is neither an array nor lines.

    Raises:
        UserError: the list that `corpus.records` names is not there, or none is named and several could be it.
    """
    with DecodedFile(part.file, config) as text:
        about = survey(text.stream)
    if config.records is not None:
        if config.records not in about.lists:
            what = f"`corpus.records` names the list `{config.records}`, which does not exist"
            raise UserError(what, where=part.file.name, hint=_contents(about))
        return Layout(config.records, found=False)
    columns = Template.parse(config.text).columns
    if about.several or _has_columns(columns, about.keys):
        return Layout(None, found=False)
    lists = [path for path, of_objects in about.lists.items() if of_objects]
    fit = [path for path in lists if _has_columns(columns, _first_keys(part, config, path))]
    if len(fit) == 1:
        return Layout(fit[0], found=True)
    if fit:
        what, hint = "of the lists in this JSON object, several have the columns of `corpus.text`", ", ".join(fit[:8])
        raise UserError(what, where=part.file.name, hint=f"set corpus.records to one of: {hint}")
    what = "the file is one JSON object, and neither it nor a list in it has the columns of `corpus.text`"
    first = "".join(f"; records of `{path}`: {_listed(_first_keys(part, config, path))}" for path in lists[:3])
    raise UserError(what, where=part.file.name, hint=_contents(about) + first)


def _has_columns(columns: Iterable[str], keys: Collection[str]) -> bool:
    return all(name in keys or name.partition(".")[0] in keys for name in columns)


def _first_keys(part: Slice, config: CorpusConfig, path: str) -> list[str]:
    """Return the keys of the first element of a list."""
    with DecodedFile(part.file, config) as text:
        rest, offset = list_at(text.stream, text.start, path)
        first = next(_records(array_elements(rest, offset, alone=False), 0, text, elements=True), None)
    return list(first.value) if first and not isinstance(first.value, Unusable) else []


def _contents(about: Structure) -> str:
    return f"its keys: {_listed(sorted(about.keys))}; its lists: {_listed(list(about.lists)) or 'none'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def describe(part: Slice, config: CorpusConfig) -> str:
    """Return what was found in a file that is one object, to be told to the user; nothing of other files."""
    with DecodedFile(part.file, config) as text:
        if _pieces(part, config, text) is not None:
            return ""
    about = object_layout(part, config)
    return f"one object, its records are the list `{about.records}` (corpus.records)" if about.found else ""


def _records(
    pieces: Iterable[RawRecord], first_row: int, text: DecodedFile, *, elements: bool = False
) -> Iterator[Record]:
    for row, piece in enumerate(pieces, first_row):
        if piece.data.strip():
            yield make_record(row, piece, partial(_parse, elements), text)


def _parse(elements: bool, piece: RawRecord) -> Mapping[str, Any]:
    """Return a record's columns; an element of a list may be a string, which is then the column `text`."""
    if elements and piece.data.lstrip().startswith(b'"'):
        value = _load(piece.data)[0]
        return {"text": value}
    return parse_json_object(piece.data)


def parse_json_object(raw: bytes) -> Mapping[str, Any]:
    """Return the JSON object in `raw`. NaN and infinities become null, as in most readers.

    Raises:
        Unusable: `not_utf8`, `not_json`, `not_an_object`, or `duplicate_key` (two values under one name, at any depth:
            which one is meant is unknown).
    """
    value, repeated = _load(raw)
    if not isinstance(value, dict):
        raise Unusable("not_an_object", f"a {type(value).__name__}")
    if repeated:
        raise Unusable("duplicate_key", ", ".join(f"`{name}`" for name in sorted(repeated)))
    return value


def _load(raw: bytes) -> tuple[Any, set[str]]:
    """Return the JSON value in `raw`, and names that occur twice in an object.

    Raises:
        Unusable: `not_utf8` or `not_json`.
    """
    repeated: set[str] = set()

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            names = [name for name, _ in pairs]
            repeated.update(name for name in names if names.count(name) > 1)
        return tree

    try:
        return json.loads(utf8(raw), strict=False, object_pairs_hook=collect, parse_constant=lambda _: None), repeated
    except RecursionError as error:
        raise Unusable("not_json", "nested too deeply") from error
    except ValueError as error:
        raise Unusable("not_json", str(error)) from error


def _is_json(raw: bytes) -> bool:
    try:
        _load(raw)
    except Unusable:
        return False
    return True


def _is_object(raw: bytes) -> bool:
    return raw.lstrip().startswith(b"{") and _is_json(raw)
