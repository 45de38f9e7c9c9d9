"""Every number of `audit.json` equals one that DuckDB computes from the published Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline.audit.distributions import COUNTS, NEAR, RARE, SPLITS, TOKENS_SHOWN
from pipeline.core.artifact import Record
from pipeline.selection.positions import SCORE_TABLE_COLUMNS, positions
from tests.audit.corpus import Audited

POSITIONS = """
create table p as
with tokens as (
    select s.doc_id, s.split, len(token_ids) as tokens, unnest(range(len(token_ids))) as position,
        unnest(token_ids) as token_id, unnest(token_ends) as byte_end, unnest(s.field) as field,
        unnest(entropy) as entropy, unnest(nll) as nll, unnest(rank) as rank
    from scores s
), placed as (
    select *, coalesce(lag(byte_end) over (partition by doc_id order by position), 0) as byte_offset from tokens
), joined as (
    select placed.*, d.source_file, d.meta, hex(encode(d.text)) as hexed
    from placed join documents d using (doc_id)
)
select * exclude (hexed, site_id), substr(hexed, 1 + 2 * byte_offset, 2 * (byte_end - byte_offset)) as bytes,
    substr(hexed, 1 + 2 * byte_offset, 1) in ('8', '9', 'A', 'B') as inside,
    entropy is not null and not inside as selectable,
    site_id is not null as kept,
    case when entropy > 1.5 then 'hard' when entropy > 1.0 then 'medium' when entropy > 0.5 then 'easy' else 'none' end
        as band,
    case when kept then 'kept' when entropy is null then 'not_scorable' when inside then 'inside_character'
        when split = 'train' and not (entropy > 1.0 and field = 'solution') then 'where'
        when split = 'validation' and not entropy > 0.5 then 'where' else 'document_cap' end as decision,
    position * 10 // tokens as decile
