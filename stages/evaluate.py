"""Evaluate: held-out sites and policies → next-token accuracy, predicted directly and by reasoning.

Input:   the `validation` shards of materialize; the policies, as `transformers` folders; the run's `metrics.jsonl`.
Output:  in `runs/<recipe>/evaluation/`: `report.html`, `evaluation.json`, `evaluation.md`, `responses.parquet` (each
         policy's answer at each site), `accuracy.png` and `.svg` (accuracy over training steps), `scaling.svg` (over
         compute); a table and what rose, or the whole report, on standard output.
Command: rpt evaluate RECIPE [--manifest MANIFEST] [--policy NAME=FOLDER …]

Every policy predicts in two ways at the same sites: *direct* takes the most likely next token after the bare context,
*reasoning* samples a response to the prompt; with `evaluate.samples`, several responses as well. *hybrid* thinks only
where a gate says so, which was fitted on other documents (`pipeline/evaluation/gate.py`). Accuracy is reported
for the sites that match `evaluate.where` and for all validation sites, by nested difficulty band, field, token class
and declared metadata, with intervals clustered by document. Keywords in the thoughts of the first and the last policy
are compared as well (Figure 6 of the paper).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.audit.evaluation.files import PAGE, print_report, write_page, write_report
from pipeline.config.errors import IntegrityError
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import Record, fingerprint, published_record
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.progress import log
from pipeline.core.sealed import write_json
from pipeline.evaluation.accuracy import summarize
from pipeline.evaluation.difficulty import banded_by
from pipeline.evaluation.examples import examples
from pipeline.evaluation.foretold import forecasts_of
from pipeline.evaluation.held_out import HeldOut, held_out
from pipeline.evaluation.hybrid import Gated, hybrids_of, summarize_hybrid
from pipeline.evaluation.patterns import compare_patterns
from pipeline.evaluation.policies import WARM_UP, before_and_after, named_policies, read_policies, warm_up_of
from pipeline.evaluation.predictions import Prediction, Predictions, Samples
from pipeline.evaluation.responses import write_responses
from pipeline.evaluation.scaling import scaling_of
from pipeline.grpo.rollout.prompt import PromptText, prompts_of
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.spec import RunSpec
from pipeline.task.templates import template_of

VERSION = 10


def evaluate(
    policies: Mapping[str, Path],
    recipe: Recipe,
    manifest_bands: BandsConfig,
    shards: Record,
    *,
    out: Path,
    run: Path | None = None,
    metrics: Path | None = None,
    published: Mapping[str, Any] | None = None,
    full: bool = False,
) -> dict[str, Any]:
    """Evaluate every policy at the same held-out sites, write the report and print it.

    Args:
        policies: `transformers` folders by name; the others are compared with the first (`before`, `after`).
        recipe: its `evaluate`, `task`, `seed`, `rollout.max_new_tokens` and `policy.dtype` are used.
        manifest_bands: thresholds of the difficulty bands.
        shards: record of `materialize`.
        out: folder to write to. If it already holds an evaluation of the same inputs, that one is printed again.
        run: the evaluated run, whose stored prompt is used again (see `prompts_of`).
        metrics: JSON lines of the training run, for the plots.
        published: rows of the paper to print beside the measured ones.
        full: print the whole report.

    Returns:
        The report, as in `evaluation.json`.

    Raises:
        UserError: there is no held-out site, none matches `evaluate.where`, or a policy cannot be loaded.
    """
    recipe = with_dtype(recipe, "evaluate", run)
    other, revision = recipe.evaluate.bands_by, recipe.evaluate.bands_by_revision
    bands_by = resolve_model(other, revision) if other else None
    prompts = prompts_of(policies, recipe.task, run)
    identity = _identity(policies, recipe, manifest_bands, shards, bands_by, prompts)
    done = out / "evaluation.json"
    if done.exists() and (report := json.loads(done.read_text(encoding="utf-8")))["fingerprint"] == identity:
        log(f"evaluate     up to date  {out}")
        if not (out / PAGE).exists():
            write_page(report, metrics, out)
        print_report(report, out, full=full)
        return report

    held = held_out(shards, recipe)
    if bands_by:
        held = replace(held, sites_N=banded_by(bands_by, held.sites_N, recipe))
    longest = shards.config["max_context_tokens"]
    readings, samples = read_policies(policies, recipe, prompts, held.sites_N, longest)
    gates = hybrids_of(readings, list(policies), held.sites_N)
    report = {
        "recipe": recipe.name,
        "fingerprint": identity,
        "policies": list(policies),
        **_settings(recipe),
        "thinking": {name: prompt.thinking.mode for name, prompt in prompts.items()},
        "warm_up": warm_up_of(run) if run and WARM_UP in policies else None,
        "published": published,
        "foretold": _forecasts(run) if run else None,
        "scaling": scaling_of([metrics], list(manifest_bands.model_dump())) if metrics and metrics.exists() else {},
        "patterns": _patterns(held, readings, list(policies)),
        "gates": {name: found.about() for name, found in gates.items()},
        "sets": {
            name: _summary(name, held, list(policies), readings, samples, gates, manifest_bands, recipe)
            for name in held.sets
        },
        "examples": examples(held.sites_N, next(iter(held.sets.values())), readings, list(policies), recipe.seed),
    }
    out.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)  # written last: while it is missing, the other files may be from another evaluation
    write_responses(out / "responses.parquet", held.sites_N, held.classes_N, held.sets, _answers(readings, samples))
    write_report(report, metrics, out)
    write_json(done, report)
    print_report(report, out, full=full)
    return report


def _forecasts(run: Path) -> dict[str, Any] | None:
    """Return how the run's forecasts came true; None if it made none, or its checkpoint cannot be read."""
    try:
        return forecasts_of(run)
    except IntegrityError as error:
        log(f"evaluate     the report leaves out how the forecasts came true: {error}")
        return None


