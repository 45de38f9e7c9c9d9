"""Explains a rule on given positions: which of its parts hold, and the values that decide them.

A part is what stands between the outermost ANDs of `where`; OR, NOT and everything else stay one part. Parts are
evaluated by the code that evaluates the rule (`where.filter_rows`), so a row passes the rule if and only if all its
parts hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.selection.where import Column, filter_rows, parse_filter


@dataclass(frozen=True)
class Part:
    """A part of a rule."""

    text: str
    """The part as SQL, without comments and in sqlglot's spelling (`<>` for `!=`)."""
    expression: pl.Expr
    columns: tuple[str, ...]
    """Columns that the part names, each once, in its order."""


@dataclass(frozen=True)
class Explanation:
    """A part of a rule on one position."""

    text: str
    """The part as SQL."""
    holds: bool
    """False also where the part is null, since a rule keeps only rows for which it is true."""
    values: dict[str, Any]
    """Values of the columns that the part names; None for null."""


def parts_of_rule(where: str, columns: Mapping[str, Column]) -> list[Part]:
    """Return the parts of a rule, from left to right.

    Args:
        where: the rule.
        columns: the columns that it may name.

    Raises:
        UserError: as for `where.row_filter`.

    Example:
        >>> from pipeline.selection.where import SCORE_COLUMNS
        >>> [part.text for part in parts_of_rule("entropy > 1 AND (rank = 0 OR nll < 2)", SCORE_COLUMNS)]
        ['entropy > 1', '(rank = 0 OR nll < 2)']
    """
    from sqlglot import exp

    from pipeline.selection.expressions import to_polars
    from pipeline.selection.sql import Where, operands, referenced_columns

    tree, _ = parse_filter(where, columns, "where")
    return [
        Part(
            part.sql(dialect=Where, comments=False),
            to_polars(part),
            tuple(dict.fromkeys(column.name for column in referenced_columns(part))),
        )
        for part in operands(tree, exp.And)
    ]


def typed(rows: pl.DataFrame, columns: Mapping[str, Column]) -> pl.DataFrame:
    """Return the rows with the types that rules compare: classes may have been shown as text."""
    return rows.cast({name: columns[name].dtype for name in rows.columns if name in columns})


def holds(part: Part, rows: pl.DataFrame) -> pl.Series:
    """Return for each of the rows whether the part holds, as booleans; false where it is null.

    Raises:
        UserError: it cannot be computed on a value (`where.filter_rows`).
    """
    passing = filter_rows(rows.with_row_index("row"), part.expression, f"`{part.text}`")["row"]
    return pl.int_range(rows.height, eager=True).is_in(passing.cast(pl.Int64).to_list())


def explain(where: str, columns: Mapping[str, Column], row: pl.DataFrame) -> list[Explanation]:
    """Return every part of a rule with whether it holds on a position, and the values of its columns.

    Args:
        where: the rule.
        columns: the columns that it may name.
        row: a frame of one row that has the columns that the rule names.

    Raises:
        UserError: it is not a valid rule, or cannot be computed on the row.

    Example:
        >>> from pipeline.selection.where import SCORE_COLUMNS
        >>> row = pl.DataFrame({"entropy": [2.306], "field": ["problem"]}, schema_overrides={"entropy": pl.Float32})
        >>> for part in explain("entropy > 1.0 AND field = 'solution'", SCORE_COLUMNS, row):
        ...     print(part.text, part.holds, part.values)
        entropy > 1.0 True {'entropy': 2.306}
        field = 'solution' False {'field': 'problem'}
    """
    row = typed(row, columns)
    return [
        Explanation(part.text, holds(part, row).item(), {name: values(row[name])[0] for name in part.columns})
        for part in parts_of_rule(where, columns)
    ]


def values(column: pl.Series) -> list[Any]:
    """Return the values of a column; 32-bit numbers as the shortest decimals that round to them, as 2.306."""
    if column.dtype != pl.Float32:
        return column.to_list()
    return [None if value is None else float(str(np.float32(value))) for value in column]


def in_words(found: Mapping[str, Any]) -> str:
    """Return values as text: the value of one column alone, several with their names.

    Example:
        >>> in_words({"entropy": 2.306}), in_words({"field": "", "rank": None}), in_words({})
        ('2.306', "field '', rank null", '')
    """
    words = {name: _in_words(value) for name, value in found.items()}
    return (
        next(iter(words.values())) if len(words) == 1 else ", ".join(f"{name} {word}" for name, word in words.items())
    )


def _in_words(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "''"
