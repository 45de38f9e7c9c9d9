"""Experiment trackers, each through its own client: metrics, configuration, example rollouts, the audit report.

`metrics.jsonl` and TensorBoard are always written (`run_folder.MetricsLog`); these are asked for in the recipe:

    track: {to: [wandb, mlflow], project: my-project}

Where a tracker sends is its own business, by its own environment variables (`WANDB_MODE=offline`,
`MLFLOW_TRACKING_URI`, `TRACKIO_DIR`, …). A resumed run goes on in the same tracked run.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import read_record

EXAMPLES = 32
"""Responses of a step that go into a table of rollouts."""
COLUMNS = ("step", "site_id", "context", "response", "target", "prediction", "reward", "reason", "advantage", "length")


class Log(Protocol):
    """The log that a training loop writes to."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics measured after `step` updates."""

    def close(self) -> None:
        """Finish and release the client."""


class Tracker(Protocol):
    """A tracker's client, opened on one run."""

    def __init__(self, run: Path, recipe: Recipe, identity: str) -> None: ...

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics measured after `step` updates."""

    def table(self, step: int, rows: pl.DataFrame) -> None:
        """Log example rollouts of a step."""

    def artifact(self, file: Path) -> None:
        """Attach a file to the run."""

    def close(self) -> None:
        """Finish and release the client."""


def with_trackers(log: Log, run: Path, recipe: Recipe) -> Log:
    """Return `log` together with the trackers that the recipe names; `run.json` must exist.

    Raises:
        UserError: a tracker is not installed; the message says what to install.
    """
    if not recipe.track.to:
        return log
    identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
    trackers = [TRACKERS[name](run, recipe, identity) for name in recipe.track.to]
    for file in (run / "recipe.yaml", run / "run.json", *audit_reports(run)):
        for tracker in trackers:
            tracker.artifact(file)
    return _Tracked(log, run, trackers)


class _Tracked:
    """A log that writes to several."""

    def __init__(self, log: Log, run: Path, trackers: list[Tracker]) -> None:
        self._log, self._run, self._trackers = log, run, trackers

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics measured after `step` updates."""
        self._log.write(step, metrics)
        written = self._run / "rollouts" / f"step-{step - 1:06d}.parquet"
        rows = read_examples(written) if written.is_file() else None
        for tracker in self._trackers:
            tracker.metrics(step, metrics)
            if rows is not None:
                tracker.table(step, rows)

    def close(self) -> None:
        """Finish and release the client."""
        self._log.close()
        for tracker in self._trackers:
            tracker.close()


def read_examples(rollouts: Path) -> pl.DataFrame:
    """Return the first responses of a step, as text."""
    rows = pl.read_parquet(rollouts, columns=list(COLUMNS), n_rows=EXAMPLES)
    readable = [pl.col(name).map_elements(_text, return_dtype=pl.String) for name in ("target", "prediction")]
    return rows.with_columns(readable)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def audit_reports(run: Path) -> Iterator[Path]:
    """Return `report.html` and `audit.json` of the selection that the run is trained on, if they exist."""
    about = json.loads((run / "run.json").read_text(encoding="utf-8"))
    shards = Path(about["shards"]["directory"]) if "shards" in about else run
    record, work = read_record(shards), shards.parent.parent
    for selection in sorted(work.glob("select/*/record.json")) if record else ():
        made = read_record(selection.parent)
        if record and made and made.content == record.inputs.get("sites"):
            folder = work / "audit" / made.fingerprint
            yield from (folder / name for name in ("report.html", "audit.json") if (folder / name).is_file())


def _client(name: str, extra: str) -> Any:
    """Import and return a tracker's package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"`track.to` names {extra}, which is not installed", hint=f"pip install 'rpt[{extra}]'"
        ) from error


class WandbTracker:
    """Weights & Biases."""

    def __init__(self, run: Path, recipe: Recipe, identity: str) -> None:
        self._wandb = _client("wandb", "wandb")
        self._run = self._wandb.init(
            project=recipe.track.project,
            name=run.name,
            id=identity,
            resume="allow",
            dir=run,
            config=recipe.model_dump(mode="json"),
        )
        self._run.define_metric("*", step_metric="updates")

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics measured after `step` updates."""
        self._run.log({"updates": step, **metrics})

    def table(self, step: int, rows: pl.DataFrame) -> None:
        """Log example rollouts of a step."""
        self._run.log({"updates": step, "rollouts": self._wandb.Table(columns=rows.columns, data=rows.rows())})

    def artifact(self, file: Path) -> None:
        """Attach a file to the run."""
        artifact = self._wandb.Artifact(f"{self._run.id}-{file.stem}", type="report")
        artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Finish and release the client."""
        self._run.finish()


class TrackioTracker:
    """trackio, whose client has the calls of Weights & Biases; it keeps no files, so that artifacts go in as text."""

    def __init__(self, run: Path, recipe: Recipe, identity: str) -> None:
        self._trackio = _client("trackio", "trackio")
        name = f"{run.name}-{identity[:6]}"
        config = recipe.model_dump(mode="json")
        self._run = self._trackio.init(project=recipe.track.project, name=name, resume="allow", config=config)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics measured after `step` updates."""
        self._trackio.log(dict(metrics), step=step)

    def table(self, step: int, rows: pl.DataFrame) -> None:
        """Log example rollouts of a step."""
        self._trackio.log(
            {"rollouts": self._trackio.Table(columns=rows.columns, data=[list(row) for row in rows.rows()])}, step=step
        )

    def artifact(self, file: Path) -> None:
        """Attach a file to the run."""
        self._trackio.log({f"file/{file.name}": file.read_text(encoding="utf-8")})

    def close(self) -> None:
        """Finish and release the client."""
        self._trackio.finish()


class MlflowTracker:
    """MLflow. Parameters are the recipe's leaves, `optimizer.lr` and so on."""

    def __init__(self, run: Path, recipe: Recipe, identity: str) -> None:
        self._mlflow = _client("mlflow", "mlflow")
        self._mlflow.set_experiment(recipe.track.project)
        remembered = run / "mlflow-run"
        before = remembered.read_text() if remembered.exists() else None
        self._run = self._mlflow.start_run(run_id=before, run_name=run.name, tags={"rpt.run": identity})
        remembered.write_text(self._run.info.run_id)
        if before is None:
            self._mlflow.log_params(dict(leaves(recipe.model_dump(mode="json"))))

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics measured after `step` updates."""
        self._mlflow.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)

    def table(self, step: int, rows: pl.DataFrame) -> None:
        """Log example rollouts of a step."""
        self._mlflow.log_dict({name: rows[name].to_list() for name in rows.columns}, f"rollouts/step-{step:06d}.json")

    def artifact(self, file: Path) -> None:
        """Attach a file to the run."""
        self._mlflow.log_artifact(str(file))

    def close(self) -> None:
        """Finish and release the client."""
        self._mlflow.end_run()


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree with dotted names.

    Example:
        >>> dict(leaves({"a": {"b": 1}, "c": [2]}))
        {'a.b': 1, 'c': [2]}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


TRACKERS: Mapping[str, type[Tracker]] = {"wandb": WandbTracker, "trackio": TrackioTracker, "mlflow": MlflowTracker}
"""By the names of `track.to`."""
