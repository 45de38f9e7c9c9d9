"""Benchmarks run, in miniature: what they find there means nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MINIATURES = {
    "selection": "--most 20 --naive-documents 5 --repeats 1",
    "sampler": "--sites 2 --group 2 --new 3 --contexts 8 --repeats 1",
    "grpo_step": "--sites 2 --group 2 --new 4 --contexts 8 --steps 1 --threads 1",
}


@pytest.mark.parametrize("name", MINIATURES)
def test_the_last_line_is_json_with_a_verdict(name: str, repository: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *MINIATURES[name].split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert {"bars", "holds"} <= set(report)
