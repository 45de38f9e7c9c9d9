"""Study: train several variants (arms) from one policy over several seeds and report which of the paper's claims hold.

Input:   a study (recipes/study-demo.yaml), its manifest and recipes.
Output:  `runs/<study>/`: one folder per part (runs, evaluations), `study.json`, `report.md`, `report.html`, pictures.
Command: rpt study STUDY [--quick] [--workers N]

Every part is one `rpt` command in a folder of its own. Finished parts are not run again, so a killed study resumes.
Every figure of the report is computed from the responses that evaluations saved (`responses.parquet`,
`answers.parquet`) and from runs' `metrics.jsonl`; verdicts follow stated rules (`pipeline/evaluation/study/claims.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.study import StudyConfig
from pipeline.core.progress import PART, log
from pipeline.core.sealed import write_json
from pipeline.evaluation.study.jobs import Commands, run_jobs
from pipeline.evaluation.study.plan import BASE, arms_of, plan
from pipeline.evaluation.study.report import write_report
from pipeline.evaluation.study.summary import summarize_study


def read_study(path: Path, overrides: Sequence[str], *, quick: bool) -> StudyConfig:
    """Read the study, or its quick variant, and check every manifest and recipe that it uses.

    Raises:
        UserError: a key or value of the study, or of a recipe with its overrides, is invalid.
    """
    config = load(StudyConfig, path, overrides)
    if quick:
        config = load(StudyConfig, path, [*config.quick, *overrides])
    load(Manifest, Path(config.manifest))
    for arm in config.arms.values():
        load(Recipe, Path(config.recipe), [*config.set, *arm.set])
        load(Manifest, Path(config.manifest), arm.manifest)
    if config.finetune:
        load(Recipe, Path(config.finetune), config.finetune_set)
    return config


def study(config: StudyConfig, *, work: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run the unfinished parts, write the report and return the content of `study.json`.

    Args:
        config: the study.
        work: folder of the data stages' artifacts.
        out: the study's folder.
        workers: number of commands to run at the same time.

    Raises:
        UserError: a part failed.
    """
    manifests = prepare_data(config, work, out)
    parts = plan(config, manifests, work)
    run_jobs(list(parts.values()), out, workers=workers)
    recipe = load(Recipe, Path(config.recipe), config.set)
    bands = load(Manifest, Path(config.manifest)).select.bands
    found = summarize_study(config, arms_of(config, parts, out), recipe, bands)
    (out / "study.json").unlink(missing_ok=True)
    write_json(out / "study.json", found)
    log(f"study        {write_report(found, out)}")
    return found


def prepare_data(config: StudyConfig, work: Path, out: Path) -> dict[str, Path]:
    """Bring all shards and questions up to date, and return the manifest of each arm and of the base."""
    paths = {BASE: Path(config.manifest)}
    for name, arm in config.arms.items():
        paths[name] = paths[BASE]
        if arm.manifest:
            own = load(Manifest, paths[BASE], arm.manifest)
            tree = own.model_dump(mode="json", exclude_none=True) | {"name": f"{own.name}-{name.replace('_', '-')}"}
            paths[name] = out / "manifests" / f"{name}.yaml"
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            paths[name].write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for path in dict.fromkeys(paths.values()):
        _call("-m", "commands.cli", "data", str(path), "--work", str(work))
    for module in config.prepare:
        _call("-m", module)
    return paths


def _call(*words: str) -> None:
    """Run a Python command; its output goes to the terminal."""
    with Commands() as commands:
        code = commands.run([sys.executable, *words], None, os.environ | {PART: "1"})
    if code:
        raise UserError("a command of the study failed", where=" ".join(words), hint="see the output above")
