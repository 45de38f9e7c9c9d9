"""What a newcomer reads: `rpt train` and `rpt evaluate`, piped, on a tiny policy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.grpo.colours import make_policy, publish_shards, write_manifest, write_recipe

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The lines of both commands, standard output and error in the order in which they were printed."""
    folder = tmp_path_factory.mktemp("first")
    policy = make_policy(folder / "policy")
    publish_shards(folder / "work", policy)
    write_recipe(folder / "recipe.yaml", policy, data="manifest.yaml")
    write_manifest(folder / "manifest.yaml", policy)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment.pop("COLUMNS", None)
    told = []
    for command in ("train", "evaluate"):
        done = subprocess.run(
            [sys.executable, "-m", "commands.cli", command, "recipe.yaml"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        # How often a line of progress comes depends on the machine.
        told.append([line for line in done.stdout.splitlines() if not re.search(r" \d+ of \d+ sites", line)])
    return told


def test_both_fit_a_screen_and_no_line_is_wide(printed: list[list[str]]) -> None:
    train, evaluate = printed
    assert len(train) + len(evaluate) <= 55, "with the 35 of `rpt data` at most 90"
    assert max(map(len, train + evaluate)) <= 100
    assert not any("\x1b" in line for line in train + evaluate)


def test_accuracy_is_told_at_the_steps_that_measured_it(printed: list[list[str]]) -> None:
    train, _ = printed
    measured = [line.split()[1] for line in train if line.startswith("step") and "held-out accuracy" in line]
    assert measured == ["0/6", "2/6", "4/6", "6/6"]
    steps = [line for line in train if line.startswith("step") and "held-out" not in line]
    assert steps and all(" taught " in line and " grad " in line and " s/step " in line for line in steps)
    assert sum("response  " in line for line in train) >= len(measured), "a response at every evaluation"


def test_the_last_lines_say_what_was_learned_and_what_to_open(printed: list[list[str]]) -> None:
    train, evaluate = printed
    assert train[-1].startswith("next: rpt evaluate recipe.yaml")
    assert evaluate[-1].startswith("next: open runs/colours/evaluation/report.html")
    last = "\n".join(evaluate[-10:])
    assert "rose with training" in last and "No clear change: " in last and "without thinking" in last
    measured = [line for line in train if re.match("step [06]/6 .*held-out", line)]
    first, last = (re.findall(r"hard ([0-9.]+) %", line)[0] for line in measured)
    ending = "\n".join(train[-10:])
    assert re.search(r"^train        reward 0\.\d+ → [01]\.\d+ in 6 steps$", ending, re.MULTILINE)
    assert re.search(rf"^train        held-out accuracy: .*hard {first} → {last} %$", ending, re.MULTILINE)
    assert "curves and rollouts: rpt board runs/colours" in ending
    for lines in printed:
        assert sum(line.startswith("next:") for line in lines) == 1
