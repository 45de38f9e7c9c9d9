"""Worth: train one policy on several selections of a corpus, at equal sampled tokens, and say which is better.

A selection is an expression, a manifest, or an override of the recipe that changes how sites are drawn.

Input:   a recipe, and the shards of the selections (`materialize`), all of the same documents.
Output:  `runs/<recipe>-worth/`: one folder per part (runs, evaluations), `worth.json`, `report.md`, `report.html`,
         `curves.svg`.
Command: rpt worth RECIPE NAME=WHERE|MANIFEST|KEY=VALUE … --tokens N [--seeds K] [--see POINTS]

A study (`stages/study.py`) whose arms differ in their selection alone. It does not start unless it can see the
difference that is asked for (`pipeline/evaluation/study/worth.py`). Finished parts are not run again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.errors import RefusedError, UserError
from pipeline.config.loading import load
from pipeline.config.manifest import Manifest
from pipeline.config.recipe import Recipe
from pipeline.config.study import ArmConfig, StudyConfig
from pipeline.core.artifact import Record
from pipeline.core.progress import log
from pipeline.core.sealed import write_json
from pipeline.core.workspace import own_record
from pipeline.evaluation.held_out import choose_held_out
from pipeline.evaluation.study.jobs import run_jobs
from pipeline.evaluation.study.plan import BASE, arms_of, plan
from pipeline.evaluation.study.worth import Power, power_of, summarize_worth
from pipeline.evaluation.study.worth_report import write_report
from pipeline.shards.reader import ShardReader

NO_STOP = [f"budget.stop.{rule}=null" for rule in ("entropy", "probe_sites", "dead_reward_steps")]
"""A selection that teaches nothing is a result, not a reason to stop."""
OVERRIDE = re.compile(r"(sites|curriculum|objective)(\.\w+)*=(?!=)")
"""How an override of the recipe begins: only how sites are drawn, and what is learned from them, may differ."""


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how."""

    recipe: Path
    manifest: Path
    """Whose held-out sites measure all policies, and whose shards are those of a selection that is an expression."""
    rules: dict[str, str]
    """By name of the selection: an expression over the sites' columns, the path of a manifest, or `key=value`, an
    override of the recipe (`OVERRIDE`)."""
    tokens: int
    """Sampled tokens of each run."""
    band: str = "easy"
    """Band of held-out sites whose accuracy decides."""
    overrides: tuple[str, ...] = ()
    """`key=value` overrides of the recipe."""

    def manifest_of(self, name: str) -> Path:
        """Return the manifest whose shards a selection is trained on."""
        return Path(self.rules[name]) if _is_manifest(self.rules[name]) else self.manifest

    def study(self, seeds: int) -> StudyConfig:
        """Return the study that trains and evaluates the selections."""
        sampling = load(Recipe, self.recipe, self.overrides).rollout
        steps = math.ceil(self.tokens / (sampling.sites_per_step * sampling.group_size))  # a response has a token
        budget = [f"budget.sampled_tokens={self.tokens}", f"budget.steps={steps}"]
        arms = {name: ArmConfig(set=_overrides(rule)) for name, rule in self.rules.items()}
        return StudyConfig(
            name="worth",
            manifest=str(self.manifest),
            recipe=str(self.recipe),
            seeds=tuple(range(seeds)),
            set=(*self.overrides, *budget, *NO_STOP),
            reference=next(iter(self.rules)),
            arms=arms,
        )


def read_rules(words: Sequence[str]) -> dict[str, str]:
    """Return the rules by name, given `NAME=WHERE`, `NAME=MANIFEST` or `NAME=KEY=VALUE`.

    Raises:
        UserError: there are fewer than two, a word has another form, or a name is taken.
    """
    rules: dict[str, str] = {}
    for word in words:
        name, equals, rule = word.partition("=")
        if not equals or not rule.strip() or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            hint = """NAME=WHERE, NAME=MANIFEST.yaml or NAME=KEY=VALUE of the recipe, e.g. hard="entropy > 1.5" or \
foretold=sites.by=foretold; names have a-z, 0-9 and _"""
            raise UserError("not a selection", where=word, hint=hint)
        if name in rules or name == BASE:
            raise UserError(f"the name {name!r} is taken", where=word, hint="give each selection a name of its own")
        rules[name] = rule
    if len(rules) < 2:
        raise UserError("nothing to compare", where=" ".join(words), hint="give two selections or more")
    return rules


