"""Shipped manifests, whole, against a Hub on this machine: cold, offline, and after a cut."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.hub.server import Hub, serve
from tests.hub.test_errors import NOWHERE
from tests.toys import problems

ROOT = Path(__file__).parents[2]
SMALL = ["score.window=256", "score.overlap=64", "score.top_k=4", "corpus.sha256=null", "corpus.near_duplicates=null"]
"""The stand-in proxy knows 512 tokens, and the stand-in corpus is not the one whose hash is shipped."""

pytestmark = pytest.mark.slow


def rpt(where: Path, endpoint: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    given |= {"HF_HOME": str(where / "home"), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "commands.cli", *arguments],
        capture_output=True, text=True, env=given | environment, cwd=where, timeout=300,
    )  # fmt: skip


def data(where: Path, hub: str, manifest: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    sets = [part for key in SMALL for part in ("--set", key)]
    return rpt(where, hub, "data", manifest, "--work", "work", "--workers", "1", *sets, *more, **environment)


def shards(where: Path, name: str) -> dict[str, str]:
    """sha256 of each shard by name."""
    files = (where / "work" / name / "materialize").glob("*/*.parquet")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def folder(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def pinned(name: str) -> dict[str, str]:
    """Commit by repository that a shipped manifest names."""
    tree = yaml.safe_load((ROOT / "data_manifests" / f"{name}.yaml").read_text(encoding="utf-8"))
    source = "/".join(tree["corpus"]["source"].split("/")[2:5])
    found = {source: tree["corpus"].get("revision")}
    for block, model, revision in (
        (tree["proxy"], "model", "revision"),
        (tree["materialize"], "policy_tokenizer", "policy_tokenizer_revision"),
    ):
        if model in block:
            found[f"models/{block[model]}"] = block[revision]
    return found


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub with the data sets and models that the shipped manifests name, at the commits that they pin."""
    toys = [{"problem": r["problem"], "solution": r["solution"], "difficulty": 1.5, "domain": ["Arithmetic"],
             "source": "toy"} for r in problems(60)]  # fmt: skip
    asked = [{"question": r["problem"], "answer": r["solution"]} for r in toys]
    configurations = [
        {"config_name": c, "data_files": [{"split": s, "path": f"{c}/{s}-*"} for s in ("train", "test")]}
        for c in ("main", "socratic")
    ]
    card = f"---\n{yaml.safe_dump({'configs': configurations})}---\n".encode()
    part = "00000-of-00001.parquet"
    files = {
        "datasets/KbsdJames/Omni-MATH": {"test.jsonl": lines(toys), "README.md": b"# Omni-MATH\n"},
        "datasets/openai/gsm8k": {"README.md": card}
        | {f"{c}/train-{part}": parquet(asked) for c in ("main", "socratic")}
        | {f"{c}/test-{part}": parquet([{"question": "held", "answer": "out"}]) for c in ("main", "socratic")},
        "datasets/weitianwen/cmath": {
            "cmath_dev.jsonl": lines([{"input": f"小明有{n}个苹果", "golden": str(n)} for n in range(60)]),
            "cmath_test.jsonl": lines([{"input": "考试", "golden": "1"}]),
        },
        "models/deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": folder(ROOT / "demo" / "proxy"),
        "models/deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": folder(ROOT / "demo" / "policy"),
    }
    with serve() as served:
        for name, content in files.items():
            served.add(name, content)
        for manifest in ("omnimath", "gsm8k", "cmath"):
            for name, commit in pinned(manifest).items():
                if commit is not None:
                    served.repositories[name].commits[commit] = files[name]
        yield served


def test_the_papers_manifest_cold_offline_and_after_a_cut(hub: Hub, tmp_path: Path) -> None:
    cold, cut = tmp_path / "cold", tmp_path / "cut"
    cold.mkdir(), cut.mkdir()
    done = data(cold, hub.endpoint, "omnimath", "--set", "corpus.validation={documents: 10}")
    assert done.returncode == 0, done.stderr
    made = shards(cold, "omnimath")
    assert made and not hub.leaked

    before = hub.requests.total()
    (cold / "work").rename(cold / "before")
    arguments = ("omnimath", "--set", "corpus.validation={documents: 10}")
    done = data(cold, NOWHERE, *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert shards(cold, "omnimath") == made and hub.requests.total() == before, "from the cache alone"

    hub.cut["model.safetensors"] = 100
    done = data(cut, hub.endpoint, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the Hub cannot be reached, or the connection broke" in done.stderr
    assert "run the same command again" in done.stderr and "Retrying" not in done.stderr
    hub.cut.clear()
    done = data(cut, hub.endpoint, *arguments)
    assert done.returncode == 0, done.stderr
    assert shards(cut, "omnimath") == made


@pytest.mark.parametrize(("manifest", "documents"), [("gsm8k", 60)])
def test_the_other_manifests_read_no_test_split(hub: Hub, tmp_path: Path, manifest: str, documents: int) -> None:
    done = data(tmp_path, hub.endpoint, manifest, "--set", "corpus.validation={documents: 10}")
    assert done.returncode == 0, done.stderr
    tables = (tmp_path / "work" / manifest / "ingest").glob("*/documents-*.parquet")
    texts = [text for file in tables for text in pq.read_table(file)["text"].to_pylist()]
    assert len(texts) == documents and not any("held" in text or "考试" in text for text in texts)
    assert not any("test" in path and "/resolve/" in path for path in hub.requests), "nor downloads one"


def test_datasets_and_streams_of_it_come_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    """The same rows by `corpus.dataset`, from the cache and from afar; only the split that is read is fetched."""
    (tmp_path / "m.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "m",
                "corpus": {
                    "dataset": {"path": "openai/gsm8k", "name": "main", "split": "train"},
                    "text": "{question}\n{answer}",
                    "validation": {"documents": 5},
                },
                "proxy": {"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"},
                "materialize": {"policy_tokenizer": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"},
            }
        )
    )
    texts = {}
    for streaming in ("false", "true"):
        more = ["--set", f"corpus.dataset.streaming={streaming}", "--work", streaming, "--workers", "1"]
        done = rpt(tmp_path, hub.endpoint, "ingest", "m.yaml", *more)
        assert done.returncode == 0, done.stderr
        assert "leaves out 3 files" in done.stderr
        (table,) = (tmp_path / streaming / "m" / "ingest").glob("*/documents-*.parquet")
        found = pq.read_table(table)
        texts[streaming] = sorted(found["text"].to_pylist())
        assert set(found["source_file"].to_pylist()) == {"main/train/main/train-00000-of-00001.parquet"}
    assert texts["false"] == texts["true"] and len(texts["true"]) == 60
    assert not any("/test-" in path and "/resolve/" in path for path in hub.requests)
