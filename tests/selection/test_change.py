"""The shortest change of a rule: it keeps the position, and nothing that holds is changed."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.selection.change import Change, shortest_change
from pipeline.selection.explain import explain
from pipeline.selection.where import SCORE_COLUMNS, row_filter

ROW = {"entropy": 0.9312, "nll": 4.0, "rank": 7, "field": "problem", "token_class": "digit", "reference_nll": None}
COMPARISONS = st.one_of(
    st.builds(
        "{} {} {}".format,
        st.sampled_from(["entropy", "nll", "rank", "reference_nll", "position"]),
        st.sampled_from([">", ">=", "<", "<=", "=", "<>"]),
        st.sampled_from(["0", "1.0", "7", "-2", "4.0", "0.931"]),
    ),
    st.builds("{} {} nll".format, st.sampled_from(["3", "4.0"]), st.sampled_from(["<", ">="])),
    st.builds("field {} '{}'".format, st.sampled_from(["=", "<>"]), st.sampled_from(["problem", "solution", "o''k"])),
    st.sampled_from(
        [
            *("token_class IN ('word_start')", "token_class NOT IN ('digit')", "NOT entropy > 0.5", "field LIKE 's%'"),
            *("entropy BETWEEN 1 AND 2", "rank BETWEEN 0 AND 3", "nll + entropy > 9", "reference_nll IS NOT NULL"),
        ]
    ),
)
RULES = st.recursive(
    COMPARISONS,
    lambda inner: st.builds(
        lambda parts, word: f"({f' {word} '.join(parts)})",
        st.lists(inner, min_size=2, max_size=3),
        st.sampled_from(["AND", "OR"]),
    ),
    max_leaves=6,
)


def row(**changed: object) -> pl.DataFrame:
    given = {"position": 3, **ROW, **changed}
    types = {name: SCORE_COLUMNS[name].dtype for name in given}
    return pl.DataFrame({name: [value] for name, value in given.items()}, schema=types)


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("entropy > 1.0 AND nll < 5", [("entropy > 1.0", "entropy > 0.93")]),
        ("entropy >= 1", [("entropy >= 1", "entropy >= 0.93")]),
        ("1.0 < entropy", [("1.0 < entropy", "entropy > 0.93")]),
        ("nll > 4", [("nll > 4", "nll > 3.99")]),
        ("nll < 4.0", [("nll < 4.0", "nll < 4.01")]),
        ("rank < 3", [("rank < 3", "rank < 8")]),
        ("rank <= 3", [("rank <= 3", "rank <= 7")]),
        ("rank = 0", [("rank = 0", "rank IN (0, 7)")]),
        ("field = 'solution'", [("field = 'solution'", "field IN ('solution', 'problem')")]),
        (
            "token_class IN ('word_start', 'other')",
            [("token_class IN ('word_start', 'other')", "token_class IN ('word_start', 'other', 'digit')")],
        ),
        ("entropy BETWEEN 1 AND 2", [("entropy BETWEEN 1 AND 2", "entropy BETWEEN 0.93 AND 2")]),
        ("field <> 'problem' AND rank > 0", [("field <> 'problem'", "true")]),
        ("reference_nll > 1", [("reference_nll > 1", "true")]),
        (  # of an OR, the operand with the fewest failures
            "(entropy > 2 AND rank = 0) OR (nll > 3 AND field = 'solution')",
            [
                (
                    "(entropy > 2 AND rank = 0) OR (nll > 3 AND field = 'solution')",
                    "((entropy > 2 AND rank = 0) OR (nll > 3 AND field IN ('solution', 'problem')))",
                )
            ],
        ),
    ],
)
def test_by_hand(where: str, changes: list[tuple[str, str]]) -> None:
    assert shortest_change(where, SCORE_COLUMNS, row()).changes == [Change(*change) for change in changes]


@given(RULES, st.floats(0, 3, width=32))
def test_the_changed_rule_keeps_the_position_and_only_what_failed_is_changed(where: str, entropy: float) -> None:
    frame = row(entropy=entropy)
    shortest = shortest_change(where, SCORE_COLUMNS, frame)
    assert frame.filter(row_filter(shortest.where, SCORE_COLUMNS, "where")).height == 1, shortest
    failed = [part.text for part in explain(where, SCORE_COLUMNS, frame) if not part.holds]
    assert [change.part for change in shortest.changes] == failed
