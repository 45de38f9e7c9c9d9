"""Benchmarks run, in miniature: what they find there means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import succeeded
from pipeline.core.hardware import torch_device

MINIATURES = {
    "board": "--steps 20 --rollouts 400 --requests 2",
    "browse": "--positions 20000 --requests 1",
    "count": "--millions 0.02 0.04",
    "score": "--model demo/policy --tokens 200 --repeats 1 --parts rpt single",
    "selection": "--most 20 --naive-documents 5 --repeats 1",
    "sampler": "--sites 2 --group 2 --new 3 --contexts 8 --repeats 1",
    "near": "--megabytes 0.3 --repeats 1",
    "rerun": "--megabytes 2",
    "scale": "--documents 300 --candidates 3000 --rows 2000 --shards 3",
    "grpo_step": "--sites 2 --group 2 --new 4 --contexts 8 --steps 1 --threads 1",
}


VLLM = Path(os.environ.get("RPT_VLLM_PYTHON", ".venv-vllm/bin/python"))
RENSA = Path(os.environ.get("RPT_RENSA_PYTHON", ".venv-rensa/bin/python"))


@pytest.mark.parametrize("name", MINIATURES)
def test_the_last_line_is_json_with_a_verdict(name: str, repository: Path) -> None:
    if name == "selection":
        pytest.importorskip("datasets")  # its naive side, which needs pandas
    assert {"bars", "holds"} <= set(_run(name, *MINIATURES[name].split(), cwd=repository))


@pytest.mark.skipif(not VLLM.exists(), reason="no environment with vLLM: `make vllm-cpu`, or set RPT_VLLM_PYTHON")
@pytest.mark.slow
def test_the_sampler_is_compared_with_vllm(repository: Path) -> None:
    report = _run("sampler", *MINIATURES["sampler"].split(), "--vllm-python", str(VLLM.absolute()), cwd=repository)
    assert report["contexts"]["8"]["vllm_ratio"] > 0


@pytest.mark.skipif(not RENSA.exists(), reason="no environment with rensa: set RPT_RENSA_PYTHON")
def test_near_duplicates_are_compared_with_rensa(repository: Path) -> None:
    report = _run("near", *MINIATURES["near"].split(), "--rensa-python", str(RENSA.absolute()), cwd=repository)
    assert report["holds"]["recall_and_precision"] and report["rensa"]["recall"] > 0.9 and report["ratio"] > 0


def _run(name: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    """Return the last line of a benchmark."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_where_there_is_a_gpu_all_must_hold() -> None:
    def verdict(score: object, sampler: object, *, passed: bool = True) -> bool:
        return succeeded({"tests": {"passed": passed}, "benchmarks": {"score": score, "sampler": sampler}})

    held = {"holds": {"a": True, "b": True}}
    assert verdict(held, {"holds": None}) and verdict(held, {"holds": True})
    assert not verdict(held, {"holds": False}) and not verdict({"holds": {"a": True, "b": False}}, {"holds": True})
    assert not verdict(held, {"failed": 1}) and not verdict(held, {"holds": True}, passed=False)


@pytest.mark.skipif(torch_device() != "cpu", reason="there is a GPU")
def test_without_a_gpu_nothing_is_run_and_it_says_so(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1 and "nothing was run" in done.stderr
    assert not list(tmp_path.iterdir())