def plan_power(asked: Comparison, seeds: int | None, *, see: float, spread: float, work: Path) -> Power:
    """Return what the comparison will see, after a check of its selections.

    Args:
        asked: the comparison.
        seeds: runs of each selection; None: as many as it takes.
        see: difference to see, as a share.
        spread: assumed standard deviation of accuracy between seeds, as a share.
        work: folder of the data stages' artifacts.

    Raises:
        UserError: a selection has no shards, no site, or is one of other documents; or no held-out site is in the band.
        RefusedError: the comparison would not see the difference.
    """
    recipe, corpus = load(Recipe, asked.recipe, asked.overrides), load(Manifest, asked.manifest)
    shards = own_record(work / corpus.name, corpus, "materialize")
    for name, rule in asked.rules.items():
        load(Recipe, asked.recipe, (*asked.overrides, *_overrides(rule)))  # a wrong key fails before anything runs
        where = "true" if _is_manifest(rule) or OVERRIDE.match(rule) else rule
        _must_be_comparable(name, asked.manifest_of(name), where, shards, work)
    above = corpus.select.bands.model_dump()[asked.band]
    files = shards.files("validation")
    sites = choose_held_out(files, recipe.evaluate.where, recipe.evaluate.sites, recipe.seed) if files else []
    documents = [site.doc_id for site in sites if site.entropy > above]
    if not documents:
        hint = "hold out more documents with `corpus.validation`, or choose another --band"
        raise UserError(f"no held-out site is {asked.band}", where=shards.directory, hint=hint)
    power = power_of(np.array(documents), seeds, see=see, spread=spread)
    log(f"worth        {power.says()}")
    if power.detectable > see:
        more = f"--seeds {power.needed}" if power.needed else "more held-out sites, because seeds alone do not suffice"
        sees = math.ceil(1000 * power.detectable) / 10
        raise RefusedError(
            f"the comparison would not see {100 * see:g} points", hint=f"give {more}, or ask for less: --see {sees:g}"
        )
    return power


def worth(asked: Comparison, power: Power, *, work: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run the unfinished parts, write the report and return the content of `worth.json`.

    Args:
        asked: the comparison.
        power: what `plan_power` has found.
        work: folder of the data stages' artifacts.
        out: folder of the comparison.
        workers: number of commands to run at the same time.

    Raises:
        UserError: a part failed.
    """
    config = asked.study(power.seeds)
    runs = len(config.arms) * len(config.seeds)
    log(f"worth        {runs} runs of {asked.tokens:,} sampled tokens")
    manifests = {BASE: asked.manifest, **{name: asked.manifest_of(name) for name in asked.rules}}
    parts = plan(config, manifests, work)
    run_jobs(list(parts.values()), out, workers=workers)
    bands = load(Manifest, asked.manifest).select.bands
    found = summarize_worth(arms_of(config, parts, out), asked.rules, bands, power, asked.band, asked.tokens)
    (out / "worth.json").unlink(missing_ok=True)
    write_json(out / "worth.json", found)
    log(f"worth        {write_report(found, out)}")
    return found


def _is_manifest(rule: str) -> bool:
    return rule.endswith((".yaml", ".yml"))


def _overrides(rule: str) -> tuple[str, ...]:
    """Return the overrides of the recipe with which a selection's runs are made.

    Example:
        >>> _overrides("entropy > 1.5"), _overrides("sites.by=foretold"), _overrides("own.yaml")
        (('sites.where="entropy > 1.5"',), ('sites.by=foretold',), ())
    """
    if _is_manifest(rule):
        return ()
    return (rule,) if OVERRIDE.match(rule) else (f"sites.where={json.dumps(rule, ensure_ascii=False)}",)


def _must_be_comparable(name: str, manifest: Path, where: str, shards: Record, work: Path) -> None:
    """Check that a selection has sites to train on, of the documents that the others are of."""
    corpus = load(Manifest, manifest)
    own = own_record(work / corpus.name, corpus, "materialize")
    if own.inputs.get("documents") != shards.inputs.get("documents"):
        raise UserError(
            f"the selection {name!r} is one of other documents than the held-out sites",
            where=manifest,
            hint="selections are compared on one corpus, with one split: let their manifests differ in `select` alone",
        )
    ShardReader(own.files("train"), where)
