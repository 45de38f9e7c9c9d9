"""The shortest change of a rule that would keep a position: the failed parts, each with the value to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.selection.explain import Part, holds, typed, values
from pipeline.selection.where import Column, parse_filter

if TYPE_CHECKING:
    from sqlglot import exp

_DIGITS = (2, 3, 4, 6, 9)
"""Decimals that a new threshold may have; the fewest that suffice are taken."""


@dataclass(frozen=True)
class Change:
    """A part of a rule that fails on a position, and what would hold instead."""

    part: str
    """The part as SQL."""
    instead: str
    """SQL that holds on the position; `true` if no other value would do, so that the part must go."""


@dataclass(frozen=True)
class Shortest:
    """The fewest changes of a rule that keep a position."""

    changes: list[Change]
    where: str
    """The whole changed rule."""


def shortest_change(where: str, columns: Mapping[str, Column], row: pl.DataFrame) -> Shortest:
    """Return the fewest changes of a rule that make it true on a position; none if it is true.

    All parts between the outermost ANDs that fail must change; of an OR, the operand that needs fewest changes does. A
    threshold moves just past the value, a list takes it up, and what has no such value is replaced by `true`.

    Args:
        where: the rule.
        columns: the columns that it may name.
        row: a frame of one row that has the columns that the rule names.

    Raises:
        UserError: it is not a valid rule, or cannot be computed on the row.

    Example:
        >>> from pipeline.selection.where import SCORE_COLUMNS
        >>> row = pl.DataFrame({"entropy": [0.9312], "field": ["problem"]}, schema_overrides={"entropy": pl.Float32})
        >>> shortest_change("entropy > 1.0 AND field = 'solution'", SCORE_COLUMNS, row).where
        "entropy > 0.93 AND field IN ('solution', 'problem')"
    """
    from sqlglot import exp

    from pipeline.selection.sql import operands

    row = typed(row, columns)
    tree, _ = parse_filter(where, columns, "where")
    changes, parts = [], []
    for part in operands(tree, exp.And):
        made = _held(part, row)
        if made is not part:
            changes.append(Change(_sql(part), _sql(made)))
        parts.append(_sql(made.unnest()) if made is part and not _is_or(made) else _in_chain(made))
    return Shortest(changes, " AND ".join(part for part in parts if part != "true") or "true")


def _held(node: exp.Expr, row: pl.DataFrame) -> exp.Expr:
    """Return the node if it holds on the row, else the nearest expression that does."""
    from sqlglot import exp

    from pipeline.selection.sql import operands

    if _holds(node, row):
        return node
    inner = node.unnest()
    if isinstance(inner, exp.And):
        made = [_held(part, row) for part in operands(inner, exp.And)]
        return _joined(exp.And, made)
    if isinstance(inner, exp.Or):
        parts = list(operands(inner, exp.Or))
        failing = [sum(not _holds(part, row) for part in operands(each, exp.And)) for each in parts]
        easiest = failing.index(min(failing))
        made = [_held(part, row) if n == easiest else part for n, part in enumerate(parts)]
        return _joined(exp.Or, made)
    return next((made for made in _nearby(inner, row) if _holds(made, row)), exp.true())


def _nearby(node: exp.Expr, row: pl.DataFrame) -> Iterator[exp.Expr]:
    """Yield expressions like a comparison of a column with literals that may hold on the row, the nearest first."""
    from sqlglot import exp

    turned = {exp.GT: exp.LT, exp.GTE: exp.LTE, exp.LT: exp.GT, exp.LTE: exp.GTE, exp.EQ: exp.EQ}
    column, other = node.args.get("this"), node.args.get("expression")
    kind = type(node)
    if isinstance(other, exp.Column) and kind in turned:
        column, other, kind = other, column, turned[kind]
    if not isinstance(column, exp.Column) or column.name not in row.columns:
        return
    value = values(row[column.name])[0]
    if value is None:
        return
    if kind in (exp.GT, exp.GTE, exp.LT, exp.LTE) and isinstance(other, exp.Literal | exp.Neg):
        for number in _past(value, ROUND_FLOOR if kind in (exp.GT, exp.GTE) else ROUND_CEILING):
            yield kind(this=column.copy(), expression=number)
    elif kind is exp.EQ and isinstance(other, exp.Literal):
        yield exp.In(this=column.copy(), expressions=[other.copy(), _literal(value)])
    elif kind is exp.In:
        yield exp.In(this=column.copy(), expressions=[*(each.copy() for each in node.expressions), _literal(value)])
    elif kind is exp.Between:
        for name, rounding in (("low", ROUND_FLOOR), ("high", ROUND_CEILING)):
            for number in _past(value, rounding):
                made = node.copy()
                made.set(name, number)
                yield made


def _past(value: Any, rounding: str) -> Iterator[exp.Expr]:
    """Yield numbers just below (`ROUND_FLOOR`) or above a value, those with the fewest decimals first."""
    if isinstance(value, bool | str) or not isinstance(value, int | float) or value != value:
        return
    exact = Decimal(str(value))
    step = -1 if rounding == ROUND_FLOOR else 1
    for digits in (0,) if isinstance(value, int) else _DIGITS:
        unit = Decimal(1).scaleb(-digits)
        near = exact.quantize(unit, rounding=rounding)
        yield _literal(near)
        if near == exact:
            yield _literal(near + step * unit)


def _literal(value: Any) -> exp.Expr:
    from sqlglot import exp

    if isinstance(value, str):
        return exp.Literal.string(value)
    if isinstance(value, bool):
        return exp.Boolean(this=value)
    text = f"{Decimal(str(value)):f}"
    number = exp.Literal.number(text.lstrip("-"))
    return exp.Neg(this=number) if text.startswith("-") else number


def _joined(kind: type[exp.Connector], parts: list[exp.Expr]) -> exp.Expr:
    """Return the parts joined by AND or OR, in parentheses where they need them."""
    from sqlglot import exp

    made = parts[0].copy()
    for part in parts[1:]:
        made = kind(this=made, expression=part.copy())
    return exp.Paren(this=made)


def _holds(node: exp.Expr, row: pl.DataFrame) -> bool:
    from pipeline.selection.expressions import to_polars

    return bool(holds(Part(_sql(node), to_polars(node), ()), row).item())


def _in_chain(node: exp.Expr) -> str:
    """Return a part as SQL that may stand between two ANDs."""
    text = _sql(node.unnest())
    return f"({text})" if _is_or(node) else text


def _is_or(node: exp.Expr) -> bool:
    from sqlglot import exp

    return isinstance(node.unnest(), exp.Or)


def _sql(node: exp.Expr) -> str:
    from pipeline.selection.sql import Where

    text = node.sql(dialect=Where, comments=False)
    return "true" if text == "TRUE" else text
