"""Trackers through their own clients, offline; each is skipped where its package is not installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.grpo.run.trackers import COLUMNS, audit_reports, read_examples, with_trackers

METRICS = {"reward/mean": 0.25, "loss": -0.5}


class Lines:
    """The log that is always there."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.lines.append((step, metrics))

    def close(self) -> None:
        self.closed = True


def recipe(*to: str) -> Recipe:
    tree = {"name": "toy", "policy": {"model": "none"}, "track": {"to": to, "project": "rpt-test"}}
    return Recipe.model_validate(tree)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder after its first step."""
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: toy\n")
    (folder / "run.json").write_text(json.dumps({"base": {"digest": "d"}, "commit": None}))
    values = {name: ["x", "y"] for name in COLUMNS} | {"step": [0, 0], "reward": [1.0, 0.0], "advantage": [1.0, -1.0]}
    values |= {"target": [b" 4", b"\xe6\x95"], "prediction": [b" 4", None], "length": [3, 4]}
    pl.DataFrame(values).select(COLUMNS).write_parquet(folder / "rollouts" / "step-000000.parquet")
    return folder


def write_two_steps(run: Path, *to: str) -> Lines:
    lines = Lines()
    log = with_trackers(lines, run, recipe(*to))
    for step in (0, 1):
        log.write(step, METRICS)
    log.close()
    return lines


def test_without_a_tracker_the_log_is_the_log(run: Path) -> None:
    lines = Lines()
    assert with_trackers(lines, run, recipe()) is lines


def test_examples_are_text(run: Path) -> None:
    rows = read_examples(run / "rollouts" / "step-000000.parquet")
    assert rows["target"].to_list() == [" 4", "\ufffd"] and rows["prediction"].to_list() == [" 4", None]


def test_no_audit_no_artifact(run: Path) -> None:
    assert list(audit_reports(run)) == []


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_one_that_is_missing_says_what_to_install(run: Path, name: str) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match=rf"pip install 'rpt\[{name}\]'"):
        with_trackers(Lines(), run, recipe(name))


def test_wandb(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    lines = write_two_steps(run, "wandb")
    assert [step for step, _ in lines.lines] == [0, 1] and lines.closed
    (written,) = run.glob("wandb/offline-run-*/run-*.wandb")
    data = written.read_bytes()
    for expected in (b"reward/mean", b"updates", b"rollouts", b"rpt-test"):
        assert expected in data, expected
    (table,) = run.glob("wandb/offline-run-*/files/media/table/rollouts*.table.json")
    assert json.loads(table.read_text())["columns"] == list(COLUMNS)


def test_mlflow(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    write_two_steps(run, "mlflow")
    first = (run / "mlflow-run").read_text()
    write_two_steps(run, "mlflow")
    client = mlflow.MlflowClient()
    assert (run / "mlflow-run").read_text() == first, "a resumed run goes on in the same tracked run"
    history = client.get_metric_history(first, "reward/mean")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.25)] * 2
    assert client.get_run(first).data.params["optimizer.lr"] == "1e-06"
    names = {file.path for file in client.list_artifacts(first)} | {
        file.path for file in client.list_artifacts(first, "rollouts")
    }
    assert {"recipe.yaml", "run.json", "rollouts/step-000001.json"} <= names


def test_trackio(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    write_two_steps(run, "trackio")
    written = [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    assert any(b"reward/mean" in path.read_bytes() for path in written), written
