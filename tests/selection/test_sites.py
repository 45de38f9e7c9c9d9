"""Selection against a hand-worked example, a plain twin, and what must not change it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.selection import BandsConfig, SelectConfig
from pipeline.core.random_keys import random_key, random_keys
from pipeline.selection.positions import DOCUMENT_COLUMNS, SCORE_TABLE_COLUMNS, positions
from pipeline.selection.sites import REASONS, SITES, TRAIN, rule_expression, select_sites
from pipeline.selection.where import SCORE_COLUMNS
from tests.selection.tables import documents_of, scores_of


def select(
    config: SelectConfig, documents: pa.Table, scores: pa.Table, flagged: Collection[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Sites as dictionaries without the random key, and the counts that are not 0, without those of `TRAIN`."""
    columns = documents.select(DOCUMENT_COLUMNS), scores.select(SCORE_TABLE_COLUMNS)
    sites, counters = select_sites(config, *columns, flagged=flagged)
    table = sites.select(SITES.names).to_arrow().cast(SITES)
    assert sum(n for name, n in counters.items() if name.startswith(("dropped.", "kept."))) == counters["tokens"]
    shown = {name: count for name, count in counters.items() if count and not name.startswith(TRAIN)}
    return table.to_pylist(), shown


def test_hand_worked() -> None:
    """né 数! is n·é(2 bytes)·space·数(3 bytes)·!: 8 bytes, cut into n | 1st byte of é | 2nd byte of é | space + 2 bytes
    of 数 | its last byte | !"""
    documents = documents_of(["né 数!"])
    scores = scores_of(
        documents, [[1, 2, 3, 6, 7, 8]], [[None, 1.75, 3.0, 0.75, 2.0, 1.5]], [["", "a", "a", "b", "b", "b"]]
    )
    doc_id = documents["doc_id"][0].as_py()
    sites, counters = select(SelectConfig(where="entropy > 0.7"), documents, scores)
    names = ("position", "byte_offset", "field", "entropy", "nll", "rank", "token_class", "band")
    assert [tuple(site[name] for name in names) for site in sites] == [
        (1, 1, "a", 1.75, 3.5, 14, "word_part", "hard"),  # the 1st byte of é begins a character
        (3, 3, "b", 0.75, 1.5, 6, "ideograph", "easy"),
        (5, 7, "b", 1.5, 3.0, 12, "punctuation", "medium"),  # exactly the threshold of hard, and does not exceed it
    ]
    assert {(site["doc_id"], site["split"]) for site in sites} == {(doc_id, "train")}
    assert [site["site_id"] for site in sites] == [f"{doc_id}-1", f"{doc_id}-3", f"{doc_id}-5"]
    assert counters == {
        "documents": 1,
        "tokens": 6,
        "dropped.not_scorable": 1,
        "dropped.inside_character": 2,
        "kept.train": 3,
        "band.easy": 3,
        "band.medium": 2,
        "band.hard": 1,
        "near.hard": 1,
    }


def test_every_reason_is_counted_once_and_in_order() -> None:
    """Of the nine positions: one without score (and inside a character), one inside a character (and below the
    threshold), two below the threshold, two over the document's cap of three."""
    documents = documents_of(["aé" + "x" * 6])
    entropy = [2.0, 3.0, None, 0.5, 1.0, 2.5, 2.0, 1.25, 1.5]
    scores = scores_of(documents, [[1, 2, 3, 4, 5, 6, 7, 8, 9]], [entropy])
    sites, counters = select(SelectConfig(where="entropy > 1", max_per_document=3), documents, scores)
    assert [site["position"] for site in sites] == [0, 1, 5]  # positions 0 and 6 are equal: the first stays
    assert counters["dropped.not_scorable"] == 1
    assert "dropped.inside_character" not in counters
    assert counters["dropped.where"] == 2
    assert counters["dropped.document_cap"] == 3


