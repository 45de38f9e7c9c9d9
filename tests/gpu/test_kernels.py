"""Kernels are compiled to machine code of GPUs; what they compute, Triton's interpreter shows in other tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_they_compile(repository: Path, tmp_path: Path) -> None:
    """In a process of its own: in this one Triton may have been told to interpret."""
    pytest.importorskip("triton", reason="triton is not installed: kernels for GPUs are not compiled")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.gpu.compile_kernels"]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 64
    assert [line for line in lines if " 0 bytes local" not in line] == []  # nothing is spilled
