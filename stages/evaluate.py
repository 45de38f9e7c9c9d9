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
and declared metadata, with intervals clustered by document.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.audit.distributions import LONG_VALUE, MANY_VALUES
from pipeline.audit.evaluation_page import evaluation_page
from pipeline.config.errors import UserError
from pipeline.config.manifest import ScoreConfig
from pipeline.config.recipe import Recipe
from pipeline.config.selection import BandsConfig
from pipeline.core.artifact import Record, fingerprint, published_record
from pipeline.core.files import replace_text
from pipeline.core.invisible import escape_invisible
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.parquet import read_table
from pipeline.core.progress import Throughput, log, progress_bar, results, wrapped
from pipeline.core.sealed import write_json
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.accuracy import summarize
from pipeline.evaluation.examples import examples
from pipeline.evaluation.hybrid import hybrids_of, summarize_hybrid
from pipeline.evaluation.plots import draw_progress, draw_scaling, read_progress
from pipeline.evaluation.policies import WARM_UP, before_and_after, named_policies, warm_up_of
from pipeline.evaluation.predictions import (
    Prediction,
    Predictions,
    Samples,
    choose_held_out,
    predict_direct,
    predict_samples,
    predict_with_reasoning,
)
from pipeline.evaluation.report import Table, blocks, brief, markdown
from pipeline.evaluation.responses import write_responses
from pipeline.evaluation.scaling import scaling_of
from pipeline.grpo.rollout.prompt import PromptText, prompts_of
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.policy_loading import load_sampler
from pipeline.grpo.run.spec import RunSpec
from pipeline.selection.metadata import column_of
from pipeline.shards.reader import Site
from pipeline.shards.schema import SHARDS
from pipeline.task.templates import template_of

VERSION = 7
PAGE = "report.html"


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
            _write_page(report, metrics, out)
        _print(report, out, full=full)
        return report

    sites, sets = held_out_sites(shards, recipe)
    classes, metadata = site_labels(shards, sites)
    if bands_by:
        sites = banded_by(bands_by, sites, recipe)
    readings, samples = read_policies(policies, recipe, prompts, sites, shards.config["max_context_tokens"])
    gates = hybrids_of(readings, list(policies), sites)
    entropies = [site.entropy for site in sites]
    report = {
        "recipe": recipe.name,
        "fingerprint": identity,
        "policies": list(policies),
        **_settings(recipe),
        "thinking": {name: prompt.thinking.mode for name, prompt in prompts.items()},
        "warm_up": warm_up_of(run) if run and WARM_UP in policies else None,
        "published": published,
        "scaling": scaling_of([metrics], list(manifest_bands.model_dump())) if metrics and metrics.exists() else {},
        "gates": {name: found.about() for name, found in gates.items()},
        "sets": {
            name: summarize(
                [sites[i] for i in chosen],
                [classes[i] for i in chosen],
                {column: [labels[i] for i in chosen] for column, labels in metadata.items()},
                {key: reading.at(chosen) for key, reading in readings.items()},
                {name: drawn.at(chosen) for name, drawn in samples.items()},
                list(policies),
                manifest_bands,
                recipe.evaluate.where if name == "headline" else "true",
            )
            | {"hybrid": {p: summarize_hybrid(g, entropies, manifest_bands, chosen) for p, g in gates.items()}}
            for name, chosen in sets.items()
        },
        "examples": examples(sites, next(iter(sets.values())), readings, list(policies), recipe.seed),
    }
    out.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)  # written last: while it is missing, the other files may be from another evaluation
    write_responses(out / "responses.parquet", sites, classes, sets, _answers(readings, samples))
    _write_report(report, metrics, out)
    write_json(done, report)
    _print(report, out, full=full)
    return report


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