def _summary(
    name: str,
    held: HeldOut,
    policies: list[str],
    readings: Mapping[str, Predictions],
    samples: Mapping[str, Samples],
    gates: Mapping[str, Gated],
    bands: BandsConfig,
    recipe: Recipe,
) -> dict[str, Any]:
    """Return what the report says of one set of sites."""
    chosen = held.sets[name]
    entropies = [site.entropy for site in held.sites_N]
    return summarize(
        [held.sites_N[i] for i in chosen],
        [held.classes_N[i] for i in chosen],
        {column: [labels[i] for i in chosen] for column, labels in held.labels.items()},
        {key: reading.at(chosen) for key, reading in readings.items()},
        {policy: drawn.at(chosen) for policy, drawn in samples.items()},
        policies,
        bands,
        recipe.evaluate.where if name == "headline" else "true",
    ) | {"hybrid": {policy: summarize_hybrid(gate, entropies, bands, chosen) for policy, gate in gates.items()}}


def _patterns(held: HeldOut, readings: Mapping[str, Predictions], policies: list[str]) -> dict[str, Any] | None:
    """Return the patterns in the thoughts of the first and the last policy at the first set of sites (Figure 6)."""
    first, last = policies[0], policies[-1]
    if first == last:
        return None
    chosen = next(iter(held.sets.values()))
    after, before = (
        [answer.response.decode(errors="replace") for answer in readings[f"reasoning {name}"].at(chosen).answers_N]
        for name in (last, first)
    )
    groups = compare_patterns(after, before, [held.sites_N[i].doc_id for i in chosen])
    return {"before": first, "after": last, "groups": groups}


def _identity(
    policies: Mapping[str, Path],
    recipe: Recipe,
    bands: BandsConfig,
    shards: Record,
    bands_by: Path | None,
    prompts: Mapping[str, PromptText],
) -> str:
    """Return the fingerprint of everything that decides the figures of an evaluation."""
    return fingerprint(
        "evaluate",
        VERSION,
        {
            "recipe": {key: recipe.identity()[key] for key in ("evaluate", "task", "seed", "name")},
            "max_new_tokens": recipe.rollout.max_new_tokens,
            "dtype": recipe.policy.dtype,
            "bands": bands.identity(),
            "prompts": {name: asdict(prompt) for name, prompt in prompts.items()},
        },
        {"shards": shards.content}
        | {f"policy {name}": model_digest(folder) for name, folder in policies.items()}
        | ({"bands_by": model_digest(bands_by)} if bands_by else {}),
    )


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that the report states."""
    template = template_of(recipe.task.template, recipe.task.thinking)
    return {
        "template": f"{template.name}, version {template.version}",
        "temperature": recipe.evaluate.temperature,
        "samples": recipe.evaluate.samples,
        "sample_temperature": recipe.evaluate.sample_temperature,
        "bands_by": recipe.evaluate.bands_by,
        "seed": recipe.seed,
    }


def _answers(
    readings: Mapping[str, Predictions], samples: Mapping[str, Samples]
) -> list[tuple[str, str, Sequence[Sequence[Prediction]]]]:
    """Return (policy, kind, answers by site) of every reading, the sampled ones last."""
    answers: list[tuple[str, str, Sequence[Sequence[Prediction]]]]
    answers = [(r.policy, r.kind, [(answer,) for answer in r.answers_N]) for r in readings.values()]
    return answers + [(drawn.policy, "sampled", drawn.answers_NS) for drawn in samples.values()]


class EvaluateSpec(RunSpec):
    """The specification of `rpt evaluate`; `run` is the run that is evaluated."""

    shards: Path
    """Output of `materialize`."""
    bands: BandsConfig
    """Difficulty bands of the manifest."""
    policies: tuple[str, ...] = ()
    """`NAME=FOLDER` each; empty: the recipe's policy as `before` and the run's as `after`."""
    published: dict[str, Any] | None = None
    """Rows of the paper to print beside the measured ones."""
    full: bool = False
    """Print the whole report."""


def main(spec: EvaluateSpec) -> None:
    """Evaluate, in a new process that `rpt evaluate` starts."""
    evaluate(
        named_policies(spec.policies) if spec.policies else before_and_after(spec.recipe, spec.run),
        spec.recipe,
        spec.bands,
        published_record(spec.shards),
        out=spec.run / "evaluation",
        run=spec.run,
        metrics=spec.run / "metrics.jsonl",
        published=spec.published,
        full=spec.full,
    )


if __name__ == "__main__":
    run_rank(EvaluateSpec, main)
