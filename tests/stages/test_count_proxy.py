"""A proxy by counts through the stages: its tables, its scores, and that neither depends on the number of shards."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config.errors import UserError
from pipeline.core.artifact import Record, current_record
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import DOCUMENTS
from pipeline.scoring.count_tables import is_counted
from stages.score import score
from tests.scoring.count_twin import Twin
from tests.scoring.models import TEXTS
from tests.selection.tables import documents_of
from tests.stages.published import InProcess, cut, publish_tables
from tests.stages.test_score import ingested, manifest, scores_of

COUNT = {"order": 3, "vocab_size": 300}


def scored(work: Path, texts: list[str], per_shard: int) -> Record:
    documents = ingested(work, texts, per_shard)
    return score(manifest({"count": COUNT}, store_top=True), documents, work=work, executor=InProcess())


def test_scores_are_those_of_the_other_training_documents(tmp_path: Path) -> None:
    texts = TEXTS[:30]
    rows = scores_of(scored(tmp_path, texts, 7)).to_pylist()
    proxy = current_record(tmp_path, "proxy")
    (model,) = proxy.files("model")
    tokenizer = CorpusTokenizer.load(model.path)
    ids = [tokenizer.encode(text).tolist() for text in texts]
    train = [n for n in range(len(texts)) if n % 10 != 9]  # as `ingested` holds out
    assert is_counted(model.path)
    assert (proxy.counters["documents"], proxy.counters["tokens"]) == (27, sum(len(ids[n]) for n in train))
    for n, row in enumerate(rows):
        assert row["token_ids"] == ids[n] and row["split"] == ("train" if n in train else "validation")
        twin = Twin([ids[other] for other in train if other != n], tokenizer.vocab_size, 3)
        for t in range(4, len(ids[n]), 3):
            p = twin.probabilities(ids[n][:t])
            assert row["nll"][t] == pytest.approx(-math.log(p[ids[n][t]]), rel=1e-6)
            assert math.exp(row["top_logprobs"][16 * t]) == pytest.approx(p.max(), rel=1e-6)
        assert row["entropy"][:4] == [None] * 4


def test_neither_tables_nor_scores_depend_on_the_number_of_shards(tmp_path: Path) -> None:
    one, many = (scored(tmp_path / str(n), TEXTS[:40], n) for n in (40, 6))
    assert len(one.files("scores")) == 1 and len(many.files("scores")) == 7
    assert scores_of(one).equals(scores_of(many))
    files = [current_record(tmp_path / str(n), "proxy").files("model")[0].sha256 for n in (40, 6)]
    assert files[0] == files[1]


def test_a_finished_count_is_not_repeated(tmp_path: Path) -> None:
    first = scored(tmp_path, TEXTS[:20], 10)
    made = {stage: current_record(tmp_path, stage).directory for stage in ("tokenizer", "tokens", "proxy", "score")}
    before = {folder: folder.stat().st_mtime_ns for folder in made.values()}
    assert scored(tmp_path, TEXTS[:20], 10) == first
    assert {folder: folder.stat().st_mtime_ns for folder in made.values()} == before


def test_nothing_to_count_is_an_error(tmp_path: Path) -> None:
    table = documents_of(TEXTS[:3], ["validation"] * 3)
    fields = pa.array([[]] * 3, DOCUMENTS.field("fields").type)
    table = table.set_column(table.schema.get_field_index("fields"), DOCUMENTS.field("fields"), fields)
    documents = publish_tables(tmp_path, "ingest", [{"documents": shard} for shard in cut(table, 3)])
    with pytest.raises(UserError, match="no training document can be counted"):
        score(manifest({"count": COUNT}), documents, work=tmp_path, executor=InProcess())