from joined left join (select doc_id, position, site_id from sites) using (doc_id, position)
"""


def paths(record: Record, *tables: str) -> list[str]:
    return [str(file.path) for table in tables for file in record.files(table)]


@pytest.fixture(scope="module")
def db(audited: Audited) -> Iterator[duckdb.DuckDBPyConnection]:
    lineage = audited.lineage
    assert lineage.materialize is not None
    files = {
        "documents": paths(lineage.ingest, "documents"),
        "quarantine": paths(lineage.ingest, "quarantine"),
        "candidates": paths(lineage.before["read"], "documents"),
        "matches": paths(lineage.before["assign"], "matches"),
        "scores": paths(lineage.score, "scores"),
        "sites": paths(lineage.select, "sites"),
        "shards": paths(lineage.materialize, "train", "validation"),
    }
    with duckdb.connect() as connection:
        for name, listed in files.items():
            connection.execute(f"create table {name} as select * from read_parquet({listed!r})")
        connection.execute(POSITIONS)
        yield connection


def one(db: duckdb.DuckDBPyConnection, query: str) -> Any:
    row = db.execute(query).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


def counted(db: duckdb.DuckDBPyConnection, value: str, table: str = "p") -> dict[Any, dict[str, dict[str, int]]]:
    """By value and split: positions, selectable and kept ones."""
    counts = "count(*), count(*) filter (selectable), count(*) filter (kept)"
    rows = db.execute(f"select {value}, split, {counts} from {table} group by all").fetchall()
    groups: dict[Any, dict[str, dict[str, int]]] = {}
    for name, split, *counts in rows:
        group = groups.setdefault(name, {split: dict.fromkeys(COUNTS, 0) for split in SPLITS})
        group[split] = dict(zip(COUNTS, counts, strict=True))
    return groups


def said(rows: list[dict[str, Any]]) -> dict[Any, dict[str, dict[str, int]]]:
    return {row["value"]: {split: row[split] for split in SPLITS} for row in rows}


def test_the_corpus_has_what_is_counted(db: duckdb.DuckDBPyConnection) -> None:
    """Otherwise the tests below would compare zeros."""
    for decision in ("kept", "not_scorable", "inside_character", "where", "document_cap"):
        assert one(db, f"select count(*) from p where decision = '{decision}'") > 0, decision


def counted_ones(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def test_the_funnel(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    rejected = one(db, "select count(*) from quarantine")
    left = dict(db.execute("select reason, count(*) from matches group by all").fetchall())
    left |= {"duplicate": one(db, "select count(*) - count(distinct doc_id) from candidates")}
    by_reason = dict(db.execute("select reason, count(*) from quarantine group by all").fetchall())
    lost = dict(db.execute("select decision, count(*) from p where not kept group by all").fetchall())
    sites, shards = one(db, "select count(*) from sites"), one(db, "select count(*) from shards")
    steps = audited.summary["funnel"]
    assert [step["count"] for step in steps] == [
        one(db, "select count(*) from candidates") + rejected,
        one(db, "select count(*) from documents"),
        one(db, "select count(*) from scores"),
        one(db, "select sum(len(token_ids)) from scores"),
        sites,
        shards,
    ]
    assert counted_ones(steps[1]["lost"]) == left | {f"quarantined: {r}": n for r, n in by_reason.items()}
    assert counted_ones(steps[4]["lost"]) == lost
    assert sum(steps[5]["lost"].values()) == sites - shards
    assert audited.summary["examples"] == shards
    assert audited.summary["quarantine"]["reasons"] == [
        {"stage": "ingest", "reason": reason, "records": count} for reason, count in sorted(by_reason.items())
    ]
    assert counted_ones(audited.summary["duplicates"]["counts"]) == {n: c for n, c in left.items() if "duplicate" in n}
    copies = db.execute("select doc_id, count(*) n from candidates group by all having n > 1 order by 1").fetchall()
    assert [(g["doc_id"], g["copies"]) for g in audited.summary["duplicates"]["groups"]] == copies


def test_matches(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    matches = audited.summary["matches"]
    assert matches["sought"]
    assert matches["total"] == one(db, "select count(*) from matches")
    rows = db.execute("select * from matches").fetchall()
    assert [tuple(row.values()) for row in matches["rows"]] == rows
    assert {row["reason"] for row in matches["rows"]} >= {"contaminated"}
    assert any("near_duplicate" in row["reason"] for row in matches["rows"])


def test_totals(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    assert {"all": audited.summary["totals"]} == counted(db, "'all'")
    documents = dict(db.execute("select split, count(*) from documents group by all").fetchall())
    assert audited.summary["documents"] == documents
    assert audited.summary["sites"] == dict(db.execute("select split, count(*) from sites group by all").fetchall())


@pytest.mark.parametrize("column", ["field", "decile", "band", "decision", "source_file"])
def test_groups(audited: Audited, db: duckdb.DuckDBPyConnection, column: str) -> None:
    assert said(audited.summary["groups"][column]) == counted(db, f"{column}::varchar")


def test_groups_of_metadata(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    groups = audited.summary["groups"]
    assert {name for name in groups if name.startswith("meta.")} == {"meta.level", "meta.score"}
    assert audited.summary["many_values"] == ["note"]
    assert said(groups["meta.level"]) == counted(db, "meta ->> '$.level'")
    assert said(groups["meta.score"]) == counted(db, "meta ->> '$.score'")


def test_groups_of_token_classes(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    """The classes themselves are selection's, and tested there."""
    lineage, frames = audited.lineage, []
    for done in lineage.score.completions():
        documents, scores = (
            r.file(t, done.shard) for r, t in ((lineage.ingest, "documents"), (lineage.score, "scores"))
        )
        assert documents and scores
        frames += positions(pq.read_table(documents.path), pq.read_table(scores.path, columns=SCORE_TABLE_COLUMNS))
    classes = pl.concat(frames).select("doc_id", "position", pl.col("token_class").cast(pl.String)).to_arrow()
    db.register("classes", classes)
    db.execute("create table classed as select * from p join classes using (doc_id, position)")
    assert said(audited.summary["groups"]["token_class"]) == counted(db, "token_class", "classed")


@pytest.mark.parametrize("metric", ["entropy", "nll", "rank"])
def test_histograms(audited: Audited, db: duckdb.DuckDBPyConnection, metric: str) -> None:
    histogram = audited.summary["histograms"][metric]
    edges = histogram["edges"]
    for split in SPLITS:
        of = f"from p where selectable and split = '{split}'"
        for name, filtered in (("selectable", of), ("kept", f"{of} and kept")):
            counts = [
                one(db, f"select count(*) {filtered} and {metric} >= {low}::double and {metric} < {high}::double")
                for low, high in zip(edges, [*edges[1:], 1e30], strict=True)
            ]
            assert histogram["splits"][split][name] == counts
            assert sum(counts) == one(db, f"select count(*) {filtered}")
            mean = one(db, f"select avg({metric}::double) {filtered}")
            assert histogram["splits"][split][f"mean_{name}"] == pytest.approx(mean, rel=1e-9)


