"""Checks `where`: a SQL expression over the columns of one row, before anything runs.

An expression is untrusted text: from a manifest, a recipe, or a URL of the live page. `sql.py` parses it within limits,
`expressions.py` translates the supported operators and functions, and polars only gets the translation, never the text.
An expression sees one row at a time. Aggregates, windows and subqueries would read a whole shard, so that the same
manifest would select other sites if its corpus were cut into other shards.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.config.errors import UserError, first_line
from pipeline.selection.classes import TOKEN_CLASSES

if TYPE_CHECKING:
    from sqlglot import exp

SHOWN = 300
"""Maximum characters of an expression that an error message quotes."""


@dataclass(frozen=True)
class Column:
    """A column that an expression may name."""

    dtype: pl.DataType
    meaning: str
    whole: bool = True
    """True: one value. False: JSON text, which LIKE can search, but which comparisons are refused for."""


SCORE_COLUMNS: Mapping[str, Column] = {
    "doc_id": Column(pl.String(), "document's id"),
    "position": Column(pl.Int32(), "index of the token in its document, from 0"),
    "byte_offset": Column(pl.Int32(), "where the token begins in the document's bytes"),
    "field": Column(pl.String(), "column of the corpus the token begins in; '' in the template's own text"),
    "entropy": Column(pl.Float32(), "nats, over the proxy's top-k next tokens renormalised"),
    "entropy_partial": Column(pl.Float32(), "nats, over the same top-k without renormalising"),
    "nll": Column(pl.Float32(), "nats, negative log-probability of the true token"),
    "rank": Column(pl.Int32(), "how many tokens the proxy thought likelier than the true one"),
    "reference_nll": Column(pl.Float32(), "nats, the same of the manifest's `reference` model; null without one"),
    "excess_loss": Column(pl.Float32(), "nats, nll − reference_nll: high where a better model knows more (Rho-1)"),
    "token_class": Column(pl.Enum(TOKEN_CLASSES), "kind of text: digit, word_start, … (pipeline/selection/classes.py)"),
    "tokens": Column(pl.Int32(), "length of the document in tokens"),
    "split": Column(pl.String(), "train or validation"),
}
"""Columns that `select.where` and `select.validation_where` may name."""


def describe(columns: Mapping[str, Column]) -> str:
    """Return one line per column, for `--help` and the documentation."""
    width = max(map(len, columns))
    return "\n".join(f"{name:<{width}}  {column.meaning}" for name, column in columns.items())


def row_filter(where: str, columns: Mapping[str, Column], key: str) -> pl.Expr:
    """Parse `where` into a boolean polars expression of one row.

    Args:
        where: the expression.
        columns: the columns that it may name.
        key: the configuration key of the expression (`select.where`), for the message.

    Raises:
        UserError: it does not parse, names an unknown column or function, exceeds a limit (`sql.py`), is not boolean,
            or compares values of types that cannot be compared.

    Example:
        >>> pl.DataFrame({"entropy": [0.5, 2.0]}).filter(row_filter("entropy > 1", SCORE_COLUMNS, "where")).height
        1
        >>> row_filter("entropi > 1", SCORE_COLUMNS, "where")
        Traceback (most recent call last):
        pipeline.config.errors.UserError: `where` names `entropi`, which is not a column: entropi > 1 (at character 1: \
did you mean `entropy`? Columns: doc_id, position, byte_offset, field, entropy, entropy_partial, nll, rank, \
reference_nll, excess_loss, token_class, tokens, split)
    """
    return parse_filter(where, columns, key)[1]


def parse_filter(where: str, columns: Mapping[str, Column], key: str) -> tuple[exp.Expr, pl.Expr]:
    """Parse `where` into a syntax tree (`pipeline.selection.sql`) and a boolean polars expression of one row.

    Args:
        where: the expression.
        columns: the columns that it may name.
        key: the configuration key of the expression, for the message.

    Raises:
        UserError: as for `row_filter`.
    """
    from pipeline.selection.expressions import to_polars
    from pipeline.selection.sql import Refused, parse

    try:
        tree = parse(where)
        _check_names(tree, columns)
        _check_comparisons(tree, columns)
        expression = to_polars(tree)
    except Refused as refused:
        at = f"at character {refused.at}: " if refused.at else ""
        raise _refusal(f"`{key}` {refused.what}", where, at + refused.advice) from refused
    # Run it on a few example rows, because polars finds type errors only when it computes.
    probe = pl.DataFrame({name: _EXAMPLES[type(c.dtype)] for name, c in columns.items()}, schema=_schema(columns))
    try:
        result = probe.select(expression.alias("where"))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _refusal(f"`{key}` cannot be computed", where, first_line(error)) from error
    if result.schema["where"] != pl.Boolean:
        raise _refusal(f"`{key}` is {result.schema['where']}, not true or false", where, "write a comparison")
    return tree, expression


def _check_names(tree: exp.Expr, columns: Mapping[str, Column]) -> None:
    from pipeline.selection.sql import Refused, referenced_columns, start_of

    for column in referenced_columns(tree):
        name = column.name
        if name not in columns:
            near = difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`? " if near else f"a text is written in quotes: '{name[:40]}'. "
            advice = f"{hint}Columns: {', '.join(columns)}"
            raise Refused(f"names `{name[:40]}`, which is not a column", advice, start_of(column))


def _check_comparisons(tree: exp.Expr, columns: Mapping[str, Column]) -> None:
    from sqlglot import exp

    from pipeline.selection.sql import Refused, start_of

    for node in tree.find_all(exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between, exp.In):
        sides = (node.this, node.args.get("expression"))
        for side in (side.unnest() for side in sides if side is not None):
            if isinstance(side, exp.Column) and not columns[side.name].whole:
                advice = f"write {side.name} LIKE '%part%'"
                raise Refused(f"compares `{side.name}`, which is JSON of a list or an object", advice, start_of(side))


def filter_rows(frame: pl.DataFrame, expression: pl.Expr, name: str) -> pl.DataFrame:
    """Return the rows for which the expression is true (neither false nor null).

    Args:
        frame: the rows.
        expression: a boolean expression of one row.
        name: the configuration key of the expression, for the message.

    Raises:
        UserError: it cannot be computed on a value, such as `CAST(field AS INT)` on a word.
    """
    try:
        return frame.filter(expression)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{name} cannot be computed on this corpus", hint=first_line(error)) from error


_EXAMPLES: Mapping[type[pl.DataType], list[Any]] = {
    pl.String: ["1", "2", None],
    pl.Float32: [0.25, 1.5, None],
    pl.Float64: [0.25, 1.5, None],
    pl.Int32: [1, 2, None],
    pl.Boolean: [True, False, None],
    pl.Enum: ["digit", "word_start", None],
}
"""Example values to run an expression on. Strings are numbers, because whether a cast works depends on the corpus."""


def _schema(columns: Mapping[str, Column]) -> dict[str, pl.DataType]:
    return {name: column.dtype for name, column in columns.items()}


def _refusal(message: str, where: str, hint: str) -> UserError:
    printed = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(where.split()))
    shown = printed if len(printed) <= SHOWN else f"{printed[:SHOWN]}…"
    return UserError(message, where=shown or "(empty)", hint=hint)
