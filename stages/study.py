"""Study: train several variants (arms) from one policy over several seeds and report which of the paper's claims hold.

Input:   a study (recipes/study-demo.yaml), its manifest and recipes.
Output:  `runs/<study>/`: one folder per part (runs, evaluations), `study.json`, `report.md`, `report.html`, pictures.
Command: rpt study STUDY [--quick] [--workers N]

Every part is one `rpt` command in a folder of its own. Finished parts are not run again, so a killed study resumes.
Every figure of the report is computed from the responses that evaluations saved (`responses.parquet`,
`answers.parquet`) and from runs' `metrics.jsonl`; verdicts follow stated rules (`pipeline/evaluation/claims.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.base import canonical_json
from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.study import ArmConfig, StudyConfig
from pipeline.core.artifact import content_hash
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.progress import PART, log
from pipeline.core.sealed import write_json
from pipeline.core.workspace import own_record
from pipeline.evaluation.jobs import Job, run_jobs
from pipeline.evaluation.study import Arm, summarize_study
from pipeline.evaluation.study_report import write_report

BASE = "base"
"""Name of the untrained policy in the report."""


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
    if subprocess.run([sys.executable, *words], env=os.environ | {PART: "1"}).returncode:
        raise UserError("a command of the study failed", where=" ".join(words), hint="see the output above")


def plan(config: StudyConfig, manifests: dict[str, Path], work: Path) -> dict[str, Job]:
    """Return all parts by name (`<arm>-<seed>`, `<arm>-<seed>-rlvr`, `<arm>-evaluation`), dependencies first."""
    recipe, policy = Path(config.recipe), load(Recipe, Path(config.recipe)).policy
    base = resolve_model(policy.model, policy.revision)
    known = {"policy": model_digest(base)}
    read = {name: load(Manifest, path) for name, path in manifests.items()}
    shards = {name: own_record(work / corpus.name, corpus, "materialize") for name, corpus in read.items()}
    parts: dict[str, Job] = {}
    asked = _questions(config)

    def add(
        name: str,
        words: Sequence[str],
        places: Sequence[str],
        needs: Sequence[str],
        own: Recipe,
        decides: dict[str, str],
    ) -> None:
        """Add a part. `places` are paths and overrides; the overrides that decide the result are in `own` too."""
        decides = known | {"recipe": canonical_json(own.identity())} | decides
        everywhere = (*places, "--work", str(work), "--run", "{out}")
        parts[name] = Job(name, tuple(words), tuple(parts[need] for need in needs), decides, everywhere)

    for name, arm in _in_order(config.arms):
        for seed in config.seeds:
            needs = [f"{other}-{seed}" for other in dict.fromkeys((arm.compute_of, arm.imitates)) if other]
            words: list[str] = [arm.command]
            words += ["--flops-of", f"{{{arm.compute_of}-{seed}}}"] if arm.compute_of else []
            words += ["--rollouts", f"{{{arm.imitates}-{seed}}}"] if arm.imitates else []
            own = [*config.set, *arm.set, f"seed={seed}"]
            places = [str(recipe), "--manifest", str(manifests[name]), *_set(own)]
            made_from = {"shards": shards[name].content}
            add(f"{name}-{seed}", words, places, needs, load(Recipe, recipe, own), made_from)

    for name, arm in {BASE: ArmConfig(finetune=bool(config.finetune)), **config.arms}.items():
        runs = [f"{name}-{seed}" for seed in config.seeds if name in config.arms]
        words = ["evaluate", *(word for run in runs for word in ("--policy", f"{run}={{{run}}}/policy"))]
        places = [str(recipe), "--manifest", config.manifest, *_set(config.set)]
        places += [] if runs else ["--policy", f"{BASE}={base}"]
        made_from = {"shards": shards[BASE].content}
        add(f"{name}-evaluation", words, places, runs, load(Recipe, recipe, config.set), made_from)
        if not arm.finetune or config.finetune is None:
            continue
        for seed in config.seeds:
            own = [*config.finetune_set, f"seed={seed}"]
            start = [run for run in runs if run == f"{name}-{seed}"]
            words = ["finetune", *(word for run in start for word in ("--policy", f"{{{run}}}/policy"))]
            places = [config.finetune, "--manifest", config.manifest, *_set(own)]
            places += [] if start else ["--policy", str(base)]
            tuned = load(Recipe, Path(config.finetune), own)
            add(f"{name}-{seed}-rlvr", words, places, start, tuned, {"questions": asked})
    return parts


def _questions(config: StudyConfig) -> str:
    """Return what identifies the questions of `finetune`: the content of a local file, or the address."""
    questions = load(Recipe, Path(config.finetune)).questions if config.finetune else None
    if questions is None:
        return ""
    source = Path(questions.source)
    return content_hash(source) if source.is_file() else questions.source


def _in_order(arms: dict[str, ArmConfig]) -> list[tuple[str, ArmConfig]]:
    """Return the arms, each after those whose runs it needs."""
    return sorted(arms.items(), key=lambda item: bool(item[1].compute_of or item[1].imitates))


def _set(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def arms_of(config: StudyConfig, parts: dict[str, Job], out: Path) -> list[Arm]:
    """Return for each arm the folders from which the report reads responses, answers and metrics."""
    return [
        Arm(
            name,
            evaluation=parts[f"{name}-evaluation"].folder(out) / "evaluation",
            runs=[parts[f"{name}-{seed}"].folder(out) for seed in config.seeds if name in config.arms],
            finetuned=[
                parts[f"{name}-{seed}-rlvr"].folder(out) for seed in config.seeds if f"{name}-{seed}-rlvr" in parts
            ],
        )
        for name in (BASE, *config.arms)
    ]


def default_workers() -> int:
    """Return one command per core, at most 4: toy models use one core better than two."""
    return min(4, os.cpu_count() or 1)
