"""Data sets by the library `datasets`: its folders, its builders, where rows come from, and what stops it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.estimate import estimate
from pipeline.corpus.files import corpus_files
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.records import Slice
from stages.ingest import ingest
from tests.corpus.corpora import Here, Ingested, jsonl, manifest, rows, run

ROWS = [{"text": f"document {n}", "n": n} for n in range(600)]


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("datasets")  # it needs pandas


def read(work: Path, dataset: dict[str, Any], **corpus: Any) -> Ingested:
    """Ingest a data set."""
    about = manifest(**corpus).model_dump(mode="json")
    about["corpus"] |= {"source": "", "dataset": dataset}
    record = ingest(type(manifest()).model_validate(about), source=None, work=work, executor=Here())
    return Ingested(rows(record, "documents"), rows(record, "quarantine"), record)


def save(folder: Path, values: list[dict[str, Any]], **options: Any) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(values).save_to_disk(str(folder), **options)
    return folder


def archive(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for key, fields in samples.items():
            for extension, data in fields.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


# --------------------------------------------------------------------------------------------- save_to_disk


def test_a_folder_that_save_to_disk_wrote_is_a_source(tmp_path: Path) -> None:
    folder = save(tmp_path / "saved", ROWS, num_shards=2)
    result = run(tmp_path / "work", folder)
    assert sorted(result.texts) == sorted(row["text"] for row in ROWS) and not result.quarantine
    last = max(result.documents, key=lambda row: json.loads(row["meta"])["n"])
    assert (last["source_file"], last["source_row"]) == ("data-00001-of-00002.arrow", 299)


def test_of_a_saved_dictionary_only_the_training_split_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    parts = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "gold", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert sorted(run(tmp_path / "work", tmp_path / "saved").texts) == ["gold", "train"]
    assert run(tmp_path / "work", tmp_path / "saved", splits=["gold"]).texts == ["gold"]


def arrow(path: Path, write: Any = pa.ipc.new_stream) -> bytes:
    with write(str(path), pa.schema([("text", pa.string()), ("x", pa.binary())])) as writer:
        for start in range(0, 40, 10):
            batch = pa.table({"text": [f"d{n}" for n in range(start, start + 10)], "x": [b"-"] * 10})
            writer.write_table(batch.cast(writer.schema) if hasattr(writer, "schema") else batch)
    return path.read_bytes()


@pytest.mark.parametrize("write", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_with_and_without_a_footer(tmp_path: Path, write: Any) -> None:
    arrow(tmp_path / "a.arrow", write)
    assert sorted(run(tmp_path / "work", tmp_path / "a.arrow").texts) == sorted(f"d{n}" for n in range(40))


def test_a_truncated_arrow_file_is_an_error_and_a_string_that_is_not_utf8_is_quarantined(tmp_path: Path) -> None:
    whole = arrow(tmp_path / "a.arrow")
    (tmp_path / "cut.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"source cannot be read: cut\.arrow"):
        run(tmp_path / "work", tmp_path / "cut.arrow")
    broken = whole.replace(b"d0d1d2", b"d\xc3\xa91d2", 1)
    assert broken != whole
    (tmp_path / "bad.arrow").write_bytes(broken)
    result = run(tmp_path / "work", tmp_path / "bad.arrow")
    assert (len(result.documents), result.reasons) == (38, ["not_utf8", "not_utf8"]), "a character over two strings"


# ------------------------------------------------------------------------------------------------- builders


def test_files_are_read_by_the_builder_that_is_named(tmp_path: Path) -> None:
    jsonl(tmp_path / "part 0.jsonl", ROWS[:400])
    jsonl(tmp_path / "part 1.jsonl", ROWS[400:])
    files = {"train": str(tmp_path / "part*.jsonl")}
    result = read(tmp_path / "work", {"path": "json", "data_files": files})
    assert sorted(result.texts) == sorted(row["text"] for row in ROWS)
    by_number = {json.loads(row["meta"])["n"]: (row["source_file"], row["source_row"]) for row in result.documents}
    assert by_number[399] == ("default/train/part 0.jsonl", 399)
    assert by_number[599] == ("default/train/part 1.jsonl", 199)

    again = read(tmp_path / "work", {"path": "json", "data_files": files})
    assert again.record.fingerprint == result.record.fingerprint
    jsonl(tmp_path / "part 1.jsonl", [*ROWS[400:], {"text": "one more", "n": 600}])
    assert read(tmp_path / "work", {"path": "json", "data_files": files}).record.fingerprint != again.record.fingerprint


def test_tables_with_tabs_are_read_as_the_library_itself_reads_them(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("n\ttext\n1\tone, or two\n")
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"n\ttext\n2\tthree\n"))
    assert sorted(read(tmp_path / "work", {"path": str(tmp_path)}).texts) == ["one, or two", "three"]


def test_web_datasets_are_samples_of_members(tmp_path: Path) -> None:
    samples = {f"s{n}": {"txt": f"text {n}".encode(), "json": b'{"id": %d}' % n, "jpg": b"\xff\xd8"} for n in range(3)}
    archive(tmp_path / "shard-0.tar", samples)
    files = str(tmp_path / "shard-*.tar")
    result = read(tmp_path / "work", {"path": "webdataset", "data_files": files}, text="{txt}")
    assert sorted(result.texts) == ["text 0", "text 1", "text 2"]
    meta = json.loads(result.documents[0]["meta"])
    assert meta["__key__"] == "s0" and meta["json"] == {"id": 0} and str(tmp_path) not in json.dumps(meta)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_tar_of_samples_is_a_web_dataset_by_itself(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture of each sample is no file of the corpus that is left out, and its caption belongs to its text."""
    samples = {
        f"d/s{n}": {"txt": f"text {n}".encode(), "json": b'{"id": %d}' % n, "jpg": b"\xff\xd8"} for n in range(3)
    }
    (source := tmp_path / "in").mkdir()
    archive(source / "a.tar", samples)
    if name == "a.tar.gz":
        (source / name).write_bytes(gzip.compress((source / "a.tar").read_bytes()))
        (source / "a.tar").unlink()
    result = run(tmp_path / "work", source, text="{json.id}: {txt}")
    assert sorted(result.texts) == ["0: text 0", "1: text 1", "2: text 2"]
    assert {(row["source_file"], row["source_row"]) for row in result.documents} == {(name, n) for n in range(3)}
    assert "a WebDataset" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="names the column `text`, which does not exist") as error:
        run(tmp_path / "work", source)
    assert "txt" in error.value.hint and "json" in error.value.hint
    assert sorted(run(tmp_path / "work", source, include=["*.txt"]).texts) == ["text 0", "text 1", "text 2"]


