"""`where`: what it accepts, and what every mistake is told."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import polars as pl
import polars.selectors as cs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.selection.expressions import FUNCTIONS, MAX_PATTERNS, to_polars
from pipeline.selection.sql import MAX_CHARACTERS, MAX_DEPTH, MAX_PARTS, MAX_WORDS, parse
from pipeline.selection.where import SCORE_COLUMNS, describe, filter_rows, row_filter

FRAME = pl.DataFrame(
    {
        "doc_id": ["a", "a", "b", "b"],
        "position": [8, 9, 8, 9],
        "byte_offset": [20, 24, 30, 31],
        "field": ["problem", "solution", "solution", ""],
        "entropy": [1.2, 2.0, 1.0, None],
        "entropy_partial": [0.6, 1.0, 0.5, None],
        "nll": [0.1, 3.0, 9.0, None],
        "rank": [0, 4, 17, None],
        "reference_nll": [0.1, 1.0, 9.5, None],
        "excess_loss": [0.0, 2.0, -0.5, None],
        "token_class": ["digit", "word_start", "word_part", "latex_command"],
        "tokens": [10, 10, 20, 20],
        "split": ["train", "train", "train", "train"],
    },
    schema={name: column.dtype for name, column in SCORE_COLUMNS.items()},
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("true", [0, 1, 2, 3]),
        ("entropy > 1.0", [0, 1]),
        ("token_class IN ('digit', 'word_part') AND token_class <> 'digit'", [2]),
        ("entropy > 1.2", [1]),  # 1.2 is stored in 32 bits, above 1.2: the comparison is made in 32 bits
        ("excess_loss > 0.5 OR reference_nll > 9", [1, 2]),
        ("entropy >= 1.2 AND field = 'solution'", [1]),
        ("entropy BETWEEN 1.2 AND 1.2", [0]),  # two comparisons in 32 bits; polars' own BETWEEN keeps nothing
        ("field IN ('problem', 'solution') AND NOT rank BETWEEN 1 AND 9", [0, 2]),
        ("entropy IS NULL OR field LIKE 'prob%'", [0, 3]),
        ("CASE WHEN tokens > 10 THEN nll > 5 ELSE rank = 0 END", [0, 2]),
        ("CAST(position AS DOUBLE) / tokens > 0.5", [0, 1]),
        ("doc_id = 'Agg' OR field ~ '^sol' -- a comment", [1, 2]),
        ("field = 'SELECT doc_id FROM self' OR nll = (1 + 2)", [1]),
    ],
)
def test_keeps_the_rows_for_which_it_is_true(where: str, rows: list[int]) -> None:
    kept = filter_rows(FRAME.with_row_index("row"), row_filter(where, SCORE_COLUMNS, "select.where"), "`select.where`")
    assert kept["row"].to_list() == rows


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("", "is not a SQL expression"),
        ("entropy >", "is not a SQL expression"),
        ("entropy > 1 AND (field = 'a'", "is not a SQL expression"),
        ("SELECT entropy", "is not a SQL expression"),
        ("DROP TABLE self", "is not a SQL expression"),
        ("entropy > 1; DROP TABLE self", "is not a SQL expression"),
        ("entropy > 1, nll > 2", "is not a SQL expression"),
        ("*", "uses `*`, which is not supported"),
        ("entropy > (SELECT MAX(entropy) FROM self)", "reads more than one row"),
        ("no_such_function(entropy) > 1", "calls `no_such_function`, which is not a function of one row's values"),
        ("entropy > 1 AND LENGHT(field) > 1", "at character 17: did you mean LENGTH?"),
        ("read_parquet('elsewhere.parquet')", "calls `read_parquet`"),
        ("doc_id IN (SELECT nope FROM read_csv('/etc/hostname'))", "at character 12: a subquery is not allowed"),
        ("entropy > 1 AND nlll > 2", "at character 17: did you mean `nll`?"),
        ("field ~ '^(a'", "cannot be computed"),
        ("field LIKE doc_id", "uses an invalid LIKE"),
        ("field ~ doc_id", "has an invalid regular expression"),
        ("field || doc_id = 'ab'", "uses `||`"),
        ("rank IN ()", "uses IN without a list"),
        ("ABS(rank, 1) > 1", "at character 1: it takes 1"),
        ("SUBSTR(field, rank) = 'a'", "SUBSTR(text, start, length), start from 1"),
        ("CAST(field AS DATE) IS NULL", "casts to `DATE`"),
        ("CAST(field AS VARCHAR(3)) = 'sol'", "casts to `VARCHAR(3)`"),
        ("rank > 99999999999999999999", "an integer that is too large"),
        ('"^.*$" > 1', "names `^.*$`, which is not a column"),
        ("entropy > 'it", "a quotation mark or a comment is not closed"),
        ("entropi > 1", "did you mean `entropy`?"),
        ("Entropy > 1", "did you mean `entropy`?"),
        ("feild = 'solution'", "did you mean `field`?"),
        ("entropy > 1 AND zzz = 2", "names `zzz`, which is not a column"),
        ("other.entropy > 1", "names `other`, which is not a column"),
        ("entropy", "is Float32, not true or false"),
        ("'yes'", "is String, not true or false"),
        ("1", "not true or false"),
        ("NULL", "is Null, not true or false"),
        ("entropy > 'high'", "cannot be computed"),
        ("field > 1", "cannot be computed"),
        ("entropy + field > 1", "cannot be computed"),
        ("field ~ '('", "cannot be computed"),
        ("entropy > AVG(entropy)", "which is not a function of one row's values"),
        ("COUNT(*) > 1000000", "which is not a function of one row's values"),
        ("entropy > 1 AND COUNT(*) > 2", "which is not a function of one row's values"),
        ("entropy > MEDIAN(entropy)", "which is not a function of one row's values"),
        ("entropy > QUANTILE_CONT(entropy, 0.9)", "which is not a function of one row's values"),
        ("STDDEV(entropy) > 1", "which is not a function of one row's values"),
        ("VARIANCE(entropy) > 1", "which is not a function of one row's values"),
        ("COUNT(DISTINCT field) > 1", "which is not a function of one row's values"),
        ("FIRST(entropy) > 1", "which is not a function of one row's values"),
        ("CORR(entropy, nll) > 0", "which is not a function of one row's values"),
        ("COVAR_POP(entropy, nll) > 0", "which is not a function of one row's values"),
        ("ARRAY_AGG(entropy) IS NULL", "which is not a function of one row's values"),
        ("STRING_AGG(field, ',') = 'a'", "which is not a function of one row's values"),
        ("ROW_NUMBER() OVER () > 1", "reads more than one row"),
        ("RANK() OVER (ORDER BY entropy) < 10", "reads more than one row"),
        ("NTILE(4) OVER (ORDER BY entropy) = 4", "reads more than one row"),
        ("LAG(entropy) OVER (ORDER BY position) > 1", "reads more than one row"),
        ("FIRST_VALUE(entropy) OVER () > 1", "reads more than one row"),
        ("entropy > MAX(entropy) OVER (PARTITION BY doc_id)", "reads more than one row"),
        ("entropy IN (SELECT 1)", "reads more than one row"),
        ("EXISTS (SELECT 1)", "reads more than one row"),
        ("entropy > (SELECT 1)", "reads more than one row"),
        ("UNNEST(STRING_TO_ARRAY(field, ',')) = 'a'", "which is not a function of one row's values"),
        ("COLUMNS('e.*') > 1", "which is not a function of one row's values"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_repeats_it(where: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        row_filter(where, SCORE_COLUMNS, "select.where")
    message = str(caught.value)
    assert told in message
    assert message.startswith("`select.where` ") and (where or "(empty)") in message and "\n" not in message


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("NOT(" * 40 + "true" + ")" * 40, "is nested too deeply"),
        ("NOT " * 400 + "true", "is nested too deeply"),
        ("- " * 400 + "1 > 0", "is nested too deeply"),
        ("(" * 900 + "true" + ")" * 900, "is nested too deeply"),
        ("CASE WHEN true THEN " * 40 + "true" + " END" * 40, "is nested too deeply"),
        ("1+" * 40 + "1 > 0", "is nested too deeply"),
        ("1+" * 5_000 + "1 > 0", "is too long"),
        (" or ".join(["true"] * 6_900), "is too long"),
        (" or ".join(["true"] * 260), "is too long"),
        ("1+" * 2_000 + "1 > 0", "4,003 words and symbols, at most 2,000"),
        (f"field = '{'x' * MAX_CHARACTERS}'", "is too long"),
        ("STRUCT(" * 20 + "1" + ")" * 20, "calls `STRUCT`"),
        ("LENGTH(LPAD(doc_id, 200000000, 'x')) > 3", "calls `LPAD`"),
        ("LENGTH(RPAD(doc_id, 200000000, 'x')) > 3", "calls `RPAD`"),
        ("REPEAT(field, 1000000000) = 'x'", "calls `REPEAT`"),
        ("REPLACE(field, 'a', 'aaaaaaaaaaaa') = 'x'", "calls `REPLACE`"),
        ("CONCAT(field, field) = 'x'", "calls `CONCAT`"),
        (r"field ~ '(\w{99}){99}'", "with too many repetitions"),
        (r"REGEXP_LIKE(field, '\w{ 9999 }')", "with too many repetitions"),
        (f"field ~ '{'a' * 300}'", "at most 200 characters"),
        (" or ".join(["field ~ 'a'"] * (MAX_PATTERNS + 1)), "too many regular expressions"),
    ],
    ids=range(21),
)
def test_what_would_take_seconds_or_gigabytes_is_refused_unread(where: str, told: str) -> None:
    with pytest.raises(UserError, match=r"`select\.where` ") as caught:
        row_filter(where, SCORE_COLUMNS, "select.where")
    assert told in str(caught.value) and len(str(caught.value)) < 1000


def test_rules_as_long_as_people_write_them_are_taken() -> None:
    ids = ", ".join(f"'{n:032x}'" for n in range(250))
    chain = " AND ".join(f"(entropy > {n} OR nll > {n})" for n in range(MAX_PARTS // 8))
    nested = "(" * (MAX_DEPTH - 3) + "entropy > 1" + ")" * (MAX_DEPTH - 3)
    for where, height in ((f"doc_id IN ({ids})", 0), (chain, 0), (nested, 2)):
        assert filter_rows(FRAME, row_filter(where, SCORE_COLUMNS, "where"), "`where`").height == height


def test_no_file_is_read_and_no_host_is_asked(tmp_path: Path) -> None:
    """What polars' own SQL does when it parses: it resolves table functions before anything can look at the tree."""
    asked: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "secret.csv").write_text("the_first_line\n1\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for path in (tmp_path / "secret.csv", f"http://127.0.0.1:{server.server_address[1]}/secret.csv"):
            for reads in ("read_csv", "read_parquet", "read_ipc", "read_json", "scan_csv"):
                for where in (f"doc_id IN (SELECT nope FROM {reads}('{path}'))", f"{reads}('{path}') IS NULL"):
                    with pytest.raises(UserError) as caught:
                        row_filter(where, SCORE_COLUMNS, "where")
                    assert "the_first_line" not in str(caught.value)
        server.shutdown()
    assert asked == []


NUMBERS = st.one_of(
    st.sampled_from(
        ["entropy", "nll", "rank", "position", "tokens", "excess_loss", "reference_nll", "1.25", "17", "-0.5"]
    ),
    st.integers(-3, 30).map(str),
)
TEXTS = st.sampled_from(["field", "doc_id", "split", "'solution'", "'a'", "'it''s'", "''"])


def _numbers(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arithmetic = st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(" ".join)
    called = st.tuples(st.sampled_from(["ABS", "FLOOR", "CEIL", "SQRT", "EXP", "LN"]), inner).map(
        "{0[0]}({0[1]})".format
    )
    two = st.tuples(st.sampled_from(["GREATEST", "COALESCE", "NULLIF"]), inner, inner)
    return st.one_of(arithmetic, called, two.map("{0[0]}({0[1]}, {0[2]})".format), inner.map("({})".format))


VALUES = st.recursive(NUMBERS, _numbers, max_leaves=4)
CALLED = st.one_of(
    TEXTS,
    st.tuples(st.sampled_from(["LOWER", "UPPER", "TRIM"]), TEXTS).map("{0[0]}({0[1]})".format),
    st.tuples(st.sampled_from(["LEFT", "RIGHT", "SUBSTR"]), TEXTS, st.integers(1, 4)).map(
        "{0[0]}({0[1]}, {0[2]})".format
    ),
)
COMPARISONS = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"])


def _comparison(parts: tuple[str, str, str]) -> str:
    """In parentheses if it is IS DISTINCT FROM, whose right side polars takes to include a following AND or OR."""
    text = " ".join(parts)
    return f"({text})" if "DISTINCT" in parts[1] else text


PATTERNS = st.sampled_from(["'sol%'", "'S_l%n'", "'%'", "'a'", "'^s.*n$'", "'a.'"])
TESTS = st.one_of(
    st.tuples(VALUES, COMPARISONS, VALUES).map(_comparison),
    st.tuples(CALLED, COMPARISONS, CALLED).map(_comparison),
    st.tuples(VALUES, st.sampled_from(["", "NOT"]), VALUES, VALUES).map(
        "{0[0]} {0[1]} BETWEEN {0[2]} AND {0[3]}".format
    ),
    st.tuples(VALUES, st.sampled_from(["IN", "NOT IN"])).map("{0[0]} {0[1]} (1.25, 9, 17)".format),
    st.tuples(CALLED, st.sampled_from(["IN", "NOT IN"])).map("{0[0]} {0[1]} ('a', 'solution')".format),
    st.tuples(TEXTS, st.sampled_from(["LIKE", "NOT LIKE", "ILIKE", "~", "!~", "~*"]), PATTERNS).map(" ".join),
    st.tuples(st.one_of(VALUES, CALLED), st.sampled_from(["IS NULL", "IS NOT NULL"])).map(" ".join),
    st.sampled_from(["true", "false", "token_class = 'digit'", "token_class IN ('digit', 'word_part')"]),
)
WHERES = st.recursive(
    TESTS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(" ".join),
        inner.map("NOT {}".format),
        inner.map("({})".format),
        st.tuples(inner, inner, inner).map("CASE WHEN {0[0]} THEN {0[1]} ELSE {0[2]} END".format),
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(WHERES)
def test_it_means_what_polars_means_by_the_same_sql(where: str) -> None:
    """Precedence, nulls, types and all: what polars' own SQL keeps. Where that refuses, so does this.

    All numbers are eighths: polars compares a float32 column with the literal 1.2 in 32 bits in `entropy <= 1.2`, and
    in 64 in BETWEEN.
    """
    rows = FRAME.with_columns((cs.float() * 8).round() / 8).with_row_index("row")
    try:
        expected = rows.filter(pl.sql_expr(where))["row"].to_list()
    except pl.exceptions.PolarsError:
        return
    assert filter_rows(rows, row_filter(where, SCORE_COLUMNS, "where"), "`where`")["row"].to_list() == expected


def test_every_function_is_polars_function_of_that_name() -> None:
    frame = pl.DataFrame({"x": [0.5, 2.0, -7.25, None], "n": [7, -7, 2, None], "s": ["abc", " ABä", "", None]})
    calls = {
        **{name: [f"{name}(x)"] for name in ("ABS", "CEIL", "EXP", "FLOOR", "LN", "LOG2", "LOG10", "SIGN", "SQRT")},
        **{name: [f"{name}(s)"] for name in ("LENGTH", "LOWER", "OCTET_LENGTH", "TRIM", "UPPER")},
        **{name: [f"{name}(s)", f"{name}(s, 'a')"] for name in ("LTRIM", "RTRIM")},
        **{name: [f"{name}(s, 2)", f"{name}(s, n)"] for name in ("LEFT", "RIGHT")},
        **{name: [f"{name}(x, n)", f"{name}(n, 2, x)"] for name in ("COALESCE", "GREATEST", "LEAST")},
        **{name: [f"{name}(s, 'a')", f"{name}(s, s)"] for name in ("STARTS_WITH", "ENDS_WITH")},
        "IF": ["IF(x > 1, n, 2)"],
        "IFNULL": ["IFNULL(n, 0)"],
        "LOG": ["LOG(x, 3)"],
        "MOD": ["MOD(n, 2)", "MOD(n, -3)", "n % 2", "x % 2"],
        "NULLIF": ["NULLIF(n, 7)"],
        "POWER": ["POWER(x, 2)", "POW(n, 2)"],
        "REGEXP_LIKE": ["REGEXP_LIKE(s, '^a')", "REGEXP_LIKE(s, '^A', 'i')"],
        "ROUND": ["ROUND(x)", "ROUND(x, 1)"],
        "STRPOS": ["STRPOS(s, 'B')"],
        "SUBSTR": ["SUBSTR(s, 2)", "SUBSTRING(s, 1, 2)"],
    }
    assert calls.keys() == FUNCTIONS.keys()
    for call in [call for several in calls.values() for call in several]:
        ours, theirs = frame.select(to_polars(parse(call)).alias("a")), frame.select(pl.sql_expr(call).alias("a"))
        assert ours.equals(theirs.cast(ours.schema)), call


def test_an_unknown_column_is_told_what_there_is() -> None:
    with pytest.raises(UserError, match=", ".join(SCORE_COLUMNS)):
        row_filter("zzz > 1", SCORE_COLUMNS, "select.where")


def test_values_it_cannot_compute_with_are_the_users_error() -> None:
    """Only the corpus knows that its fields are no numbers."""
    expression = row_filter("CAST(field AS INT) > 1", SCORE_COLUMNS, "select.where")
    with pytest.raises(UserError, match=r"`select\.where` cannot be computed on this corpus"):
        filter_rows(FRAME, expression, "`select.where`")


def test_help_has_one_line_a_column() -> None:
    lines = describe(SCORE_COLUMNS).splitlines()
    assert [line.split()[0] for line in lines] == list(SCORE_COLUMNS)
    assert all(len(line) < 100 for line in lines)


def test_the_docs_name_every_function_and_limit(repository: Path) -> None:
    page = (repository / "docs" / "choosing-positions.md").read_text(encoding="utf-8")
    assert [name for name in FUNCTIONS if f"`{name}`" not in page] == []
    assert (
        f"{MAX_CHARACTERS:,}\ncharacters, {MAX_WORDS:,} words and signs, {MAX_PARTS} parts or {MAX_DEPTH} levels"
        in page
    )
