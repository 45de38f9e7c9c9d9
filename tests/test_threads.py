"""Tests compute with as many threads as the programs they start: the number of threads changes how sums are rounded."""

from __future__ import annotations

import subprocess
import sys

import torch


def test_no_module_of_tests_changes_the_number_of_threads() -> None:
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    assert torch.get_num_threads() == int(subprocess.run(command, capture_output=True, check=True).stdout)
