"""Translates syntax trees of `where` (`sql.parse`) to polars expressions, from a fixed list of operators and functions.

Anything not in `_NODES` or `FUNCTIONS` is refused, so an expression can only compute with the values of its row. No
function returns text longer than its arguments: none pads, repeats or joins.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl
from sqlglot import exp

from pipeline.selection.sql import TYPES, Refused, operands, referenced_columns, start_of

MAX_PATTERN = 200
"""Maximum characters of a regular expression or a LIKE pattern."""

MAX_PATTERNS = 8
"""Maximum regular expressions in one expression."""

MAX_PATTERN_SIZE = 1500
"""Maximum size of a regular expression with its repetitions written out (`_unfolded_size`). Compiling `\\w{60}` takes
some ten milliseconds; thousands of states take seconds, in every thread again."""

CLASS = 20
"""Characters that a character class (`\\w`, `[a-z]`) counts as in the size of a pattern."""

_DTYPES: dict[str, pl.DataType] = {
    "BIGINT": pl.Int64(),
    "BOOLEAN": pl.Boolean(),
    "DOUBLE": pl.Float64(),
    "FLOAT": pl.Float32(),
    "INT": pl.Int32(),
    "SMALLINT": pl.Int16(),
    "TEXT": pl.String(),
    "VARCHAR": pl.String(),
}
"""Polars types by sqlglot's type names."""


class Function(NamedTuple):
    """A function of one row's values, with the number of arguments that it takes."""

    fewest: int
    most: int
    build: Callable[..., pl.Expr]
    """Builds the polars expression from the arguments: polars expressions, or plain values if listed in `literal`."""
    literal: Sequence[int] = ()
    """Indices (from 0) of arguments that must be literals: a number or a text."""


def _length(count: pl.Expr) -> pl.Expr:
    return count.cast(pl.Int64)  # unsigned counts would wrap below zero


def _substring(text: pl.Expr, start: object, length: object = None) -> pl.Expr:
    if not isinstance(start, int) or start < 1 or not (length is None or (isinstance(length, int) and length >= 0)):
        raise Refused("calls SUBSTR with an invalid start or length", "SUBSTR(text, start, length), start from 1")
    return text.str.slice(start - 1, length)


def _round(number: pl.Expr, decimals: object = 0) -> pl.Expr:
    if not isinstance(decimals, int) or not 0 <= decimals <= 15:
        raise Refused("calls ROUND with invalid decimals", "ROUND(number, decimals): an integer from 0 to 15")
    return number.round(decimals)


def _log(number: pl.Expr, base: object) -> pl.Expr:
    if not isinstance(base, int | float) or base <= 0:
        raise Refused("calls LOG with an invalid base", "LOG(number, base): a number above 0")
    return number.log(base)


def _matches(text: pl.Expr, pattern: object, flags: object = "") -> pl.Expr:
    if flags not in ("", "i"):
        raise Refused("calls REGEXP_LIKE with an unknown flag", "the only flag is 'i', which ignores case")
    return _regexp(text, pattern, ignore_case=flags == "i")


def _find(text: pl.Expr, part: object) -> pl.Expr:
    if not isinstance(part, str):
        raise Refused("calls STRPOS without a text literal", "STRPOS(column, 'text')")
    return _length(text.str.find(part, literal=True) + 1).fill_null(0)


