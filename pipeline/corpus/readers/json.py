"""JSON: lines, an array, or objects with the records in a list inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import Any

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.readers.encodings import DecodedFile
from pipeline.corpus.readers.json_layout import Element, elements_at, elements_in, find_layout, list_path
from pipeline.corpus.readers.json_structure import values
from pipeline.corpus.readers.json_values import is_json, is_object, load_json, parse_json_object
from pipeline.corpus.readers.record_splitter import RawRecord, lines
from pipeline.corpus.readers.records import Record, Slice, make_record
from pipeline.corpus.readers.text import lines_of

_LOOK = 20
"""First lines that are looked at to tell JSON lines from one value over many lines."""


def read_json_lines(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield one record per line, or per element of a list in each (`corpus.records`).

    Raises:
        UserError: the file is one value over many lines.
    """
    with DecodedFile(part.file, config, inside=part.start > 0) as text:
        pieces = lines_of(text, part)
        head = [] if part.start else list(islice(pieces, _LOOK))
        if what := _printed_over_lines(head):
            hint = "name it .json or set corpus.format: json"
            raise UserError(f"not JSON lines but one JSON {what} over many lines", where=part.file.name, hint=hint)
        path = None if config.records is None else list_path(config.records, part.file.name)
        yield from _records(elements_in(chain(head, pieces), path), part.row, text)


def _printed_over_lines(head: Iterable[RawRecord]) -> str | None:
    """Return what begins on the first of some lines and goes on below, if none of them is an object by itself."""
    full = [piece.data.strip() for piece in head if piece.data.strip()]
    if len(full) < 2 or full[0][:1] not in b"[{" or any(map(is_json, full[:1])) or any(map(is_object, full)):
        return None
    return "array" if full[0].startswith(b"[") else "object"


def check_prose(part: Slice, config: CorpusConfig) -> None:
    """Refuse a text file whose lines are JSON objects, unless the manifest says that it is text.

    Raises:
        UserError: each of its first lines is an object.
    """
    with DecodedFile(part.file, config) as text:
        head = [piece.data for piece in islice(lines(text.stream, text.start), _LOOK) if piece.data.strip()]
    if len(head) > 1 and all(map(is_object, head)):
        own = "".join(PurePosixPath(part.file.name).suffixes[-2 if part.file.compression else -1 :])
        hint = f"to read them as records, corpus.format: jsonl, in a folder with corpus.include: ['*{own}']"
        hint += "; as they are, corpus.format: text"
        raise UserError("the lines of this text file are JSON objects", where=part.file.name, hint=hint)


def read_json(part: Slice, config: CorpusConfig) -> Iterator[Record]:
    """Yield the elements of an array, JSON lines, or the elements of a list further inside (`corpus.records`).

    An object that has the columns of the template is a record itself.

    Raises:
        UserError: no list of the file, or more than one, can be that of the records.
    """
    layout = find_layout(part, config)
    with DecodedFile(part.file, config) as text:
        if layout.form == "lines":
            yield from _records(elements_in(lines(text.stream, text.start), layout.records), part.row, text)
        elif layout.records is None:
            yield from _records(elements_in(values(text.stream, text.start)), part.row, text)
        else:
            found = elements_at(text.stream, text.start, layout.records)
            yield from _records(found, part.row, text, of_list=True)


def describe(part: Slice, config: CorpusConfig) -> str:
    """Return where the records of a file were found, to be told to the user; nothing if the manifest says it."""
    layout = find_layout(part, config)
    return f"its records are the list `{layout.records}` (corpus.records)" if layout.found else ""


def _records(
    elements: Iterable[Element], first_row: int, text: DecodedFile, *, of_list: bool = False
) -> Iterator[Record]:
    for row, element in enumerate(elements, first_row):
        if element.piece.data.strip():
            yield make_record(row, element.piece, partial(_columns, element, of_list), text)


def _columns(element: Element, of_list: bool, piece: RawRecord) -> Mapping[str, Any]:
    """Return a record's columns; an element of a list may be a string, which is then the column `text`."""
    if element.why is not None:
        raise element.why
    if (of_list or element.around is not None) and piece.data.lstrip().startswith(b'"'):
        return {**(element.around or {}), "text": load_json(piece.data)[0]}
    own = parse_json_object(piece.data)
    return {**element.around, **own} if element.around else own
