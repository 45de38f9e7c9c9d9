"""Foretold sites in real runs: killed and resumed, and on two ranks, the same sites are drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from commands.plan.estimate import plan
from commands.plan.tables import tables
from pipeline.evaluation.foretold import forecasts_of, sentence
from pipeline.grpo.run.run_folder import latest_checkpoint, read_state
from tests.grpo.colours import metrics_of

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foretold")
    command = [sys.executable, "-m", "tests.stages.foretold_worker", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (folder / "told.txt").write_text(done.stderr, encoding="utf-8")
    return folder


def rollouts(run: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(file) for file in sorted((run / "rollouts").iterdir())]


def test_a_killed_run_draws_what_it_would_have_drawn(runs: Path) -> None:
    calm, disturbed = metrics_of(runs / "calm"), metrics_of(runs / "disturbed")
    assert [row["step"] for row in calm] == list(range(8))
    assert calm == disturbed, "bit for bit"
    for one, other in zip(rollouts(runs / "calm"), rollouts(runs / "disturbed"), strict=True):
        assert one.equals(other)


def test_sites_are_foretold_from_the_runs_own_groups(runs: Path) -> None:
    rows = metrics_of(runs / "calm")
    assert "foretold/expected" not in rows[1] and all("foretold/brier" in row for row in rows[-2:])
    first, *_, last = rollouts(runs / "calm")
    highest = (0.8 + 0.2 * 16 / 64) * 64 / 16  # 16 of 64 candidates are drawn
    assert set(first["importance"]) == {1.0}
    assert {round(value, 3) for value in last["importance"]} <= {0.2, round(highest, 3)}
    assert max(last["importance"]) == pytest.approx(highest)
    checkpoint = latest_checkpoint(runs / "calm")
    assert checkpoint and len(read_state(checkpoint)["outcomes"]) == 7 * 16


def test_the_run_and_the_plan_say_how_the_forecasts_came_true(runs: Path) -> None:
    """The checkpoint's groups against the means of each step in the metrics."""
    found, rows = forecasts_of(runs / "calm"), metrics_of(runs / "calm")
    assert found
    foretold = [row for row in rows if "foretold/expected" in row]
    assert found["groups"] == 16 * len(foretold) and (found["first"], found["last"]) == (7 - len(foretold), 6)
    for ours, metric in ((found["expected"], "expected"), (found["observed"]["value"], "observed")):
        assert ours == pytest.approx(sum(row[f"foretold/{metric}"] for row in foretold) / len(foretold))
    assert found == forecasts_of(runs / "disturbed")
    told = " ".join((runs / "told.txt").read_text(encoding="utf-8").split())
    assert f"train forecasts: {sentence(found)}" in told
    planned = plan(runs / "recipe.yaml", run=runs / "calm")
    assert planned["foretold"] == found and len(tables(planned)) == 2
    assert plan(runs / "recipe.yaml", run=runs / "none")["foretold"] is None
    assert "foretold" not in plan(runs / "recipe.yaml", ["sites.by=uniform"])


@pytest.mark.slow
def test_two_ranks_draw_the_sites_of_one(runs: Path) -> None:
    rpt = [
        sys.executable,
        "-m",
        "commands.cli",
        "train",
        "recipe.yaml",
        "--work",
        "work",
        "--run",
        "two",
        "--ranks",
        "2",
    ]
    done = subprocess.run(rpt, cwd=runs, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    columns = ["step", "site_id", "sample", "response", "importance"]
    for one, two in zip(rollouts(runs / "calm"), rollouts(runs / "two"), strict=True):
        assert one.select(columns).sort(columns).equals(two.select(columns).sort(columns))
