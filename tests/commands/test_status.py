"""`rpt status` and `rpt clean` on records made by hand and by the pipeline."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from commands.maintenance.clean import remove, waste
from commands.maintenance.status import list_all, status, tables_of_all
from pipeline.config.base import Config
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Counters, Record, Shard, seal_record, write_pointer
from pipeline.core.parquet import parquet_writer
from pipeline.core.pointers import source_pointer
from pipeline.core.stage import Stage, run_stage
from pipeline.core.workspace import expected_records, outputs, states
from pipeline.grpo.run.run_folder import write_state
from tests.stages.published import InProcess

VERSIONS = {"ingest": 1, "score": 1, "select": 3, "materialize": 2}


def manifest(**select: object) -> Manifest:
    tree = {"name": "toy", "corpus": {"source": "texts"}, "proxy": {"model": "none"}}
    return Manifest.model_validate(tree | {"select": select, "materialize": {"policy_tokenizer": "none"}})


class Settings(Config):
    """A stage's configuration as it stands in a record."""

    tree: dict

    def identity(self) -> dict:
        return self.tree


def made(work: Path, toy: Manifest) -> dict[str, Record]:
    """The stages of `toy`, each with a table of its own that says what it was made from."""
    records: dict[str, Record] = {}
    for want in expected_records(toy):
        inputs = {name: records[stage].content for name, stage in want.inputs.items()}

        def run(config: Settings, shard: Shard, out: Path, stage: str = want.stage, inputs: dict = inputs) -> Counters:
            table = pa.table({"from": [stage, json.dumps(config.tree), *inputs.values()]})
            with parquet_writer(out / "rows.parquet", table.schema) as writer:
                writer.write_table(table)
            return {}

        stage = Stage(want.stage, VERSIONS[want.stage], run)
        settings = Settings(tree=dict(want.config))
        records[want.stage] = run_stage(stage, settings, [Shard(0, {}, {})], inputs, work / "toy", InProcess())
    return records


def found(toy: Manifest, work: Path, versions: dict[str, int] = VERSIONS) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {state.stage: (state.state, state.why) for state in states(toy, work / "toy", versions)}


UP_TO_DATE = ("up to date", ())


def test_what_is_built_and_what_is_stale_and_why(tmp_path: Path) -> None:
    assert {state for state, _ in found(manifest(), tmp_path).values()} == {"missing"}
    made(tmp_path, manifest())
    assert set(found(manifest(), tmp_path).values()) == {UP_TO_DATE}

    changed = found(manifest(where="entropy > 2", seed=1), tmp_path)
    assert changed["ingest"] == changed["score"] == UP_TO_DATE
    assert changed["select"] == ("stale", ("seed: 0 → 1", "where: 'entropy > 1.0' → 'entropy > 2'"))
    assert changed["materialize"] == ("stale", ("`select` is not up to date",))

    newer = found(manifest(), tmp_path, VERSIONS | {"ingest": 2})
    assert newer["ingest"] == ("stale", ("code version of `ingest`: 1 → 2",))
    assert newer["score"] == ("stale", ("`ingest` is not up to date",))


def test_a_raised_version_of_a_stage_that_is_not_shown_is_told_by_the_one_that_is(tmp_path: Path) -> None:
    """`ingest` stands on `read`: that is where it is told, and what follows says only that `ingest` is stale."""
    records = made(tmp_path, manifest())

    def run(config: Settings, shard: Shard, out: Path) -> Counters:
        with parquet_writer(out / "rows.parquet", pa.schema([])):
            pass
        return {}

    read = run_stage(Stage("read", 1, run), Settings(tree={}), [Shard(0, {}, {})], {}, tmp_path / "toy", InProcess())
    (records["ingest"].directory / "record.json").unlink()
    seal_record(replace(records["ingest"], inputs={"read": read.content}))
    write_pointer(source_pointer(tmp_path / "toy", manifest().corpus), read.directory)
    assert set(found(manifest(), tmp_path, VERSIONS | {"read": 1}).values()) == {UP_TO_DATE}
    newer = found(manifest(), tmp_path, VERSIONS | {"read": 2})
    assert newer["ingest"] == ("stale", ("code version of `read`: 1 → 2",))
    assert newer["score"] == ("stale", ("`ingest` is not up to date",))


def test_an_earlier_selection_that_is_wanted_again_is_up_to_date(tmp_path: Path) -> None:
    first = made(tmp_path, manifest())
    made(tmp_path, manifest(where="entropy > 2"))
    again = states(manifest(), tmp_path / "toy", VERSIONS)
    assert {state.state for state in again} == {"up to date"}
    assert again[-1].output is not None and again[-1].output.directory == first["materialize"].directory


def test_an_unfinished_stage_says_how_far_it_is(tmp_path: Path) -> None:
    records = made(tmp_path, manifest())
    (records["materialize"].directory / "record.json").unlink()
    (records["materialize"].directory.parent / "current").unlink()
    assert found(manifest(), tmp_path)["materialize"] == ("unfinished", ("1 shard done",))


