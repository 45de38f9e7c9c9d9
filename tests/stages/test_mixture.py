"""Several corpora in one manifest, from their files to the shards."""

from __future__ import annotations

import html
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from commands.exchange.export import export
from commands.exchange.pull import pull
from commands.exchange.push import push
from commands.groups.data import run_data
from commands.inspect.audit import audit
from commands.inspect.stats import stats, tables
from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest, ProxyConfig
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import Record
from pipeline.core.parquet import read_table
from pipeline.selection.corpus_rules import mixture_counts
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import SHARDS
from stages.ingest import ingest
from stages.materialize import materialize
from stages.select import select
from tests.selection.tables import scores_of
from tests.stages.published import InProcess, publish_tables
from tests.toys import byte_level_tokenizer, problems

COUNTS = {"big": 40, "small": 12}


def manifest(folder: Path, shard_documents: int = 10, **rule: Any) -> Manifest:
    """Two corpora with templates of their own, in files of the same name."""
    rows = problems(60)
    for name, part in (("big", rows[:40]), ("small", rows[40:52])):
        (folder / name).mkdir(exist_ok=True, parents=True)
        keys = ("problem", "solution") if name == "big" else ("question", "answer")
        lines = [{keys[0]: row["problem"], keys[1]: row["solution"], "number": i} for i, row in enumerate(part)]
        (folder / name / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = byte_level_tokenizer(folder / "tokenizer", [row["problem"] + row["solution"] for row in rows])
    return Manifest.model_validate(
        {
            "name": "mixed",
            "corpus": {
                "sources": [
                    {"name": "big", "source": str(folder / "big"), "text": "{problem}\n{solution}"},
                    {"name": "small", "source": str(folder / "small/rows.jsonl"), "text": "{question} {answer}"},
                ],
                "validation": {"documents": 5},
                "near_duplicates": None,
                "shard_documents": shard_documents,
            },
            "proxy": {"model": "none"},
            "select": {"where": "entropy > 1", **rule},
            "materialize": {"policy_tokenizer": str(tokenizer)},
        }
    )


def scored(documents: Record, work: Path) -> Record:
    """A score for every byte: 2 nats at every eighth one, else none."""
    shards = []
    for file in documents.files("documents"):
        table = read_table(file)
        ends = [list(range(1, len(text.encode()) + 1)) for text in table["text"].to_pylist()]
        entropies = [[2.0 if t % 8 == 7 else 0.0 for t in e] for e in ends]
        shards.append({"scores": scores_of(table, ends, entropies)})
    return publish_tables(work, "score", shards)


def mixed(folder: Path, work: Path, **rule: Any) -> tuple[Record, Record, Record]:
    read = manifest(folder, **rule)
    documents = ingest(read, source=None, work=work, executor=InProcess())
    scores = scored(documents, work)
    sites = select(read, documents, scores, work=work, executor=InProcess())
    return documents, sites, materialize(read, documents, scores, sites, work=work, executor=InProcess())


def sites_of(record: Record) -> pl.DataFrame:
    return pl.read_parquet([file.path for file in record.files("sites")])


def test_sites_and_shards_carry_their_corpus(tmp_path: Path) -> None:
    documents, sites, shards = mixed(tmp_path / "in", tmp_path / "work")
    rows = pl.read_parquet([file.path for file in documents.files("documents")])
    corpus = {row["doc_id"]: json.loads(row["meta"])["corpus"] for row in rows.iter_rows(named=True)}
    assert Counter(corpus.values()) == COUNTS
    named = {(name, file) for name, file in zip(corpus.values(), rows["source_file"], strict=True)}
    assert named == {("big", "big/rows.jsonl"), ("small", "small/rows.jsonl")}
    found = sites_of(sites)
    assert found["corpus"].to_list() == [corpus[doc_id] for doc_id in found["doc_id"]]
    reader = ShardReader(shards.files("train"), "corpus = 'small'")
    train = found.filter((pl.col("split") == "train") & (pl.col("corpus") == "small"))
    assert 0 < len(reader) <= train.height and set(reader.site_ids()) <= set(train["site_id"])


@pytest.mark.parametrize("most", [None, 50])
def test_the_budget_is_drawn_by_weight_however_the_corpus_is_cut(tmp_path: Path, most: int | None) -> None:
    mixture = {"mixture": {"weights": {"big": 1, "small": 3}}, "max_sites": most}
    _, everything, _ = mixed(tmp_path / "in", tmp_path / "all")
    _, drawn, shards = mixed(tmp_path / "in", tmp_path / "ten", **mixture)
    _, again, _ = mixed(tmp_path / "in", tmp_path / "seven", shard_documents=7, **mixture)
    there, kept = (Counter(sites_of(r).filter(pl.col("split") == "train")["corpus"]) for r in (everything, drawn))
    size = min(there["big"] * 4, there["small"] * 4 // 3, most or 10**9)
    assert kept.total() == size == drawn.counters["kept.train"]
    assert abs(kept["small"] - size * 3 / 4) < 1
    assert drawn.counters["dropped.mixture"] == there.total() - size and not drawn.counters["dropped.corpus_cap"]
    assert sites_of(drawn).equals(sites_of(again))
    assert shards.counters["kept.train"] > 0


def test_rpt_data_its_audit_and_what_is_pushed(tmp_path: Path) -> None:
    """From two files to shards by the demo's own proxy; the audit's breakdown by corpus; columns and licences."""
    root = Path(__file__).resolve().parents[2]
    rules = {"where": "entropy > 0.1 AND number < 35", "mixture": {"weights": {"big": 1, "small": 2}}}
    asked = manifest(tmp_path / "in", metadata={"number": "number"}, **rules)
    licensed = tuple(s.model_copy(update={"license": f"{s.name}-1.0"}) for s in asked.corpus.sources)
    corpus = asked.corpus.model_copy(update={"sources": licensed})
    read = asked.model_copy(update={"corpus": corpus, "proxy": ProxyConfig(model=str(root / "demo" / "proxy"))})
    records = run_data(read, "materialize", None, tmp_path / "work", InProcess())
    train = sites_of(records["select"]).filter(pl.col("split") == "train")
    audit(read, work=tmp_path / "work", out=tmp_path / "audit")
    page = (tmp_path / "audit" / "report.html").read_text()
    assert '<dt>mixture</dt><dd><code>{"weights": {"big": 1.0, "small": 2.0}}</code></dd>' in html.unescape(page)
    assert "<dt>max sites</dt>" not in page
    groups = json.loads((tmp_path / "audit" / "audit.json").read_text())["groups"]
    kept = {row["value"]: row["train"]["kept"] for row in groups["meta.corpus"]}
    assert kept == dict(Counter(train["corpus"])) and kept.keys() == COUNTS.keys()
    counted = stats(read, work=tmp_path / "work")
    assert {name: row["train"] for name, row in counted["corpora"].items()} == kept
    assert [table.columns[0].header for table in tables(counted)][1] == "corpus"
    documents = pl.read_parquet([file.path for file in records["ingest"].files("documents")])
    numbers = documents.join(train, on="doc_id", how="semi")["meta"].str.json_path_match("$.number").cast(pl.Int64)
    assert 0 < numbers.max() < 35
    push(read, str(tmp_path / "pushed"), work=tmp_path / "work")
    dataset = pytest.importorskip("mlcroissant").Dataset(jsonld=tmp_path / "pushed" / "croissant.json")
    assert not dataset.metadata.ctx.issues.errors and not dataset.metadata.ctx.issues.warnings
    assert {field.name for field in dataset.metadata.record_sets[0].fields} == {*SHARDS.names, "corpus", "number"}
    assert next(iter(dataset.records("train")))["train/corpus"] in (b"big", b"small")
    _, front, body = (tmp_path / "pushed" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == ["big-1.0", "small-1.0"] == dataset.metadata.license
    assert "| `corpus` |" in body
    pulled = load(Manifest, pull(str(tmp_path / "pushed"), work=tmp_path / "elsewhere"))
    assert [(s.name, s.source, s.license) for s in pulled.corpus.sources] == [
        ("big", "big", "big-1.0"),
        ("small", "rows.jsonl", "small-1.0"),
    ]
    assert pulled.corpus.identity() == read.corpus.identity()
    out = tmp_path / "exported"
    export(read.name, records["materialize"], format="verl", task=TaskConfig(template="brief"), out=out,
           policy=read.materialize, where="corpus = 'small'")  # fmt: skip
    exported = pl.read_parquet(out / "train.parquet")
    assert set(exported["data_source"]) == {"rpt/mixed/small"}
    assert 0 < exported.height <= train.filter(pl.col("corpus") == "small").height


def test_shares_by_hand() -> None:
    assert mixture_counts({"a": 1, "b": 1, "c": 1}, {"a": 9, "b": 9, "c": 9}, 8) == {"a": 3, "b": 3, "c": 2}
    assert mixture_counts({"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 700, "b": 30, "c": 100}, None) == {
        "a": 105,
        "b": 30,
        "c": 15,
    }
    with pytest.raises(UserError, match=r"source `b` is left .*a has 4, b has 0"):
        mixture_counts({"a": 1, "b": 1}, {"a": 4}, None)


def test_mistakes_of_a_mixture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights are of big"):
        manifest(tmp_path, mixture={"weights": {"big": 1}})
    read = manifest(tmp_path)
    with pytest.raises(UserError, match="--source is for a manifest with one source"):
        ingest(read, source="elsewhere", work=tmp_path / "work", executor=InProcess())
    absent = manifest(tmp_path, metadata={"gone": "number"}, where="gone > 1")
    with pytest.raises(UserError, match=r"no document has the metadata `gone`.*known: number, corpus"):
        run_data(absent, "materialize", None, tmp_path / "work", InProcess())  # before anything is scored
    (tmp_path / "big" / "more.jsonl").write_text('{"problem": "a", "solution": "b", "corpus": "c"}\n')
    with pytest.raises(UserError, match=r"the name `corpus` of a column is reserved: big/more.jsonl"):
        ingest(read, source=None, work=tmp_path / "work", executor=InProcess())
