"""Benchmarks run, in miniature: what they find there means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import growths, hours, judged, marginal_growth
from benchmarks.gpu import succeeded
from pipeline.core.hardware import torch_device

MINIATURES = {
    "board": "--steps 20 --rollouts 400 --requests 2",
    "browse": "--positions 20000 --requests 1",
    "count": "--millions 0.02 0.04",
    "score": "--model demo/policy --tokens 200 --repeats 1 --parts rpt single",
    "selection": "--most 20 --naive-documents 5 --repeats 1",
    "sampler": "--sites 2 --group 2 --new 3 --contexts 8 --repeats 1",
    "ingest": "--megabytes 0.4 --repeats 1",
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


@pytest.mark.slow
def test_a_corpus_that_is_killed_while_it_is_measured_goes_on(repository: Path, tmp_path: Path) -> None:
    arguments = ["--documents", "300", "600", "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.corpus", *arguments]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=repository, stdout=quiet, stderr=quiet) as process:
        while process.poll() is None and not (tmp_path / "300" / "work" / "corpus" / "ingest").exists():
            time.sleep(0.01)
        process.kill()
    report = _run("corpus", *arguments, cwd=repository)
    small, large = report["sizes"]
    assert (small["runs"], large["runs"]) == (2, 1)
    assert 0 < small["dropped_copies"] < 30 and small["sites"] > 0
    passes = {"read", "assign", "ingest", "tokenizer", "tokens", "proxy", "score", "certificate_scores"}
    passes |= {"certificate_bits", "select_candidates", "select_verdicts", "select", "materialize", "report"}
    for size in (small, large):
        assert size["stages"].keys() == passes
        assert all(
            cost["worker_s"] > 0 and cost["worker_bytes"] > 0 for cost in size["stages"].values() if cost["shards"]
        )
    assert _run("corpus", *arguments, cwd=repository) == report, "a finished size was done again"
    assert not list(tmp_path.glob("*/work"))


def _size(documents: int, read: float, assign: float, memory: int) -> dict[str, Any]:
    cost = {"driver_s": 0.5, "worker_bytes": memory, "driver_bytes": 2**28}
    stages = {
        "read": {"worker_s": read - 0.5, "shards": 5, **cost},
        "assign": {"worker_s": assign - 0.5, "shards": 1, **cost},
    }
    return {"documents": documents, "tokens": 10 * documents, "stages": stages}


def test_growth_is_that_of_the_time_per_document_per_decade() -> None:
    """Reading takes 1 s and 10 µs a document, then 12 µs; assignment takes n^1.5."""
    sizes = [_size(10**4, 1.1, 1.0, 2**29), _size(10**5, 2.0, 31.62, 2**29), _size(10**7, 102.0, 31620.0, 2**31)]
    assert growths(sizes, "read") == pytest.approx([0.182, (102 / 2 / 100) ** 0.5], abs=1e-3)
    assert growths(sizes, "assign") == pytest.approx([3.162, 3.162], abs=1e-3)
    # 0.9 s for the next 90,000 documents, 100 s for the 9,900,000 after them, over two decades.
    assert marginal_growth(sizes, "read") == pytest.approx((100 / 9.9e6 / (0.9 / 9e4)) ** 0.5, abs=1e-3)
    assert marginal_growth(sizes[:2], "read") is None
    # 10¹² tokens are ten thousand times the last size. A further document costs 100 s / 9.9 million, and no more later:
    # reading is shared by 100 workers, but not what the driver does.
    assert hours(sizes, "read") == pytest.approx(100 / 9.9e6 / 100 * 1e11 / 3600, abs=0.1)
    assert hours(sizes[:1], "read") == pytest.approx((0.6 / 100 + 0.5) / 1e4 * 1e11 / 3600, abs=0.1)
    # Assignment is one task, and what a further document costs grows by a factor in each of four more decades.
    late, grown = (31620 - 31.62) / 9.9e6, marginal_growth(sizes, "assign")
    assert grown is not None and 3 < grown < 3.4
    assert hours(sizes, "assign") == pytest.approx(late * grown**4 * 1e11 / 3600, rel=1e-3)
    found = judged(sizes)
    assert found["exponents"]["assign"] == pytest.approx(1.5, abs=1e-3)
    assert found["holds"] == {"worker_memory": False, "driver_memory": True, "growth": False}


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
