"""Corpora as other tools write them: verl's and TRL's Parquet, chats, datatrove's JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record
from pipeline.core.parquet import read_table
from stages.ingest import ingest
from tests.stages.published import InProcess

QUESTIONS = [f"What is {n} plus {n}? Say 数 {n}." for n in range(8)]


def documents(source: Path, text: str, work: Path, **corpus: object) -> tuple[list[dict], Record]:
    tree = {"source": str(source), "text": text, "near_duplicates": None, "validation": {"documents": 1}} | corpus
    rest = {"proxy": {"model": "none"}, "materialize": {"policy_tokenizer": "none"}}
    manifest = Manifest.model_validate({"name": "others", "corpus": tree} | rest)
    record = ingest(manifest, source=None, work=work, executor=InProcess())
    return pa.concat_tables([read_table(file) for file in record.files("documents")]).to_pylist(), record


def test_verls_parquet_by_dotted_columns(tmp_path: Path) -> None:
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": question}],
            "reward_model": {"style": "rule", "ground_truth": str(2 * n)},
            "extra_info": {"split": "train" if n else "test", "index": n},
        }
        for n, question in enumerate(QUESTIONS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    template = "{prompt.-1.content}\nAnswer: {reward_model.ground_truth}"
    split = {"column": "extra_info.split", "value": "test"}
    found, _ = documents(tmp_path / "train.parquet", template, tmp_path / "work", validation=split)
    assert [row["text"] for row in found] == [f"{q}\nAnswer: {2 * n}" for n, q in enumerate(QUESTIONS)]
    assert [row["split"] for row in found] == ["validation"] + ["train"] * 7
    for row in found:
        spans = {f["name"]: row["text"].encode()[f["start"] : f["end"]].decode() for f in row["fields"]}
        assert spans["prompt.-1.content"] in QUESTIONS and spans["reward_model.ground_truth"].isdecimal()
        assert json.loads(row["meta"])["extra_info"]["index"] == row["source_row"]


def test_a_chat_in_json_lines(tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": f"It is {n}."}]
        for n, q in enumerate(QUESTIONS)
    ]
    odd = [{"messages": [{"role": "user", "content": [{"type": "image"}]}]}, {"messages": []}]
    lines = [json.dumps({"messages": chat}, ensure_ascii=False) for chat in chats] + [json.dumps(row) for row in odd]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines) + "\n")
    found, record = documents(tmp_path / "chats.jsonl", "{messages}", tmp_path / "a")
    assert [row["text"] for row in found] == [f"user: {q}\n\nassistant: It is {n}." for n, q in enumerate(QUESTIONS)]
    assert record.counters["quarantined.wrong_type"] == 2
    turns, record = documents(tmp_path / "chats.jsonl", "{messages.0.content}", tmp_path / "b")
    assert [row["text"] for row in turns] == QUESTIONS
    assert {n: c for n, c in record.counters.items() if n.startswith("quarantined") and c} == {
        "quarantined.wrong_type": 1,
        "quarantined.missing_column": 1,
    }


def test_what_datatrove_writes(tmp_path: Path) -> None:
    """JSON lines in gzip, ranks as files; what is known of a page stays with it."""
    (tmp_path / "output").mkdir()
    for rank in range(2):
        rows = [
            {"text": q, "id": f"<urn:uuid:{n}>", "metadata": {"url": f"https://example.org/{n}", "language_score": 0.9}}
            for n, q in enumerate(QUESTIONS)
            if n % 2 == rank
        ]
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (tmp_path / "output" / f"{rank:05d}.jsonl.gz").write_bytes(gzip.compress(data))
    found, _ = documents(tmp_path / "output", "{text}", tmp_path / "work")
    assert sorted(row["text"] for row in found) == sorted(QUESTIONS)
    assert {row["source_file"] for row in found} == {"00000.jsonl.gz", "00001.jsonl.gz"}
    assert all(json.loads(row["meta"])["metadata"]["url"].startswith("https://example.org/") for row in found)


def test_a_nested_column_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": []}) + "\n")
    with pytest.raises(UserError, match=r"`prompt\.0\.content`, which does not exist.*known: messages"):
        documents(tmp_path / "chats.jsonl", "{prompt.0.content}", tmp_path / "work")


def test_a_column_whose_own_name_has_dots_wins(tmp_path: Path) -> None:
    rows = [{"a.b": f"whole {n}", "a": {"b": f"nested {n}"}} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = documents(tmp_path / "rows.jsonl", "{a.b}", tmp_path / "work")
    assert [row["text"] for row in found] == ["whole 0", "whole 1", "whole 2"]
