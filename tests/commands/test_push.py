"""`rpt push` to a folder and `rpt pull` from it: who reads it, what the metadata says, and that changes are noticed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import yaml

from commands.exchange.pull import pull
from commands.exchange.push import assemble, push
from pipeline.audit.lineage import lineage_of
from pipeline.audit.verify import verify
from pipeline.config.errors import IntegrityError, UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import content_hash, current_record, record_in
from pipeline.core.completion import Completion
from pipeline.core.parquet import read_table
from pipeline.core.sealed import read_sealed, write_sealed
from pipeline.core.shard_list import ShardList
from pipeline.export.card import COLUMNS
from pipeline.export.croissant import checksums
from pipeline.export.outside import redact
from pipeline.export.remote import repository
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import SHARDS
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
    command = [sys.executable, "-m", "commands.cli", "data", str(folder / "toy.yaml"), "--work", str(folder / "work")]
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

    load_dataset = pytest.importorskip("datasets").load_dataset

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
    assert set(COLUMNS) == {*SHARDS.names, "corpus"}


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
    assert there == replace(here, directory=there.directory, shard_list=there.shard_list) and manifest.name == "toy"
    assert there.shard_list.sha256 == here.shard_list.sha256
    assert list(there.completions()) == list(here.completions())
    assert len(ShardReader(there.files("train"))) == len(rows(made, "train"))
    assert pull(str(pushed), work=tmp_path / "work") == tmp_path / "work" / "toy" / "manifest.yaml"


def test_pushed_again_what_was_pushed_before_goes_and_the_user_s_files_stay(
    made: tuple[Manifest, Path], tmp_path: Path
) -> None:
    """A left-over shard of an earlier push would be read as one of this one's (datasets#5045)."""
    remote = tmp_path / "toy-sites"
    push(made[0], str(remote), work=made[1])
    files = {path.relative_to(remote) for path in remote.rglob("*")}
    earlier = remote / "data" / "train-00009.0123456789ab.parquet"
    earlier.write_bytes(b"earlier")
    metadata = json.loads((remote / "croissant.json").read_text())
    listed = {"@type": "cr:FileObject", "contentUrl": f"data/{earlier.name}", "sha256": content_hash(earlier)}
    metadata["distribution"].append(listed)
    (remote / "croissant.json").write_text(json.dumps(metadata))
    (remote / ".git").mkdir()
    (remote / ".git" / "HEAD").write_text("mine")
    (remote / "notes.txt").write_text("mine")
    push(made[0], str(remote), work=made[1])
    mine = {Path(".git"), Path(".git/HEAD"), Path("notes.txt")}
    assert {path.relative_to(remote) for path in remote.rglob("*")} == files | mine
    pull(str(remote), work=tmp_path / "work")

    earlier.write_bytes(b"earlier")  # which no push has listed
    with pytest.raises(UserError, match=f"{earlier.name}` exists, but was not pushed"):
        push(made[0], str(remote), work=made[1])
    assert earlier.exists()


FOREIGN = {
    "no metadata of ours": {"distribution": [{"@type": "cr:FileObject", "contentUrl": "notes.txt", "sha256": "0"}]},
    "no metadata": [],
}


