"""What another selection gains and loses, against DuckDB's full join of the two sites tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from commands.inspect.audit import audit, compare
from pipeline.audit.compare import EXAMPLES, OUTCOMES
from pipeline.audit.compare import compare as compare_lineages
from pipeline.audit.decisions import SPLITS
from pipeline.audit.lineage import lineage_of
from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from stages.ingest import ingest
from stages.select import select
from tests.audit.corpus import OTHER, Audited, score
from tests.stages.published import InProcess


@pytest.fixture(scope="module")
def comparison(audited: Audited) -> dict[str, Any]:
    return json.loads((audited.comparison.parent / "compare.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def db(audited: Audited) -> Iterator[duckdb.DuckDBPyConnection]:
    """Table `j`: a site of either selection, in which it is, and its document."""
    before, after = ([str(f.path) for f in each.select.files("sites")] for each in (audited.lineage, audited.other))
    documents = [str(file.path) for file in audited.lineage.ingest.files("documents")]
    with duckdb.connect() as connection:
        connection.execute(
            f"""create table j as select doc_id, position, split, field, band, source_file,
                case when a.site_id is null then 'gained' when b.site_id is null then 'lost' else 'both' end as outcome
            from read_parquet({before!r}) a
            full join read_parquet({after!r}) b using (doc_id, position, split, field, band)
            join (select doc_id, source_file from read_parquet({documents!r})) using (doc_id)"""
        )
        yield connection


def counted(db: duckdb.DuckDBPyConnection, value: str) -> dict[str, dict[str, dict[str, int]]]:
    groups: dict[str, dict[str, dict[str, int]]] = {}
    for name, split, outcome, count in db.execute(
        f"select {value}, split, outcome, count(*) from j group by all"
    ).fetchall():
        group = groups.setdefault(name, {s: dict.fromkeys(OUTCOMES, 0) for s in SPLITS})
        group[split][outcome] = count
    return groups


def said(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    return {row["value"]: {split: row[split] for split in SPLITS} for row in rows}


def test_totals_and_groups(comparison: dict[str, Any], db: duckdb.DuckDBPyConnection) -> None:
    assert {"all": comparison["totals"]} == counted(db, "'all'")
    assert all(comparison["totals"]["train"][outcome] for outcome in OUTCOMES), "nothing to compare"
    for name, column in (("band", "band"), ("field", "field"), ("source_file", "source_file")):
        assert said(comparison["groups"][name]) == counted(db, column)
    classes = comparison["groups"]["token_class"]
    for split in SPLITS:
        for outcome in OUTCOMES:
            assert sum(row[split][outcome] for row in classes) == comparison["totals"][split][outcome]
    changed = db.execute("select count(distinct doc_id) from j where outcome <> 'both'").fetchall()
    assert [(comparison["documents_changed"],)] == changed


def test_examples_are_sites_of_their_outcome_in_their_text(
    audited: Audited, comparison: dict[str, Any], db: duckdb.DuckDBPyConnection
) -> None:
    paths = [str(file.path) for file in audited.lineage.ingest.files("documents")]
    texts = dict(duckdb.connect().execute(f"select doc_id, text from read_parquet({paths!r})").fetchall())
    for outcome in OUTCOMES[1:]:
        rows = comparison["examples"][outcome]
        count = sum(comparison["totals"][split][outcome] for split in SPLITS)
        assert len(rows) == min(EXAMPLES, count)
        of = set(db.execute(f"select doc_id, position from j where outcome = '{outcome}'").fetchall())
        assert {(row["doc_id"], row["position"]) for row in rows} <= of
        for row in rows:
            data, offset = texts[row["doc_id"]].encode(), row["byte_offset"]
            assert data[:offset].endswith(row["before"].encode())
            assert data[offset:].startswith((row["target"] + row["after"]).encode())


def test_another_selection_can_be_named_in_three_ways(
    audited: Audited, comparison: dict[str, Any], tmp_path: Path
) -> None:
    tree = json.loads(audited.path.read_text(encoding="utf-8"))
    tree["select"]["where"] = OTHER
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps(tree), encoding="utf-8")
    for name in (str(other), audited.other.select.fingerprint):
        page = compare(audited.manifest, [name], path=audited.path, overrides=(), work=audited.work, out=tmp_path)
        assert json.loads((page.parent / "compare.json").read_text(encoding="utf-8")) == comparison


def test_two_manifests_of_other_documents(audited: Audited, tmp_path: Path) -> None:
    """A corpus cut into other shards has the same documents: nothing is gained or lost against itself."""
    recut = load(Manifest, audited.path, ["name=recut", "corpus.shard_documents=40"])
    work = tmp_path / "recut"
    documents = ingest(recut, source=None, work=work, executor=InProcess())
    scores = score(recut, documents, work)
    select(recut, documents, scores, work=work, executor=InProcess())
    result = compare_lineages(audited.lineage, lineage_of(work, recut))
    assert {split: total["both"] for split, total in result["totals"].items()} == audited.summary["sites"]
    assert all(total["gained"] == total["lost"] == 0 for total in result["totals"].values())


def test_a_selection_that_was_not_made_is_refused(audited: Audited) -> None:
    missing = load(Manifest, audited.path, ["select.where=entropy > 7"])
    with pytest.raises(UserError, match="this selection does not exist"):
        audit(missing, work=audited.work)
    with pytest.raises(UserError, match=f"selections: .*{audited.other.select.fingerprint}"):
        compare(audited.manifest, ["0123456789ab"], path=audited.path, overrides=(), work=audited.work)


def test_a_changed_byte_is_no_audit(audited: Audited, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(audited.work, work)
    file = next((work / "toy" / "materialize").glob("*/train-*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="changed after the fact"):
        audit(audited.manifest, work=work)
