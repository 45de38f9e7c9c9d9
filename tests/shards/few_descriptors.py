"""Makes a corpus of many shards of one document each, and reads them with few open files.

It is run in a process of its own, whose limit it lowers:

    python -m tests.shards.few_descriptors FOLDER SHARDS LIMIT
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

import numpy as np

from commands.audit import audit
from commands.export import export
from pipeline.audit.browse.column_index import ColumnIndex, Slices
from pipeline.audit.browse.index import COLUMNS, index
from pipeline.audit.verify import verify
from pipeline.config.manifest import Manifest
from pipeline.config.task import TaskConfig
from pipeline.core.artifact import Record
from pipeline.evaluation.held_out import choose_held_out, site_labels
from pipeline.shards.order import sites_of_step
from pipeline.shards.reader import ShardReader
from stages.ingest import ingest
from stages.materialize import materialize
from stages.select import select
from tests.audit.corpus import WHERE, manifest_of, score
from tests.stages.published import InProcess
from tests.toys import byte_level_tokenizer, problems, write_jsonl


def build(folder: Path, shards: int) -> tuple[Manifest, Record, Record, Record]:
    """A manifest, and its documents, scores and shards."""
    rows = problems(shards)
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "evaluation.jsonl", [{"text": "nothing that the corpus has"}])
    tokenizer = byte_level_tokenizer(folder / "tokenizer", [row["problem"] + row["solution"] for row in rows[:50]])
    tree = manifest_of(folder / "corpus.jsonl", tokenizer, WHERE)
    tree["corpus"] |= {"shard_documents": 1, "near_duplicates": None, "validation": {"fraction": 0.1}}
    manifest, work = Manifest.model_validate(tree), folder / "work" / "toy"
    documents = ingest(manifest, source=None, work=work, executor=InProcess())
    scores = score(manifest, documents, work)
    sites = select(manifest, documents, scores, work=work, executor=InProcess())
    made = materialize(manifest, documents, scores, sites, work=work, executor=InProcess())
    return manifest, documents, scores, made


def train(made: Record) -> int:
    """Read sites as steps do, in random order."""
    reader = ShardReader(made.files("train"), "entropy > 1.2 AND band != 'none'", cache_bytes=1)
    for row in sites_of_step(len(reader), 0, 0, min(400, len(reader))):
        assert reader[int(row)].entropy > 1.2
    assert len(list(reader.site_ids())) == len(reader)
    return len(made.files("train"))


def evaluate(made: Record) -> None:
    sites = choose_held_out(made.files("validation"), "true", 100, seed=0)
    assert len(site_labels(made, sites)[0]) == len(sites) > 0


def browse(documents: Record, scores: Record, work: Path) -> int:
    """Read every column of every shard, and return the number of files."""
    store = ColumnIndex(index(documents, scores, work=work, executor=InProcess()))
    runs = Slices(store.shard_R, store.begin_R, store.end_R)
    for column in set(COLUMNS) - {"reference_nll"}:
        assert len(store.read(column, runs)) == runs.rows
    assert all(store.text(document, 20) for document in range(store.documents.height))
    assert np.isfinite(store.read("entropy", runs)).all()
    return len(COLUMNS) * len(documents.completions)


def main(folder: Path, shards: int, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    manifest, documents, scores, made = build(folder, shards)
    work = folder / "work"
    counts = {"train": train(made), "browse": browse(documents, scores, work / "toy")}
    evaluate(made)
    audit(manifest, work=work)
    export("toy", made, format="trl", task=TaskConfig(), out=folder / "export", policy=manifest.materialize)
    counts["damage"] = len(verify(work / "toy")["damage"])
    counts["open"] = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
