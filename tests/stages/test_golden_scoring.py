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
from pipeline.core.artifact import Record, current_record
from pipeline.core.parquet import read_table
from stages.ingest import ingest
from stages.score import score
from tests.stages.published import InProcess
from tests.toys import problems, write_jsonl


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Ingest and score of forty problems, two duplicates and two records that cannot be used; also scored by counts."""
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
    counts = Manifest.model_validate(
        manifest.model_dump() | {"proxy": {"count": {"order": 4, "vocab_size": 300}}, "score": {}}
    )
    return {
        "ingest": documents,
        "score": score(manifest, documents, work=work, executor=InProcess()),
        "by counts": score(counts, documents, work=work, executor=InProcess()),
        "counts": current_record(work, "proxy"),
    }


def test_ingest(records: dict[str, Record]) -> None:
    record = records["ingest"]
    tables = [read_table(file).to_pylist() for name in ("documents", "quarantine") for file in record.files(name)]
    text = canonical_json([[{k: str(v) for k, v in row.items()} for row in table] for table in tables])
    digest = hashlib.sha256((text + record.text_content).encode()).hexdigest()[:16]
    assert {record.version: digest} == {2: "e2c9b641da777191"}


def positions_of(record: Record) -> pl.DataFrame:
    """The scores of all positions that have some."""
    table = pa.concat_tables([read_table(file) for file in record.files("scores")])
    return pl.DataFrame(table).select("entropy", "entropy_partial", "nll", "rank").explode(pl.all()).drop_nulls()


def means_of(positions: pl.DataFrame) -> dict[str, float]:
    return {name: float(positions[name].mean()) for name in positions.columns}  # type: ignore[arg-type]


def test_score(records: dict[str, Record]) -> None:
    record = records["score"]
    positions = positions_of(record)
    expected = {"entropy": 2.756, "entropy_partial": 0.523, "nll": 5.018, "rank": 8.804}
    assert record.version == 6
    assert means_of(positions) == pytest.approx(expected, rel=0.01)
    assert record.counters["scorable"] == len(positions)


def test_score_by_counts(records: dict[str, Record]) -> None:
    """Counts are exact on any machine: only logarithms round."""
    made, record = records["counts"], records["by counts"]
    assert (made.version, record.version) == (5, 6)
    assert made.counters == {"documents": 34, "ngrams": 1784, "tokens": 1921}
    expected = {"entropy": 0.9739, "entropy_partial": 0.9478, "nll": 0.9646, "rank": 1.2423}
    assert means_of(positions_of(record)) == pytest.approx(expected, abs=1e-4)