def hub_folder(root: Path) -> Path:
    """A folder as a data set on the Hub is: two configurations with two splits each."""
    lines = ["---", "configs:"]
    for name in ("main", "extra"):
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "test"):
            jsonl(root / name / f"{split}.jsonl", [{"text": f"{name} {split} {n}"} for n in range(3)])
            lines += [f"  - {{split: {split}, path: {name}/{split}*}}"]
    (root / "README.md").write_text("\n".join([*lines, "---", "# About"]))
    return root


def test_a_folder_is_read_by_configuration_and_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(hub_folder(tmp_path / "data"))
    with pytest.raises(UserError, match="several configurations: extra, main") as error:
        read(tmp_path / "work", {"path": path})
    assert "`corpus.dataset.name: extra`" in error.value.hint
    result = read(tmp_path / "work", {"path": path, "name": "main"})
    assert {row["source_file"] for row in result.documents} == {"main/train/main/train.jsonl"}
    said = " ".join(capsys.readouterr().err.split())
    assert "leaves out 3 files: 2 of configuration extra, 1 of split test" in said
    assert read(tmp_path / "work", {"path": path, "name": "main", "split": "test"}).texts[0].startswith("main test")
    result = read(tmp_path / "work", {"path": path, "name": "main"}, validation={"split": "test"})
    assert {(row["text"][:8].strip(), row["split"]) for row in result.documents} == {
        ("main tra", "train"),
        ("main tes", "validation"),
    }


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:3]", range(3)),
        ("train[:50%]", range(5)),
        ("train[8:]", range(8, 10)),
        ("train[-2:]+train[:1]", [0, 8, 9]),
        ("train[20%:40%]+test", [2, 3, 100]),
    ],
)
def test_a_part_of_a_split_is_that_of_the_library(tmp_path: Path, split: str, expected: Any) -> None:
    """Ten rows in two files; rows keep their own numbers in the file."""
    folder = tmp_path / "in"
    jsonl(folder / "train-0.jsonl", [{"text": f"row {n}", "n": n} for n in range(4)])
    jsonl(folder / "train-1.jsonl", [{"text": f"row {n}", "n": n} for n in range(4, 10)])
    jsonl(folder / "test.jsonl", [{"text": "row 100", "n": 100}])
    about = {"path": str(folder), "split": split}
    result = read(tmp_path / "work", about)
    assert sorted(json.loads(row["meta"])["n"] for row in result.documents) == sorted(expected)
    for row in result.documents:
        n = json.loads(row["meta"])["n"]
        assert row["source_row"] == (0 if n == 100 else n if n < 4 else n - 4)
    datasets = pytest.importorskip("datasets")
    files = {"train": [str(folder / f"train-{n}.jsonl") for n in (0, 1)], "test": [str(folder / "test.jsonl")]}
    library = datasets.load_dataset("json", data_files=files, split=split, cache_dir=str(tmp_path / "cache"))
    assert sorted(library["n"]) == sorted(expected)
    whole = read(tmp_path / "work", about | {"split": "train+test"})
    assert whole.record.fingerprint != result.record.fingerprint
    assert estimate(corpus_files(config := CorpusConfig.model_validate({"dataset": about})), config).read == len(
        expected
    )


