r"""Text templates of literal text and columns of a record: `"{problem}\n\n{solution}"`, `"{prompt.0.content}"`."""

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

from pipeline.config.errors import UserError
from pipeline.corpus.quarantine import Unusable

Span = tuple[str, int, int]
"""(column, start, end): bytes of the rendered text."""


@dataclass(frozen=True)
class Template:
    """A parsed template: `parts` are (literal text, column that follows it or None), in order."""

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, template: str) -> Template:
        r"""Parse `corpus.text`; `{{` and `}}` are literal braces.

        Raises:
            UserError: braces are unbalanced, there is no column, or a column has a conversion or format.

        Example:
            >>> Template.parse("Q: {question}\n{{A}} {answer}").columns
            ('question', 'answer')
        """
        hint = "write columns as {name}, braces as {{ and }}"
        try:
            pieces = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UserError(f"corpus.text: {error}", where=repr(template), hint=hint) from error
        if any(form or conversion or column == "" for _, column, form, conversion in pieces):
            raise UserError(
                "corpus.text: only plain column names are allowed in braces", where=repr(template), hint=hint
            )
        if all(column is None for _, column, _, _ in pieces):
            raise UserError("corpus.text names no column", where=repr(template), hint=hint)
        return cls(tuple((literal, column) for literal, column, _, _ in pieces))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the columns in the order of their first appearance."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    def check(self, known: Sequence[str], file: str, key: str = "corpus.text") -> None:
        """Refuse this template, given as `key` of a manifest or recipe, if it names a column that `file` lacks."""
        for column in self.columns:
            check_column(column, known, file, key)

    def render(self, values: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """Return the text of a record in NFC, and the byte span of each column in it.

        Raises:
            Unusable: a column is missing, null, or is not text.

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
    """Refuse a `column`, named by the manifest's `key`, that is not among a file's `known` columns.

    For a nested column (`prompt.0.content`) only the outermost name must be known.
    """
    if column not in known and column.partition(".")[0] not in known:
        near = difflib.get_close_matches(column, known, n=len(known), cutoff=0.0)
        listed = ", ".join(near + [name for name in known if name not in near])
        raise UserError(
            f"`{key}` names the column `{column}`, which does not exist", where=file, hint=f"known: {listed}"
        )


def value_of(column: str, values: Mapping[str, Any]) -> Any:
    """Return a column's value: by that exact name, or else by its dotted path through objects and lists.

    Raises:
        Unusable: there is no such column.

    Example:
        >>> record = {"prompt": [{"role": "user", "content": "Why?"}], "a.b": 1}
        >>> value_of("prompt.0.content", record), value_of("prompt.-1.role", record), value_of("a.b", record)
        ('Why?', 'user', 1)
    """
    if column in values:
        return values[column]
    found: Any = values
    for step in column.split("."):
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, Sequence) and not isinstance(found, (str, bytes)) and _is_index(step, found):
            found = found[int(step)]
        else:
            raise Unusable("missing_column", f"no column `{column}`")
    return found


def _is_index(step: str, items: Sequence[Any]) -> bool:
    return step.removeprefix("-").isdecimal() and -len(items) <= int(step) < len(items)


def as_text(column: str, values: Mapping[str, Any]) -> str:
    r"""Return a column's value as text: strings and UTF-8 bytes unchanged, numbers, booleans and dates as they print.

    A chat (a list of objects with `role` and `content`) becomes `role: content` per message, separated by blank lines.

    Raises:
        Unusable: the column is missing, null, not UTF-8, or of another type, such as a list or an object.

    Example:
        >>> as_text("chat", {"chat": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]})
        'user: Why?\n\nassistant: So.'
    """
    value = value_of(column, values)
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
    if _is_chat(value):
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in value)
    raise Unusable("wrong_type", f"`{column}` is a {type(value).__name__}, not text: {reprlib.repr(value)}")


def _is_chat(value: Any) -> bool:
    return (
        bool(value)
        and isinstance(value, list)
        and all(
            isinstance(message, Mapping) and all(isinstance(message.get(part), str) for part in ("role", "content"))
            for message in value
        )
    )


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _running(sizes: Iterable[int]) -> list[int]:
    total, totals = 0, []
    for size in sizes:
        total += size
        totals.append(total)
    return totals


def _composed_ends(pieces: Sequence[str]) -> list[int]:
    """Return where each piece ends in the NFC of all; a character across a border belongs to the first piece."""
    whole = "".join(pieces)
    normal = unicodedata.normalize("NFC", whole)
    ends = []
    for border in _running(len(piece) for piece in pieces):
        # A border inside a composed character is not one of the result: move it right until both sides compose alone.
        while True:
            head = unicodedata.normalize("NFC", whole[:border])
            if head + unicodedata.normalize("NFC", whole[border:]) == normal:
                break
            border += 1
        ends.append(_size(head))
    return ends
