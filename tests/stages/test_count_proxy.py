"""A proxy by counts through the stages: its tables, its scores, and that neither depends on the number of shards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record, Shard, current_record
from pipeline.core.shard_list import ShardList
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import DOCUMENTS
from pipeline.scoring.count_tables import is_counted
from pipeline.scoring.own_proxy import chosen
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


@pytest.mark.parametrize("stage", ["tokenizer", "proxy"])
def test_of_a_large_corpus_the_sample_is_drawn_from_some_shards(stage: str, tmp_path: Path) -> None:
    """Forty shards of some kB of documents: a sample of 1,000 bytes is drawn from few of them, always the same ones."""
    documents = ingested(tmp_path, TEXTS[:40], 1)
    least = COUNT | {"sample_bytes": 1000} if stage == "tokenizer" else TINY | {"sample_bytes": 1000, "folds": 1}
    settings = manifest({"count" if stage == "tokenizer" else "train": least})
    executor = Watched()
    score(settings, documents, work=tmp_path, executor=executor)
    (shard,) = executor.shards[stage]
    assert 2 <= len(shard.files) < 20
    record = current_record(tmp_path, stage)
    assert record.inputs["sampled_shards"] == f"{len(shard.files)} of 40"
    whole = score(manifest({"count": COUNT}), documents, work=tmp_path, executor=executor)
    assert "sampled_shards" not in current_record(tmp_path, "tokenizer").inputs
    assert len(executor.shards["tokenizer"][0].files) == 40 and whole.counters["documents"] == 40


def test_nothing_to_count_is_an_error(tmp_path: Path) -> None:
    table = documents_of(TEXTS[:3], ["validation"] * 3)
    fields = pa.array([[]] * 3, DOCUMENTS.field("fields").type)
    table = table.set_column(table.schema.get_field_index("fields"), DOCUMENTS.field("fields"), fields)
    documents = publish_tables(tmp_path, "ingest", [{"documents": shard} for shard in cut(table, 3)])
    with pytest.raises(UserError, match="no training document can be counted"):
        score(manifest({"count": COUNT}), documents, work=tmp_path, executor=InProcess())


TINY = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "context": 32, "batch_tokens": 256,
        "max_steps": 2}  # fmt: skip


class Watched(InProcess):
    """Keeps the shards that each stage was given."""

    def __init__(self) -> None:
        self.shards: dict[str, list[Shard]] = {}

    def map(self, function: Any, items: Sequence[Any], **how: Any) -> Iterator[Any]:
        self.shards[function.args[0].name] = list(items)
        return super().map(function, items)


AUTO_TRAIN = {"folds": 2, "vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "context": 32,
              "batch_tokens": 256}  # fmt: skip


def auto(work: Path, **settings: object) -> tuple[Record, Record]:
    proxy = manifest({"auto": {"count": COUNT} | settings}, store_top=True)
    record = score(proxy, ingested(work, TEXTS[:40], 20), work=work, executor=InProcess())
    return record, current_record(work, "proxy")


def test_auto_takes_what_needs_fewer_bits_per_byte_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of two steps has learned nothing yet; one that counts no context is worse than one that is trained."""
    scores, proxy = auto(tmp_path / "a", train=AUTO_TRAIN | {"max_steps": 2}, fit_from_bytes=0)
    *fitted, counted = [done.counters["microbits"] for done in proxy.completions()]
    assert len(fitted) == 2 and counted < min(fitted)
    said = capsys.readouterr().err
    assert f"counts {counted / 1e6:.3f}, fitted {sum(fitted) / 2e6:.3f}: the counts" in said
    alone = scored(tmp_path / "b", TEXTS[:40], 20)
    assert scores_of(scores).equals(scores_of(alone))
    *fits, counts = proxy.completions()
    cheap = [replace(done, counters=done.counters | {"microbits": 1}) for done in fits]
    better = replace(proxy, shard_list=ShardList.of([*cheap, counts], proxy.directory))
    assert chosen(manifest({"auto": {"count": COUNT, "train": AUTO_TRAIN}}).proxy, better) == proxy.files("model")[:2]
    assert "the fitted model" in capsys.readouterr().err


def test_auto_fits_nothing_on_a_small_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, proxy = auto(tmp_path, train=AUTO_TRAIN)
    assert len(proxy.files("model")) == 1 and "no model was fitted" in capsys.readouterr().err


def test_auto_has_one_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size of count and train differ"):
        auto(tmp_path, train=AUTO_TRAIN | {"vocab_size": 301})
    assert Manifest.model_validate(manifest({"count": {}}).model_dump() | {"proxy": "auto"}).proxy.auto is not None
