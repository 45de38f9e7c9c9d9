"""Control characters and U+FFFD, by hand and against a plain loop."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.damage import CONTINUATION, DAMAGED, DOCUMENTS_NAMED, Damage, without
from pipeline.selection.where import SCORE_COLUMNS, row_filter


def positions(tokens: list[str], kept: set[int]) -> tuple[bytes, pl.DataFrame]:
    sizes = [len(token.encode()) for token in tokens]
    frame = pl.DataFrame(
        {
            "position": range(len(tokens)),
            "byte_offset": [sum(sizes[:t]) for t in range(len(tokens))],
            "selectable": [t > 0 for t in range(len(tokens))],
            "kept": [t in kept for t in range(len(tokens))],
        }
    )
    return "".join(tokens).encode(), frame


def test_a_form_feed_of_latex_by_hand() -> None:
    damage = Damage()
    damage.add("a", *positions(["Half is ", "\x0c", "rac{1}{2}", " or ", "\x0crac", "!"], {1, 3, 5}))
    damage.add("b", *positions(["\ufffd", "clean", " end"], {2}))
    damage.add("c", *positions(["all", "\tis\r\n", "well"], {1}))
    form_feed, replaced = damage.rows("entropy > 1")
    assert (form_feed["character"], form_feed["name"], form_feed["documents"]) == ("U+000C", "form feed", 1)
    counts = {name: form_feed[name] for name in ("selectable", "targets", "continuations", "contexts")}
    assert counts == {"selectable": 2, "targets": 1, "continuations": 2, "contexts": 2}
    before, after = "Half is ", "rac{1}{2} or \x0crac!"
    shown = {"before": before, "target": "\x0c", "after": after}
    assert form_feed["examples"] == [{"doc_id": "a", "position": 1, "kept": True} | shown]
    assert form_feed["where"] == "(entropy > 1) AND doc_id NOT IN ('a')"
    assert (replaced["character"], replaced["selectable"], replaced["contexts"]) == ("U+FFFD", 0, 1)
    row_filter(form_feed["where"], SCORE_COLUMNS, "where")  # it can be pasted


@given(st.lists(st.text("ab\x00\x0c\x7f\x9f\ufffd\t\n\r天", max_size=3), min_size=1, max_size=40), st.data())
def test_it_counts_what_a_loop_counts(tokens: list[str], data: st.DataObject) -> None:
    tokens = [token for token in tokens if token] or ["a"]
    kept = set(data.draw(st.lists(st.integers(0, len(tokens) - 1))))
    damage = Damage()
    damage.add("d", *positions(tokens, kept))
    rows = {row["text"]: row for row in damage.rows("true")}
    assert set(rows) == {c for c in "".join(tokens) if c in "\x00\x0c\x7f\x9f\ufffd"}
    assert bool(rows) == pl.Series(["".join(tokens)]).str.contains(DAMAGED).item()
    for c, row in rows.items():
        assert row["targets"] == sum(c in tokens[t] for t in kept)
        assert row["continuations"] == sum(c in "".join(tokens[t : t + CONTINUATION]) for t in kept)
        assert row["contexts"] == sum(c in "".join(tokens[:t]) for t in kept)


@pytest.mark.parametrize(("documents", "named"), [(DOCUMENTS_NAMED, True), (DOCUMENTS_NAMED + 1, False)])
def test_a_where_names_only_so_many_documents(documents: int, named: bool) -> None:
    where = without("entropy > 1", [f"{n:032x}" for n in range(documents)])
    assert (where is not None) == named
    if where:
        row_filter(where, SCORE_COLUMNS, "where")
