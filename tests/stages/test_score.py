"""The stage `score`: its tables, its quarantine, its proxies by fold, and that it repeats itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pipeline.config.errors import UserError
from pipeline.config.manifest import Manifest, ReferenceConfig
from pipeline.config.selection import SelectConfig
from pipeline.core.artifact import Record
from pipeline.core.marks import BEGUN
from pipeline.core.parquet import read_table
from pipeline.core.precision import fastest_dtype
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.corpus.documents import DOCUMENTS
from pipeline.scoring.sample import fold_of
from pipeline.selection.sites import select_sites
from stages.score import score
from tests.scoring.models import TEXTS, qwen, save
from tests.selection.tables import documents_of
from tests.stages.published import InProcess, cut, publish_tables

TRAIN = {"folds": 2, "vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "context": 32,
         "batch_tokens": 256, "max_steps": 8}  # fmt: skip


def manifest(proxy: dict[str, object], **settings: object) -> Manifest:
    tree = {"window": 32, "overlap": 8, "min_context_tokens": 4} | settings
    proxy = {"dtype": "float32"} | proxy
    return Manifest.model_validate(
        {
            "name": "toy",
            "corpus": {"source": "texts"},
            "proxy": proxy,
            "score": tree,
            "materialize": {"policy_tokenizer": "none"},
        }
    )


def ingested(work: Path, texts: list[str], per_shard: int = 25) -> Record:
    """The documents of some texts, with the problem's bytes as a field, each tenth held out."""
    table = documents_of(texts, ["validation" if i % 10 == 9 else "train" for i in range(len(texts))])
    fields = [[{"name": "problem", "start": 9, "end": 20}, {"name": "solution", "start": 30, "end": 40}]] * len(texts)
    column = pa.array(fields, DOCUMENTS.field("fields").type)
    table = table.set_column(table.schema.get_field_index("fields"), DOCUMENTS.field("fields"), column)
    return publish_tables(work, "ingest", [{"documents": shard} for shard in cut(table, per_shard)])


def scores_of(record: Record) -> pa.Table:
    return pa.concat_tables([read_table(file) for file in record.files("scores")])


def run(work: Path, texts: list[str], toy: Manifest) -> tuple[Record, Record]:
    documents = ingested(work, texts)
    return documents, score(toy, documents, work=work, executor=InProcess())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("proxy"), qwen(300))


