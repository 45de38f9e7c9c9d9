"""A Hub with what the shipped manifests name, and `rpt` as a process that is pointed at it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.hub.server import Hub, serve
from tests.toys import problems

ROOT = Path(__file__).parents[2]
MANIFESTS = {
    # shipped manifest: the file whose download breaks, which is of another stage each time
    "omnimath": "model.safetensors",
    "omnimath-qwen3": "test.jsonl",
    "omnimath-smollm2": "tokenizer.json",
    "gsm8k": "main/train-00000-of-00001.parquet",
    "cmath": "cmath_dev.jsonl",
    "text-folder": "tokenizer.json",
}
SMALL = ["score.window=256", "score.overlap=64", "score.top_k=4", "corpus.sha256=null", "corpus.near_duplicates=null"]
"""The stand-in proxy knows 512 tokens, and the stand-in corpus is not the one whose hash is shipped."""


def rpt(where: Path, endpoint: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    given |= {"HF_HOME": str(where / "home"), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given["HF_HUB_DISABLE_XET"] = "1"  # uploads by LFS: the server here does not speak the Hub's newer protocol
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
    source = tree["corpus"]["source"]
    found = {"/".join(source.split("/")[2:5]): tree["corpus"].get("revision")} if source.startswith("hf://") else {}
    for block, model, revision in (
        (tree["proxy"], "model", "revision"),
        (tree["materialize"], "policy_tokenizer", "policy_tokenizer_revision"),
    ):
        if model in block:
            found[f"models/{block[model]}"] = block[revision]
    return found


@contextmanager
def stocked_hub() -> Iterator[Hub]:
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
        "models/HuggingFaceTB/SmolLM2-135M-Instruct": folder(ROOT / "demo" / "proxy"),
        "models/Qwen/Qwen3-0.6B": folder(ROOT / "demo" / "proxy"),
    }
    with serve() as served:
        for name, content in files.items():
            served.add(name, content)
        for manifest in MANIFESTS:
            for name, commit in pinned(manifest).items():
                if commit is not None:
                    served.repositories[name].commits[commit] = files[name]
        yield served
