"""Every shape of corpus gives its documents at the first try, loses nothing, and can be traced to its bytes."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands.inspect.trace import trace
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Record
from pipeline.corpus.documents import to_document
from pipeline.corpus.files import corpus_files
from pipeline.corpus.readers.dispatch import read_records
from pipeline.corpus.readers.records import Slice
from pipeline.corpus.sources.opening import open_file
from pipeline.corpus.template import Template
from stages.ingest import ingest
from stages.materialize import materialize
from stages.score import score
from stages.select import select
from tests.corpora.shapes import SHAPES, TEXTS, WIDE, tarred
from tests.corpus.corpora import Here, rows, run
from tests.toys import byte_level_tokenizer

VERBATIM = ("pretty_wrapper", "gb18030", "tar_gz", "quoted_newlines", "many_tiny_files")
"""Some of the shapes in whose bytes a document's text stands as it is."""
TOO_SHORT = ("first_paragraph", "mixed_types")
"""Shapes whose documents are too few and too short for a site in each split."""
TABLES = ("orc", "feather", "parquet", "arrow", "dataset")


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    if shape.needs:
        pytest.importorskip(shape.needs, reason="an extra, or pandas")
    manifest = load(Manifest, shape.write(tmp_path))
    record = ingest(manifest, source=None, work=tmp_path / "work", executor=Here())
    documents, quarantine = rows(record, "documents"), rows(record, "quarantine")

    expected = [unicodedata.normalize("NFC", text) for text in shape.documents]
    assert [row["text"] for row in documents] == expected
    counters = record.counters
    rejected = {key.removeprefix("quarantined."): n for key, n in counters.items() if key.startswith("quarantined.")}
    assert rejected == shape.quarantined
    assert counters.get("dropped.duplicate", 0) == shape.duplicates
    assert counters["records"] == len(documents) + sum(rejected.values()) + shape.duplicates
    _check_origins(manifest, documents[:50] + quarantine)


def _check_origins(manifest: Manifest, kept: list[dict[str, Any]]) -> None:
    """Every row names a record that is there, with its own bytes at its own place, and that gives the same document."""
    config = manifest.corpus
    files = {file.name: file for file in corpus_files(config)}
    for name in {row["source_file"] for row in kept}:
        file = files[name]
        with open_file(file, 1 << 30) as stream:
            data = stream.read()
        records = {record.row: record for record in read_records(Slice(file), config)}
        for row in (row for row in kept if row["source_file"] == name):
            record = records[row["source_row"]]
            if file.format not in TABLES:
                unit, _, offset = record.where.partition(" ")
                assert unit == "byte" and record.raw
                assert data[int(offset) :].startswith(record.raw)
            if "raw" in row:
                assert row["raw"] == record.raw
                continue
            assert isinstance(record.value, dict)
            assert to_document(record.value, Template.parse(config.text), config).text == row["text"]
            if "byte_offset" in json.loads(row["meta"]):
                assert json.loads(row["meta"])["byte_offset"] == int(record.where.split()[1])


PROXY = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "context": 64, "batch_tokens": 1024}


def _chain(folder: Path, manifest: Path, *more: str) -> tuple[Manifest, Record, list[dict[str, Any]]]:
    """Run all stages with a tiny proxy; returns the manifest, the documents and the sites."""
    tokenizer = byte_level_tokenizer(folder / "tokenizer", WIDE)
    overrides = [
        f"proxy.train={json.dumps(PROXY | {'max_steps': 2})}",
        "score={window: 64, overlap: 16}",
        "corpus.validation={documents: 1}",
        "select={where: 'true', validation_where: 'true', max_per_document: 8}",
        f"materialize.policy_tokenizer={tokenizer}",
    ]
    about, executor = load(Manifest, manifest, [*overrides, *more]), Here()
    at = folder / "work" / about.name
    documents = ingest(about, source=None, work=at, executor=executor)
    scores = score(about, documents, work=at, executor=executor)
    sites = select(about, documents, scores, work=at, executor=executor)
    materialize(about, documents, scores, sites, work=at, executor=executor)
    return about, documents, rows(sites, "sites")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHAPES if name not in TOO_SHORT])
