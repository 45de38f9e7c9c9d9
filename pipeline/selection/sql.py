"""Parses the SQL of `where` into a syntax tree, within limits, with sqlglot.

The dialect knows the words below and nothing else: no statements, no tables, and only the types in `TYPES`. Every other
word is the name of a column or a function, so no function of sqlglot or of a database is ever resolved.
`expressions.py` defines which nodes and functions are supported. Nothing here touches data.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from sqlglot import exp, generator, parser, tokens
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokens import TokenType

MAX_CHARACTERS = 10_000
"""Maximum characters of an expression."""

MAX_DEPTH = 24
"""Maximum levels of parentheses, calls and operators. A chain of AND or OR of any length is one level."""

MAX_PARTS = 250
"""Maximum columns, numbers, operators and calls. A list of texts after IN counts as one."""

MAX_WORDS = 2_000
"""Maximum words, numbers, texts and symbols, counted before the parser runs."""

TYPES = {
    "BIGINT": TokenType.BIGINT,
    "BOOLEAN": TokenType.BOOLEAN,
    "DOUBLE": TokenType.DOUBLE,
    "DOUBLE PRECISION": TokenType.DOUBLE,
    "FLOAT": TokenType.DOUBLE,
    "INT": TokenType.INT,
    "INTEGER": TokenType.INT,
    "REAL": TokenType.FLOAT,
    "SMALLINT": TokenType.SMALLINT,
    "STRING": TokenType.TEXT,
    "TEXT": TokenType.TEXT,
    "VARCHAR": TokenType.VARCHAR,
}


class Refused(Exception):
    """Raised when an expression is refused: the reason, advice, and the character (from 1; 0 if unknown)."""

    def __init__(self, what: str, advice: str = "", at: int = 0) -> None:
        super().__init__(what)
        self.what, self.advice, self.at = what, advice, at


_SYMBOLS = "(),.+-*/%=<>!:|~'\""
_KNOWN = tokens.Tokenizer.KEYWORDS
_WORDS = (
    *("==", "::", "||", ">=", "<=", "<>", "!=", "AND", "AS", "BETWEEN", "CASE", "DISTINCT", "ELSE", "END", "FALSE"),
    *("FROM", "ILIKE", "IN", "IS", "LIKE", "NOT", "NULL", "OR", "REGEXP", "RLIKE", "THEN", "TRUE", "WHEN"),
)


class Where(Dialect):
    """The dialect of expressions of one row, which sqlglot registers under the name `where`."""

    class Tokenizer(tokens.Tokenizer):
        """The tokenizer, which knows only the words and symbols above."""

        SINGLE_TOKENS = {symbol: tokens.Tokenizer.SINGLE_TOKENS[symbol] for symbol in _SYMBOLS}  # noqa: RUF012
        COMMENTS = ["--", ("/*", "*/")]  # noqa: RUF012
        KEYWORDS = {  # noqa: RUF012
            **{word: _KNOWN[word] for word in _WORDS},
            **TYPES,
            **{"~": TokenType.RLIKE, "~*": TokenType.IRLIKE},
        }

    class Parser(parser.Parser):
        """The parser, which knows no functions except CAST, TRY_CAST and CASE."""

        FUNCTIONS = {}  # noqa: RUF012
        FUNCTION_PARSERS = {name: parser.Parser.FUNCTION_PARSERS[name] for name in ("CAST", "TRY_CAST")}  # noqa: RUF012
        NO_PAREN_FUNCTIONS = {}  # noqa: RUF012
        NO_PAREN_FUNCTION_PARSERS = {"CASE": parser.Parser.NO_PAREN_FUNCTION_PARSERS["CASE"]}  # noqa: RUF012

    class Generator(generator.Generator):
        """The generator, which writes regular expressions as this dialect reads them."""

        TRANSFORMS = {  # noqa: RUF012
            **generator.Generator.TRANSFORMS,
            exp.RegexpLike: lambda self, node: self.binary(node, "~"),
            exp.RegexpILike: lambda self, node: self.binary(node, "~*"),
        }


def parse(text: str) -> exp.Expr:
    """Parse an expression into a syntax tree.

    Raises:
        Refused: it is not an expression, or exceeds a limit.

    Example:
        >>> parse("entropy > 1 AND NOT field = 'a'").sql()
        "entropy > 1 AND NOT field = 'a'"
    """
    if len(text) > MAX_CHARACTERS:
        raise Refused("is too long", f"{len(text):,} characters, at most {MAX_CHARACTERS:,}")
    dialect = Where()
    try:
        words = dialect.tokenize(text)
        if len(words) > MAX_WORDS:
            raise Refused("is too long", f"{len(words):,} words and symbols, at most {MAX_WORDS:,}")
        _check_nesting(words)
        trees = dialect.parser().parse_into(exp.Condition, words, text)
    except TokenError as error:
        raise Refused("is not a SQL expression", "a quotation mark or a comment is not closed") from error
    except ParseError as error:
        raise _beyond_the_row(words) or _not_sql(error, text) from error
    except RecursionError as error:
        raise _too_deep() from error
    if len(trees) != 1 or trees[0] is None:
        raise Refused("is not a SQL expression", "write a comparison such as `entropy > 1`")
    _check_size(trees[0])
    return trees[0]


def operands(tree: exp.Expr, kind: type[exp.Connector]) -> Iterator[exp.Expr]:
    """Yield the operands of a chain of AND (or OR) from left to right, or the expression itself if it is no chain.

    Example:
        >>> [part.sql() for part in operands(parse("a AND (b AND c) AND (d OR e)"), exp.And)]
        ['a', 'b', 'c', '(d OR e)']
    """
    stack = [tree]  # no recursion, because a chain may be longer than Python's stack
    while stack:
        node = stack.pop()
        inner = node.unnest()
        if isinstance(inner, kind):
            stack += [inner.expression, inner.this]
        else:
            yield node


def referenced_columns(tree: exp.Expr) -> list[exp.Expr]:
    """Return the columns that an expression names, in its order; `other` for a qualified name like `other.entropy`."""
    return sorted((column.parts[0] for column in tree.find_all(exp.Column)), key=start_of)


def start_of(node: exp.Expr) -> int:
    """Return the character (from 1) at which the first named part of a node begins, or 0 if unknown."""
    starts = [part.meta["start"] + 1 for part in node.walk() if "start" in part.meta]
    return min(starts, default=0)


def _check_nesting(words: list[tokens.Token]) -> None:
    depth = 0  # checked before parsing, because the parser recurses at each level
    for token in words:
        if token.token_type in (TokenType.L_PAREN, TokenType.CASE):
            depth += 1
        elif token.token_type in (TokenType.R_PAREN, TokenType.END):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _too_deep(token.start + 1)


def _check_size(tree: exp.Expr) -> None:
    parts, stack = 0, [(tree, 1)]  # no recursion, because a tree may be deeper than Python's stack
    while stack:
        node, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise _too_deep(start_of(node))
        text_in_list = isinstance(node.parent, exp.In) and isinstance(node, exp.Literal) and node.is_string
        parts += not (text_in_list or isinstance(node, exp.Identifier | exp.Paren))
        chain = type(node) if isinstance(node, exp.And | exp.Or) else None
        inner = operands(node, chain) if chain else node.iter_expressions()
        stack += [(part, depth + 1) for part in inner]
        if parts > MAX_PARTS:
            raise Refused("is too long", f"at most {MAX_PARTS} columns, values, operators and functions")


def _too_deep(at: int = 0) -> Refused:
    return Refused("is nested too deeply", f"at most {MAX_DEPTH} levels; a chain of AND or OR is one level", at)


def _beyond_the_row(words: list[tokens.Token]) -> Refused | None:
    kinds = {("(", "SELECT"): "a subquery", (")", "OVER"): "a window"}
    for before, word in pairwise(words):
        if kind := kinds.get((before.text, word.text.upper())):
            return Refused("reads more than one row", f"{kind} is not allowed; compare columns", word.start + 1)
    return None


def _not_sql(error: ParseError, text: str) -> Refused:
    found = error.errors[0] if error.errors else {}
    near = str(found.get("highlight") or "").strip()
    lines = text.splitlines(keepends=True)[: max((found.get("line") or 1) - 1, 0)]
    at = sum(map(len, lines)) + (found.get("col") or 0) - max(len(near) - 1, 0)
    message = str(found.get("description") or "")
    reason = "unexpected"
    if "missing" in message:
        reason = "something is missing after it"
    elif message.startswith("Expect"):
        reason = message
    return Refused("is not a SQL expression", f"`{near[:40]}`: {reason}" if near else reason, max(at, 0))
