"""Question–answer sets: which records become questions, which are held out, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from demo.questions import write_questions
from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record
from pipeline.shards.reader import ShardReader
from stages.finetune import questions
from tests.stages.published import InProcess
from tests.toys import byte_level_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level_tokenizer(tmp_path / "policy", ["how much is it"])
    return tmp_path


def made(folder: Path, source: str, **changes: object) -> Record:
    """The record of a recipe's questions."""
    recipe = {
        "name": "a",
        "policy": {"model": str(folder / "policy")},
        "task": {"template": "question", "reward": changes.pop("reward", "answer")},
        "questions": {"source": str(folder / source), **changes},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return questions(load(Recipe, folder / "recipe.yaml"), work=folder / "work", executor=InProcess())


def written(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(record: Record, split: str) -> dict[str, str]:
    reader = ShardReader(record.files(split))
    return {site.context.decode(): site.continuation.decode() for site in (reader[i] for i in range(len(reader)))}


def test_a_set_like_gsm8k(folder: Path) -> None:
    rows: list[dict[str, object]] = [
        {"question": "Half of 8?", "answer": "Eight by two.\n#### 4", "part": "train"},
        {"question": "Half of 6?", "answer": "#### 3", "part": "test"},
        {"question": "Half of 6?", "answer": "#### 3", "part": "train"},
        {"question": "Half of 4?", "answer": "two", "part": "train"},
        {"question": None, "answer": "#### 2", "part": "train"},
        {"question": "long " * 400, "answer": "#### 2", "part": "train"},
    ]
    written(folder / "set.jsonl", rows)
    record = made(folder, "set.jsonl", answer_after="####", held_out={"column": "part", "value": "test"})
    assert pairs(record, "train") == {"Half of 8?": "4"} and pairs(record, "validation") == {"Half of 6?": "3"}
    counted = {
        "records": 6,
        "train": 1,
        "validation": 1,
        "dropped.duplicate": 1,
        "dropped.no_answer": 1,
        "quarantined.null_column": 1,
        "dropped.too_long": 1,
    }
    assert {name: count for name, count in record.counters.items() if count} == counted
    assert sum(counted.values()) == 12, "every record is counted once more than as a record"


def test_held_out_questions_of_their_own_file_leave_training(folder: Path) -> None:
    columns = {"q": ["a?", "b?", "c?"], "a": [1, 2, 3]}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    pq.write_table(pa.table({"q": ["b?", "d?"], "a": [2, 4]}), folder / "test.parquet")
    given = {"question": "{q}", "answer": "{a}", "held_out_source": str(folder / "test.parquet")}
    record = made(folder, "train.parquet", **given)
    assert pairs(record, "train") == {"a?": "1", "c?": "3"}
    assert pairs(record, "validation") == {"b?": "2", "d?": "4"}


def test_the_demos_questions(folder: Path) -> None:
    write_questions(folder / "demo.jsonl", train=30, validation=10)
    record = made(folder, "demo.jsonl", held_out={"column": "split"})
    assert (record.counters["train"], record.counters["validation"]) == (30, 10)
    again = made(folder, "demo.jsonl", held_out={"column": "split"})
    assert again.directory == record.directory, "made once"


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    written(folder / "set.jsonl", [{"question": "a?", "answer": "1"}])
    with pytest.raises(UserError, match="no question to hold out"):
        made(folder, "set.jsonl", held_out={"documents": 0})
    with pytest.raises(UserError, match="anser"):
        made(folder, "set.jsonl", answer="{anser}")
    with pytest.raises(UserError, match="no questions with an answer reward"):
        made(folder, "set.jsonl", reward="prefix")


@pytest.mark.parametrize("key", ["question", "answer"])
def test_a_template_that_names_an_absent_column_is_called_as_the_recipe_calls_it(folder: Path, key: str) -> None:
    written(folder / "a.jsonl", [{"q": "1 + 1", "a": "2"}])
    templates = {"question": "{q}", "answer": "{a}"} | {key: "{gone}"}
    with pytest.raises(UserError, match=rf"`questions\.{key}` names the column `gone`"):
        made(folder, "a.jsonl", **templates)
