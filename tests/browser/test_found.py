"""The lists of positions are those that polars finds in the Parquet files."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.audit.browse.found import GAINED, KEPT, LOST, OUTCOMES, Narrowed, find
from pipeline.audit.browse.rules import Where
from pipeline.config.selection import BandsConfig
from tests.browser.conftest import Live

BANDS = BandsConfig()
RULES = [
    "entropy > 1.0 AND field = 'solution'",
    "nll < 1 AND entropy > 0.5",
    "rank > 3 OR entropy > 1.25",
    "true",
    "false",
]


@pytest.fixture(scope="module")
def positions(live: Live) -> pl.DataFrame:
    """Every position that a rule can select, with the text of its token, straight from the files."""
    documents = pl.read_parquet([file.path for file in live.built.documents.files("documents")])
    scores = pl.read_parquet([file.path for file in live.built.scores.files("scores")])
    lists = ["token_ends", "entropy", "nll", "rank", "field"]
    frame = scores.join(documents.select("doc_id", "text"), on="doc_id", maintain_order="left")
    frame = frame.with_columns(
        begin=pl.col("token_ends").list.shift(1), position=pl.int_ranges(0, pl.col("token_ends").list.len())
    )
    frame = frame.select("doc_id", "split", "text", "position", "begin", *lists).explode("position", "begin", *lists)
    frame = frame.drop_nulls("entropy").with_columns(pl.col("begin").fill_null(0))
    tokens = [
        text.encode()[begin:end].decode()
        for text, begin, end in frame.select("text", "begin", "token_ends").iter_rows()
    ]
    return frame.with_columns(token=pl.Series(tokens), entropy=pl.col("entropy").cast(pl.Float32))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rules=st.tuples(st.sampled_from(RULES), st.sampled_from(RULES)),
    outcome=st.sampled_from(OUTCOMES),
    split=st.sampled_from(["train", "validation"]),
    band=st.sampled_from(["", "none", "easy", "medium", "hard"]),
    low=st.sampled_from([None, 0.0, 0.35, 1.0, 1.25]),
    high=st.sampled_from([None, 1.0, 1.25, 3.0]),
    field=st.sampled_from(["", "problem", "solution"]),
)
def test_what_is_listed_is_what_polars_finds(
    live: Live, positions: pl.DataFrame, rules: tuple[str, str], outcome: str, split: str, band: str,
    low: float | None, high: float | None, field: str,
) -> None:  # fmt: skip
    first, second = (pl.sql_expr(rule).fill_null(False) for rule in rules)
    has = {KEPT: second, GAINED: second & ~first, LOST: first & ~second}[outcome]
    expected = positions.filter(pl.col("split") == split, has)
    for limit, keeps in ((low, pl.Series.gt), (high, pl.Series.le)):
        expected = expected if limit is None else expected.filter(keeps(expected["entropy"], np.float32(limit)))
    expected = expected.filter(pl.col("field") == field) if field else expected
    if band:
        level = sum((expected["entropy"] > np.float32(limit)).cast(int) for limit in (0.5, 1.0, 1.5))
        expected = expected.filter(level == ["none", "easy", "medium", "hard"].index(band))
    parsed = Where.parse(rules[0]), Where.parse(rules[1])
    narrowed = Narrowed(split, outcome, band=band, low=low, high=high, field=field)
    found = find(live.library.store, parsed, narrowed, BANDS, 10**6)
    ids = live.library.store.documents["doc_id"]
    columns = ["doc_id", "position", "token", "entropy", "field"]
    listed = found.frame.with_columns(doc_id=ids.gather(found.frame["document"])).select(columns)
    assert found.complete
    assert sorted(listed.rows()) == sorted(expected.select(columns).rows())


@pytest.mark.parametrize("text", ["pear", "EAR", "add 6 and", "é", "aa", "\x0c", "\u202eevil", "nowhere at all", ".*"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_concordance_has_every_occurrence(live: Live, positions: pl.DataFrame, text: str, split: str) -> None:
    """The token in which an occurrence begins, whatever its case, overlapping ones too."""
    expected = []
    for (doc_id, whole), rows in positions.filter(pl.col("split") == split).group_by(["doc_id", "text"]):
        data, wanted = str(whole).lower().encode(), text.lower().encode()
        begins = [at for at in range(len(data)) if data.startswith(wanted, at)]
        for position, begin, end in rows.select("position", "begin", "token_ends").iter_rows():
            if any(begin <= at < end for at in begins):
                expected.append((doc_id, position))
    rules = Where.parse("false"), Where.parse("true")
    found = find(live.library.store, rules, Narrowed(split, text=text), BANDS, 10**6)
    ids = live.library.store.documents["doc_id"].gather(found.frame["document"])
    assert sorted(zip(ids, found.frame["position"], strict=True)) == sorted(expected)
    assert found.complete


def test_a_list_of_one_token_or_one_document_has_nothing_else(live: Live, positions: pl.DataFrame) -> None:
    rules = Where.parse("false"), Where.parse("true")
    train = positions.filter(pl.col("split") == "train")
    token, count = train["token"].value_counts(sort=True).row(0)
    of_token = find(live.library.store, rules, Narrowed("train", token=token), BANDS, 10**6)
    assert of_token.frame["token"].unique().to_list() == [token] and of_token.frame.height == count > 1
    assert of_token.by_token().rows(named=True)[0]["positions"] == count
    doc_id = live.built.hostile_ids[0]
    of_document = find(live.library.store, rules, Narrowed("train", doc_id=doc_id), BANDS, 10**6)
    assert sorted(of_document.frame["position"]) == sorted(train.filter(pl.col("doc_id") == doc_id)["position"])


def test_a_long_list_stops_at_a_shard_and_says_so(live: Live) -> None:
    rules = Where.parse("false"), Where.parse("true")
    everything = find(live.library.store, rules, Narrowed("train"), BANDS, 10**6)
    some = find(live.library.store, rules, Narrowed("train"), BANDS, 1)
    assert some.shards_read == 1 < some.shards == everything.shards and not some.complete
    shard_D = live.library.store.documents["shard"].to_numpy()
    (shard,) = set(shard_D[some.frame["document"].to_numpy()])
    assert some.frame.height == (shard_D[everything.frame["document"].to_numpy()] == shard).sum()