def test_validation_documents_follow_their_own_expression() -> None:
    documents = documents_of(["abcd", "efgh"], ["train", "validation"])
    scores = scores_of(documents, [[1, 2, 3, 4]] * 2, [[0.25, 0.75, 1.25, 1.75]] * 2)
    sites, counters = select(SelectConfig(where="entropy > 1.5", validation_where="entropy < 1"), documents, scores)
    assert [(site["split"], site["position"]) for site in sites] == [("train", 3), ("validation", 0), ("validation", 1)]
    assert (counters["kept.train"], counters["kept.validation"]) == (1, 2)


def test_a_score_that_is_no_number_selects_nothing() -> None:
    """NaN compares as larger than everything in polars: a broken proxy would make only hard sites."""
    documents = documents_of(["abc"])
    scores = scores_of(documents, [[1, 2, 3]], [[1.5, 1.5, 1.5]])
    broken = pa.array([[math.nan, math.inf, 1.5]], pa.list_(pa.float32()))
    scores = scores.set_column(scores.column_names.index("entropy"), scores.schema.field("entropy"), broken)
    sites, counters = select(SelectConfig(), documents, scores)
    assert [site["position"] for site in sites] == [2] and counters["dropped.not_scorable"] == 2


def test_scores_that_lack_a_document_and_documents_that_lack_scores() -> None:
    """A document that the proxy's tokenizer cannot represent is quarantined by scoring; the rest keep their text."""
    documents = documents_of(["ab", "é!", "cd"])
    scores = scores_of(documents, [[1, 2], [1, 2, 3], [1, 2]], [[2.0, 2.0], [2.0, 2.0, 2.0], [2.0, 2.0]])
    sites, counters = select(SelectConfig(), documents, scores.slice(1))
    assert counters["documents"] == 2 and counters["dropped.inside_character"] == 1
    ids = documents["doc_id"].to_pylist()
    assert [site["site_id"] for site in sites] == [f"{ids[1]}-0", f"{ids[1]}-2", f"{ids[2]}-0", f"{ids[2]}-1"]
    with pytest.raises(IntegrityError, match="from different corpora"):
        select(SelectConfig(), documents.slice(1), scores)
    assert select(SelectConfig(), documents, scores.slice(0, 0)) == ([], {})


# -------------------------------------------------------------------------------------- against a plain twin

WHERES = {
    "true": lambda p: True,
    "entropy > 1.0": lambda p: p["entropy"] > 1,
    "entropy > 0.5 AND field = 'solution'": lambda p: p["entropy"] > 0.5 and p["field"] == "solution",
    "rank <= 8 OR position = 2": lambda p: p["rank"] <= 8 or p["position"] == 2,
    "byte_offset % 2 = 0 AND nll < 4 * entropy_partial + tokens": lambda p: (
        p["byte_offset"] % 2 == 0 and p["nll"] < 4 * p["entropy_partial"] + p["tokens"]
    ),
}

Corpus = tuple[pa.Table, pa.Table]


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    """Documents of one- to four-byte characters cut anywhere, also within them, into tokens of eighths of a nat."""
    texts = draw(st.lists(st.text("ab é中🙂\n", min_size=1, max_size=12), min_size=1, max_size=6, unique=True))
    splits = draw(st.lists(st.sampled_from(["train", "validation"]), min_size=len(texts), max_size=len(texts)))
    ends, entropies, fields = [], [], []
    for text in texts:
        size = len(text.encode())
        cuts = sorted(draw(st.sets(st.integers(1, size), max_size=size)) | {size})
        ends.append(cuts)
        n = len(cuts)
        eighths = st.one_of(st.none(), st.integers(0, 20).map(lambda e: e / 8))
        entropies.append(draw(st.lists(eighths, min_size=n, max_size=n)))
        fields.append(draw(st.lists(st.sampled_from(["", "problem", "solution"]), min_size=n, max_size=n)))
    documents = documents_of(texts, splits)
    return documents, scores_of(documents, ends, entropies, fields)


