"""The parts of a rule on a position: by hand, and against the rule as a whole."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.selection.explain import explain, holds, in_words, parts_of_rule
from pipeline.selection.metadata import rule_columns
from pipeline.selection.where import filter_rows, row_filter
from tests.selection.test_where import FRAME

COLUMNS = rule_columns({"difficulty": "number", "source": "text", "checked": "boolean"})


def row(**values: Any) -> pl.DataFrame:
    """A training position with some values; all others are null."""
    named = {name: [values.get(name)] for name in COLUMNS}
    return pl.DataFrame(named, schema={name: column.dtype for name, column in COLUMNS.items()})


def explained(where: str, **values: Any) -> list[tuple[str, bool, dict[str, Any]]]:
    return [(part.text, part.holds, part.values) for part in explain(where, COLUMNS, row(**values))]


def test_every_part_of_and_is_explained_alone() -> None:
    where = "entropy > 1.0 AND field = 'solution' AND rank <= 4"
    assert explained(where, entropy=2.306, field="problem", rank=4) == [
        ("entropy > 1.0", True, {"entropy": 2.306}),
        ("field = 'solution'", False, {"field": "problem"}),
        ("rank <= 4", True, {"rank": 4}),
    ]


def test_or_stays_one_part_with_the_values_of_all_its_columns() -> None:
    where = "(entropy > 3 OR rank = 0 OR entropy > 2) AND (nll < 1 AND position > 5)"
    assert explained(where, entropy=2.5, rank=1, nll=0.5, position=5) == [
        ("(entropy > 3 OR rank = 0 OR entropy > 2)", True, {"entropy": 2.5, "rank": 1}),
        ("nll < 1", True, {"nll": 0.5}),
        ("position > 5", False, {"position": 5}),
    ]
    assert [part[0] for part in explained("entropy > 3 OR rank = 0 AND nll < 1")] == [
        "entropy > 3 OR rank = 0 AND nll < 1"
    ]


def test_not_stays_one_part() -> None:
    where = "NOT (entropy > 1 AND rank = 0) AND NOT field = ''"
    assert explained(where, entropy=2.0, rank=3, field="") == [
        ("NOT (entropy > 1 AND rank = 0)", True, {"entropy": 2.0, "rank": 3}),
        ("NOT field = ''", False, {"field": ""}),
    ]


@pytest.mark.parametrize("part", ["difficulty > 5", "NOT difficulty > 5", "difficulty <> 5"])
def test_null_metadata_does_not_hold_and_is_shown_as_null(part: str) -> None:
    assert explained(part) == [(part, False, {"difficulty": None})]
    assert explained("difficulty IS NULL AND NOT checked", checked=False) == [
        ("difficulty IS NULL", True, {"difficulty": None}),
        ("NOT checked", True, {"checked": False}),
    ]


def test_a_value_at_the_boundary_is_above_nothing() -> None:
    where = "entropy > 1.0 AND entropy >= 1.0 AND nll > 1.2"
    # 1.2 is compared in 32 bits, in which the score is stored, so that a score of 1.2 is not above it.
    assert [part[1] for part in explained(where, entropy=1.0, nll=1.2)] == [False, True, False]


def test_classes_compare_by_their_place_in_the_list_also_when_given_as_text() -> None:
    """`word_part` comes after `word_start` in the list of classes, and before it in the alphabet."""
    classes = row(token_class="word_part")
    for given_as in (classes, classes.with_columns(pl.col("token_class").cast(pl.String))):
        (part,) = explain("token_class > 'word_start'", COLUMNS, given_as)
        assert (part.holds, part.values) == (True, {"token_class": "word_part"})


def test_a_part_that_names_no_column_has_no_values() -> None:
    assert explained("true AND 1 > 2") == [("TRUE", True, {}), ("1 > 2", False, {})]


def test_a_part_keeps_texts_and_operators_and_loses_comments() -> None:
    where = "field ~ '^s' /* a */ AND field ~* 'X  y' -- b\n AND source != 'it''s */' AND rank NOT IN (1, 2)"
    assert [part[0] for part in explained(where)] == [
        "field ~ '^s'",
        "field ~* 'X  y'",
        "source <> 'it''s */'",
        "NOT rank IN (1, 2)",
    ]


def test_values_are_shown_alone_or_with_their_names() -> None:
    assert in_words({"checked": True}) == "true"
    assert in_words({"field": ""}) == "''"
    assert in_words({"entropy": 1.0, "difficulty": None, "source": "imo"}) == "entropy 1.0, difficulty null, source imo"


def test_what_cannot_be_computed_says_which_part() -> None:
    with pytest.raises(UserError, match=r"CAST\(field AS INT\) > 1"):
        explained("entropy > 1 AND CAST(field AS INT) > 1", entropy=2.0, field="word")


PARTS = (
    "entropy > 1.0",
    "rank BETWEEN 1 AND 9",
    "NOT field LIKE 'prob%'",
    "nll > 2 OR field = ''",
    "token_class > 'word_start'",
    "entropy IS DISTINCT FROM 1",
    "CASE WHEN tokens > 10 THEN nll > 5 ELSE rank = 0 END",
    "field ~* '^SOL'",
)


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5), st.booleans())
def test_a_row_passes_the_rule_if_and_only_if_all_its_parts_hold(parts: list[str], grouped: bool) -> None:
    where = " AND ".join(f"({part})" for part in parts)
    where = f"({where}) AND true" if grouped else where
    rule = filter_rows(FRAME.with_row_index("row"), row_filter(where, COLUMNS, "where"), "where")["row"].to_list()
    split = parts_of_rule(where, COLUMNS)
    assert len(split) == len(parts) + grouped
    kept = [all(holds(part, FRAME)[n] for part in split) for n in range(FRAME.height)]
    assert [n for n, held in enumerate(kept) if held] == rule
    for part in split:  # its text is the same rule
        (again,) = parts_of_rule(part.text, COLUMNS)
        assert holds(again, FRAME).to_list() == holds(part, FRAME).to_list()