def test_a_record_is_fetched_again_by_its_file_and_row(tmp_path: Path) -> None:
    config = CorpusConfig.model_validate({"dataset": {"path": str(hub_folder(tmp_path)), "name": "main"}})
    (file,) = corpus_files(config)
    assert [record.value for record in read_records(Slice(file), config)][2] == {"text": b"main train 2"}


def test_where_the_library_stops_the_row_and_our_own_reader_are_named(tmp_path: Path) -> None:
    good = [{"text": f"{n} " + "x" * 5000} for n in range(3000)]  # more than one block of 10 MB, which it reads at once
    jsonl(tmp_path / "a.jsonl", [*good, b'{"text": ', {"text": "after"}])
    about = {"path": "json", "data_files": str(tmp_path / "a.jsonl")}
    with pytest.raises(UserError, match=r"`datasets` cannot read on: default/train/a\.jsonl, after row \d,\d{3}") as e:
        read(tmp_path / "work", about)
    assert "our reader of jsonl or json quarantines a broken record" in e.value.hint
    result = run(tmp_path / "work", tmp_path / "a.jsonl")
    assert (len(result.documents), result.reasons) == (3001, ["not_json"])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"path": "json"}, "the builder `json` needs files"),
        ({"path": "loader.py"}, "a script is not run"),
        ({"path": "nowhere at all"}, "neither a folder nor a data set on the Hub"),
        ({"path": ".", "name": "main", "split": "train[:x]"}, "a part of a split is written"),
        ({"path": ".", "data_files": "x-*"}, "no file matches `data_files`"),
        ({"path": ".", "data_dir": "empty"}, "the data set has no file that `datasets` reads"),
    ],
)
def test_what_cannot_be_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(hub_folder(tmp_path))
    with pytest.raises(UserError, match=message):
        corpus_files(CorpusConfig.model_validate({"dataset": dataset}))
    with pytest.raises(ValueError, match="give exactly one of source, dataset, sources"):
        CorpusConfig.model_validate({"dataset": dataset, "source": "x"})


def test_a_file_that_changed_since_the_scan_is_not_read(tmp_path: Path) -> None:
    from pipeline.corpus.scan import scan

    jsonl(tmp_path / "a.jsonl", ROWS[:5])
    config = CorpusConfig.model_validate({"dataset": {"path": "json", "data_files": str(tmp_path / "a.jsonl")}})
    (part,) = scan(corpus_files(config)[0], config).slices
    jsonl(tmp_path / "a.jsonl", ROWS[5:10])
    with pytest.raises(UserError, match="source changed while it was read"):
        list(read_records(part, config))