def test_sizes_and_runs(tmp_path: Path) -> None:
    records = made(tmp_path, manifest())
    run = tmp_path / "runs" / "demo"
    (run / "checkpoints" / "step-000020").mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("step-000020")
    write_state(run / "checkpoints" / "step-000020", {"step": 20})
    (run / "recipe.yaml").write_text("budget: {steps: 60}")
    (run / "run.json").write_text(json.dumps({"shards": {"fingerprint": records["materialize"].fingerprint}}))
    told = status(manifest(), work=tmp_path, runs=tmp_path / "runs", versions=VERSIONS)
    assert told["up_to_date"] and told["runs"][0]["step"] == 20 and told["runs"][0]["on_these_shards"]
    made(tmp_path, manifest(where="entropy > 2"))
    again = status(manifest(where="entropy > 2"), work=tmp_path, runs=tmp_path / "runs", versions=VERSIONS)
    assert again["runs"][0]["made_from"] == [f"earlier materialize/{records['materialize'].fingerprint}"]
    plain = json.dumps({"documents": {"fingerprint": records["ingest"].fingerprint}})  # as `rpt ntp` has it
    (run / "run.json").write_text(plain)
    again = status(manifest(), work=tmp_path, runs=tmp_path / "runs", versions=VERSIONS)
    assert again["runs"][0]["made_from"] == [f"ingest/{records['ingest'].fingerprint}"]
    files = [path for path in (tmp_path / "toy").rglob("*") if path.is_file()]
    assert again["bytes"] == sum(path.stat().st_size for path in files)
    in_stages = sum(path.stat().st_size for path in files if path.name != "current")
    assert sum(output.bytes for output in outputs(tmp_path / "toy")) == in_stages


# -------------------------------------------------------------------------------------------------------- clean


def directories(work: Path) -> set[Path]:
    return {output.directory for output in outputs(work / "toy")}


def test_clean_takes_what_nothing_current_was_made_from(tmp_path: Path) -> None:
    first, second = made(tmp_path, manifest()), made(tmp_path, manifest(where="entropy > 2"))
    wasted = waste(manifest(), work=tmp_path, runs=tmp_path / "runs")
    assert {item.path for item in wasted} == {first["select"].directory, first["materialize"].directory}
    remove(wasted)
    assert directories(tmp_path) == {record.directory for record in second.values()}
    assert waste(manifest(), work=tmp_path, runs=tmp_path / "runs") == []


def test_what_a_run_was_trained_on_stays_and_all_it_was_made_from(tmp_path: Path) -> None:
    first = made(tmp_path, manifest())
    made(tmp_path, manifest(where="entropy > 2"))
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    about = {"shards": {"fingerprint": first["materialize"].fingerprint}}
    (tmp_path / "runs" / "mine" / "run.json").write_text(json.dumps(about))
    assert waste(manifest(), work=tmp_path, runs=tmp_path / "runs") == []


def test_left_overs_go_when_they_are_old_and_unfinished_outputs_stay(tmp_path: Path) -> None:
    records = made(tmp_path, manifest())
    directory = records["score"].directory
    orphan, scratch = directory / "rows-00000.0123456789ab.parquet", directory / "tmp" / "00000.aa"
    orphan.write_bytes(b"orphan")
    scratch.mkdir(parents=True)
    (scratch / "rows.parquet").write_bytes(b"half")
    unfinished = tmp_path / "toy" / "score" / "aaaaaaaaaaaa" / "done"
    unfinished.mkdir(parents=True)
    assert waste(manifest(), work=tmp_path, runs=tmp_path / "runs") == []
    old = time.time() - 7200
    for path in (orphan, scratch / "rows.parquet", scratch, scratch.parent):
        os.utime(path, (old, old))
    wasted = waste(manifest(), work=tmp_path, runs=tmp_path / "runs")
    assert {item.path for item in wasted} == {orphan, scratch.parent}
    remove(wasted)
    assert records["score"].directory.exists() and unfinished.exists() and not orphan.exists()
    assert set(found(manifest(), tmp_path).values()) == {UP_TO_DATE}


def test_a_removal_that_was_interrupted_is_finished_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path, manifest())
    made(tmp_path, manifest(where="entropy > 2"))
    half = first["select"].directory.with_name(f".{first['select'].fingerprint}.removed")
    first["select"].directory.rename(half)
    remaining = waste(manifest(), work=tmp_path, runs=tmp_path / "runs")
    assert half in {item.path for item in remaining}
    remove(remaining)
    assert not half.exists()


def test_all_manifests_and_runs_are_listed(tmp_path: Path) -> None:
    work, toy = tmp_path / "work", manifest()
    assert list_all(work=work, runs=tmp_path / "runs") == {"work": str(work), "manifests": [], "runs": []}
    records = made(work, toy)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("budget: {steps: 60}")
    (run / "run.json").write_text(json.dumps({"shards": {"fingerprint": records["materialize"].fingerprint}}))
    (work / "notes").mkdir()
    found = list_all(work=work, runs=tmp_path / "runs")
    (only,) = found["manifests"]
    assert (only["manifest"], set(only["stages"]), only["unfinished"]) == ("toy", set(records), [])
    assert [(run["run"], run["policy"]) for run in found["runs"]] == [(str(run), False)]
    built, runs = tables_of_all(found)
    assert built.row_count == runs.row_count == 1
