"""Splits and configurations: what names a test split is read only if it is asked for, and is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.corpus import CorpusConfig
from pipeline.config.errors import UserError
from pipeline.corpus.files import corpus_files
from pipeline.corpus.sources.splits import Layout, choose, layout_of, split_in
from tests.corpus.corpora import jsonl, run

GSM8K = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train-*}
  - {split: test, path: socratic/test-*}
---
# GSM8K
"""
GSM8K_FILES = [f"{c}/{s}-00000-of-00001.parquet" for c in ("main", "socratic") for s in ("test", "train")]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/a.jsonl", "train"),
        ("test/a.jsonl", "test"),
        ("gsm8k-test.jsonl", "test"),
        ("validation-00000-of-00012.parquet", "validation"),
        ("dev.csv", "validation"),
        ("VAL_2017.json", "validation"),
        ("data/eval/part 1.parquet", "test"),
        ("train/val.jsonl", "validation"),
        ("test/train.jsonl", "train"),
        ("contest.jsonl", ""),
        ("latest/protest.jsonl", ""),
        ("devices.csv", ""),
        ("evaluations.jsonl", ""),
        ("testimony/validated.jsonl", ""),
        ("notes/test.md", ""),
        ("src/dev/README.txt", ""),
    ],
)
def test_the_split_that_a_name_names(name: str, split: str) -> None:
    assert split_in(name, [name]) == split


def test_prose_belongs_to_a_split_where_a_training_split_of_that_form_exists() -> None:
    assert split_in("wiki.test.tokens", ["wiki.train.tokens", "wiki.test.tokens"]) == "test"
    assert split_in("test/a.txt", ["training/b.txt", "test/a.txt"]) == "test"
    assert split_in("tests/test.py", ["src/train.py", "tests/test.py"]) == ""


def chosen(names: list[str], layout: Layout = Layout(), **options: Any) -> tuple[list[str], dict[str, int]]:  # noqa: B008
    choice = choose(names, layout, "hf://datasets/o/n", **options)
    assert len(choice.parts) + sum(choice.left_out.values()) == len(names), "every file is read or counted"
    return sorted(choice.parts), dict(choice.left_out)


def test_several_configurations_are_an_error_that_lists_them() -> None:
    layout = layout_of(GSM8K)
    with pytest.raises(UserError, match="several configurations: main, socratic") as error:
        choose(GSM8K_FILES, layout, "hf://datasets/openai/gsm8k")
    assert "corpus.configuration: main" in error.value.hint
    read, left = chosen(GSM8K_FILES, layout, configuration="main")
    assert read == ["main/train-00000-of-00001.parquet"]
    assert left == {"split test": 1, "configuration socratic": 2}
    with pytest.raises(UserError, match="no configuration `base`"):
        choose(GSM8K_FILES, layout, "x", configuration="base")


def test_a_path_asks_for_what_it_names() -> None:
    layout, main = layout_of(GSM8K), [name for name in GSM8K_FILES if name.startswith("main/")]
    assert chosen(main, layout, asked="main") == ([main[1]], {"split test": 1})
    assert chosen(main[:1], layout, asked="main/test-*.parquet") == (main[:1], {})
    assert chosen(["omni/test.jsonl"], asked="omni/test.jsonl") == (["omni/test.jsonl"], {})


def test_metadata_of_other_ages_name_configurations_too() -> None:
    files = ["abstract/0.parquet", "full/0.parquet"]
    for layout in (
        layout_of("---\ndataset_info:\n- config_name: abstract\n- config_name: full\n---\n"),
        layout_of("", infos=json.dumps({"abstract": {}, "full": {}})),
        layout_of(
            "---\r\nconfigs:\r\n- {config_name: abstract, data_dir: abstract}\r\n"
            "- {config_name: full, data_dir: full}\r\n---\r\n"
        ),
    ):
        assert chosen(files, layout, configuration="full") == (["full/0.parquet"], {"configuration abstract": 1})


