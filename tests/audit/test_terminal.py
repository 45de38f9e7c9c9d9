"""rpt show, stats, trace, verify: over artifacts that the real stages published, and over damaged ones."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from commands.cli import app
from commands.inspect import show as show_page
from commands.inspect import stats as stats_page
from commands.inspect import trace as trace_page
from commands.maintenance import verify as verify_page
from pipeline.audit.decisions import decisions, shards
from pipeline.audit.lineage import check_columns
from pipeline.audit.stats import QUANTILES
from pipeline.config.errors import UserError
from pipeline.core.artifact import Record, current_record
from pipeline.selection.classes import TOKEN_CLASSES
from pipeline.selection.positions import SCORE_TABLE_COLUMNS, positions
from pipeline.shards.schema import boundaries_of
from tests.audit.corpus import RUN, TOP, WHERE, Audited
from tests.stages.published import publish_tables


@pytest.fixture
def damaged(audited: Audited, tmp_path: Path) -> Path:
    """A copy of the artifacts to damage."""
    return Path(shutil.copytree(audited.work, tmp_path / "work"))


def rpt(audited: Audited, work: Path, *arguments: str) -> tuple[int, Any]:
    """Exit code and JSON of a command over a work folder."""
    command, *more = arguments
    done = CliRunner().invoke(app, [command, str(audited.path), *more, "--work", str(work), "--json"])
    return done.exit_code, json.loads(done.stdout)


def file_of(record: Record, table: str, work: Path, shard: int = 0) -> Path:
    """Of a record's table, in a copied work folder."""
    file = record.file(table, shard)
    assert file is not None
    return work / "toy" / record.stage / record.fingerprint / file.path.name


def rows(record: Record | None, table: str) -> list[dict[str, Any]]:
    assert record is not None
    return [row for file in record.files(table) for row in pq.read_table(file.path).to_pylist()]


def printed(tables: list[Any]) -> str:
    console = Console(width=200, markup=False, no_color=True)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


# ---------------------------------------------------------------------------------------------------- verify


def test_what_was_published_is_found_whole_and_linked(audited: Audited) -> None:
    code, found = rpt(audited, audited.work, "verify")
    assert (code, found["ok"], found["damage"]) == (0, True, [])
    made_from = {(row["stage"], row["fingerprint"]): row["made_from"] for row in found["stages"]}
    lineage = audited.lineage
    ingest, select = lineage.ingest.fingerprint, lineage.select.fingerprint
    own = {"read", "near", "assign", "ingest", "score", "select", "materialize"}
    assert {stage for stage, _ in made_from} == own | {"certificate_scores", "certificate_bits"}
    assert made_from["select", select] == {
        "documents": f"ingest/{ingest}",
        "scores": f"score/{lineage.score.fingerprint}",
    }
    assert made_from["select", audited.other.select.fingerprint] == made_from["select", select]
    assert made_from["ingest", ingest].keys() == {"read", "near", "assign"}
    assert None not in made_from["ingest", ingest].values()
    assert "select/" + select in printed(verify_page.tables(found))
    files = list((audited.work / "toy").glob("*/*/*-0*.*"))
    assert sum(row["files"] for row in found["stages"]) == len(files)
    assert sum(row["bytes"] for row in found["stages"]) == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("table", ["documents", "scores", "sites", "train"])