FUNCTIONS: dict[str, Function] = {
    "ABS": Function(1, 1, pl.Expr.abs),
    "CEIL": Function(1, 1, pl.Expr.ceil),
    "COALESCE": Function(1, 8, pl.coalesce),
    "ENDS_WITH": Function(2, 2, lambda text, end: text.str.ends_with(end)),
    "EXP": Function(1, 1, pl.Expr.exp),
    "FLOOR": Function(1, 1, pl.Expr.floor),
    "GREATEST": Function(1, 8, pl.max_horizontal),
    "IF": Function(3, 3, lambda test, yes, no: pl.when(test).then(yes).otherwise(no)),
    "IFNULL": Function(2, 2, pl.coalesce),
    "LEAST": Function(1, 8, pl.min_horizontal),
    "LEFT": Function(2, 2, lambda text, n: text.str.head(n)),
    "LENGTH": Function(1, 1, lambda text: _length(text.str.len_chars())),
    "LN": Function(1, 1, pl.Expr.log),
    "LOG": Function(2, 2, _log, (1,)),
    "LOG10": Function(1, 1, pl.Expr.log10),
    "LOG2": Function(1, 1, lambda number: number.log(2)),
    "LOWER": Function(1, 1, lambda text: text.str.to_lowercase()),
    "LTRIM": Function(1, 2, lambda text, of=None: text.str.strip_chars_start(of)),
    "MOD": Function(2, 2, lambda a, b: _remainder(a, b)),
    "NULLIF": Function(2, 2, lambda a, b: pl.when(a == b).then(None).otherwise(a)),
    "OCTET_LENGTH": Function(1, 1, lambda text: _length(text.str.len_bytes())),
    "POWER": Function(2, 2, pl.Expr.pow),
    "REGEXP_LIKE": Function(2, 3, _matches, (1, 2)),
    "RIGHT": Function(2, 2, lambda text, n: text.str.tail(n)),
    "ROUND": Function(1, 2, _round, (1,)),
    "RTRIM": Function(1, 2, lambda text, of=None: text.str.strip_chars_end(of)),
    "SIGN": Function(1, 1, pl.Expr.sign),
    "SQRT": Function(1, 1, pl.Expr.sqrt),
    "STARTS_WITH": Function(2, 2, lambda text, start: text.str.starts_with(start)),
    "STRPOS": Function(2, 2, _find, (1,)),
    "SUBSTR": Function(2, 3, _substring, (1, 2)),
    "TRIM": Function(1, 1, lambda text: text.str.strip_chars()),
    "UPPER": Function(1, 1, lambda text: text.str.to_uppercase()),
}
"""Functions that an expression may call."""

OTHER_NAMES = {"CEILING": "CEIL", "CHAR_LENGTH": "LENGTH", "POW": "POWER", "SUBSTRING": "SUBSTR"}


def to_polars(tree: exp.Expr) -> pl.Expr:
    """Return the polars expression of a syntax tree.

    Raises:
        Refused: the tree has an operator or a function that is not supported.

    Example:
        >>> from pipeline.selection.sql import parse
        >>> frame = pl.DataFrame({"a": [1, 2, 3], "b": ["x", "Y", "y"]})
        >>> frame.filter(to_polars(parse("a / 2 >= 1 AND LOWER(b) = 'y'")))["a"].to_list()
        [2, 3]
        >>> to_polars(parse("LPAD(b, 1000000, 'x') = 'x'"))
        Traceback (most recent call last):
        pipeline.selection.sql.Refused: calls `LPAD`, which is not a function of one row's values
    """
    operators = sum(1 for _ in tree.find_all(exp.RegexpLike, exp.RegexpILike))
    calls = sum(call.name.upper() == "REGEXP_LIKE" for call in tree.find_all(exp.Anonymous))
    if operators + calls > MAX_PATTERNS:
        raise Refused("has too many regular expressions", f"at most {MAX_PATTERNS}")
    return _expression(tree)


def comparison_values(tree: exp.Expr, column: str) -> set[float] | None:
    """Return the numbers that an expression compares a column with, or None if it also uses the column otherwise.

    Example:
        >>> from pipeline.selection.sql import parse
        >>> sorted(comparison_values(parse("a > 1.5 OR NOT a BETWEEN -2 AND 3 OR b = 4"), "a"))
        [-2.0, 1.5, 3.0]
        >>> comparison_values(parse("a + 1 > 2"), "a"), comparison_values(parse("b > 2"), "a")
        (None, set())
    """
    values: set[float] = set()
    for node in tree.find_all(exp.Column):
        if node.name != column:
            continue
        parent = node.parent
        if parent is None or not isinstance(parent, (*_COMPARISONS, exp.Between)):
            return None
        others = [_number(other) for other in parent.iter_expressions() if other is not node]
        if None in others:
            return None
        values |= {float(number) for number in others if number is not None}
    return values


def column_names(tree: exp.Expr) -> set[str]:
    """Return the names of the columns that an expression refers to."""
    return {column.name for column in referenced_columns(tree)}


def _expression(node: exp.Expr | None) -> pl.Expr:
    build = None if node is None else _NODES.get(type(node))
    if build is None:
        raise _unsupported(node)
    return build(node)


def _unsupported(node: exp.Expr | None) -> Refused:
    if node is None:
        return Refused("is not a SQL expression", "something is missing")
    words: dict[type, str] = {exp.DPipe: "`||`", exp.Concat: "adjacent texts", exp.Escape: "ESCAPE", exp.Star: "`*`"}
    what = words.get(type(node)) or f"`{type(node).__name__.upper()}`"
    return Refused(f"uses {what}, which is not supported", "compare columns of one row", start_of(node))


# ------------------------------------------------------------------------------------------------------- values


def _literal(node: exp.Literal) -> pl.Expr:
    return pl.lit(str(node.this)) if node.is_string else pl.lit(_number(node))


