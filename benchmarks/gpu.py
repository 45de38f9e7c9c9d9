"""Run everything that needs a GPU: the smoke tests of `tests/gpu`, then the benchmarks with their bars.

    python -m benchmarks.gpu [--out build/gpu.json]

A benchmark that fails is recorded as such, and the others still run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands.maintenance.doctor import SHOWN, version
from pipeline.core.hardware import GPU_UNUSED, gpus, torch_device

ROOT = Path(__file__).parent.parent
TESTS = ("-m", "pytest", "-q", "-ra", "-m", "gpu", "tests/gpu")
BENCHMARKS = {
    "score": ("--device", "cuda", "--parts", "rpt", "forward", "usual", "tenfold"),
    "sampler": ("--device", "cuda"),
    "grpo_step": ("--device", "cuda", "--shape", "0.5B"),
}


def main() -> None:
    """Run all of it; the exit code is 1 if there is no GPU, a test or a benchmark failed, or a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu.json")
    arguments = parser.parse_args()
    if torch_device() == "cpu":
        sys.exit(f"nothing was run: {GPU_UNUSED if gpus() else 'this machine has no NVIDIA GPU'}")
    found: dict[str, Any] = {
        "devices": [gpu.name for gpu in gpus()],
        "versions": {name: version(name) for name in (*SHOWN, "vllm")},
        "tests": {"passed": subprocess.run([sys.executable, *TESTS], cwd=ROOT).returncode == 0},
        "benchmarks": {name: measured(name, options) for name, options in BENCHMARKS.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}")
    sys.exit(0 if succeeded(found) else 1)


def measured(name: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON in the last line that a benchmark prints, or its exit code if it failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    lines = done.stdout.splitlines()
    return dict(json.loads(lines[-1])) if done.returncode == 0 and lines else {"failed": done.returncode}


def succeeded(found: dict[str, Any]) -> bool:
    """Return whether all tests passed, all benchmarks ran, and no bar that was judged was missed.

    Example:
        >>> succeeded({"tests": {"passed": True}, "benchmarks": {"a": {"holds": {"b": True}}, "c": {"holds": None}}})
        True
        >>> succeeded({"tests": {"passed": True}, "benchmarks": {"a": {"holds": {"b": False}}, "c": {"failed": 1}}})
        False
    """
    reports = found["benchmarks"].values()
    holds = [report.get("holds") for report in reports]
    judged = [bar for each in holds for bar in (each.values() if isinstance(each, dict) else [each])]
    return found["tests"]["passed"] and not any("failed" in report for report in reports) and False not in judged


if __name__ == "__main__":
    main()
