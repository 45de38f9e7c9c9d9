from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.errors import UserError

ROOT = Path(__file__).parent.parent.parent.parent
RANK = (
    "import time; time.sleep(1); from pipeline.grpo.run.launch import end_with_launcher; end_with_launcher(); print(1)"
)


def output_of(command: list[str]) -> str:
    """What a process and its orphans say until the last of them ends."""
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    return process.communicate(timeout=60)[0]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_rank_whose_launcher_died_before_it_looked_leaves() -> None:
    assert output_of(["sh", "-c", f"{sys.executable} -c '{RANK}' &"]) == ""
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}])"
    assert output_of([sys.executable, "-c", launcher]) == "1\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [("UserError('no', hint='yes')", "error: no (yes)"), ("OSError(errno.ENOSPC, 'no')", "error: the disk is full")],
)
def test_a_page_ends_with_its_exit_code(raised: str, said: str) -> None:
    page = (
        "import errno; from pipeline.config.errors import UserError; from pipeline.grpo.run.launch import run_to_exit\n"
    )
    page += f"def main():\n    raise {raised}\nrun_to_exit(main)"
    process = subprocess.run([sys.executable, "-c", page], capture_output=True, text=True, cwd=ROOT)
    output = process.stdout + process.stderr
    assert process.returncode == UserError.exit_code and said in output and "Traceback" not in output
