"""`rpt push` to a folder and `rpt pull` from it: who reads it, what the metadata says, and that changes are noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
import yaml

from pipeline.audit.lineage import lineage_of
from pipeline.core.artifact import content_hash, current_record
from pipeline.core.config import Manifest, load
from pipeline.core.errors import IntegrityError, UserError
from pipeline.core.parquet import read_table
from pipeline.export.card import COLUMNS
from pipeline.export.croissant import checksums
from pipeline.export.remote import repository
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import SHARDS, SHARDS_OF_SEVERAL
from stages.pull import pull
from stages.push import push
from tests.toys import byte_level_tokenizer, problems, write_jsonl

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    """A manifest and the work folder in which `rpt data` made its shards."""
    folder = tmp_path_factory.mktemp("made")
    rows = problems(120)
    write_jsonl(folder / "problems.jsonl", rows)
    byte_level_tokenizer(folder / "policy", [row["problem"] for row in rows])
    tree = {
        "name": "toy",
        "description": "Problems | with a bar.",
        "corpus": {
            "source": str(folder / "problems.jsonl"),
            "license": "CC-BY-4.0",
            "text": "{problem}\n{solution}",
            "shard_documents": 50,
            "near_duplicates": None,
            "validation": {"documents": 20},
        },
        "proxy": {"train": {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "max_steps": 3, "folds": 1}},
        "materialize": {"policy_tokenizer": str(folder / "policy")},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "stages.cli", "data", str(folder / "toy.yaml"), "--work", str(folder / "work")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return load(Manifest, folder / "toy.yaml"), folder / "work"


@pytest.fixture(scope="module")
def pushed(made: tuple[Manifest, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    remote = tmp_path_factory.mktemp("remote") / "toy-sites"
    push(made[0], str(remote), work=made[1])
    return remote


def rows(made: tuple[Manifest, Path], split: str) -> list[dict]:
    record = current_record(made[1] / "toy", "materialize")
    return pa.concat_tables([read_table(file) for file in record.files(split)]).to_pylist()


def test_polars_duckdb_and_datasets_read_it(made: tuple[Manifest, Path], pushed: Path, tmp_path: Path) -> None:
    import duckdb
    from datasets import load_dataset

    train, held_out = rows(made, "train"), rows(made, "validation")
    assert len(train) > 100 < len(held_out)
    by_polars = pl.read_parquet(pushed / "data" / "train-*.parquet")
    assert by_polars.sort("doc_id", "position").to_dicts() == sorted(train, key=lambda r: (r["doc_id"], r["position"]))
    query = f"SELECT count(*), sum(octet_length(context)) FROM '{pushed}/data/validation-*.parquet'"
    assert duckdb.sql(query).fetchall() == [(len(held_out), sum(len(row["context"]) for row in held_out))]
    loaded = load_dataset(str(pushed), cache_dir=str(tmp_path))
    assert {split: len(loaded[split]) for split in loaded} == {"train": len(train), "validation": len(held_out)}
    assert loaded["train"][7] == train[7]


def test_croissant_validates_and_reads_records(made: tuple[Manifest, Path], pushed: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=pushed / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
    assert {field.name for field in dataset.metadata.record_sets[0].fields} == set(SHARDS.names)
    first = next(iter(dataset.records("train")))
    assert first["train/site_id"].decode() in {row["site_id"] for row in rows(made, "train")}


def test_the_metadata_has_every_file_and_every_stage(made: tuple[Manifest, Path], pushed: Path) -> None:
    tree = json.loads((pushed / "croissant.json").read_text())
    files = {p.relative_to(pushed).as_posix(): content_hash(p) for p in pushed.rglob("*") if p.is_file()}
    assert checksums(tree) == {path: sha256 for path, sha256 in files.items() if path != "croissant.json"}
    lineage = lineage_of(made[1] / "toy", made[0])
    stages = {activity["name"]: activity["identifier"] for activity in tree["prov:wasGeneratedBy"]}
    assert stages == {stage: record.content for stage, record in lineage.records.items()}
    assert {"read", "proxy", "score", "materialize"} <= set(stages)
    assert set(COLUMNS) == set(SHARDS_OF_SEVERAL.names)


def test_the_card_says_what_it_is_and_nothing_of_this_machine(made: tuple[Manifest, Path], pushed: Path) -> None:
    _, front, body = (pushed / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "cc-by-4.0"
    assert [file["split"] for file in head["configs"][0]["data_files"]] == ["train", "validation"]
    assert "| train | {:,} |".format(len(rows(made, "train"))) in body and "where: entropy > 1.0" in body
    for line in (line for line in body.splitlines() if line.startswith("|")):
        assert line.replace("\\|", "").count("|") in (3, 4, 5), line  # a cell's bar does not break its table
    for path in pushed.rglob("*"):
        if path.suffix in (".md", ".yaml", ".json"):
            assert str(made[1].parent) not in path.read_text(), path


def test_pulled_shards_are_those_that_were_pushed_and_train_finds_them(
    made: tuple[Manifest, Path], pushed: Path, tmp_path: Path
) -> None:
    manifest = load(Manifest, pull(str(pushed), work=tmp_path / "work"))
    there, here = (
        current_record(tmp_path / "work" / "toy", "materialize"),
        current_record(made[1] / "toy", "materialize"),
    )
    assert there == type(here)(**{**vars(here), "directory": there.directory}) and manifest.name == "toy"
    assert len(ShardReader(there.files("train"))) == len(rows(made, "train"))
    assert pull(str(pushed), work=tmp_path / "work") == tmp_path / "work" / "toy" / "manifest.yaml"


def test_pushed_again_nothing_of_what_was_there_stays(made: tuple[Manifest, Path], tmp_path: Path) -> None:
    """A left-over file of an earlier push would be read as one of this one's shards (datasets#5045)."""
    remote = tmp_path / "toy-sites"
    push(made[0], str(remote), work=made[1])
    files = sorted(path.name for path in (remote / "data").iterdir())
    (remote / "data" / "train-00009.earlier.parquet").write_bytes(b"earlier")
    push(made[0], str(remote), work=made[1])
    assert sorted(path.name for path in (remote / "data").iterdir()) == files


@pytest.mark.parametrize("victim", ["data", "record.json", "manifest.yaml", "README.md"])
def test_a_changed_byte_is_noticed_and_nothing_is_pulled(pushed: Path, tmp_path: Path, victim: str) -> None:
    path = next((pushed / victim).iterdir()) if victim == "data" else pushed / victim
    data = path.read_bytes()
    path.unlink()  # files may be hard links to what the stage published
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    try:
        with pytest.raises(IntegrityError, match="differs from what was pushed") as caught:
            pull(str(pushed), work=tmp_path / "work")
        assert path.name in str(caught.value) and not (tmp_path / "work").exists()
    finally:
        path.write_bytes(data)


def test_remotes(made: tuple[Manifest, Path], tmp_path: Path) -> None:
    assert repository("hf://datasets/me/mine") == "me/mine" and repository("some/folder") is None
    with pytest.raises(UserError, match="not a data set of the hub"):
        repository("hf://datasets/mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        push(made[0], str(tmp_path / "full"), work=made[1])
    with pytest.raises(UserError, match="no pushed data set"):
        pull(str(tmp_path / "full"), work=tmp_path / "work")
