"""`where`: what it accepts, and what every mistake is told."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.core.errors import UserError
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
        ("*", "is not a SQL expression"),
        ("entropy > (SELECT MAX(entropy) FROM self)", "is not a SQL expression"),
        ("no_such_function(entropy) > 1", "is not a SQL expression"),
        ("read_parquet('elsewhere.parquet')", "is not a SQL expression"),
        ("entropi > 1", "did you mean `entropy`?"),
        ("Entropy > 1", "did you mean `entropy`?"),
        ("feild = 'solution'", "did you mean `field`?"),
        ("entropy > 1 AND zzz = 2", "names `zzz`, which is no column"),
        ("other.entropy > 1", "names `other`, which is no column"),
        ("entropy", "is Float32, not true or false"),
        ("'yes'", "is String, not true or false"),
        ("1", "not true or false"),
        ("NULL", "is Null, not true or false"),
        ("entropy > 'high'", "cannot be computed"),
        ("field > 1", "cannot be computed"),
        ("entropy + field > 1", "cannot be computed"),
        ("field ~ '('", "cannot be computed"),
        ("entropy > AVG(entropy)", "looks beyond one row"),
        ("COUNT(*) > 1000000", "looks beyond one row"),
        ("entropy > 1 AND COUNT(*) > 2", "looks beyond one row"),
        ("entropy > MEDIAN(entropy)", "looks beyond one row"),
        ("entropy > QUANTILE_CONT(entropy, 0.9)", "looks beyond one row"),
        ("STDDEV(entropy) > 1", "looks beyond one row"),
        ("VARIANCE(entropy) > 1", "looks beyond one row"),
        ("COUNT(DISTINCT field) > 1", "looks beyond one row"),
        ("FIRST(entropy) > 1", "looks beyond one row"),
        ("CORR(entropy, nll) > 0", "looks beyond one row"),
        ("COVAR_POP(entropy, nll) > 0", "looks beyond one row"),
        ("ARRAY_AGG(entropy) IS NULL", "looks beyond one row"),
        ("STRING_AGG(field, ',') = 'a'", "looks beyond one row"),
        ("ROW_NUMBER() OVER () > 1", "looks beyond one row"),
        ("RANK() OVER (ORDER BY entropy) < 10", "looks beyond one row"),
        ("NTILE(4) OVER (ORDER BY entropy) = 4", "looks beyond one row"),
        ("LAG(entropy) OVER (ORDER BY position) > 1", "looks beyond one row"),
        ("FIRST_VALUE(entropy) OVER () > 1", "looks beyond one row"),
        ("entropy > MAX(entropy) OVER (PARTITION BY doc_id)", "looks beyond one row"),
        ("entropy IN (SELECT 1)", "looks beyond one row"),
        ("EXISTS (SELECT 1)", "looks beyond one row"),
        ("entropy > (SELECT 1)", "looks beyond one row"),
        ("UNNEST(STRING_TO_ARRAY(field, ',')) = 'a'", "looks beyond one row"),
        ("COLUMNS('e.*') > 1", "looks beyond one row"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_repeats_it(where: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        row_filter(where, SCORE_COLUMNS, "select.where")
    message = str(caught.value)
    assert told in message
    assert message.startswith("`select.where` ") and (where or "(empty)") in message and "\n" not in message


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