def test_why_not(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    """Parts of `entropy > 1.0 AND field = 'solution'` on selectable positions, and the cap after them."""
    found = audited.summary["why_not"]
    tests = ["entropy > 1.0", "field = 'solution'"]
    for part, test in zip(found["parts"]["train"], tests, strict=True):
        (other,) = (each for each in tests if each != test)
        counts = f"count(*) filter ({test}), count(*) filter (not {test}), count(*) filter (not {test} and {other})"
        expected = db.execute(f"select {counts} from p where selectable and split = 'train'").fetchone()
        assert part["text"] == test
        assert (part["holds"], part["fails"], part["fails_alone"]) == expected
    (rule,) = found["later"]
    capped = db.execute("select count(*) from p where decision = 'document_cap'").fetchone()
    assert (rule["text"], rule["reason"], (rule["dropped"],)) == ("max_per_document: 6", "document_cap", capped)


def test_near_thresholds(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    rows = audited.summary["near"]
    asked = {(r["split"], r["threshold"], r["source"]) for r in rows}
    bands = {(split, *band) for split in SPLITS for band in ((0.5, "easy"), (1.0, "medium"), (1.5, "hard"))}
    assert asked == {("train", 1.0, "where"), ("validation", 0.5, "where"), *bands}
    assert len(rows) == len(asked) * len(NEAR)
    for row in rows:
        where = (
            f"selectable and split = '{row['split']}' "
            f"and abs(entropy::double - {row['threshold']}::double) <= {row['within']}::double"
        )
        query = f"select count(*), count(*) filter (kept) from p where {where}"
        assert (row["selectable"], row["kept"]) == one(db, query)
    assert sum(row["selectable"] for row in rows) > 0


def test_tokens(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    counted_tokens = """
        select token_id, count(*) selectable, count(*) filter (kept) kept, avg(entropy::double) mean_entropy,
            avg(nll::double) mean_nll, any_value(decode(unhex(bytes))) token
        from p where selectable and not (length(bytes) > 8 and inside) group by token_id"""
    orders = {
        "hardest": f"where selectable >= {RARE} order by mean_nll desc, token_id",
        "most_selected": "where kept > 0 order by kept desc, token_id",
    }
    for name, order in orders.items():
        query = counted_tokens.replace("any_value(decode(unhex(bytes)))", "any_value(bytes)")
        rows = db.execute(f"select * from ({query}) {order} limit {TOKENS_SHOWN}").fetchall()
        shown = audited.summary["tokens"][name]
        assert len(shown) == len(rows) > 0
        for row, (token_id, selectable, kept, entropy, nll, hexed) in zip(shown, rows, strict=True):
            assert (row["token_id"], row["selectable"], row["kept"]) == (token_id, selectable, kept)
            assert row["mean_entropy"] == pytest.approx(entropy, rel=1e-9)
            assert row["mean_nll"] == pytest.approx(nll, rel=1e-9)
            assert row["token"] == bytes.fromhex(hexed).decode("utf-8", errors="backslashreplace")


def test_documents_shown(audited: Audited, db: duckdb.DuckDBPyConnection) -> None:
    """All of them are sampled here, since there are fewer than a hundred."""
    query = "select doc_id, split, count(*), count(*) filter (selectable), count(*) filter (kept) from p group by all"
    shown = [
        tuple(row[n] for n in ("doc_id", "split", "tokens", "selectable", "kept")) for row in audited.summary["shown"]
    ]
    assert sorted(shown) == sorted(db.execute(query).fetchall())


def test_lineage(audited: Audited) -> None:
    records = audited.lineage.records
    listed = {row["stage"]: row for row in audited.summary["lineage"]}
    assert list(listed) == ["read", "near", "assign", "ingest", "score", "select", "materialize"]
    for stage, row in listed.items():
        files = sorted(records[stage].directory.glob("*.parquet"))
        rows = duckdb.connect().execute(
            "select sum(c) from (select count(*) c from read_parquet(?))", [[*map(str, files)]]
        )
        # Besides tables: hashes of what was read and of the text; a byte per candidate document.
        published = [*files, *records[stage].directory.glob("*-*.json"), *records[stage].directory.glob("*-*.bin")]
        assert row["files"] == len(published)
        assert row["bytes"] == sum(path.stat().st_size for path in published)
        assert [(row["rows"],)] == rows.fetchall()
        assert row["fingerprint"] == records[stage].directory.name
    assert audited.summary["bytes"] == listed["materialize"]["bytes"]
