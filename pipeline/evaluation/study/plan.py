"""The parts of a study, each one `rpt` command in a folder of its own, and where its report finds what they wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.base import canonical_json
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.study import LARGER, ArmConfig, StudyConfig
from pipeline.core.artifact import content_hash
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.workspace import own_record
from pipeline.evaluation.study.jobs import Job
from pipeline.evaluation.study.summary import Arm

BASE = "base"
"""Name of the untrained policy in the report."""


def plan(config: StudyConfig, manifests: dict[str, Path], work: Path) -> dict[str, Job]:
    """Return all parts by name (`<arm>-<seed>`, `<arm>-<seed>-rlvr`, `<arm>-evaluation`), dependencies first."""
    recipe = Path(config.recipe)
    policy = load(Recipe, recipe, config.set).policy
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

    untrained = {BASE: str(base)} | ({LARGER: str(resolve_model(config.larger, None))} if config.larger else {})
    for name, arm in {BASE: ArmConfig(finetune=bool(config.finetune)), **config.arms, **_larger(config)}.items():
        runs = [f"{name}-{seed}" for seed in config.seeds if name in config.arms]
        words = ["evaluate", *(word for run in runs for word in ("--policy", f"{run}={{{run}}}/policy"))]
        places = [str(recipe), "--manifest", config.manifest, *_set(config.set)]
        places += [] if runs else ["--policy", f"{name}={untrained[name]}"]
        made_from = {"shards": shards[BASE].content}
        made_from |= {LARGER: model_digest(Path(untrained[name]))} if name == LARGER else {}
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


def _larger(config: StudyConfig) -> dict[str, ArmConfig]:
    return {LARGER: ArmConfig()} if config.larger else {}


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
        for name in (BASE, *config.arms, *_larger(config))
    ]