def test_sites_of_a_shape_lead_to_the_bytes_of_the_source(tmp_path: Path, name: str) -> None:
    shape = SHAPES[name]
    if shape.needs:
        pytest.importorskip(shape.needs, reason="an extra, or pandas")
    few = ["proxy.train.folds=1", "corpus.validation={documents: 0}"] if len(shape.documents) < 7 else []
    manifest, documents, made = _chain(tmp_path, shape.write(tmp_path), *few)
    work = tmp_path / "work"
    files = {file.name: file for file in corpus_files(manifest.corpus)}
    texts = {row["doc_id"]: row["text"] for row in rows(documents, "documents")}
    assert len(texts) == len(shape.documents) and made
    for site in made[:: max(1, len(made) // 12)]:
        found, text = trace(manifest, site["site_id"], work=work), texts[site["doc_id"]]
        source = found["source"]
        assert source["agrees"], "the record gives another document than was ingested"
        token = text.encode()[slice(*found["document"]["bytes"])]
        assert token.decode(errors="backslashreplace") == found["document"]["token"]
        assert found["document"]["bytes"][0] == site["byte_offset"]
        if name in VERBATIM:
            with open_file(files[source["file"]], 1 << 30) as stream:
                record = stream.read()[slice(*source["bytes"])].decode(manifest.corpus.encoding)
            assert text.splitlines()[0] in record
    published = [path for path in work.rglob("*") if path.is_file()]
    assert len(published) < 40 + 20 * len(documents.shards), "however many files the corpus has"


@pytest.mark.parametrize("way", ["dataset", "web_dataset"])
def test_sites_of_what_the_library_reads_lead_to_its_rows(tmp_path: Path, way: str) -> None:
    pytest.importorskip("datasets")
    pq.write_table(pa.table({"text": TEXTS, "n": range(len(TEXTS))}), tmp_path / "train.parquet")
    members = {f"{n}.{end}": data for n, t in enumerate(TEXTS) for end, data in (("txt", t.encode()), ("cls", b"1"))}
    (tmp_path / "a.tar").write_bytes(tarred(members))
    corpus: dict[str, Any] = {"source": str(tmp_path / "a.tar"), "text": "{txt}"}
    if way == "dataset":
        corpus = {"dataset": {"path": "parquet", "data_files": str(tmp_path / "*.parquet"), "split": "train[2:5]"}}
    tree = {"name": "d", "corpus": corpus, "proxy": {"train": {}}, "materialize": {"policy_tokenizer": "unused"}}
    (tmp_path / "m.yaml").write_text(json.dumps(tree))
    manifest, documents, made = _chain(tmp_path, tmp_path / "m.yaml")
    read = {row["doc_id"]: row["text"] for row in rows(documents, "documents")}
    assert sorted(read.values()) == (TEXTS[2:5] if way == "dataset" else TEXTS)
    for site in made[:: max(1, len(made) // 6)]:
        found = trace(manifest, site["site_id"], work=tmp_path / "work")["source"]
        assert found["agrees"] and found["bytes"] is None and found["where"] == f"row {found['row']}"
        assert found["file"] == ("default/train/train.parquet" if way == "dataset" else "a.tar")
        assert TEXTS[found["row"]] == read[site["doc_id"]] and TEXTS[found["row"]] in found["record"]


def test_small_files_share_shards_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(1200):
        (tmp_path / "in" / f"{n:04d}.txt").write_text(f"one line, number {n}")
    result = run(tmp_path / "work", tmp_path / "in", shard_documents=600)
    assert result.texts == [f"one line, number {n}" for n in range(1200)]
    assert [row["source_file"] for row in result.documents] == [f"{n:04d}.txt" for n in range(1200)]
    assert len(list((tmp_path / "work" / "read").rglob("documents-*.parquet"))) == 2
    assert len(result.record.shards) == 2
