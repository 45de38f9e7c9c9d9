"""Any causal language model is a policy: families of `transformers`, with and without a chat template and marks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).parent.parent.parent
FAMILIES = (
    "qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "phi3", "gemma3_text", "olmo2", "gpt_neox", "gpt2", "opt",
)  # fmt: skip
MODES = {
    "instruct": "free",
    "instruct-marks": "tags",
    "instruct-marks-in-template": "tags",
    "base": "free",
    "base-marks": "tags",
}
"""The forms of `any_model_worker.FORMS`, and how a policy of each thinks."""
FAST = ("qwen2:instruct", "gpt2:base", "qwen3_moe:instruct-marks-in-template")
SLOW = [
    case
    for family in FAMILIES
    for case in (f"{family}:{form}" for form in MODES)
    if case not in FAST and (family == "qwen2" or case.endswith((":instruct", ":base-marks")))
]
"""With those of `FAST`, every family with and without a chat template, with and without marks."""


def trained(folder: Path, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the worker found, by case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.stages.any_model_worker", str(folder), *cases],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one.pop("case"): one for one in found}


def assert_trained(found: dict[str, Any], form: str) -> None:
    assert "error" not in found, found["error"]
    assert found["steps"] == [0, 1, 2], "a step, and one after it was resumed"
    assert found["probed"] == 12, "every site there is"
    assert len(found["trained"]) == 2 and min(found["trained"]) > 0 and found["moved"] > 1e-4
    assert found["sampler_gap"] < 1e-3 and found["engine_gap"] < 1e-3
    assert found["same_logits"], "what was exported is what was trained"
    assert found["thinking"] == MODES[form]
    assert found["prompt_end"].endswith("<think>\n") == (MODES[form] == "tags")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return trained(tmp_path_factory.mktemp("fast"), [*FAST, "colours:none"])


@pytest.mark.parametrize("case", FAST)
def test_any_family_trains_resumes_and_is_exported(fast: dict[str, dict[str, Any]], case: str) -> None:
    assert_trained(fast[case], case.partition(":")[2])


def test_a_policy_that_answers_at_once_is_rewarded_from_the_first_step(fast: dict[str, dict[str, Any]]) -> None:
    """It completes the box that `task.prefill` opens; what it was given is shown, not sampled."""
    found = fast["colours:none"]
    assert "error" not in found, found["error"]
    assert found["thinking"] == "none" and found["prompt_end"].endswith("<think>\n\n</think>\n\n\\boxed{")
    rollouts = pl.read_parquet(found["rollouts"])
    assert 0 < rollouts["reward"].sum() < len(rollouts)
    for row in rollouts.iter_rows(named=True):
        assert row["response"].startswith("\\boxed{")
        if row["reason"] == "match":
            assert row["response"].strip() == f"\\boxed{{{row['prediction'].decode()}}}"
        assert row["length"] == len(row["response_ids"]) <= 16
    assert found["trained"][0] <= rollouts["length"].sum()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return trained(tmp_path_factory.mktemp("slow"), SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_any_family_in_any_form(slow: dict[str, dict[str, Any]], case: str) -> None:
    assert_trained(slow[case], case.partition(":")[2])