def test_a_flipped_byte_is_found_and_named(audited: Audited, damaged: Path, table: str) -> None:
    stage = {"documents": "ingest", "scores": "score", "sites": "select", "train": "materialize"}[table]
    path = file_of(audited.lineage.records[stage], table, damaged, shard=1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, found = rpt(audited, damaged, "verify")
    assert code == 3
    assert found["damage"] == [{"where": str(path), "what": "published file was changed after the fact"}]
    assert str(path) in printed(verify_page.tables(found)).replace("\n", "")


def test_all_that_is_missing_or_cut_off_is_named_and_nothing_else(audited: Audited, damaged: Path) -> None:
    missing = file_of(audited.lineage.ingest, "documents", damaged, shard=2)
    missing.unlink()
    short = file_of(audited.lineage.ingest, "documents", damaged, shard=0)
    short.write_bytes(short.read_bytes()[:-1])
    code, found = rpt(audited, damaged, "verify")
    assert code == 3
    assert {item["where"] for item in found["damage"]} == {str(missing), str(short)}
    assert [row["stage"] for row in found["stages"] if row["damage"]] == ["ingest"]


def test_a_record_that_was_edited_is_found(audited: Audited, damaged: Path) -> None:
    path = damaged / "toy" / "select" / audited.lineage.select.fingerprint / "record.json"
    tree = json.loads(path.read_text())
    tree["config"]["where"] = "true"
    path.write_text(json.dumps(tree))
    code, found = rpt(audited, damaged, "verify")
    assert (code, [item["where"] for item in found["damage"]]) == (3, [str(path)])
    path.write_text("{")
    code, found = rpt(audited, damaged, "verify")
    assert (code, [item["where"] for item in found["damage"]]) == (3, [str(path)])


def test_an_output_without_what_it_was_made_from_is_found(audited: Audited, damaged: Path) -> None:
    shutil.rmtree(damaged / "toy" / "score")
    code, found = rpt(audited, damaged, "verify")
    broken = {Path(item["where"]).parent.name for item in found["damage"]}
    lineage = audited.lineage
    assert lineage.materialize is not None
    of_scores = {lineage.select.fingerprint, audited.other.select.fingerprint, lineage.materialize.fingerprint}
    assert (code, broken) == (3, of_scores | {current_record(damaged / "toy", "certificate_scores").fingerprint})


def test_tables_of_an_earlier_version_say_so(audited: Audited, tmp_path: Path) -> None:
    table = pq.read_table(audited.lineage.score.files("scores")[0].path)
    earlier = publish_tables(tmp_path, "score", [{"scores": table.drop_columns(["nll"])}])
    with pytest.raises(UserError, match="earlier version of rpt and lacks nll") as error:
        check_columns(earlier, "scores", SCORE_TABLE_COLUMNS)
    assert error.value.exit_code == 2


# ----------------------------------------------------------------------------------------------------- trace


def test_every_training_example_is_traced_to_its_record(audited: Audited) -> None:
    source = audited.folder / "corpus <b>.jsonl"
    whole, lines = source.read_bytes(), source.read_bytes().split(b"\n")
    assert audited.lineage.materialize is not None
    traced = 0
    for file in audited.lineage.materialize.files("train"):
        examples = pq.read_table(file.path).to_pylist()
        for number in range(0, len(examples), 9):
            found = trace_page.trace(audited.manifest, f"{file.path}:{number}", work=audited.work)
            example, record, document = examples[number], found["source"], found["document"]
            assert found["site_id"] == example["site_id"]
            assert [row["table"] for row in found["rows"]] == ["train", "sites", "scores", "documents"]
            assert found["rows"][0]["row"] == number
            for row in found["rows"]:
                listed = pq.read_table(row["file"]).to_pylist()[row["row"]]
                assert listed.get("site_id", example["site_id"]) == example["site_id"]
                assert listed["doc_id"] == example["doc_id"]
            begin, end = record["bytes"]
            assert whole[begin:end].rstrip(b"\n") == lines[record["row"]] == record["record"].encode()
            assert record["agrees"] and record["doc_id"] == example["doc_id"]
            column = json.loads(record["record"])[document["column"]].encode()
            begin, end = document["bytes_of_column"]
            assert column[begin:end].decode(errors="backslashreplace") == document["token"]
            assert found == trace_page.trace(audited.manifest, example["site_id"], work=audited.work)
            traced += 1
    assert traced > 10


def test_a_source_that_changed_is_noticed(audited: Audited, tmp_path: Path) -> None:
    site = rows(audited.lineage.select, "sites")[0]
    row = trace_page.trace(audited.manifest, site["site_id"], work=audited.work)["source"]["row"]
    changed = tmp_path / "corpus <b>.jsonl"
    lines = (audited.folder / changed.name).read_bytes().split(b"\n")
    lines[row] = lines[row].replace(b'"solution": "', b'"solution": "not ')
    changed.write_bytes(b"\n".join(lines))
    code, found = rpt(audited, audited.work, "trace", site["site_id"], "--source", str(changed))
    assert (code, found["source"]["agrees"]) == (3, False)
    changed.write_bytes(b"\n".join(lines[:row]))
    with pytest.raises(UserError, match="no longer has this row") as error:
        trace_page.trace(audited.manifest, site["site_id"], work=audited.work, source=str(changed))
    assert error.value.exit_code == 3


def test_a_document_and_a_row_are_accepted_where_a_site_is(audited: Audited) -> None:
    """The same position by its id, by its document, whose first site it is, and by the row of its training example."""
    record = audited.lineage.materialize
    assert record is not None
    file = record.files("train")[0].path
    first = rows(audited.lineage.select, "sites")[0]
    number = next(n for n, row in enumerate(rows(record, "train")) if row["site_id"] == first["site_id"])
    for command in ("show", "trace"):
        found = [rpt(audited, audited.work, command, place)[1]["site_id"]
                 for place in (first["site_id"], first["doc_id"], f"{file}:{number}")]  # fmt: skip
        assert found == [first["site_id"]] * 3, command


@pytest.mark.parametrize("start", ["no-site", "0" * 32, f"{'0' * 32}-1", "no-such.parquet:1"])
def test_what_is_no_site_is_refused(audited: Audited, start: str) -> None:
    with pytest.raises(UserError):
        trace_page.trace(audited.manifest, start, work=audited.work)


# ------------------------------------------------------------------------------------------------------ show


def test_a_site_is_shown_as_the_shard_has_it(audited: Audited) -> None:
    examples = rows(audited.lineage.materialize, "train")
    scores = {row["doc_id"]: row for row in rows(audited.lineage.score, "scores")}
    for example in examples[:: len(examples) // 3]:
        found = show_page.show(audited.manifest, example["site_id"], work=audited.work)
        trained, position, own = found["trained"], example["position"], scores[example["doc_id"]]
        assert found["decision"] == "kept"
        assert trained["prompt"]["context"].encode() == example["context"]
        tokens, ends = trained["continuation"], boundaries_of(example["token_lengths"])
        if all(token.isprintable() for token in tokens):
            assert "".join(tokens).encode() == example["continuation"]
            assert tokens[0].encode() == example["target"]
        assert len(tokens) == len(ends)
        for name in ("entropy", "nll", "rank"):
            assert found[name] == own[name][position]
        assert [p for _, p in found["top"]] == own["top_logprobs"][position * TOP : (position + 1) * TOP]
        assert (found["source_file"], found["split"]) == ("corpus <b>.jsonl", "train")


def test_every_position_of_a_document_says_why_it_is_kept_or_not(audited: Audited) -> None:
    documents = {row["doc_id"]: row for row in rows(audited.lineage.ingest, "documents")}
    kept = {row["site_id"] for row in rows(audited.lineage.select, "sites")}
    shard = next(file for file in audited.lineage.score.files("scores"))
    table = pq.read_table(shard.path).slice(0, 1)
    doc_id = table["doc_id"][0].as_py()
    own = pq.read_table(audited.lineage.ingest.files("documents")[0].path).slice(0, 1)
    (frame,) = positions(own, table.select(SCORE_TABLE_COLUMNS))
    rule = WHERE if documents[doc_id]["split"] == "train" else "0.5 < entropy"
    passing = duckdb.sql(f"SELECT position FROM frame WHERE {rule}").fetchall()
    asked = frame.iter_rows(named=True)
    for row in asked:
        site_id = f"{doc_id}-{row['position']}"
        found = show_page.show(audited.manifest, site_id, work=audited.work)
        expected = (
            "kept"
            if site_id in kept
            else "not_scorable"
            if row["entropy"] is None
            else "document_cap"
            if (row["position"],) in passing
            else "where"
        )
        assert found["decision"] == expected, site_id
        assert all(part["holds"] for part in found["parts"]) == ((row["position"],) in passing), site_id


def test_every_part_of_the_rule_is_shown_with_its_value(audited: Audited) -> None:
    """A training position of the problem above the threshold: the rule asks for the solution."""
    scores = (row for row in rows(audited.lineage.score, "scores") if row["split"] == "train")
    doc_id, position, entropy = next(
        (row["doc_id"], position, entropy)
        for row in scores
        for position, (entropy, field) in enumerate(zip(row["entropy"], row["field"], strict=True))
        if field == "problem" and (entropy or 0) > 1.0
    )
    _, found = rpt(audited, audited.work, "show", f"{doc_id}-{position}")
    assert found["parts"] == [
        {"text": "entropy > 1.0", "holds": True, "values": {"entropy": round(entropy, 3)}},
        {"text": "field = 'solution'", "holds": False, "values": {"field": "problem"}},
    ]
    instead = "field IN ('solution', 'problem')"
    assert found["later"] == [{"text": "max_per_document: 6", "holds": None}]
    changed = {"part": "field = 'solution'", "instead": instead}
    assert found["change"] == {"changes": [changed], "where": f"entropy > 1.0 AND {instead}"}
    lines = [" ".join(line.split()) for line in printed(show_page.tables(found)).splitlines()]
    assert f"entropy > 1.0 ✓ {round(entropy, 3)}" in lines
    assert "field = 'solution' ✗ problem" in lines
    assert "max_per_document: 6 – after the rule" in lines
    assert f"field = 'solution' → {instead}" in lines


def test_decisions_compare_token_classes_as_the_selection_does(audited: Audited) -> None:
    """By their place in the list of classes: `word_part` comes after `word_start` there, before it in the alphabet."""
    select = audited.lineage.select
    config = select.config | {"where": "token_class > 'word_start'", "validation_where": "token_class > 'word_start'"}
    lineage = replace(audited.lineage, select=replace(select, config=config))
    frames = [frame for shard in shards(lineage) for frame in decisions(lineage, shard)]
    dropped = pl.concat(frames).filter(pl.col("selectable") & ~pl.col("kept"))
    by_class = {(row["token_class"], row["decision"] != "where") for row in dropped.iter_rows(named=True)}
    last = TOKEN_CLASSES.index("word_start")
    assert by_class == {(name, TOKEN_CLASSES.index(name) > last) for name, _ in by_class}
    assert ("word_part", True) in by_class


def test_hostile_text_reaches_the_terminal_as_marks(audited: Audited) -> None:
    hostile = [row for row in rows(audited.lineage.score, "scores") if max(row["token_ids"]) >= 1000]
    assert hostile
    for row in hostile:
        site_id = f"{row['doc_id']}-{len(row['token_ids']) - 2}"
        found = show_page.show(audited.manifest, site_id, work=audited.work)
        traced = trace_page.trace(audited.manifest, site_id, work=audited.work)
        text = printed([*show_page.tables(found), *trace_page.tables(traced)])
        assert all(character.isprintable() or character == "\n" for character in text)
        assert RUN[:20] in text


def test_a_position_that_is_not_there_is_refused(audited: Audited) -> None:
    doc_id = rows(audited.lineage.score, "scores")[0]["doc_id"]
    with pytest.raises(UserError, match="no such position"):
        show_page.show(audited.manifest, f"{doc_id}-999999", work=audited.work)


# ----------------------------------------------------------------------------------------------------- stats


def test_stats_equal_what_duckdb_counts(audited: Audited) -> None:
    _, found = rpt(audited, audited.work, "stats")
    sites = [str(file.path) for file in audited.lineage.select.files("sites")]
    scores = [str(file.path) for file in audited.lineage.score.files("scores")]
    counted = duckdb.sql(f"SELECT token_class, split, count(*) FROM read_parquet({sites}) GROUP BY ALL").fetchall()
    assert {(c, s): n for c, row in found["token_classes"].items() for s, n in row.items() if n} == {
        (c, s): n for c, s, n in counted
    }
    bands = duckdb.sql(f"SELECT band, split, count(*) FROM read_parquet({sites}) GROUP BY ALL").fetchall()
    assert {(b, s): n for b, row in found["bands"].items() for s, n in row.items() if n} == {
        (b, s): n for b, s, n in bands
    }
    for of, table in (("sites", f"read_parquet({sites})"), ("scored", "exploded")):
        exploded = duckdb.sql(f"SELECT split, unnest(entropy) AS entropy FROM read_parquet({scores})")  # noqa: F841
        for split in ("train", "validation"):
            total, mean, quantiles = duckdb.sql(
                f"SELECT count(entropy), avg(entropy::DOUBLE), quantile_cont(entropy, {list(QUANTILES)}) FROM {table} "
                f"WHERE split = '{split}'"
            ).fetchall()[0]
            row = found["entropy"][split][of]
            assert (row["count"], row["mean"]) == (total, pytest.approx(mean))
            assert [row[f"{q:g}"] for q in QUANTILES] == pytest.approx(quantiles, abs=1e-6)
    assert found["sites"] == {s: sum(n for _, split, n in bands if split == s) for s in ("train", "validation")}
    text = printed(stats_page.tables(found))
    assert "bytes per site" in text and "word start" in text and "quarantined: not_json" in text