def held_out_sites(shards: Record, recipe: Recipe) -> tuple[list[Site], dict[str, list[int]]]:
    """Return the sites to evaluate, and for each set of sites the indices of its members.

    `headline` holds sites that match `evaluate.where`, `all` any sites; at most `evaluate.sites` each, chosen by hash.
    """
    files = shards.files("validation")
    if not files:
        raise UserError(
            "the shards have no held-out site",
            where=shards.directory,
            hint="loosen `select.validation_where`, or hold out more documents with `corpus.validation`",
        )
    where = {"headline": recipe.evaluate.where} if recipe.evaluate.where != "true" else {}
    chosen: dict[str, list[Site]] = {}
    for name, expression in (where | {"all": "true"}).items():
        chosen[name] = choose_held_out(files, expression, recipe.evaluate.sites, recipe.seed)
    by_id = {site.site_id: site for part in chosen.values() for site in part}
    sites = sorted(by_id.values(), key=lambda site: (site.doc_id, site.position))
    index = {site.site_id: i for i, site in enumerate(sites)}
    return sites, {name: sorted(index[site.site_id] for site in part) for name, part in chosen.items()}


def site_labels(shards: Record, sites: Sequence[Site]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the class of each site's token, and by column the sites' declared metadata as labels.

    A column of lists or objects, of more than `MANY_VALUES` values or with one longer than `LONG_VALUE` is left out,
    as in the audit.
    """
    rows: dict[str, dict[str, Any]] = {}
    columns: list[str] = []
    wanted = pa.array([site.site_id for site in sites], pa.string())
    for file in shards.files("validation"):
        schema = pq.read_schema(file.verified())
        columns = [field.name for field in list(schema)[len(SHARDS) :] if column_of(field).whole]
        table = read_table(file, ["site_id", "token_class", *columns])
        table = table.filter(pc.is_in(table["site_id"], wanted))
        rows |= {row["site_id"]: row for row in table.to_pylist()}
    labels = {column: [_label(rows[site.site_id][column]) for site in sites] for column in columns}
    return [rows[site.site_id]["token_class"] for site in sites], {
        column: found
        for column, found in labels.items()
        if len(set(found)) <= MANY_VALUES and max(map(len, found)) <= LONG_VALUE
    }


def _label(value: str | float | bool | None) -> str:
    """Return a metadata value as it appears in the report, an integer without its decimal point."""
    if value is None:
        return "(no value)"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else escape_invisible(value)


def banded_by(folder: Path, sites: Sequence[Site], recipe: Recipe) -> list[Site]:
    """Return the sites with the entropy of the model in `folder`, instead of that of the proxy which selected them."""
    from pipeline.evaluation.difficulty import with_entropy_of
    from pipeline.scoring.proxy import load_proxy

    tokenizer = CorpusTokenizer.load(folder)
    proxy, top_k = load_proxy(folder, tokenizer, recipe.policy.dtype), ScoreConfig().top_k
    with progress_bar("bands", Throughput(len(sites), "tokens", steps="sites")) as advance:
        return with_entropy_of(proxy, tokenizer, sites, top_k=top_k, batch=recipe.rollout.batch_rows, advance=advance)


def read_policies(
    policies: Mapping[str, Path],
    recipe: Recipe,
    prompts: Mapping[str, PromptText],
    sites: Sequence[Site],
    longest_context: int,
) -> tuple[dict[str, Predictions], dict[str, Samples]]:
    """Return every policy's direct predictions and those by reasoning, by their names, and the samples by policy."""
    readings: dict[str, Predictions] = {}
    samples: dict[str, Samples] = {}
    for name, folder in policies.items():
        direct, reasoning, drawn = read_policy(name, folder, recipe, prompts[name], sites, longest_context)
        readings |= {direct.name: direct, reasoning.name: reasoning}
        samples |= {name: drawn} if drawn else {}
    return readings, samples


def read_policy(
    name: str, folder: Path, recipe: Recipe, text: PromptText, sites: Sequence[Site], longest_context: int
) -> tuple[Predictions, Predictions, Samples | None]:
    """Return a policy's direct predictions, its predictions by reasoning, and samples if the recipe asks for them."""
    batch, tokenizer = recipe.rollout.batch_rows, CorpusTokenizer.load(folder)
    policy, prompts = load_sampler(
        folder,
        text,
        dtype=recipe.policy.dtype,
        batch_rows=batch,
        longest_context=longest_context,
        max_new_tokens=recipe.rollout.max_new_tokens,
    )
    log(f"evaluate     {name}: {len(sites):,} held-out sites")
    with progress_bar(f"direct {name}", Throughput(len(sites), "sites", steps="sites")) as advance:
        direct = predict_direct(policy, tokenizer, sites, batch=batch, advance=advance)
    with progress_bar(f"reasoning {name}", Throughput(len(sites), "tokens", steps="sites")) as advance:
        reasoning = predict_with_reasoning(policy, prompts, sites, recipe, advance=advance)
    drawn, count = None, recipe.evaluate.samples
    if count:
        with progress_bar(f"sampled {name}", Throughput(len(sites), "tokens", steps="sites")) as advance:
            answers = predict_samples(
                policy,
                prompts,
                sites,
                samples=count,
                temperature=recipe.evaluate.sample_temperature,
                max_new_tokens=recipe.rollout.max_new_tokens,
                seed=recipe.seed,
                batch=batch,
                advance=advance,
            )
        drawn = Samples(name, count, tuple(answers))
    return Predictions(name, "direct", tuple(direct)), Predictions(name, "reasoning", tuple(reasoning)), drawn


def _answers(
    readings: Mapping[str, Predictions], samples: Mapping[str, Samples]
) -> list[tuple[str, str, Sequence[Sequence[Prediction]]]]:
    """Return (policy, kind, answers by site) of every reading, the sampled ones last."""
    answers: list[tuple[str, str, Sequence[Sequence[Prediction]]]]
    answers = [(r.policy, r.kind, [(answer,) for answer in r.answers_N]) for r in readings.values()]
    return answers + [(drawn.policy, "sampled", drawn.answers_NS) for drawn in samples.values()]


def _write_page(report: Mapping[str, Any], metrics: Path | None, out: Path) -> None:
    """Write the HTML report, with the accuracy during training if the run measured it."""
    bands = list(next(iter(report["sets"].values()))["bands"])
    series = read_progress(metrics, bands) if metrics and metrics.exists() else {}
    replace_text(out / PAGE, evaluation_page(report, series))


def _write_report(report: Mapping[str, Any], metrics: Path | None, out: Path) -> None:
    """Write the pictures, the Markdown page, which shows them, and the HTML report."""
    _write_page(report, metrics, out)
    pictures = _draw(report, metrics, out)
    if report["scaling"]:
        draw_scaling(report["scaling"], out / "scaling.svg")
        pictures.append(out / "scaling.svg")
    shown = tuple(path.name for path in pictures if path.name != "accuracy.svg")
    (out / "evaluation.md").write_text(markdown(report, shown), encoding="utf-8")


def _draw(report: Mapping[str, Any], metrics: Path | None, out: Path) -> list[Path]:
    """Draw accuracy over training steps, if the run measured it, and return the paths."""
    summary = next(iter(report["sets"].values()))
    series = read_progress(metrics, list(summary["bands"])) if metrics and metrics.exists() else {}
    if not series:
        return []
    before = summary["readings"][f"direct {report['policies'][0]}"]["accuracy"]
    direct = {band: estimate["value"] for band, estimate in before.items() if estimate}
    return draw_progress(series, direct, out, f"{report['recipe']}: reasoning on held-out documents")


def _print(report: Mapping[str, Any], out: Path, *, full: bool) -> None:
    """Print the whole report, or what a first look needs and where the rest is."""
    console = results()
    for block in blocks(report) if full else brief(report):
        if isinstance(block, Table):
            console.print(block.terminal())
        else:
            console.print("\n".join(wrapped(line, console.width) for line in block), soft_wrap=True)
        console.print()
    rest = "" if full else "All positions, differences, outcomes and responses, or --full: "
    console.print(wrapped(f"{rest}{out / PAGE}", console.width), soft_wrap=True)


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
