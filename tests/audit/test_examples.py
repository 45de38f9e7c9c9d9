"""Which documents are shown, and groups with more values than a table has rows."""

from __future__ import annotations

from collections import Counter

import polars as pl

from pipeline.audit.distributions import OTHERS, VALUES_SHOWN, _rows
from pipeline.audit.examples import Sample

COUNTS = ("positions", "selectable", "kept")


def frame(documents: list[tuple[str, str, int]], tokens: int = 100) -> pl.DataFrame:
    """Documents (id, split, sites) of `tokens` selectable positions each."""
    rows = [
        {"doc_id": doc_id, "split": split, "selectable": True, "kept": t < kept}
        for doc_id, split, kept in documents
        for t in range(tokens)
    ]
    return pl.DataFrame(rows)


def test_every_split_and_share_has_its_documents() -> None:
    """Nine hundred documents with one site in a hundred do not crowd out the ten with sixty."""
    documents = [(f"few {i}", "train", 1) for i in range(900)] + [(f"many {i}", "train", 60) for i in range(10)]
    documents += [(f"none {i}", "validation", 0) for i in range(90)]
    sample = Sample(60)
    for begin in range(0, len(documents), 250):
        sample.add(0, frame(documents[begin : begin + 250]))
    chosen = sample.chosen()
    assert len(chosen) == len({e.doc_id for e in chosen}) == 60
    assert Counter(e.doc_id.split()[0] for e in chosen) == {"few": 25, "many": 10, "none": 25}
    assert all(e.tokens == e.selectable == 100 and e.kept == {"f": 1, "m": 60, "n": 0}[e.doc_id[0]] for e in chosen)


def test_the_sample_does_not_depend_on_how_the_corpus_is_cut() -> None:
    documents = [(f"doc {i}", "train", i % 100) for i in range(300)]
    whole, cut = Sample(40), Sample(40)
    whole.add(0, frame(documents))
    for begin in range(0, 300, 70):
        cut.add(0, frame(documents[begin : begin + 70]))
    assert whole.chosen() == cut.chosen()


def test_a_long_tail_of_values_is_summed_up() -> None:
    values = VALUES_SHOWN + 30
    group = pl.DataFrame(
        {"split": ["train"] * values, "value": [f"file {i}" for i in range(values)]}
        | {name: [values - i for i in range(values)] for name in COUNTS}
    )
    rows = _rows(group)
    assert len(rows) == VALUES_SHOWN + 1
    assert rows[0]["value"] == "file 0" and rows[0]["train"]["positions"] == values
    assert rows[-1] == {
        "value": OTHERS,
        "train": dict.fromkeys(COUNTS, sum(range(1, 31))),
        "validation": dict.fromkeys(COUNTS, 0),
    }
    assert sum(row["train"]["kept"] for row in rows) == group["kept"].sum()
