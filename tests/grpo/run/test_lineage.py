"""Where a policy comes from: the run that trained it, and what that took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from pipeline.grpo.run.flops import flops_of
from pipeline.grpo.run.lineage import described, origin_of
from pipeline.grpo.run.metrics import read_metrics

BASE = {"model": "some/base", "revision": None, "digest": "d", "read_from": "/base"}


def write_run(run: Path) -> Path:
    """A warm-up of two steps; returns its policy."""
    (run / "policy").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"command": "warmup", "base": BASE}))
    rows = [
        {"step": 0, "compute/tokens": 0, "compute/flops": 0.0, "compute/seconds": 0.0},
        {"step": 1, "examples": 7, "compute/tokens": 50, "compute/flops": 1e9, "compute/seconds": 2.0},
        {"step": 2, "examples": 5, "compute/tokens": 90, "compute/flops": 2e9, "compute/seconds": 3.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run / "policy"


def test_a_policy_of_a_run_is_known_with_its_cost(tmp_path: Path) -> None:
    found = origin_of(write_run(tmp_path / "w"))
    assert found == {
        "command": "warmup",
        "run": str(tmp_path / "w"),
        "base": BASE,
        "steps": 2,
        "examples": 12,
        "tokens": 90,
        "flops": 2e9,
        "seconds": 3.5,
    }
    assert described(found) == f"rpt warmup: 12 examples, 90 tokens learned, 2.00e+09 FLOPs  {tmp_path / 'w'}"


def test_a_line_that_a_killed_run_did_not_finish_counts_for_nothing(tmp_path: Path) -> None:
    policy = write_run(tmp_path / "w")
    whole, path = origin_of(policy), tmp_path / "w" / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 3, "examples": 5, "compute/fl')
    assert origin_of(policy) == whole is not None
    assert flops_of(tmp_path / "w") == 2e9
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
    path.write_text('{"step": 0')
    with pytest.raises(UserError, match="no run whose compute was counted"):
        flops_of(tmp_path / "w")


@pytest.mark.parametrize("damage", ["{", "[]", '{"command": "warmup"}', '{"base": {}}', "null"])
def test_any_other_folder_is_no_run(tmp_path: Path, damage: str) -> None:
    assert origin_of(tmp_path / "model") is None
    policy = write_run(tmp_path / "w")
    (tmp_path / "w" / "run.json").write_text(damage)
    assert origin_of(policy) is None
    policy = write_run(tmp_path / "x")
    (tmp_path / "x" / "metrics.jsonl").write_text("")
    assert origin_of(policy) is None, "it has taken no step"
