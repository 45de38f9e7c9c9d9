r"""Text templates of literal text and columns of a record: `"{problem}\n\n{solution}"`, `"{prompt.0.content}"`."""

from __future__ import annotations

import difflib
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.config.errors import UserError
from pipeline.corpus.rendering import Rule, as_text, outermost, parse_rule

Span = tuple[str, int, int]
"""(column, start, end): bytes of the rendered text."""


@dataclass(frozen=True)
class Template:
    """A parsed template: `parts` are (literal text, column that follows it or None), in order."""

    parts: tuple[tuple[str, str | None], ...]
    rules: tuple[Rule | None, ...] = ()
    """How the column of each part becomes text, if the template says it; () for none at all."""

    @classmethod
    def parse(cls, template: str) -> Template:
        r"""Parse `corpus.text`; `{{` and `}}` are literal braces, `{column | rule}` names a rule of `rendering`.

        Raises:
            UserError: braces are unbalanced, there is no column, a column has a conversion or format, or a rule is
                unknown.

        Example:
            >>> Template.parse("Q: {question}\n{{A}} {answer | chat}").columns
            ('question', 'answer')
        """
        hint = "write columns as {name}, braces as {{ and }}"
        try:
            pieces = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UserError(f"corpus.text: {error}", where=repr(template), hint=hint) from error
        parts, rules = [], []
        for literal, column, form, conversion in pieces:
            name, bar, rule = (column or "").partition("|")
            if bar:  # a joiner may hold what `Formatter` takes for a format
                rule += (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            elif form or conversion or column == "":
                what = "corpus.text: only plain column names are allowed in braces"
                raise UserError(what, where=repr(template), hint=hint)
            parts.append((literal, name.strip() if column is not None else None))
            rules.append(parse_rule(rule, template) if bar else None)
        if all(column is None for _, column in parts):
            raise UserError("corpus.text names no column", where=repr(template), hint=hint)
        return cls(tuple(parts), tuple(rules) if any(rules) else ())

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Return the columns in the order of their first appearance."""
        return tuple(dict.fromkeys(column for _, column in self.parts if column is not None))

    @cached_property
    def _ruled(self) -> tuple[tuple[tuple[str, str | None], Rule | None], ...]:
        return tuple(zip(self.parts, self.rules or (None,) * len(self.parts), strict=True))

    def check(self, known: Sequence[str], file: str, key: str = "corpus.text") -> None:
        """Refuse this template, given as `key` of a manifest or recipe, if it names a column that `file` lacks."""
        column = self.missing(known)
        if column is not None:
            example = f"; the template is made of them, such as {key}: '{{{known[0]}}}'" if self == _DEFAULT else ""
            raise _no_column(column, known, file, key, example)

    def missing(self, known: Sequence[str]) -> str | None:
        """Return the first column that is not among these, or None."""
        return next((column for column in self.columns if not _is_known(column, known)), None)

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
        for (literal, column), rule in self._ruled:
            if literal:
                pieces.append(literal)
                names.append(None)
            if column is not None:
                pieces.append(as_text(column, values, rule))
                names.append(column)
        normal = [unicodedata.normalize("NFC", piece) for piece in pieces]
        text = "".join(normal)
        # Nothing composes with an ASCII character that comes after it.
        if all(piece[:1].isascii() for piece in normal[1:]) or unicodedata.is_normalized("NFC", text):
            ends = _running(_size(piece) for piece in normal)
        else:  # a piece begins with a mark that composes with the end of the piece before it
            text, ends = unicodedata.normalize("NFC", text), _composed_ends(pieces)
        starts = [0, *ends]
        return text, [(name, starts[i], ends[i]) for i, name in enumerate(names) if name is not None]


_DEFAULT = Template.parse("{text}")


def check_column(column: str, known: Sequence[str], file: str, key: str) -> None:
    """Refuse a `column`, named by the manifest's `key`, that is not among a file's `known` columns.

    For a nested column (`prompt.0.content`, `turns[].text`) only the outermost name must be known.
    """
    if not _is_known(column, known):
        raise _no_column(column, known, file, key)


def _is_known(column: str, known: Sequence[str]) -> bool:
    return column in known or outermost(column) in known


def _no_column(column: str, known: Sequence[str], file: str, key: str, more: str = "") -> UserError:
    near = difflib.get_close_matches(column, known, n=len(known), cutoff=0.0)
    listed = ", ".join(near + [name for name in known if name not in near])
    message = f"`{key}` names the column `{column}`, which does not exist"
    return UserError(message, where=file, hint=f"known: {listed}{more}")


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


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