def plain(
    config: SelectConfig, documents: pa.Table, scores: pa.Table
) -> tuple[list[str], Counter[str], dict[str, str]]:
    """Site ids, counts and bands by one loop over positions."""
    counters: Counter[str] = Counter()
    chosen, bands = [], {}
    texts = {row["doc_id"]: row["text"].encode() for row in documents.to_pylist()}
    for row in scores.to_pylist():
        text, start, candidates = texts[row["doc_id"]], 0, []
        for t, end in enumerate(row["token_ends"]):
            names = ("field", "entropy", "entropy_partial", "nll", "rank")
            position = {name: row[name][t] for name in names}
            position |= {"position": t, "byte_offset": start, "tokens": len(row["token_ends"])}
            counters["tokens"] += 1
            where = config.where if row["split"] == "train" else config.validation_where
            inside = start < len(text) and text[start] in range(0b10000000, 0b11000000)
            if position["entropy"] is not None and not inside:
                near = [b for b in ("easy", "medium", "hard") if position["entropy"] == getattr(config.bands, b)]
                counters.update(f"near.{band}" for band in near)  # eighths of a nat: at a threshold or far from it
            if position["entropy"] is None:
                counters["dropped.not_scorable"] += 1
            elif inside:
                counters["dropped.inside_character"] += 1
            elif not WHERES[where](position):
                counters["dropped.where"] += 1
            else:
                candidates.append(position)
            start = end
        best = sorted(candidates, key=lambda p: (-p["entropy"], p["position"]))[: config.max_per_document]
        counters["dropped.document_cap"] += len(candidates) - len(best)
        counters[f"kept.{row['split']}"] += len(best)
        for position in sorted(best, key=lambda p: p["position"]):
            site = f"{row['doc_id']}-{position['position']}"
            chosen.append(site)
            exceeded = [b for b in ("easy", "medium", "hard") if position["entropy"] > getattr(config.bands, b)]
            counters.update(f"band.{band}" for band in exceeded)
            bands[site] = exceeded[-1] if exceeded else "none"
    return chosen, +counters, bands


CONFIGS = st.builds(
    SelectConfig,
    where=st.sampled_from(list(WHERES)),
    validation_where=st.sampled_from(list(WHERES)),
    max_per_document=st.one_of(st.none(), st.integers(1, 4)),
    bands=st.sampled_from([BandsConfig(), BandsConfig(easy=0.25, medium=0.5, hard=2.0)]),
)


@given(corpora(), CONFIGS)
def test_selects_what_a_plain_loop_selects(corpus: Corpus, config: SelectConfig) -> None:
    sites, counters = select(config, *corpus)
    chosen, expected, bands = plain(config, *corpus)
    assert [site["site_id"] for site in sites] == chosen
    assert {site["site_id"]: site["band"] for site in sites} == bands
    assert counters == expected | {"documents": corpus[1].num_rows}


@given(corpora(), CONFIGS, st.sampled_from(["rule", "random"]), st.integers(1, 3))
def test_it_does_not_matter_how_a_corpus_is_cut(
    corpus: Corpus, config: SelectConfig, strategy: str, per_shard: int
) -> None:
    documents, scores = corpus
    config = config.model_copy(update={"strategy": strategy})
    whole, counters = select(config, documents, scores)
    parts = [
        select(config, documents.slice(begin, per_shard), scores.slice(begin, per_shard))
        for begin in range(0, documents.num_rows, per_shard)
    ]
    assert [site for sites, _ in parts for site in sites] == whole
    assert sum((Counter(counts) for _, counts in parts), Counter()) == counters


@given(corpora(), st.integers(1, 20))
def test_positions_do_not_depend_on_how_many_are_held_at_once(corpus: Corpus, at_once: int) -> None:
    tables = corpus[0].select(DOCUMENT_COLUMNS), corpus[1].select(SCORE_TABLE_COLUMNS)
    frames = list(positions(*tables, at_once=at_once))
    assert pl.concat(frames).equals(pl.concat(positions(*tables)), null_equal=True)
    assert all(frame.height <= at_once or frame["doc_id"].n_unique() == 1 for frame in frames)


