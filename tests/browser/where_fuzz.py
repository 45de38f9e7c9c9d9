"""Strings for `where`: made by a grammar of SQL, hostile on purpose, and made of bytes."""

from __future__ import annotations

import random

COLUMNS = ("entropy", "nll", "rank", "position", "tokens", "field", "doc_id", "split", "token_class", "difficulty")
STRANGERS = (
    "entropi",
    "self",
    "*",
    "a.b",
    '"entropy"',
    '"^.*$"',
    "COLUMNS('.*')",
    "`x`",
    "[1]",
    "{a}",
    "$1",
    ":a",
    "@a",
)
FUNCTIONS = (
    *("ABS", "LOWER", "UPPER", "LENGTH", "SUBSTR", "LEFT", "ROUND", "COALESCE", "GREATEST", "LN", "REGEXP_LIKE", "IF"),
    *("LPAD", "RPAD", "REPEAT", "REPLACE", "CONCAT", "CONCAT_WS", "SPACE", "INITCAP", "REVERSE", "TRANSLATE", "FORMAT"),
    *(
        "AVG",
        "MAX",
        "COUNT",
        "SUM",
        "ARRAY_AGG",
        "STRING_AGG",
        "ROW_NUMBER",
        "LAG",
        "UNNEST",
        "GENERATE_SERIES",
        "RANGE",
    ),
    *(
        "STRUCT",
        "ARRAY",
        "CAST",
        "TRY_CAST",
        "DATE",
        "INTERVAL",
        "NOW",
        "RANDOM",
        "PG_SLEEP",
        "LOAD_EXTENSION",
        "VERSION",
    ),
)
READERS = (
    "read_csv",
    "read_parquet",
    "read_ipc",
    "read_json",
    "read_ndjson",
    "scan_parquet",
    "scan_csv",
    "glob",
    "load",
)
BINARY = (
    "+",
    "-",
    "*",
    "/",
    "%",
    "||",
    "=",
    "<>",
    "<",
    ">",
    ">=",
    "~",
    "!~",
    "~*",
    "LIKE",
    "ILIKE",
    "AND",
    "OR",
    "^",
    "&",
)
SUFFIXES = (
    " IS NULL",
    " IS NOT NULL",
    " IS TRUE",
    "::INT",
    "::TEXT",
    "::STRUCT(a INT)",
    "[1]",
    ".x",
    " OVER ()",
    " -- x",
)
LITERALS = (
    "1",
    "0",
    "-1",
    "1.5",
    "1e308",
    "1e999",
    "99999999999999999999",
    "200000000",
    "'a'",
    "''",
    "'it''s'",
    "NULL",
    "true",
)
NESTS = (
    *(("NOT(", ")"), ("(", ")"), ("ABS(", ")"), ("STRUCT(", ")"), ("-", ""), ("NOT ", ""), ("[", "]")),
    *(("CASE WHEN true THEN ", " END"), ("CAST(", " AS INT)")),
)
READS = (
    *("doc_id IN (SELECT x FROM {0}('{1}'))", "{0}('{1}') IS NULL", "(SELECT 1 FROM {0}('{1}')) > 0"),
    *("EXISTS (FROM '{1}')", "entropy > (TABLE '{1}')", "COPY self TO '{1}'"),
)
BYTES = (b"", b"'", b'"', b"(", b")", b"\x00", b"--", b"/*", b";", b"$$", b"\xff\xfe", b"\xe2\x80\xae", b"\xc3")
PATTERNS = (r"'(\w{99}){99}'", "'(x+x+)+y'", "'('", "'%%%%%%a'", r"'\pL{50}'", "'(a{1000}){1000}'", "'.*.*.*=.*'")


def grammar(rng: random.Random, targets: tuple[str, ...]) -> str:
    """An expression; one in four is far too large. `targets`: paths and addresses that nothing may open."""
    kind = rng.randrange(8)
    if kind > 5:
        return sound(rng)
    if kind == 0:
        opening, closing = rng.choice(NESTS)
        many = rng.choice((5, 20, 40, 200, 3000))
        return opening * many + _value(rng, targets, 2) + closing * many
    if kind == 1:
        joint = rng.choice((" or ", " and ", "+", " || ", ",", "*", " = "))
        return joint.join([_value(rng, targets, rng.randrange(2))] * rng.choice((30, 240, 1500, 6000)))
    if kind == 2:
        reader, target = rng.choice(READERS), rng.choice(targets)
        form = rng.choice(READS)
        return form.format(reader, target)
    return _value(rng, targets, 4)


def sound(rng: random.Random) -> str:
    """A rule that is counted: up to sixty tests, of numbers and of texts."""
    tests = []
    for _ in range(rng.choice((1, 2, 3, 10, 60))):
        number = f"{rng.choice(COLUMNS[:5])} {rng.choice(('+', '-', '*', '/', '%'))} {rng.randrange(1, 9)}"
        text = f"{rng.choice(('LOWER', 'UPPER', 'TRIM', ''))}({rng.choice(('doc_id', 'field', 'split'))})"
        simple = f"{rng.choice(COLUMNS[:3])} {rng.choice(('<', '>', '>=', '='))} {rng.randrange(300) / 100}"
        like = f"{text} {rng.choice(('LIKE', 'NOT ILIKE'))} '{rng.choice(('%', '_%a%', 'a_'))}{rng.randrange(9)}%'"
        tests.append(rng.choice((simple, simple, f"({number}) BETWEEN 0 AND {rng.randrange(9)}", like)))
    return "".join(f"{test}{rng.choice((' AND ', ' OR ', ' AND NOT '))}" for test in tests) + "true"


def mutated(rng: random.Random, targets: tuple[str, ...]) -> str:
    """Bytes: at random, or an expression in which some were changed, cut out or doubled."""
    if rng.random() < 0.3:
        return rng.randbytes(rng.randrange(200)).decode("latin-1")
    data = bytearray(grammar(rng, targets)[:2000].encode())
    for _ in range(rng.randrange(1, 12)):
        place = rng.randrange(len(data) + 1)
        data[place : place + rng.randrange(4)] = rng.choice(BYTES)
    return data.decode(errors="replace")


def _value(rng: random.Random, targets: tuple[str, ...], depth: int) -> str:
    if depth <= 0 or rng.random() < 0.15:
        return rng.choice(rng.choice((COLUMNS, COLUMNS, LITERALS, STRANGERS)))
    inner = [_value(rng, targets, depth - 1) for _ in range(3)]
    kind = rng.randrange(9)
    if kind < 3:
        return f"{inner[0]} {rng.choice(BINARY)} {inner[1]}"
    if kind < 5:
        return f"{rng.choice(FUNCTIONS)}({', '.join(inner[: rng.randrange(4)])})"
    if kind == 5:
        return f"{inner[0]}{rng.choice(SUFFIXES)}"
    if kind == 6:
        return f"{inner[0]} {rng.choice(('~', 'LIKE', 'ILIKE'))} {rng.choice(PATTERNS)}"
    if kind == 7:
        return f"({inner[0]} {rng.choice(('BETWEEN', 'NOT BETWEEN'))} {inner[1]} AND {inner[2]})"
    if kind == 8 and rng.random() < 0.5:
        return f"{inner[0]} IN ({inner[1]}, {inner[2]})"
    return f"CASE WHEN {inner[0]} THEN {inner[1]} ELSE NOT ({inner[2]}) END"
