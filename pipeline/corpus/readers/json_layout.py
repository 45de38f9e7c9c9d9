"""Where the records of a JSON file are: paths through objects (`data.items`) and lists (`data[].paragraphs[].qas`).

An element of a list that lies in elements of other lists has the plain values of those elements as columns, too: the
title of an article with each of its paragraphs.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO, Literal, NamedTuple, cast

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.encodings import DecodedFile
from pipeline.corpus.readers.json_structure import Structure, list_at, survey
from pipeline.corpus.readers.json_values import is_object, parse_json_object
from pipeline.corpus.readers.record_splitter import RawRecord, array_elements, lines
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.rendering import is_message, outermost
from pipeline.corpus.template import Template

_LOOK = 20
"""First elements of a list from which its columns are told."""
_DEEP = 4
"""Lists inside each other, and objects inside each other, that are searched for records."""


class Element(NamedTuple):
    """An element of a list, or a line: its bytes, and the columns of those that it lies in."""

    piece: RawRecord
    around: Mapping[str, Any] | None = None
    """None if it lies in no element of a list."""
    why: Unusable | None = None
    """Why nothing inside it can be read."""


def elements_at(stream: BinaryIO, start: int, path: str) -> Iterator[Element]:
    """Return the elements of the list at a path.

    Args:
        stream: a JSON file.
        start: the offset at which the stream is.
        path: as `corpus.records`; `[]` is the list that is the file.

    Raises:
        OSError: its first list is not there, or the file is truncated.
    """
    first, *rest = _steps(path)
    if first:
        stream, start = list_at(stream, start, first)
    return _inside(map(Element, array_elements(stream, start, alone=not first)), rest)


def elements_in(pieces: Iterable[RawRecord], path: str | None = None) -> Iterator[Element]:
    """Return objects as elements, or the elements of the list at a path that begins with `[].` in each of them."""
    return _inside(map(Element, pieces), _steps(path)[1:] if path else ())


def _steps(path: str) -> list[str]:
    """Return the paths from one list to the next.

    Example:
        >>> _steps("data.all[].paragraphs[].qas"), _steps("[].turns"), _steps("[]")
        (['data.all', 'paragraphs', 'qas'], ['', 'turns'], [''])
    """
    first, *rest = (step.strip(".") for step in path.split("[]"))
    return [first, *filter(None, rest)]


def _inside(elements: Iterator[Element], paths: Iterable[str]) -> Iterator[Element]:
    for path in paths:
        elements = _deeper(elements, path)
    return elements


def _deeper(elements: Iterator[Element], path: str) -> Iterator[Element]:
    """Yield the elements of the list at `path` in each element; an element without it goes on as it is."""
    for element in elements:
        piece = element.piece
        if element.why or piece.size > len(piece.data) or not piece.data.strip():
            yield element
            continue
        try:
            outer = parse_json_object(piece.data)
            stream, offset = list_at(io.BytesIO(piece.data), piece.offset, path)
        except (Unusable, OSError) as error:
            missing = Unusable("missing_column", f"no list `{path}`, which corpus.records names")
            yield element._replace(why=error if isinstance(error, Unusable) else missing)
            continue
        around = {**(element.around or {}), **_plain(outer)}
        yield from (Element(inner, around) for inner in array_elements(stream, offset, alone=False))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not isinstance(value, (dict, list))}


# ------------------------------------------------------------------------------------------- how it is found


class Layout(NamedTuple):
    """The form of a file, and the path of the list that has its records."""

    form: Literal["lines", "array", "object"]
    records: str | None
    """None: the lines or objects themselves."""
    found: bool = False
    """Whether that path was found, not given."""


def find_layout(part: Slice, config: CorpusConfig) -> Layout:
    """Return where the records of a JSON file are.

    Raises:
        UserError: the list that `corpus.records` names is not there, or none is named and several could be it.
    """
    with DecodedFile(part.file, config) as text:
        form = _form(text)
    name, columns = part.file.name, Template.parse(config.text).columns
    if form == "object":
        return _in_object(part, config, columns)
    if config.records is not None:
        return Layout(form, list_path(config.records, name))
    if form == "lines":
        return Layout(form, None)
    keys = _keys_by_path(part, config, "[]")
    fit = _fitting(keys, columns)
    if len(fit) > 1:
        raise _several(fit, name)
    return Layout(form, fit[0], found=True) if fit and fit != ["[]"] else Layout(form, "[]")


def list_path(records: str, file: str) -> str:
    """Return `corpus.records` for a file of several objects.

    Raises:
        UserError: it does not begin with `[]`.
    """
    if not records.startswith("[]"):
        what = f"`corpus.records: {records}` is for files that are one object, and this one is a list of objects"
        raise UserError(what, where=file, hint=f"leave it out, or name the list in each object: `[].{records}`")
    return records


def _form(text: DecodedFile) -> Literal["lines", "array", "object"]:
    stream = cast(io.BufferedReader, text.stream)
    head = stream.peek(1 << 16).lstrip()
    if head.startswith(b"["):
        return "array"
    # Not more than two lines that are not blank are needed to tell.
    full = list(islice((piece.data for piece in lines(stream, text.start) if piece.data.strip()), 2))
    is_lines = not head.startswith(b"{") or (len(full) == 2 and any(map(is_object, full)))
    return "lines" if is_lines else "object"


def _in_object(part: Slice, config: CorpusConfig, columns: Sequence[str]) -> Layout:
    with DecodedFile(part.file, config) as text:
        about = survey(text.stream)
    if config.records is not None:
        if _steps(config.records)[0] not in about.lists:
            what = f"`corpus.records` names the list `{config.records}`, which does not exist"
            raise UserError(what, where=part.file.name, hint=_contents(about))
        return Layout("object", config.records)
    if about.several or _has_columns(columns, about.keys):
        return Layout("object", None)
    keys: dict[str, list[str]] = {}
    for path in (path for path, of_objects in about.lists.items() if of_objects):
        keys |= _keys_by_path(part, config, path)
    fit = _fitting(keys, columns)
    if len(fit) == 1:
        return Layout("object", fit[0], found=True)
    if fit:
        raise _several(fit, part.file.name)
    what = "the file is one JSON object, and neither it nor a list in it has the columns of `corpus.text`"
    first = "".join(f"; records of `{path}`: {_listed(names)}" for path, names in list(keys.items())[:4])
    hint = f"{_contents(about)}{first}; name columns of one of these in corpus.text"
    raise UserError(what, where=part.file.name, hint=hint)


def _keys_by_path(part: Slice, config: CorpusConfig, path: str) -> dict[str, list[str]]:
    """Return the columns that records have in the list at a path, and in the lists inside its elements, by path."""
    found: dict[str, dict[str, None]] = {}
    with DecodedFile(part.file, config) as text:
        for element in islice(elements_at(text.stream, text.start, path), _LOOK):
            try:
                _collect(path, parse_json_object(element.piece.data), (), found)
            except Unusable:
                continue
    return {path: list(keys) for path, keys in found.items()}


def _collect(path: str, value: Mapping[str, Any], around: Sequence[str], found: dict[str, dict[str, None]]) -> None:
    found.setdefault(path, {}).update(dict.fromkeys([*around, *value]))
    if path.count("[]") < _DEEP:
        for name, first in _lists_in(value):
            _collect(f"{path.removesuffix('[]')}[].{name}", first, [*around, *_plain(value)], found)


def _lists_in(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path of each list of objects in an object and in objects inside it, with the list's first element.

    A chat is left out: it is one value.
    """
    for key, inner in value.items():
        if isinstance(inner, dict) and prefix.count(".") < _DEEP:
            yield from _lists_in(inner, f"{prefix}{key}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict) and not is_message(inner[0]):
            yield f"{prefix}{key}", inner[0]


def _fitting(keys: Mapping[str, Collection[str]], columns: Sequence[str]) -> list[str]:
    """Return the paths of lists whose elements have the columns; of lists inside each other, the outermost.

    Lists inside elements count only if the template names something else than `text`, which is its default, and which
    answers, parts of messages and much else are called.
    """
    fit = [path for path, names in keys.items() if _has_columns(columns, names)]
    if tuple(columns) == ("text",):
        fit = [path for path in fit if "[]." not in path]
    inside = {path: [other for other in fit if path.startswith(f"{other.removesuffix('[]')}[].")] for path in fit}
    return [path for path in fit if not inside[path]]


def _has_columns(columns: Iterable[str], keys: Collection[str]) -> bool:
    return all(name in keys or outermost(name) in keys for name in columns)


def _several(paths: Sequence[str], file: str) -> UserError:
    what = "of the lists in this JSON file, several have the columns of `corpus.text`"
    return UserError(what, where=file, hint=f"set corpus.records to one of: {', '.join(paths[:8])}")


def _contents(about: Structure) -> str:
    return f"its keys: {_listed(sorted(about.keys))}; its lists: {_listed(list(about.lists)) or 'none'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
