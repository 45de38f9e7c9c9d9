"""A run's folder made by hand: metrics, recipe, evaluation and rollouts, with texts that try to run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipeline.core.parquet import write_rows
from pipeline.grpo.rollout.rollouts import ROLLOUTS

HOSTILE_NAME = 'run"><script>window.pwned=1<'
"""A folder's name; a slash would make two of it."""


def metrics_row(step: int, **more: float) -> dict[str, float]:
    """A step of four groups of eight responses: `step` of 32 match, up to 16."""
    right = min(step, 16)
    return {
        "step": step,
        "reward/mean": right / 32,
        **{f"reward/{reason}": 0 for reason in ("off_boundary", "longer_than_continuation", "empty")},
        "reward/match": right,
        "reward/mismatch": 24 - right,
        "reward/missing": 5,
        "reward/unfinished": 3,
        "groups/zero_variance": 0.75,
        "policy/entropy": 1 / (1 + step),
        "response/length": 20 + step,
        "grad_norm": 0.5,
        "seconds/sample": 0.5,
        "seconds/score": 0.1,
        "seconds/update": 0.3,
        "seconds/sync": 0.1,
        "seconds/step": 1.0,
        "tokens/per_second": 640.0,
        **more,
    }


def accuracy(band: str, value: float) -> dict[str, float]:
    """A held-out evaluation of a band, with an interval of ± 0.1."""
    name = f"eval/{band}/reasoning"
    return {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}


def write_run(folder: Path, rows: Sequence[Mapping[str, Any]], *, steps: int = 40) -> Path:
    """A run that has taken the steps of `rows` out of `steps`."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "toy", "budget": {"steps": steps}}))
    append(folder, rows)
    return folder


def append(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to the metrics of a run, as training does."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(folder: Path, **direct: float) -> None:
    """What `rpt evaluate` leaves that the page reads: direct accuracy before training, by band."""
    accuracy = {band: {"value": value} for band, value in direct.items()} | {"medium": None}
    report = {
        "policies": ["before", "after"],
        "sets": {"headline": {"readings": {"direct before": {"accuracy": accuracy}}}},
    }
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(report))


HOSTILE_RESPONSES = (
    "</pre><script>window.pwned=2</script><img src=x onerror=window.pwned=3>",
    "right to left: \u202eevil\u202c and \x1b[31mred\x1b[0m \u200bzero width",
    "{{ 7*7 }} {% raw %}" + "A" * 30_000,
)


def rollout_row(step: int, site: str, sample: int, **more: Any) -> dict[str, Any]:
    """A rollout whose reward is 1 for even samples, and whose response names where it comes from."""
    right = sample % 2 == 0
    return {
        "step": step,
        "site_id": site,
        "band": "hard",
        "sample": sample,
        "prompt_ids": [1],
        "response_ids": [2, 3],
        "context": f"context of {site}",
        "response": f"step {step} at {site}, sample {sample}",
        "target": b" 4",
        "prediction": b" 4" if right else None,
        "reward": float(right),
        "reason": "match" if right else "missing",
        "advantage": 1.0 if right else -1.0,
        "finished": True,
        "length": 10 * step + sample,
        "importance": 1.0,
    } | more


def write_rollouts(folder: Path, step: int, rows: Sequence[Mapping[str, Any]], schema: pa.Schema = ROLLOUTS) -> Path:
    """A file of rollouts, as a step leaves it."""
    path = folder / "rollouts" / f"step-{step:06d}.parquet"
    path.parent.mkdir(exist_ok=True)
    write_rows(path, schema, rows)
    return path