@pytest.mark.parametrize("tree", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_with_somebody_s_croissant_is_not_pushed_into(
    made: tuple[Manifest, Path], tmp_path: Path, tree: Any
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "croissant.json").write_text(json.dumps(tree))
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match="holds other files"):
        push(made[0], str(tmp_path), work=made[1])
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("path", ["../victim/notes.txt", "/victim/notes.txt", "data/../../victim/notes.txt"])
def test_paths_in_the_metadata_of_a_folder_lead_nowhere(made: tuple[Manifest, Path], tmp_path: Path, path: str) -> None:
    remote, victim = tmp_path / "remote", tmp_path / "victim" / "notes.txt"
    victim.parent.mkdir()
    victim.write_text("mine")
    push(made[0], str(remote), work=made[1])
    metadata = json.loads((remote / "croissant.json").read_text())
    metadata["distribution"].append({"@type": "cr:FileObject", "contentUrl": path, "sha256": content_hash(victim)})
    (remote / "croissant.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="holds other files"):
        push(made[0], str(remote), work=made[1])
    with pytest.raises(IntegrityError, match="leads out of the data set"):
        pull(str(remote), work=tmp_path / "work")
    assert victim.read_text() == "mine"


def test_a_push_does_not_follow_links_and_one_that_was_killed_is_repeated(
    made: tuple[Manifest, Path], tmp_path: Path
) -> None:
    remote, victim = tmp_path / "remote", tmp_path / "victim"
    push(made[0], str(remote), work=made[1])
    next((remote / "data").iterdir()).unlink()  # killed before it was written
    (remote / "record.json").unlink()
    push(made[0], str(remote), work=made[1])
    pull(str(remote), work=tmp_path / "work")
    (remote / "data").rename(victim)
    (remote / "data").symlink_to(victim)
    before = sorted(victim.iterdir())
    with pytest.raises(UserError, match="a link is in the way"):
        push(made[0], str(remote), work=made[1])
    assert sorted(victim.iterdir()) == before


# ----------------------------------------------------------------------------------------------- hostile data sets


def forged(pushed: Path, remote: Path, tmp_path: Path, **changes: Any) -> Path:
    """A data set whose record is changed and sealed, and whose metadata list it: only its meaning is hostile."""
    shutil.copytree(pushed, remote)
    tree = json.loads((remote / "record.json").read_text())
    del tree["sha256"]
    (remote / "record.json").unlink()
    write_sealed(remote / "record.json", tree | changes)
    relist(remote)
    return remote


def forged_shards(pushed: Path, remote: Path, tmp_path: Path, change: Callable[[Completion], Completion]) -> Path:
    """A data set whose list of shards is forged, too, in its first shard."""
    record = record_in(pushed / "record.json", pushed)
    first, *others = record.completions()
    forged(pushed, remote, tmp_path)
    shutil.rmtree(remote / "done")
    listed = ShardList.of([change(first), *others], remote).save(remote)
    tree = read_sealed(remote / "record.json") | {"shard_list": listed.sha256}
    with suppress(IntegrityError):  # of a path that is none
        tree["summary"] = asdict(listed.summary())
    (remote / "record.json").unlink()
    write_sealed(remote / "record.json", tree)
    relist(remote)
    return remote


def with_entry(**changes: Any) -> Callable[[Completion], Completion]:
    """A shard of which the first file's entry is changed."""

    def change(done: Completion) -> Completion:
        name, entry = next(iter(done.files.items()))
        return replace(done, files={**done.files, name: replace(entry, **changes)})

    return change


def relist(remote: Path) -> None:
    metadata = json.loads((remote / "croissant.json").read_text())
    for entry in metadata["distribution"]:
        if entry["@type"] == "cr:FileObject":
            if entry["contentUrl"].startswith("done/"):
                (own,) = (remote / "done").iterdir()
                entry["contentUrl"] = f"done/{own.name}"
            entry["sha256"] = content_hash(remote / entry["contentUrl"])
    (remote / "croissant.json").unlink()
    (remote / "croissant.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "../../../victim/precious"},
        {"fingerprint": "/tmp/victim"},
        {"fingerprint": "0123456789ab"},
        {"fingerprint": ".."},
        {"fingerprint": ""},
        {"fingerprint": None},
        {"stage": "../victim"},
        {"stage": "select"},
        {"inputs": {}},
        {"config": {}},
        {"completions": []},
        {"shard_list": "../../../victim/precious"},
        {"shard_list": None},
        {"shard_list": "0" * 64},
        {"summary": {}},
        {"summary": {"shards": 1, "tables": {}, "counters": {}, "seconds": 0.0, "content": "", "text_content": ""}},
    ],
    ids=str,
)
def test_a_record_that_is_not_one_of_materialize_is_refused(pushed: Path, tmp_path: Path, changes: dict) -> None:
    victim = tmp_path / "victim" / "precious"
    victim.mkdir(parents=True)
    (victim / "thesis.tex").write_text("mine")
    remote = forged(pushed, tmp_path / "remote", tmp_path, **changes)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IntegrityError, match=r"record\.json|metadata do not list"):
        pull(str(remote), work=tmp_path / "work")
    assert (victim / "thesis.tex").read_text() == "mine"
    assert sorted(path for path in tmp_path.rglob("*") if path != tmp_path / "work") == before


