"""Evaluate: held-out sites and policies → next-token accuracy, read directly and by reasoning.

Input:   the `validation` shards of materialize; the policies, as `transformers` folders; the run's `metrics.jsonl`.
Output:  in `runs/<recipe>/evaluation/`: `evaluation.json`, `evaluation.md`, `responses.parquet` (what each policy
         answered at each site), `accuracy.png` and `.svg` (accuracy over training steps); tables on standard output.
Command: rpt evaluate RECIPE --manifest MANIFEST

Every policy is read in two ways at the same sites: *direct* is the most likely next token after the bare context,
*reasoning* a response to the prompt. Accuracy is given for the sites that `evaluate.where` names and, beside it, for
all validation sites; by nested difficulty band; with intervals clustered by document.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
from rich.console import Console

from pipeline.core.artifact import Record, current_record, fingerprint, write_json
from pipeline.core.config import BandsConfig, Manifest, Recipe, load
from pipeline.core.errors import UserError
from pipeline.core.parquet import write_rows
from pipeline.core.progress import Meter, progress, say
from pipeline.evaluation.accuracy import summarize
from pipeline.evaluation.picture import draw_progress, read_progress
from pipeline.evaluation.readings import Reading, choose_sites, read_by_reasoning, read_directly
from pipeline.evaluation.report import Table, blocks, markdown
from pipeline.scoring.tokens import CorpusTokenizer, model_digest, resolve_model
from pipeline.shards.reader import ShardReader, Site
from pipeline.task.templates import template_named

VERSION = 1

RESPONSES = pa.schema(
    [
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("field", pa.string(), nullable=False),
        pa.field("entropy", pa.float32(), nullable=False),
        pa.field("sets", pa.list_(pa.string()), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("reading", pa.string(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response", pa.large_string(), nullable=False),
        pa.field("prediction", pa.binary()),
        pa.field("hit", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
    ]
)
"""A row is one answer. `sets`: the sets of sites (`headline`, `all`) it counts in. `response` is for reading: bytes
that are no UTF-8 appear as U+FFFD there, while `prediction` (null if there is none) and the ids are exact."""


def evaluate(
    policies: Mapping[str, Path],
    recipe: Recipe,
    manifest_bands: BandsConfig,
    shards: Record,
    *,
    out: Path,
    metrics: Path | None = None,
) -> dict[str, Any]:
    """Read every policy at the same held-out sites, write the report and print it.

    Args:
        policies: `transformers` folders by name, in the order of training (`before`, `after`).
        recipe: its `evaluate`, `task`, `seed`, `rollout.max_new_tokens` and `policy.dtype` count.
        manifest_bands: thresholds of the difficulty bands.
        shards: record of `materialize`.
        out: folder to write to. An evaluation of the same things that lies there already is printed again.
        metrics: JSON lines of the training run, for the picture.

    Returns:
        The report, as in `evaluation.json`.

    Raises:
        UserError: there is no held-out site, or none matches `evaluate.where`; or a policy cannot be read.
    """
    identity = fingerprint(
        "evaluate",
        VERSION,
        {
            "recipe": recipe.model_dump(mode="json", include={"evaluate", "task", "seed", "name"}),
            "max_new_tokens": recipe.rollout.max_new_tokens,
            "dtype": recipe.policy.dtype,
            "bands": manifest_bands.identity(),
        },
        {"shards": shards.content} | {name: model_digest(folder) for name, folder in policies.items()},
    )
    done = out / "evaluation.json"
    if done.exists() and (report := json.loads(done.read_text(encoding="utf-8")))["fingerprint"] == identity:
        say(f"evaluate     up to date  {out}")
        _print(report)
        return report

    sites, sets = held_out_sites(shards, recipe)
    readings: dict[str, Reading] = {}
    for name, folder in policies.items():
        for reading in read_policy(name, folder, recipe, sites):
            readings[reading.name] = reading
    template = template_named(recipe.task.template)
    report = {
        "recipe": recipe.name,
        "fingerprint": identity,
        "policies": list(policies),
        "template": f"{template.name}, version {template.version}",
        "temperature": recipe.evaluate.temperature,
        "seed": recipe.seed,
        "sets": {
            name: summarize(
                [sites[i] for i in chosen],
                {key: reading.at(chosen) for key, reading in readings.items()},
                list(policies),
                manifest_bands,
                recipe.evaluate.where if name == "headline" else "true",
            )
            for name, chosen in sets.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)  # written last: while it is missing, what lies beside it may be another evaluation's
    write_responses(out / "responses.parquet", sites, sets, list(readings.values()))
    pictures = _draw(report, metrics, out)
    (out / "evaluation.md").write_text(markdown(report, tuple(path.name for path in pictures[:1])), encoding="utf-8")
    write_json(done, report)
    _print(report)
    say(f"evaluate     written to {out}")
    return report


def held_out_sites(shards: Record, recipe: Recipe) -> tuple[list[Site], dict[str, list[int]]]:
    """The sites to evaluate, and for each set of sites the indices of its members.

    `headline` are those that `evaluate.where` names, `all` are any; at most `evaluate.sites` of each, chosen by hash.
    """
    files = shards.files("validation")
    if not files:
        raise UserError(
            "the shards have no held-out site",
            where=shards.directory,
            mend="loosen `select.validation_where`, or hold out more documents with `corpus.validation`",
        )
    where = {"headline": recipe.evaluate.where} if recipe.evaluate.where != "true" else {}
    chosen: dict[str, list[Site]] = {}
    for name, expression in (where | {"all": "true"}).items():
        reader = ShardReader(files, expression)
        site_ids = reader.site_ids()
        chosen[name] = [reader[i] for i in choose_sites(site_ids, recipe.evaluate.sites, recipe.seed)]
    by_id = {site.site_id: site for part in chosen.values() for site in part}
    sites = sorted(by_id.values(), key=lambda site: (site.doc_id, site.position))
    index = {site.site_id: i for i, site in enumerate(sites)}
    return sites, {name: sorted(index[site.site_id] for site in part) for name, part in chosen.items()}


def read_policy(name: str, folder: Path, recipe: Recipe, sites: Sequence[Site]) -> list[Reading]:
    """Both readings of one policy at the sites."""
    import torch
    from transformers import AutoTokenizer

    from pipeline.grpo.prompt import PromptBuilder
    from pipeline.grpo.sampler import Sampler

    tokenizer = CorpusTokenizer.load(folder)
    prompts = PromptBuilder(AutoTokenizer.from_pretrained(folder), tokenizer, template_named(recipe.task.template))
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    dtype, batch = getattr(torch, recipe.policy.dtype), recipe.rollout.batch_rows
    policy = Sampler.load(folder, tokenizer, dtype=dtype, device=device, batch_rows=batch)
    say(f"evaluate     {name}: {len(sites):,} held-out sites")
    with progress(f"direct {name}", Meter(len(sites), "sites", steps="sites")) as advance:
        direct = read_directly(policy, tokenizer, sites, batch=batch, advance=advance)
    with progress(f"reasoning {name}", Meter(len(sites), "tokens", steps="sites")) as advance:
        reasoning = read_by_reasoning(
            policy,
            prompts,
            sites,
            temperature=recipe.evaluate.temperature,
            max_new_tokens=recipe.rollout.max_new_tokens,
            seed=recipe.seed,
            batch=batch,
            advance=advance,
        )
    return [Reading(name, "direct", tuple(direct)), Reading(name, "reasoning", tuple(reasoning))]


def write_responses(
    path: Path, sites: Sequence[Site], sets: Mapping[str, Sequence[int]], readings: Sequence[Reading]
) -> None:
    """Every answer at every site, a reading after the other."""
    members = {name: set(chosen) for name, chosen in sets.items()}
    rows = (
        {
            "site_id": site.site_id,
            "doc_id": site.doc_id,
            "field": site.field,
            "entropy": site.entropy,
            "sets": [name for name, chosen in members.items() if i in chosen],
            "policy": reading.policy,
            "reading": reading.kind,
            "prompt_ids": answer.prompt_ids,
            "response_ids": answer.response_ids,
            "response": answer.response.decode("utf-8", errors="replace"),
            "prediction": answer.outcome.prediction,
            "hit": answer.hit,
            "reason": answer.outcome.reason,
            "length": len(answer.response_ids),
        }
        for reading in readings
        for i, (site, answer) in enumerate(zip(sites, reading.answers_N, strict=True))
    )
    temporary = path.with_name(f".{path.name}")
    write_rows(temporary, RESPONSES, rows)
    os.replace(temporary, path)


def _draw(report: Mapping[str, Any], metrics: Path | None, out: Path) -> list[Path]:
    """The picture over training steps, if the run evaluated itself along the way."""
    summary = next(iter(report["sets"].values()))
    series = read_progress(metrics, list(summary["bands"])) if metrics and metrics.exists() else {}
    if not series:
        return []
    before = summary["readings"][f"direct {report['policies'][0]}"]["accuracy"]
    direct = {band: estimate["value"] for band, estimate in before.items() if estimate}
    return draw_progress(series, direct, out, f"{report['recipe']}: reasoning on held-out documents")


def _print(report: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    for block in blocks(report):
        if isinstance(block, Table):
            console.print(block.terminal())
        else:
            console.print("\n".join(block), markup=False, soft_wrap=True)
        console.print()


def main(
    recipe: Path,
    manifest: Annotated[Path, typer.Option()] = Path("data_manifests/demo.yaml"),
    work: Annotated[Path, typer.Option()] = Path("work"),
    run: Annotated[Path | None, typer.Option()] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """What `rpt evaluate` starts in a process of its own: the recipe's policy before training, the run's after it."""
    config, corpus = load(Recipe, recipe, overrides or ()), load(Manifest, manifest)
    folder = run or Path("runs") / config.name
    trained = folder / "policy"
    if not trained.is_dir():
        raise UserError("the run has no trained policy yet", where=trained, mend="run `rpt train` first")
    evaluate(
        {"before": resolve_model(config.policy.model, config.policy.revision), "after": trained},
        config,
        corpus.select.bands,
        current_record(work / corpus.name, "materialize"),
        out=folder / "evaluation",
        metrics=folder / "metrics.jsonl",
    )


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