def test_a_split_that_the_metadata_name_counts_before_the_names_of_files() -> None:
    layout = layout_of(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train_sft, path: 'data/a-*'}\n  - {split: test_sft, path: 'data/b-*'}\n---\n"
    )
    names = ["data/a-test.parquet", "data/b-0.parquet", "extra.jsonl"]
    assert chosen(names, layout) == (["data/a-test.parquet"], {"split test_sft": 1, "no configuration": 1})
    assert chosen(names, layout, splits=("test_sft",))[0] == ["data/b-0.parquet"]
    assert chosen(names, layout, splits=("test",))[0] == ["data/b-0.parquet"]


@pytest.mark.parametrize(
    "text", ["", "---\n[\n---\n", "---\nconfigs: 3\n---\n", "---\n- a\n---\n", "---\nconfigs: [{data_files: 7}]\n---\n"]
)
def test_metadata_that_say_nothing_readable_say_nothing(text: str) -> None:
    assert chosen(["a.jsonl", "test.jsonl"], layout_of(text if "data_files" not in text else ""))[0] == ["a.jsonl"]
    layout_of(text)


def test_splits_are_asked_for_by_any_of_their_names() -> None:
    names = ["a-dev.jsonl", "a-test.jsonl", "a-train.jsonl", "more.jsonl"]
    assert chosen(names) == (["a-train.jsonl", "more.jsonl"], {"split validation": 1, "split test": 1})
    for word in ("dev", "validation", "val"):
        assert chosen(names, splits=(word,))[0] == ["a-dev.jsonl"]
    assert chosen(names, splits=("all",)) == (names, {})
    with pytest.raises(UserError, match="no split `challenge`") as error:
        choose(names, Layout(), "x", splits=("challenge",))
    assert error.value.hint == "it has test, train, validation"
    with pytest.raises(UserError, match=r"only files of other splits \(test\).*corpus\.splits: \[test\]"):
        choose(names[1:2], Layout(), "x")


def folder(root: Path) -> Path:
    for split, count in (("train", 6), ("test", 3), ("dev", 2)):
        jsonl(root / f"{split}.jsonl", [{"text": f"{split} document {n}"} for n in range(count)])
    return root


def test_ingest_says_what_it_reads_and_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path / "work", folder(tmp_path / "data"))
    assert {row["source_file"] for row in result.documents} == {"train.jsonl"} and len(result.documents) == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "reads 1 file: split train (train.jsonl)" in said
    assert "leaves out 2 files: 1 of split test, 1 of split validation" in said


def test_a_split_can_be_the_one_that_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path / "work", folder(tmp_path / "data"), validation={"split": "test"})
    splits = {(row["source_file"], row["split"]) for row in result.documents}
    assert splits == {("train.jsonl", "train"), ("test.jsonl", "validation")}
    assert "1 of split test, held out" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UserError, match="no split `gold`"):
        run(tmp_path / "work", tmp_path / "data", validation={"split": "gold"})


def test_one_file_that_is_named_is_read_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "data")
    assert len(run(tmp_path / "work", tmp_path / "data" / "test.jsonl").documents) == 3
    assert len(run(tmp_path / "work", tmp_path / "data" / "d*.jsonl", splits=["dev"]).documents) == 2
    with pytest.raises(UserError, match="only files of other splits"):
        run(tmp_path / "work", tmp_path / "data" / "[dt]e*.jsonl")


def test_of_several_sources_each_has_its_own_splits(tmp_path: Path) -> None:
    folder(tmp_path / "a"), folder(tmp_path / "b")
    sources = [{"name": name, "source": str(tmp_path / name)} for name in "ab"]
    config = CorpusConfig.model_validate({"sources": [sources[0], sources[1] | {"splits": ["train", "dev"]}]})
    assert [file.name for file in corpus_files(config)] == ["a/train.jsonl", "b/dev.jsonl", "b/train.jsonl"]


def test_a_folder_per_split_of_save_to_disk_is_told_by_its_own_list(tmp_path: Path) -> None:
    for split in ("train", "gold"):
        jsonl(tmp_path / split / "0.jsonl", [{"text": split}])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "gold"]}')
    config = CorpusConfig(source=str(tmp_path), splits=("gold",))
    assert [file.name for file in corpus_files(config)] == ["gold/0.jsonl"]