def test_a_reference_model_says_what_is_still_to_be_learned(
    tmp_path: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Excess loss is the proxy's loss less the reference's, of the same position; windows are as for the proxy."""
    better = save(tmp_path_factory.mktemp("reference"), qwen(300, seed=7))
    made = manifest({"model": str(model)}).model_copy(update={"reference": ReferenceConfig(model=str(better))})
    documents, record = run(tmp_path, TEXTS[:30], made)
    plain = scores_of(run(tmp_path / "plain", TEXTS[:30], manifest({"model": str(model)}))[1]).to_pylist()
    twin = scores_of(run(tmp_path / "twin", TEXTS[:30], manifest({"model": str(better)}))[1]).to_pylist()
    for row, of_proxy, of_reference in zip(scores_of(record).to_pylist(), plain, twin, strict=True):
        assert row["nll"] == of_proxy["nll"]
        assert row["reference_nll"] == of_reference["nll"]
        assert of_proxy["reference_nll"] == [None] * len(row["nll"])
    tables = read_table(documents.files("documents")[0]), read_table(record.files("scores")[0])
    sites, _ = select_sites(SelectConfig(where="excess_loss > 0.02"), *tables)
    wanted = {
        (row["doc_id"], t)
        for row in tables[1].to_pylist()
        for t, (ours, theirs) in enumerate(zip(row["nll"], row["reference_nll"], strict=True))
        if ours is not None and ours - theirs > 0.02
    }
    train = sites.filter(pl.col("split") == "train")
    assert 0 < train.height < sum(len(row["nll"]) for row in plain)
    assert set(train.select("doc_id", "position").iter_rows()) <= wanted
    with pytest.raises(ValueError, match="it needs a second model"):
        Manifest.model_validate(made.model_dump() | {"reference": None, "select": {"where": "excess_loss > 1"}})


def test_a_reference_with_another_tokenizer_is_refused(tmp_path: Path, model: Path) -> None:
    other = save(tmp_path / "other", qwen(300, seed=7), vocab_size=299)
    made = manifest({"model": str(model)}).model_copy(update={"reference": ReferenceConfig(model=str(other))})
    with pytest.raises(UserError, match="another tokenizer"):
        run(tmp_path, TEXTS[:4], made)


def test_rows_are_documents_and_lists_are_positions(tmp_path: Path, model: Path) -> None:
    texts = [*TEXTS[:57], "a <|document|> b", "x", "long " * 60]
    documents, record = run(tmp_path, texts, manifest({"model": str(model)}))
    tokenizer = CorpusTokenizer.load(model)
    rows = scores_of(record).to_pylist()
    assert len(record.files("scores")) == len(documents.files("documents")) == 3
    for i, file in enumerate(record.files("scores")):
        source = read_table(documents.files("documents")[i], ["doc_id"])
        assert read_table(file, ["doc_id"]).equals(source)

    twin = qwen(300)
    for text, row in zip(texts, rows, strict=True):
        ids = tokenizer.encode(text)
        ends = tokenizer.ends(ids).tolist()
        assert (row["token_ids"], row["token_ends"]) == (ids.tolist(), ends)
        for t, start in enumerate([0, *ends[:-1]]):
            assert row["field"][t] == ("problem" if 9 <= start < 20 else "solution" if 30 <= start < 40 else "")
        for name in ("entropy", "entropy_partial", "nll", "rank"):
            assert [value is None for value in row[name]] == [t < 4 for t in range(len(ids))]
        with torch.no_grad():  # the first window, by hand
            logits = twin(torch.tensor([[tokenizer.bos_id, *ids[:31].tolist()]])).logits[0].double()
        for t in range(4, min(len(ids), 32)):
            logprobs = logits[t].log_softmax(-1)
            top = logprobs.topk(16).values.log_softmax(-1)
            assert row["nll"][t] == pytest.approx(-logprobs[ids[t]].item(), abs=1e-4)
            assert row["entropy"][t] == pytest.approx(-(top.exp() * top).sum().item(), abs=1e-4)

    tokens = sum(len(row["token_ids"]) for row in rows)
    scorable = sum(value is not None for row in rows for value in row["nll"])
    expected = {
        "documents": 60,
        "documents.holding_added_tokens": 1,
        "tokens": tokens,
        "scorable": scorable,
        "not_scorable": tokens - scorable,
    }
    assert record.counters == expected
    assert max(len(row["token_ids"]) for row in rows) > 64


def test_groups_of_documents_change_nothing_and_row_groups_are_full(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text * (1 + n % 3) for n, text in enumerate(TEXTS[:25])]
    toy = manifest({"model": str(model)})
    _, whole = run(tmp_path / "whole", texts, toy)
    monkeypatch.setattr("stages.score.GROUP_CHARACTERS", {"cpu": 1000, "cuda": 1000})
    monkeypatch.setattr("pipeline.scoring.table.ROW_GROUP", 10)
    monkeypatch.setattr("pipeline.core.parts.SECONDS", 0)
    _, parts = run(tmp_path / "parts", texts, toy)
    (first,), (second,) = whole.files("scores"), parts.files("scores")
    written = pq.read_metadata(second.path)
    assert [written.row_group(n).num_rows for n in range(written.num_row_groups)] == [10, 10, 5]
    assert whole.counters == parts.counters
    a, b = (pl.DataFrame(read_table(file)) for file in (first, second))
    exact = ["doc_id", "split", "token_ids", "token_ends", "field"]
    assert a.select(exact).equals(b.select(exact))
    for name in ("entropy", "entropy_partial", "nll"):
        np.testing.assert_allclose(a[name].explode().to_numpy(), b[name].explode().to_numpy(), rtol=1e-5, atol=1e-5)


def test_a_document_that_cannot_be_scored_leaves_no_shard_behind(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the third group, while the second is written and the fourth tokenized."""
    monkeypatch.setattr("stages.score.GROUP_CHARACTERS", {"cpu": 300, "cuda": 300})
    broken = qwen(300)
    broken.lm_head.weight = torch.nn.Parameter(broken.lm_head.weight.detach().clone())
    broken.config.tie_word_embeddings = False
    bad = CorpusTokenizer.load(model).encode("%")[0]
    broken.model.embed_tokens.weight.data[bad] = float("inf")
    texts = [*TEXTS[:9], "a sum of 20% of", *TEXTS[9:20]]
    folder = save(tmp_path / "broken", broken)
    with pytest.raises(UserError, match=r"NaN or infinite: document [0-9a-f]{32} \(texts, row 9\)"):
        run(tmp_path, texts, manifest({"model": str(folder)}))
    assert not list(tmp_path.glob("score/*/scores*"))


def test_metadata_says_what_made_the_scores(tmp_path: Path, model: Path) -> None:
    _, record = run(tmp_path, TEXTS[:5], manifest({"model": str(model)}))
    metadata = pq.read_schema(record.files("scores")[0].path).metadata
    assert metadata[b"rpt.tokenizer"].decode() == CorpusTokenizer.load(model).digest
    assert metadata[b"rpt.proxy"].decode() == record.inputs["proxy"]
    assert metadata[b"rpt.bos"] == b"id 0 before every window, not a position"
    assert json.loads(metadata[b"rpt.score"])["top_k"] == 16
    assert set(json.loads(metadata[b"rpt.versions"])) == {"torch", "transformers"}


def test_the_top_k_are_stored_on_demand(tmp_path: Path, model: Path) -> None:
    _, record = run(tmp_path, TEXTS[:3], manifest({"model": str(model)}, store_top=True, top_k=5))
    for row in scores_of(record).to_pylist():
        tokens = len(row["token_ids"])
        ids = np.array(row["top_ids"], dtype=object).reshape(tokens, 5)
        logprobs = np.array(row["top_logprobs"], dtype=object).reshape(tokens, 5)
        assert all(value is None for value in ids[:4].flatten())
        for t in range(4, tokens):
            if row["rank"][t] < 5:
                assert ids[t, row["rank"][t]] == row["token_ids"][t]
                assert -logprobs[t, row["rank"][t]] == pytest.approx(row["nll"][t], abs=1e-5)
            assert list(logprobs[t]) == sorted(logprobs[t], reverse=True)
            assert -sum(p * math.exp(p) for p in logprobs[t]) == pytest.approx(row["entropy_partial"][t], abs=1e-5)


def test_readers_agree(tmp_path: Path, model: Path) -> None:
    _, record = run(tmp_path, TEXTS[:10], manifest({"model": str(model)}))
    path = record.files("scores")[0].path
    rows = pq.read_table(path).to_pylist()
    assert pl.read_parquet(path).to_dicts() == rows
    assert duckdb.sql(f"FROM '{path}'").to_arrow_table().to_pylist() == rows


def lower_case(folder: Path, model: Path) -> Path:
    """The model with a tokenizer that forgets capitals."""
    save(folder, qwen(300))
    tree = json.loads((model / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tree | {"normalizer": {"type": "Lowercase"}}))
    assert Tokenizer.from_file(str(folder / "tokenizer.json"))
    return folder


def test_documents_a_tokenizer_cannot_represent_are_quarantined(tmp_path: Path, model: Path) -> None:
    texts = ["small letters only " * 3, "CAPITALS too", "again small letters", "And These"]
    toy = manifest({"model": str(lower_case(tmp_path / "lossy", model))})
    _, record = run(tmp_path, texts, toy)
    table = read_table(record.files("quarantine")[0]).to_pylist()
    assert [(row["source_row"], row["raw"].decode(), row["reason"]) for row in table] == [
        (1, "CAPITALS too", "tokenizer_not_lossless"),
        (3, "And These", "tokenizer_not_lossless"),
    ]
    assert record.counters["quarantined.tokenizer_not_lossless"] == 2
    assert [row["doc_id"] for row in scores_of(record).to_pylist()] == [
        documents_of(texts)["doc_id"][i].as_py() for i in (0, 2)
    ]


def test_nothing_left_is_an_error(tmp_path: Path, model: Path) -> None:
    toy = manifest({"model": str(lower_case(tmp_path / "lossy", model))})
    with pytest.raises(UserError, match="no document can be scored"):
        run(tmp_path, ["CAPITALS", "Only"], toy)


def test_bad_proxies_are_refused_before_anything_is_published(tmp_path: Path) -> None:
    documents = ingested(tmp_path, TEXTS[:5])
    folder = save(tmp_path / "few", qwen(200))
    with pytest.raises(UserError, match="200 token embeddings"):
        score(manifest({"model": str(folder)}), documents, work=tmp_path, executor=InProcess())
    broken = qwen(300)
    broken.model.norm.weight.data[:] = float("nan")
    folder = save(tmp_path / "nan", broken)
    with pytest.raises(UserError, match=r"NaN or infinite: document [0-9a-f]{32} \(texts, row \d\)"):
        score(manifest({"model": str(folder)}), documents, work=tmp_path, executor=InProcess())
    assert not list(tmp_path.glob("score/*/scores*"))


def test_what_enters_the_fingerprint(tmp_path: Path, model: Path) -> None:
    documents, first = run(tmp_path, TEXTS[:5], manifest({"model": str(model)}))
    moved = tmp_path / "elsewhere"
    moved.symlink_to(model)

    def fingerprint(toy: Manifest) -> str:
        return score(toy, documents, work=tmp_path, executor=InProcess()).fingerprint

    assert fingerprint(manifest({"model": str(moved)}, batch_tokens=64)) == first.fingerprint
    assert first.execution == {"score": {"batch_tokens": 8192}} and "batch_tokens" not in first.config["score"]
    assert fingerprint(manifest({"model": str(moved), "dtype": "bfloat16"})) != first.fingerprint
    assert fingerprint(manifest({"model": str(model)}, top_k=3)) != first.fingerprint
    other = save(tmp_path / "other", qwen(300, seed=1))
    assert fingerprint(manifest({"model": str(other)})) != first.fingerprint
    assert fingerprint(manifest({"model": str(other), "tokenizer": str(model)})) != first.fingerprint


def test_auto_uses_the_scores_there_are_whatever_their_number_format(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine with another format than that of published scores does not make them again; nor one that resumes."""
    own = fastest_dtype()[0]
    another = "float32" if own == "bfloat16" else "bfloat16"
    auto = manifest({"model": str(model), "dtype": "auto"})
    documents, first = run(tmp_path, TEXTS[:5], manifest({"model": str(model), "dtype": another}))
    assert first.config["dtype"] == another
    capsys.readouterr()
    assert score(auto, documents, work=tmp_path, executor=InProcess()).fingerprint == first.fingerprint
    assert f"scores in {another} are published already" in capsys.readouterr().err
    (first.directory / "record.json").rename(first.directory / BEGUN)  # as after a kill
    (first.directory / BEGUN).write_text("{}")
    assert score(auto, documents, work=tmp_path, executor=InProcess()).config["dtype"] == another
    assert f"scores in {another} are begun already" in capsys.readouterr().err
    _, fresh = run(tmp_path / "fresh", TEXTS[:5], auto)
    assert fresh.config["dtype"] == own


def test_a_fitted_proxy_computes_in_float32_everywhere(tmp_path: Path) -> None:
    _, record = run(tmp_path, TEXTS[:60], manifest({"train": TRAIN, "dtype": "auto"}))
    assert record.config["dtype"] == "float32"


def test_fitted_proxies_score_the_fold_they_have_not_seen(tmp_path: Path) -> None:
    toy = manifest({"train": TRAIN})
    documents, record = run(tmp_path, TEXTS[:60], toy)
    folders = sorted((tmp_path / "proxy").glob("*/model-0000?.*"))
    assert len(folders) == 2
    rows = scores_of(record).to_pylist()
    assert len(rows) == 60
    for row in rows[:6]:
        unseen = folders[fold_of(row["doc_id"], 2)]
        tokenizer = CorpusTokenizer.load(unseen)
        ids = row["token_ids"][:20]
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(unseen)(torch.tensor([[tokenizer.bos_id, *ids]])).logits[0]
        nll = -logits.log_softmax(-1)[range(4, 20), ids[4:20]]
        assert row["nll"][4:20] == pytest.approx(nll.tolist(), abs=1e-4)

    again = score(toy, documents, work=tmp_path / "again", executor=InProcess())
    assert [file.sha256 for file in again.files("scores")] == [file.sha256 for file in record.files("scores")]