def _number(node: exp.Expr) -> int | float | None:
    """Return the value of a number literal, or None for any other node."""
    if isinstance(node, exp.Neg):
        positive = _number(node.this)
        return None if positive is None else -positive
    if not isinstance(node, exp.Literal) or node.is_string:
        return None
    digits = str(node.this)
    if not re.fullmatch(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", digits, re.ASCII):
        raise Refused("is not a SQL expression", f"`{digits[:40]}` is not a number", start_of(node))
    whole = digits.isdigit()
    if whole and int(digits[:20]) >= 1 << 63:
        raise Refused("has an integer that is too large", "write it as 1e20", start_of(node))
    return int(digits) if whole else float(digits)


def _value(node: exp.Expr) -> int | float | str | None:
    """Return the value of a number or text literal, or None for any other node."""
    return str(node.this) if isinstance(node, exp.Literal) and node.is_string else _number(node)


def _negative(node: exp.Neg) -> pl.Expr:
    number = _number(node)
    return -_expression(node.this) if number is None else pl.lit(number)


# ---------------------------------------------------------------------------------------------------- operators


def _binary(operation: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> Callable[[exp.Expr], pl.Expr]:
    return lambda node: operation(_expression(node.this), _expression(node.args.get("expression")))


def _remainder(a: pl.Expr, b: pl.Expr) -> pl.Expr:
    """Return the remainder with the sign of the dividend, as in SQL; that of polars has the sign of the divisor."""
    return (a.abs() % b.abs()) * a.sign()


def _chain(kind: type[exp.Connector], operation: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> Callable:
    """Return the builder of a chain of AND or OR as a balanced tree, so that a long chain is not a deep expression."""
    return lambda node: _balanced_chain([_expression(part) for part in operands(node, kind)], operation)


def _balanced_chain(parts: Sequence[pl.Expr], operation: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> pl.Expr:
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return operation(_balanced_chain(parts[:middle], operation), _balanced_chain(parts[middle:], operation))


def _is(node: exp.Is) -> pl.Expr:
    if not isinstance(node.expression, exp.Null):
        raise Refused("uses IS without NULL", "write the condition alone, or NOT before it", start_of(node))
    return _expression(node.this).is_null()


def _in(node: exp.In) -> pl.Expr:
    values = node.expressions
    if not values:
        raise Refused("uses IN without a list", "IN ('one', 'two')", start_of(node))
    value = _expression(node.this)
    texts = [str(one.this) for one in values if isinstance(one, exp.Literal) and one.is_string]
    others = [one for one in values if not (isinstance(one, exp.Literal) and one.is_string)]
    tests = [value.is_in(texts)] if texts else []
    return _balanced_chain([*tests, *(value == _expression(other) for other in others)], pl.Expr.or_)


def _between(node: exp.Between) -> pl.Expr:
    if node.args.get("symmetric") is not None:
        raise Refused("uses SYMMETRIC", "put the lower limit first", start_of(node))
    value = _expression(node.this)
    return (value >= _expression(node.args["low"])) & (value <= _expression(node.args["high"]))


def _like(node: exp.Like | exp.ILike) -> pl.Expr:
    pattern = _value(node.expression)
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise Refused("uses an invalid LIKE", f"LIKE 'part%', at most {MAX_PATTERN} characters", start_of(node))
    parts = ({"%": ".*", "_": "."}.get(c) or re.escape(c) for c in pattern)
    flags = "(?is)" if isinstance(node, exp.ILike) else "(?s)"
    like = _expression(node.this).str.contains(f"{flags}^{''.join(parts)}$")
    return ~like if node.args.get("negate") else like


def _regexp_node(node: exp.RegexpLike | exp.RegexpILike) -> pl.Expr:
    return _regexp(_expression(node.this), _value(node.expression), ignore_case=isinstance(node, exp.RegexpILike))


def _regexp(text: pl.Expr, pattern: object, *, ignore_case: bool) -> pl.Expr:
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise Refused("has an invalid regular expression", f"a text such as '^part', at most {MAX_PATTERN} characters")
    if _unfolded_size(pattern) > MAX_PATTERN_SIZE:
        raise Refused("has a regular expression with too many repetitions", "use smaller counts in `{n}`")
    return text.str.contains(f"(?i){pattern}" if ignore_case else pattern)


def _unfolded_size(pattern: str) -> int:
    r"""Return the size of a pattern: its characters, a class counted as `CLASS`, times the largest count of each `{n}`.

    Example:
        >>> _unfolded_size("^part"), _unfolded_size(r"\d{3}-\w{2,4}"), _unfolded_size("(a{9}){9}")
        (5, 636, 729)
    """
    classes = len(re.findall(r"\\[a-zA-Z]|\[|\.|\(\?", pattern))
    repeats = [re.findall(r"[0-9]+", braces) for braces in re.findall(r"\{([^}]*)", pattern)]
    times = math.prod(max(1, *(int(number[:6]) for number in numbers)) for numbers in repeats if numbers)
    return (len(pattern) + CLASS * classes) * times


def _case(node: exp.Case) -> pl.Expr:
    subject = None if node.this is None else _expression(node.this)
    result = _expression(node.args["default"]) if node.args.get("default") else pl.lit(None)
    for branch in reversed(node.args["ifs"]):
        test = _expression(branch.this)
        test = test if subject is None else subject == test
        result = pl.when(test).then(_expression(branch.args.get("true"))).otherwise(result)
    return result


def _cast(node: exp.Cast | exp.TryCast) -> pl.Expr:
    dtype = _DTYPES.get(node.to.this.value) if isinstance(node.to.this, exp.DType) else None
    if dtype is None or node.to.expressions or node.args.get("format") or node.args.get("default"):
        known = ", ".join(sorted(TYPES))
        raise Refused(f"casts to `{node.to.sql()[:40]}`", f"supported types, without a length: {known}", start_of(node))
    return _expression(node.this).cast(dtype, strict=not isinstance(node, exp.TryCast))


def _call(node: exp.Anonymous) -> pl.Expr:
    written = str(node.name)
    name = OTHER_NAMES.get(written.upper(), written.upper())
    function, at = FUNCTIONS.get(name), start_of(node)
    if function is None:
        near = difflib.get_close_matches(name, [*FUNCTIONS, *OTHER_NAMES], n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}? " if near else ""
        known = f"Functions: {', '.join(FUNCTIONS)}"
        raise Refused(f"calls `{written}`, which is not a function of one row's values", hint + known, at)
    given = node.expressions
    if not function.fewest <= len(given) <= function.most:
        counts = " to ".join(map(str, dict.fromkeys((function.fewest, function.most))))
        raise Refused(f"gives `{written}` {len(given)} arguments", f"it takes {counts}", at)
    arguments = [_value(one) if i in function.literal else _expression(one) for i, one in enumerate(given)]
    try:
        return function.build(*arguments)
    except Refused as refused:
        raise Refused(refused.what, refused.advice, refused.at or at) from refused


def _column(node: exp.Column) -> pl.Expr:
    if len(node.parts) > 1:
        raise Refused(f"names `{node.parts[0].name}`, which is not a column", "write its name alone", start_of(node))
    if node.name == "*" or (node.name.startswith("^") and node.name.endswith("$")):
        raise Refused(f"names `{node.name}`, which polars would expand to several columns", "rename it", start_of(node))
    return pl.col(node.name)


_COMPARISONS: dict[type[exp.Expr], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    exp.EQ: pl.Expr.eq,
    exp.NEQ: pl.Expr.ne,
    exp.GT: pl.Expr.gt,
    exp.GTE: pl.Expr.ge,
    exp.LT: pl.Expr.lt,
    exp.LTE: pl.Expr.le,
}

_NODES: dict[type[exp.Expr], Callable[..., pl.Expr]] = {
    **{kind: _binary(operation) for kind, operation in _COMPARISONS.items()},
    exp.Add: _binary(pl.Expr.add),
    exp.Sub: _binary(pl.Expr.sub),
    exp.Mul: _binary(pl.Expr.mul),
    exp.Div: _binary(pl.Expr.truediv),
    exp.Mod: _binary(_remainder),
    exp.NullSafeEQ: _binary(pl.Expr.eq_missing),
    exp.NullSafeNEQ: _binary(pl.Expr.ne_missing),
    exp.And: _chain(exp.And, pl.Expr.and_),
    exp.Or: _chain(exp.Or, pl.Expr.or_),
    exp.Not: lambda node: ~_expression(node.this),
    exp.Neg: _negative,
    exp.Paren: lambda node: _expression(node.this),
    exp.Between: _between,
    exp.In: _in,
    exp.Is: _is,
    exp.Like: _like,
    exp.ILike: _like,
    exp.RegexpLike: _regexp_node,
    exp.RegexpILike: _regexp_node,
    exp.Case: _case,
    exp.Cast: _cast,
    exp.TryCast: _cast,
    exp.Anonymous: _call,
    exp.Column: _column,
    exp.Literal: _literal,
    exp.Boolean: lambda node: pl.lit(bool(node.this)),
    exp.Null: lambda node: pl.lit(None),
}
"""Builders of polars expressions by kind of node; any other kind is refused."""
