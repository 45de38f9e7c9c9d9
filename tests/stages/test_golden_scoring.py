"""Whatever changes the output of ingest, of the fitted proxy or of score must raise that stage's version.

Documents are hashed. Scores are floating-point numbers of a trained proxy, so they are held to figures, with room for
another machine's rounding and none for another computation.
"""

from __future__ import annotations

import hashlib

import polars as pl
import pyarrow as pa
import pytest

from pipeline.config.base import canonical_json
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record
from pipeline.core.parquet import read_table
from stages.ingest import ingest
from stages.score import score
from tests.stages.published import InProcess
from tests.toys import problems, write_jsonl


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Ingest and score of forty problems, two duplicates and two records that cannot be used."""
    work = tmp_path_factory.mktemp("golden")
    rows = problems(40)
    write_jsonl(
        work / "corpus.jsonl", [*rows, rows[3], rows[5], {"problem": "no solution"}, {"problem": "", "solution": ""}]
    )
    manifest = Manifest.model_validate(
        {
            "name": "golden",
            "corpus": {
                "source": "-",
                "text": "{problem}\n{solution}",
                "validation": {"documents": 6},
                "shard_documents": 16,
            },
            "proxy": {
                "train": {
                    "vocab_size": 300,
                    "hidden_size": 32,
                    "layers": 1,
                    "heads": 2,
                    "context": 64,
                    "batch_tokens": 1024,
                    "lr": 4e-3,
                    "epochs": 9,
                    "max_steps": 20,
                }
            },
            "score": {"window": 64, "overlap": 16},
            "materialize": {"policy_tokenizer": "-"},
        }
    )
    documents = ingest(manifest, source=str(work / "corpus.jsonl"), work=work, executor=InProcess())
    return {"ingest": documents, "score": score(manifest, documents, work=work, executor=InProcess())}


def test_ingest(records: dict[str, Record]) -> None:
    record = records["ingest"]
    tables = [read_table(file).to_pylist() for name in ("documents", "quarantine") for file in record.files(name)]
    text = canonical_json([[{k: str(v) for k, v in row.items()} for row in table] for table in tables])
    digest = hashlib.sha256((text + record.text_content).encode()).hexdigest()[:16]
    assert {record.version: digest} == {2: "e2c9b641da777191"}


def test_score(records: dict[str, Record]) -> None:
    record = records["score"]
    table = pa.concat_tables([read_table(file) for file in record.files("scores")])
    frame = pl.DataFrame(table).select("entropy", "entropy_partial", "nll", "rank").explode(pl.all()).drop_nulls()
    means = {name: round(float(frame[name].mean()), 3) for name in frame.columns}  # type: ignore[arg-type]
    expected = {"entropy": 2.756, "entropy_partial": 0.523, "nll": 5.018, "rank": 8.804}
    assert record.version == 6
    assert means == pytest.approx(expected, rel=0.01)
    assert record.counters["scorable"] == len(frame)
