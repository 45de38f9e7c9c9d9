"""Damaged artifacts: bytes that flip, files that are cut, lost or swapped, values that are edited: all are noticed.

`RPT_DAMAGES=1000` damages that many; by default a few, drawn over the kinds of files and of damage in turn.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from commands.groups.data import run_data
from commands.maintenance.verify import verify_run
from pipeline.audit.browse.column_index import ColumnIndex
from pipeline.audit.browse.index import index
from pipeline.audit.verify import verify
from pipeline.config.base import Config
from pipeline.config.errors import IntegrityError
from pipeline.config.manifest import Manifest
from pipeline.core.artifact import Counters, Record, Shard, current_record
from pipeline.core.parquet import write_rows
from pipeline.core.stage import Stage, run_stage
from tests.core.test_artifact import SCHEMA, edited, leaves
from tests.grpo.colours import make_policy, publish_shards, write_manifest, write_recipe
from tests.stages.published import InProcess
from tests.toys import byte_level_tokenizer, problems, write_jsonl

DAMAGES = int(os.environ.get("RPT_DAMAGES", "60"))


def half(config: Config, shard: Shard, out: Path) -> Counters:
    if shard.index == 2:
        raise KeyboardInterrupt
    write_rows(out / "numbers.parquet", SCHEMA, [{"number": shard.index}])
    return {"documents": 1}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages of a corpus of three shards with all rules, browse's index, and a stage that is unfinished."""
    folder = tmp_path_factory.mktemp("whole")
    rows = problems(60)
    byte_level_tokenizer(folder / "policy", [row["problem"] for row in rows])
    write_jsonl(folder / "rows.jsonl", rows)
    fitted = {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "max_steps": 2, "folds": 1}
    tree = {
        "name": "toy",
        "corpus": {"source": str(folder / "rows.jsonl"), "text": "{problem}\n{solution}", "shard_documents": 20},
        "proxy": {"train": fitted},
        "select": {"max_sites": 500},
        "materialize": {"policy_tokenizer": str(folder / "policy")},
    }
    run_data(Manifest.model_validate(tree), "materialize", None, folder / "work", InProcess(), as_json=True)
    made = folder / "work" / "toy"
    index(current_record(made, "ingest"), current_record(made, "score"), work=made, executor=InProcess())
    with pytest.raises(KeyboardInterrupt):
        shards = [Shard(n, {}, {}) for n in range(3)]
        run_stage(Stage("halved", 1, half), Config(), shards, {"a": "1"}, made, InProcess())
    assert verify(made)["ok"]
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Two steps of a tiny policy, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("run")
    policy = make_policy(folder / "policy")
    publish_shards(folder / "work", policy)
    budget = {"steps": 2, "save_every": 1, "evaluate_every": 9, "save_rollouts_every": 9, "keep_last": 2}
    write_recipe(folder / "recipe.yaml", policy, data="manifest.yaml", budget=budget, curriculum=[])
    write_manifest(folder / "manifest.yaml", policy)
    done = subprocess.run(
        [sys.executable, "-m", "commands.cli", "train", "recipe.yaml", "--work", "work", "--run", "run"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert verify_run(folder / "run")["ok"]
    return folder / "run"


def kind_of(path: Path) -> str:
    if "checkpoints" in path.parts:
        return "checkpoint's " + (path.name if path.name in ("latest", "state.json") else "file")
    if path.name in ("run.json", "recipe.yaml", "prompt.json"):
        return path.name
    if path.parent.name == "done":
        return "completion" if path.suffix == ".json" else "list of shards"
    if path.suffix in (".parquet", ".bin"):
        return path.suffix
    known = ("record.json", "current", "begun.json", "certificate.json")
    pointers = ("source-", "proxy-", "policy-")
    return path.name if path.name in known else "pointer" if path.name.startswith(pointers) else "other published"


def damages(work: Path, run: Path, rng: random.Random) -> Iterator[tuple[str, str, list[Path]]]:
    """(kind of file, kind of damage, files that it is done to), for ever: kinds in turn, files at random."""
    files: dict[str, list[Path]] = {}
    of_run = [run / "run.json", run / "recipe.yaml", run / "prompt.json", run / "checkpoints" / "latest"]
    of_run += (run / "checkpoints").glob("step-*/**/*")  # beside them lies a script that DeepSpeed offers to users
    for path in sorted(path for path in (*work.rglob("*"), *of_run) if path.is_file()):
        # What is remembered of sources is there only if they had settled before they were read, and damaged lines of it
        # are as if they were not there (tests/corpus/test_known_sources.py).
        if path.stat().st_size and path.name != "sources.jsonl":
            files.setdefault(kind_of(path), []).append(path)
    assert {"record.json", "completion", ".parquet", ".bin", "current", "pointer", "begun.json"} <= files.keys()
    assert "list of shards" in files
    assert {"checkpoint's file", "checkpoint's state.json", "checkpoint's latest", "run.json"} <= files.keys()
    assert all(path.is_file() for path in of_run[:3])
    while True:
        for kind, paths in files.items():
            for damage in ("flip", "cut", "delete", "swap", "edit"):
                path = rng.choice(paths)
                others = [other for other in paths if other != path and other.read_bytes() != path.read_bytes()]
                if damage == "swap":
                    if others:
                        yield kind, damage, [path, rng.choice(others)]
                elif kind == "completion" and damage == "delete" and "halved" in path.parts:
                    continue  # of a stage that is not complete: the shard is not done, and nothing is damaged
                elif kind == "certificate.json" and damage == "delete":
                    continue  # `rpt select` writes it again
                elif damage != "edit" or path.suffix == ".json":
                    yield kind, damage, [path]


def do(damage: str, paths: list[Path], rng: random.Random) -> None:
    data = paths[0].read_bytes()
    if damage == "flip":
        at = rng.randrange(len(data))
        paths[0].write_bytes(data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :])
    elif damage == "cut":
        paths[0].write_bytes(data[: rng.randrange(len(data))])
    elif damage == "delete":
        paths[0].unlink()
    elif damage == "swap":
        paths[0].write_bytes(paths[1].read_bytes())
        paths[1].write_bytes(data)
    else:
        tree = json.loads(data)
        edited(tree, rng.choice(list(leaves(tree))))
        paths[0].write_text(json.dumps(tree, indent=1, ensure_ascii=False))


def named(work: Path, run: Path, damaged: Path) -> set[str]:
    found = verify_run(run) if damaged.is_relative_to(run) else verify(work)
    return {item["where"] for item in found["damage"]}


@pytest.mark.timeout(max(600, 5 * DAMAGES))  # each is a verification of everything: seconds on a busy machine
def test_all_damage_is_noticed_and_named(work: Path, run: Path) -> None:
    rng = random.Random(0)
    done: Counter[tuple[str, str]] = Counter()
    missed: list[tuple[str, str, list[str]]] = []
    for (kind, damage, paths), _ in zip(damages(work, run, rng), range(DAMAGES), strict=False):
        before = {path: path.read_bytes() for path in paths}
        do(damage, paths, rng)
        done[kind, damage] += 1
        found = named(work, run, paths[0])
        if not all(_is_named(path, found) for path in paths):
            missed.append((kind, damage, [str(path) for path in paths]))
        for path, data in before.items():
            path.write_bytes(data)
    print(json.dumps({f"{kind} {damage}": count for (kind, damage), count in sorted(done.items())}, indent=1))
    assert not missed, missed
    assert sum(done.values()) == DAMAGES
    assert verify(work)["ok"] and verify_run(run)["ok"]


def test_a_sealed_file_of_another_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(Stage("halved", 1, half), Config(), [Shard(n, {}, {}) for n in range(3)], {}, tmp_path, InProcess())
    (begun,) = tmp_path.glob("halved/*/begun.json")
    shutil.copy(begun.parent / "done" / "00000.json", begun)
    assert {item["where"] for item in verify(tmp_path)["damage"]} == {str(begun)}


def _is_named(path: Path, found: set[str]) -> bool:
    """The file; of a folder that is published as a whole (a fitted proxy), the folder; of the last of several
    pointers, their pattern; of an output that is begun, the record that it has not; of the last checkpoint's
    state, the pointer to it."""
    names = {path, *path.parents, path.with_name(f"{path.name.partition('-')[0]}-*")}
    if path.name == "state.json":
        names.add(path.parent.with_name("latest"))
    if path.name == "begun.json":
        names.add(path.with_name("record.json"))
    return not found.isdisjoint(map(str, names))


QUESTIONS: dict[str, Callable[[ColumnIndex], Any]] = {
    "text": lambda store: store.text(0, 100),
    "folded": lambda store: store.texts(0),
}


def test_the_live_page_notices_a_damaged_index_when_it_first_opens_it(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work, tmp_path / "toy")
    record: Record = current_record(tmp_path / "toy", "browse")
    tried = []
    for name in next(record.completions()).files:
        file = record.file(name, 0)
        assert file is not None
        if file.path.suffix != ".bin":
            continue
        data = file.path.read_bytes()
        file.path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        store = ColumnIndex(record)
        everything = store.runs(store.cell_R * 0, store.begin_R * 0, store.end_R - store.begin_R)
        ask = QUESTIONS.get(name, lambda store, name=name, all=everything: store.read(name, all))
        with pytest.raises(IntegrityError, match=file.path.name):
            ask(store)
        tried.append(name)
    assert len(tried) >= 8 and {"text", "folded", "entropy", "document"} <= set(tried)
