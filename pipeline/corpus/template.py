"""Text templates: literal text and the columns of a record, as in `"{problem}\\n\\n{solution}"`."""

from __future__ import annotations

import difflib
import math
import reprlib
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import cached_property
from typing import Any

from pipeline.core.errors import UserError
from pipeline.corpus.quarantine import Unusable

Span = tuple[str, int, int]
"""(column, start, end): bytes of the rendered text."""


@dataclass(frozen=True)
class Template:
    """A parsed template: `parts` are (literal text, column that follows it or None), in order."""

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, template: str) -> Template:
        """Parse `corpus.text`; `{{` and `}}` stand for braces.

        Raises:
            UserError: unbalanced braces, no column at all, or conversions and formats, which columns do not take.

        Example:
            >>> Template.parse("Q: {question}\\n{{A}} {answer}").columns
            ('question', 'answer')
        """
        mend = "write columns as {name}, braces as {{ and }}"
        try:
            pieces = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UserError(f"corpus.text: {error}", where=repr(template), mend=mend) from error
        if any(form or conversion or column == "" for _, column, form, conversion in pieces):
            raise UserError("corpus.text: only plain column names stand in braces", where=repr(template), mend=mend)
        if all(column is None for _, column, _, _ in pieces):
            raise UserError("corpus.text names no column", where=repr(template), mend=mend)
        return cls(tuple((literal, column) for literal, column, _, _ in pieces))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns in the order of their first appearance."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def check(self, known: Sequence[str], file: str) -> None:
        """Refuse a template that names a column which `file` does not have."""
        for column in self.columns:
            check_column(column, known, file, "corpus.text")

    def render(self, values: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """The text of a record in NFC, and the byte span of each column in it.

        Raises:
            Unusable: a column is missing, null, or holds something that is no text.

        Example:
            >>> Template.parse("{a}: {b}").render({"a": "né", "b": 7})
            ('né: 7', [('a', 0, 3), ('b', 5, 6)])
        """
        pieces: list[str] = []
        names: list[str | None] = []
        for literal, column in self.parts:
            pieces += [literal] if column is None else [literal, as_text(column, values)]
            names += [None] if column is None else [None, column]
        normal = [unicodedata.normalize("NFC", piece) for piece in pieces]
        text = "".join(normal)
        if unicodedata.is_normalized("NFC", text):
            ends = _running(_size(piece) for piece in normal)
        else:  # a piece begins with a mark that composes with the end of the piece before it
            text, ends = unicodedata.normalize("NFC", text), _composed_ends(pieces)
        starts = [0, *ends]
        return text, [(name, starts[i], ends[i]) for i, name in enumerate(names) if name is not None]


def check_column(column: str, known: Sequence[str], file: str, key: str) -> None:
    """Refuse a `column`, named by the manifest's `key`, that is not among a file's `known` ones."""
    if column not in known:
        near = difflib.get_close_matches(column, known, n=len(known), cutoff=0.0)
        listed = ", ".join(near + [name for name in known if name not in near])
        raise UserError(f"`{key}` names the column `{column}`, which is not there", where=file, mend=f"known: {listed}")


def as_text(column: str, values: Mapping[str, Any]) -> str:
    """A column's value as text: strings and UTF-8 bytes as they are, numbers, booleans and dates as they print.

    Raises:
        Unusable: the column is missing, null, not UTF-8, or a list, an object or another thing that is no text.
    """
    if column not in values:
        raise Unusable("missing_column", f"no column `{column}`")
    value = values[column]
    if value is None:
        raise Unusable("null_column", f"`{column}` is null")
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise Unusable("not_utf8", f"`{column}`, byte {error.start}: {error.reason}") from error
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, Decimal, date, time)) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise Unusable("wrong_type", f"`{column}` is a {type(value).__name__}, not text: {reprlib.repr(value)}")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _running(sizes: Iterable[int]) -> list[int]:
    total, totals = 0, []
    for size in sizes:
        total += size
        totals.append(total)
    return totals


def _composed_ends(pieces: Sequence[str]) -> list[int]:
    """Where each piece ends in the NFC of all: what composes across a border belongs to the piece it begins in."""
    whole = "".join(pieces)
    normal = unicodedata.normalize("NFC", whole)
    ends = []
    for border in _running(len(piece) for piece in pieces):
        while True:
            head = unicodedata.normalize("NFC", whole[:border])
            if head + unicodedata.normalize("NFC", whole[border:]) == normal:
                break
            border += 1
        ends.append(_size(head))
    return ends