def test_positions_have_the_columns_and_types_that_where_is_checked_against() -> None:
    documents = documents_of(["ab"])
    (frame,) = positions(documents, scores_of(documents, [[1, 2]], [[None, 1.0]]).select(SCORE_TABLE_COLUMNS))
    types = {name: frame.schema[name] for name in frame.columns if name != "inside_character"}
    assert types == {name: column.dtype for name, column in SCORE_COLUMNS.items()}


# ------------------------------------------------------------------------------------- flags and the control


@given(corpora(), st.data())
def test_flagged_sites_are_left_out_and_counted(corpus: Corpus, data: st.DataObject) -> None:
    config = SelectConfig(where="true", validation_where="true")
    everything, _ = select(config, *corpus)
    ids = [site["site_id"] for site in everything]
    flagged = data.draw(st.sets(st.sampled_from(ids))) if ids else set()
    sites, counters = select(config, *corpus, flagged={*flagged, "of another corpus"})
    assert [site["site_id"] for site in sites] == [i for i in ids if i not in flagged]
    assert counters.get("dropped.flagged", 0) == len(flagged)


@given(corpora(), st.sampled_from(list(WHERES)), st.one_of(st.none(), st.integers(1, 3)))
def test_random_positions_are_as_many_in_every_field_of_every_document(
    corpus: Corpus, where: str, most: int | None
) -> None:
    rule = SelectConfig(where=where, validation_where="true", max_per_document=most)
    chance = rule.model_copy(update={"strategy": "random"})
    ruled, _ = select(rule, *corpus)
    drawn, counters = select(chance, *corpus)

    def place(site: dict[str, Any]) -> tuple[str, str, str]:
        return site["split"], site["doc_id"], site["field"]

    assert Counter(map(place, drawn)) == Counter(map(place, ruled))
    held_out = [site for site in ruled if site["split"] == "validation"]
    assert [site for site in drawn if site["split"] == "validation"] == held_out
    eligible, _ = select(SelectConfig(where="true", validation_where="true"), *corpus)
    chosen = {site["site_id"] for site in drawn}
    for site in eligible:  # of a place, those with the smallest keys
        others = [s for s in eligible if place(s) == place(site) and key(0, s) < key(0, site)]
        if site["split"] == "train" and site["site_id"] in chosen:
            assert {s["site_id"] for s in others} <= chosen
    by_rule = {site["site_id"] for site in ruled}
    assert counters.get("dropped.not_drawn", 0) == len(by_rule - chosen)


def key(seed: int, site: dict[str, Any]) -> int:
    return int(random_keys(random_key("site", seed, site["doc_id"]), np.array([site["position"]]))[0])


def test_keys_are_uniform_and_differ_by_seed() -> None:
    """10,000 keys in 16 bins: chi-squared with 15 degrees of freedom exceeds 50 once in 80,000 such tests."""
    drawn = random_keys(random_key("site", 0, "d"), np.arange(10_000))
    bins = np.bincount((drawn >> np.uint64(60)).astype(int), minlength=16)
    assert ((bins - 625) ** 2 / 625).sum() < 50
    assert len(np.intersect1d(drawn, random_keys(random_key("site", 1, "d"), np.arange(10_000)))) == 0


def test_both_expressions_are_checked() -> None:
    with pytest.raises(UserError, match=r"select\.where"):
        rule_expression(SelectConfig(where="entropi > 1"))
    with pytest.raises(UserError, match=r"select\.validation_where"):
        rule_expression(SelectConfig(validation_where="entropi > 1"))


def test_the_reasons_are_those_that_are_counted() -> None:
    documents = documents_of(["ab"])
    columns = documents.select(DOCUMENT_COLUMNS), scores_of(documents, [[2]], [[1.0]]).select(SCORE_TABLE_COLUMNS)
    _, counters = select_sites(SelectConfig(), *columns)
    assert [name.removeprefix("dropped.") for name in counters if name.startswith("dropped.")] == list(REASONS)