@pytest.mark.parametrize("path", ["../../victim.parquet", "/tmp/victim.parquet", "record.json", "..", ""])
def test_tables_have_names_and_no_paths(pushed: Path, tmp_path: Path, path: str) -> None:
    forge = with_entry(path=path)
    hostile = forged_shards(pushed, tmp_path / "remote", tmp_path, forge)
    with pytest.raises(IntegrityError, match=r"outside its folder|names other tables"):
        pull(str(hostile), work=tmp_path / "work")


@pytest.mark.parametrize("what", ["rows", "bytes"])
def test_rows_and_bytes_are_those_of_the_tables(pushed: Path, tmp_path: Path, what: str) -> None:
    hostile = forged_shards(pushed, tmp_path / "remote", tmp_path, with_entry(**{what: 7}))
    with pytest.raises(IntegrityError, match="other rows or bytes"):
        pull(str(hostile), work=tmp_path / "work")


def test_a_data_set_that_an_earlier_version_pushed_is_pulled(pushed: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    record = record_in(pushed / "record.json", pushed)
    shutil.copytree(pushed, remote)
    shutil.rmtree(remote / "done")
    (remote / "record.json").unlink()
    tree = {name: value for name, value in asdict(record).items() if name not in ("summary", "shard_list", "directory")}
    tree |= {"content": record.content, "completions": [asdict(done) for done in record.completions()]}
    write_sealed(remote / "record.json", tree)
    metadata = json.loads((remote / "croissant.json").read_text())
    metadata["distribution"] = [e for e in metadata["distribution"] if not e["@id"].startswith("done/")]
    (remote / "croissant.json").unlink()
    (remote / "croissant.json").write_text(json.dumps(metadata))
    relist(remote)
    for _ in range(2):  # the second time it is there already
        pull(str(remote), work=tmp_path / "work")
    there = current_record(tmp_path / "work" / "toy", "materialize")
    assert (there.content, list(there.completions())) == (record.content, list(record.completions()))
    assert verify(tmp_path / "work" / "toy")["ok"]


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", ".", "a/b", "a\n"])
def test_the_manifest_s_name_is_a_name(pushed: Path, tmp_path: Path, name: str) -> None:
    remote = tmp_path / "remote"
    shutil.copytree(pushed, remote)
    tree = yaml.safe_load((remote / "manifest.yaml").read_text())
    (remote / "manifest.yaml").unlink()
    (remote / "manifest.yaml").write_text(yaml.safe_dump(tree | {"name": name}))
    relist(remote)
    with pytest.raises(UserError, match="name"):
        pull(str(remote), work=tmp_path / "work")
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.parametrize("link", ["data", "record.json", "a table"])
def test_no_link_is_followed(pushed: Path, tmp_path: Path, link: str) -> None:
    remote, secret = tmp_path / "remote", tmp_path / "secret"
    shutil.copytree(pushed, remote)
    path = next((remote / "data").iterdir()) if link == "a table" else remote / link
    path.rename(secret)
    path.symlink_to(secret)
    with pytest.raises(IntegrityError, match="a link instead of a file"):
        pull(str(remote), work=tmp_path / "work")


def test_only_listed_files_are_copied_and_what_is_not_listed_is_missed(pushed: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    shutil.copytree(pushed, remote)
    (remote / "data" / "train-00077.0123456789ab.parquet").write_bytes(b"unlisted")
    pull(str(remote), work=tmp_path / "work")
    assert not list((tmp_path / "work").rglob("train-00077*"))
    metadata = json.loads((remote / "croissant.json").read_text())
    for distribution in ([], [e for e in metadata["distribution"] if not e["@id"].startswith("data/train")]):
        (remote / "croissant.json").unlink()
        (remote / "croissant.json").write_text(json.dumps(metadata | {"distribution": distribution}))
        with pytest.raises(IntegrityError, match="list"):
            pull(str(remote), work=tmp_path / "elsewhere")


def test_a_pulled_set_is_found_whole_and_damage_is_repaired(pushed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    manifest = pull(str(pushed), work=work)
    assert verify(work / "toy")["damage"] == [] and load(Manifest, manifest).name == "toy"
    target = current_record(work / "toy", "materialize").directory
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    for path in before:
        for damage in ("flip", "cut", "delete"):
            data = before[path]
            path.unlink()
            if damage != "delete":
                path.write_bytes(data[:-1] if damage == "cut" else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
            assert verify(work / "toy")["damage"], (path, damage)
            pull(str(pushed), work=work)
            assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


# --------------------------------------------------------------------------------------------------- credentials

SIGNED = (
    "https://user:hunter2secret@host.example/a.jsonl?X-Amz-Signature=5ec2e7&X-Amz-Credential=AKIA%2F2026&sig=q1w2e3r4"
)


def test_no_credential_of_a_source_leaves(made: tuple[Manifest, Path], tmp_path: Path) -> None:
    corpus = made[0].corpus.model_copy(update={"source": SIGNED})
    located = made[0].model_copy(update={"corpus": corpus, "description": f"From {SIGNED}, see https://x.org/a?id=3."})
    lineage = lineage_of(made[1] / "toy", made[0])
    audited = tmp_path / "audit"
    audited.mkdir()
    assemble(tmp_path / "set", located, lineage, audit=audited, name=None)
    for path in (path for path in (tmp_path / "set").rglob("*") if path.is_file()):
        for secret in (b"hunter2secret", b"5ec2e7", b"AKIA", b"q1w2e3r4", b"user:"):
            assert secret not in path.read_bytes(), (path, secret)
    assert "https://host.example/a.jsonl" in (tmp_path / "set" / "manifest.yaml").read_text()
    (audited / "audit.json").write_text(json.dumps({"source_file": "a.jsonl?sig=q1w2e3r4"}))
    with pytest.raises(UserError, match=r"audit\.json"):
        assemble(tmp_path / "again", located, lineage, audit=audited, name=None)


@pytest.mark.parametrize(
    ("url", "left"),
    [
        (SIGNED, "https://host.example/a.jsonl"),
        ("s3://KEY:SECRET@bucket/part-?.parquet", "s3://bucket/part-?.parquet"),
        ("simplecache::https://u:p@h/x?token=t", "simplecache::https://h/x"),
        ("az://box/x.csv?sv=1&sig=abc", "az://box/x.csv"),
        ("https://h/x?barekey", "https://h/x"),
        ("https://h/x#access_token=1", "https://h/x"),
        ("HTTPS://u:p%40ss@h:80/x", "HTTPS://h:80/x"),
        ("hf://datasets/me/mine@main/a.jsonl", "hf://datasets/me/mine@main/a.jsonl"),
        ("file:///home/me/x.jsonl", "x.jsonl"),
        ("/home/me/x.jsonl", "x.jsonl"),
        ("data/x.jsonl", "data/x.jsonl"),
    ],
)
def test_what_of_a_place_may_leave(url: str, left: str) -> None:
    assert redact({"a": [url]}) == {"a": [left]}


@pytest.mark.parametrize("victim", ["data", "record.json", "manifest.yaml", "README.md"])
def test_a_changed_byte_is_noticed_and_nothing_is_pulled(pushed: Path, tmp_path: Path, victim: str) -> None:
    path = next((pushed / victim).iterdir()) if victim == "data" else pushed / victim
    data = path.read_bytes()
    path.unlink()  # files may be hard links to what the stage published
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    try:
        with pytest.raises(IntegrityError, match="differs from what was pushed") as caught:
            pull(str(pushed), work=tmp_path / "work")
        assert path.name in str(caught.value) and not any((tmp_path / "work").iterdir())
    finally:
        path.write_bytes(data)


def test_remotes(made: tuple[Manifest, Path], tmp_path: Path) -> None:
    assert repository("hf://datasets/me/mine") == "me/mine" and repository("some/folder") is None
    with pytest.raises(UserError, match="not a data set on the Hub"):
        repository("hf://datasets/mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        push(made[0], str(tmp_path / "full"), work=made[1])
    with pytest.raises(UserError, match="not a pushed data set"):
        pull(str(tmp_path / "full"), work=tmp_path / "work")
