"""Makes a corpus of many shards of one document each, and runs the commands that read them, with few open files.

It is run in a process of its own, whose limit it lowers; the commands inherit it:

    python -m tests.shards.few_descriptors FOLDER SHARDS LIMIT

The stages make a few shards. The others are these with other ids, published by the stage runner. It prints, as JSON,
seconds of processor time of each command.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from commands.inspect.browse import open_library
from pipeline.audit.browse.found import Narrowed
from pipeline.audit.browse.index import COLUMNS
from pipeline.config.base import Config
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Counters, Record, Shard, write_pointer
from pipeline.core.parquet import parquet_writer
from pipeline.core.pointers import policy_pointer, proxy_pointer
from pipeline.core.stage import Stage, run_stage
from stages.ingest import ingest
from stages.materialize import materialize
from stages.select import select
from tests.audit.corpus import WHERE, manifest_of, score
from tests.grpo.colours import make_policy, write_recipe
from tests.stages.published import InProcess
from tests.toys import problems, write_jsonl

ROOT = Path(__file__).parents[2]
MADE = 24
"""Shards that the stages make."""

COMMANDS = {
    "train": "train recipe.yaml --work work --run run",
    "evaluate": "evaluate recipe.yaml --work work --run run",
    "audit": "audit toy.yaml --work work",
    "export": "export trl toy.yaml --work work --out export --template brief",
    "status": "status toy.yaml --work work --runs . --json",
    "verify": "verify toy.yaml --work work --json",
    "verify_run": "verify run --json",
}


def build(folder: Path, shards: int) -> Manifest:
    """A manifest, a recipe, and `documents`, `scores`, `sites` and shards of so many documents, in `folder`."""
    policy = make_policy(folder / "policy", steps=0)
    write_jsonl(folder / "corpus.jsonl", problems(MADE))
    write_jsonl(folder / "evaluation.jsonl", [{"text": "nothing that the corpus has"}])
    tree = manifest_of(folder / "corpus.jsonl", policy, WHERE)
    tree["corpus"] |= {"shard_documents": 1, "near_duplicates": None, "validation": {"fraction": 0.2}}
    tree["materialize"]["max_context_tokens"] = 64
    (folder / "toy.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    budget = {"steps": 2, "evaluate_every": 1, "save_every": 2, "save_rollouts_every": 2, "stop": {"probe_sites": None}}
    measured = {"progress_sites": 10, "sites": 40}
    write_recipe(folder / "recipe.yaml", policy, data="toy.yaml", budget=budget, evaluate=measured)
    manifest, few, work = Manifest.model_validate(tree), folder / "few", folder / "work" / "toy"
    documents = ingest(manifest, source=None, work=few, executor=InProcess())
    scores = score(manifest, documents, few)
    sites = select(manifest, documents, scores, work=few, executor=InProcess())
    made = materialize(manifest, documents, scores, sites, work=few, executor=InProcess())
    names: dict[str, str] = {}
    for record in (documents, scores, sites, made):
        inputs = {"by": "hand"} if record is documents else {n: names.get(v, v) for n, v in record.inputs.items()}
        many = multiplied(record, shards, inputs, work)
        names |= {record.content: many.content, record.text_content: many.text_content}
        names |= {record.fingerprint: many.fingerprint}
        if record is scores:
            write_pointer(proxy_pointer(work, manifest), many.directory)
        if record is made:
            write_pointer(policy_pointer(work, manifest), many.directory)
    return manifest


class Recorded(Config):
    """A stage's configuration as it stands in a record."""

    tree: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        return self.tree


def multiplied(record: Record, shards: int, inputs: Mapping[str, str], work: Path) -> Record:
    """Publish the shards of a record again and again, each with ids of its own, up to so many."""
    few = list(record.completions())
    sources = [
        {entry.path: pq.read_table(record.directory / entry.path) for entry in done.files.values() if entry.rows}
        for done in few
    ]

    def run(config: Recorded, shard: Shard, out: Path) -> Counters:
        done = few[shard.index % len(few)]
        for name, entry in done.files.items():
            path = record.directory / entry.path
            table = sources[done.shard].get(entry.path)
            if table is None:
                shutil.copyfile(path, out / f"{name}{path.suffix}")
            else:
                with parquet_writer(out / f"{name}.parquet", table.schema, metadata=table.schema.metadata) as writer:
                    writer.write_table(_renamed(table, shard.index))
        return done.counters

    plan, stage = [Shard(i, {}, {}) for i in range(shards)], Stage(record.stage, record.version, run)
    return run_stage(stage, Recorded(tree=dict(record.config)), plan, inputs, work, InProcess())


def _renamed(table: pa.Table, shard: int) -> pa.Table:
    """The rows, with ids that begin with the number of the shard."""
    for name in {"doc_id", "site_id"} & set(table.column_names):
        ids = pc.binary_replace_slice(table[name], start=0, stop=8, replacement=f"{shard:08x}")
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), ids)
    return table


def browse(manifest: Manifest, work: Path) -> int:
    """Open the page's state, ask what its tabs ask, and return the number of files of the index."""
    state = open_library(manifest, work=work, executor=InProcess())
    store = state.store
    runs = store.runs(np.arange(len(store.begin_R)), store.begin_R * 0, store.end_R - store.begin_R)
    for column in set(COLUMNS) - {"reference_nll"}:
        assert len(store.read(column, runs)) == runs.rows
    assert all(store.text(document, 20) for document in range(store.documents.height))
    rules = "entropy > 0.5", "entropy > 1.2"
    while not (compared := state.compare(*rules, "train")).exact:
        pass
    assert state.positions(*rules, Narrowed("train", "lost")).frame.height > 0 < compared.documents_changed
    assert state.document(store.documents.height - 1).tokens
    return len(COLUMNS) * len(state.records.index.shards)


def run(command: str, folder: Path) -> dict[str, Any]:
    """Run `rpt …` in a folder, and return its processor time and what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "commands.cli", *command.split()]
    with (folder / "out.txt").open("w+") as out, (folder / "err.txt").open("w+") as err:
        started = subprocess.Popen(line, cwd=folder, env=environment, stdout=out, stderr=err)
        _, status, used = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        text = out.read()
        assert started.returncode == 0, f"rpt {command}: {text[-1000:]} {err.read()[-3000:]}"
    return {"cpu": round(used.ru_utime + used.ru_stime, 1), "said": text}


def main(folder: Path, shards: int, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    os.fsync = lambda _: None  # type: ignore[assignment] # nobody cuts the power: it is most of the time
    begin = time.process_time()
    manifest = build(folder, shards)
    counts: dict[str, Any] = {"build": {"cpu": round(time.process_time() - begin, 1)}}
    for name, command in COMMANDS.items():
        counts[name] = run(command, folder)
        print(f"{name}: {counts[name]['cpu']} s", file=sys.stderr, flush=True)
    for name in ("verify", "verify_run"):
        assert json.loads(counts[name]["said"])["ok"], counts[name]["said"]
    begin = time.process_time()
    counts["browse"] = {"files": browse(manifest, folder / "work" / "toy"), "cpu": 0.0}
    counts["browse"]["cpu"] = round(time.process_time() - begin, 1)
    print(json.dumps({name: {k: v for k, v in row.items() if k != "said"} for name, row in counts.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
