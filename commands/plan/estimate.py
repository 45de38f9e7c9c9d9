"""Plan: estimate what a manifest or a recipe will cost, before anything runs.

Input:   a manifest, with a small sample of its corpus and its proxy; or a recipe, with its policy's configuration.
Output:  a table, or JSON: for a manifest the tokens, time on this machine, GPU- or core-hours and bytes of each stage,
         with intervals, and after `rpt data` how far they were off; for a recipe the memory per rank under each shipped
         topology, and with foretold sites how the forecasts of an earlier run came true. Nothing is kept.
Command: rpt plan data_manifests/<name>.yaml [--json]
         rpt plan recipes/<name>.yaml [--ranks N] [--context-tokens N] [--run FOLDER] [--json]

A part of the corpus is read, a random sample of its documents passes through the functions of every stage in as many
workers as a run would have, and the result is scaled to the number of documents. The estimate does not foresee
duplicates of text that was not read, near-duplicates, and decontamination. Times exclude the start of `rpt` itself.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from commands.plan.check import made_by_run
from commands.plan.crew import Crew, Team
from pipeline.config import resources
from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.manifest import PROXYS_OWN, CountProxyConfig, Manifest, ProxyConfig, TrainProxyConfig
from pipeline.config.recipe import Recipe
from pipeline.config.resources import ROOT
from pipeline.config.selection import SelectConfig
from pipeline.core.files import size_of
from pipeline.core.hardware import cores
from pipeline.core.model_files import MODEL_FILES, TOKENIZER_FILES, resolve_model
from pipeline.core.precision import proxy_dtype
from pipeline.core.progress import log
from pipeline.corpus.estimate import Estimate, estimate, sample
from pipeline.corpus.files import corpus_files
from pipeline.grpo.policy.deepspeed_config import read_config
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.selection.corpus_rules import needs_corpus_pass
from pipeline.shards.cost import (
    FIT_STEPS,
    count_tokens,
    estimate_total,
    kept_share,
    try_count,
    try_documents,
    try_fit,
    try_materialize,
    try_scores,
    try_select,
    wall_seconds,
)
from pipeline.shards.cost import Estimate as Total

CONFIGS = ROOT / "deepspeed_configs"
SAMPLE = 512
"""Documents per scoring worker; a slow proxy scores as many of them as it can in `TRY_SECONDS`."""
TRY_SECONDS = 20.0
"""A worker scores documents for about so long."""


def plan(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    source: str | None = None,
    work: Path = Path("work"),
    workers: int | None = None,
    ranks: int = 1,
    context_tokens: int = 4096,
    run: Path | None = None,
) -> dict[str, Any]:
    """Return the costs of a manifest or a recipe as JSON values; the content of the file tells which of them it is.

    Args:
        path: a manifest or a recipe.
        overrides: as for `load`.
        source: read this instead of the manifest's corpus.
        work: folder of all manifests' artifacts; what is up to date there is compared with the plan.
        workers: worker processes (manifests only).
        ranks: processes that share the run (recipes only).
        context_tokens: tokens of the longest prompt (recipes only).
        run: an earlier run; by default `runs/NAME` (recipes only).

    Raises:
        UserError: the file is neither, or its corpus, proxy, tokenizer or policy cannot be read.
    """
    named = path if path.is_file() else resources.find(path, "data_manifests") or resources.find(path, "recipes")
    if named and "policy" in (yaml.safe_load(named.read_text(encoding="utf-8")) or {}):
        return plan_recipe(load(Recipe, path, overrides), ranks, context_tokens, run)
    manifest = load(Manifest, path, overrides)
    found = plan_manifest(manifest, source=source, workers=workers)
    return found | {"made": made_by_run(found["stages"], manifest, work / manifest.name)}


def plan_recipe(recipe: Recipe, ranks: int, context_tokens: int, run: Path | None = None) -> dict[str, Any]:
    """Return the memory per rank of `rpt train` under each of the shipped topologies.

    With foretold sites, `foretold` has how the forecasts of an earlier run came true; None if there is no such run.
    """
    from pipeline.evaluation.foretold import forecasts_of
    from pipeline.grpo.policy.memory import recipe_memory

    recipe = with_dtype(recipe, "plan")
    folder = resolve_model(recipe.policy.model, recipe.policy.revision, files=("config.json",))
    topologies = {path.stem: read_config(path) for path in sorted(CONFIGS.glob("*.json"))}
    found = recipe_memory(recipe, folder, topologies, ranks, context_tokens)
    if recipe.sites.by == "foretold":
        found["foretold"] = forecasts_of(run or Path("runs") / recipe.name)
    return found


def plan_manifest(manifest: Manifest, *, source: str | None = None, workers: int | None = None) -> dict[str, Any]:
    """Return the cost of `rpt data` with local workers: documents, tokens, sites, and every stage's time and bytes."""
    config, crew, dtype = manifest.corpus, Crew(workers), proxy_dtype(manifest.proxy, "plan")
    manifest = manifest.model_copy(update={"proxy": manifest.proxy.model_copy(update={"dtype": dtype})})
    files = corpus_files(config, source)
    log("plan         reading a part of the corpus")
    found = estimate(files, config)
    crew.scoring = min(crew.scoring, _shards(manifest, found))  # as `LocalExecutor` has it
    chosen = sample(found.documents, config.validation, found.document_count, SAMPLE * crew.scoring)
    parts = [part for n in range(crew.scoring) if (part := chosen[n :: crew.scoring])]
    stages = [_ingest(manifest, found, crew.run(partial(try_documents, config), parts), crew)]
    with tempfile.TemporaryDirectory() as scratch:
        if manifest.proxy.made_here is not None:
            folder = tokenizer = _made_here(manifest.proxy, found, Path(scratch), crew, stages)
            every_token = None
        else:
            words, model, missing = _proxy(manifest.proxy)
            if model is None or words is None:
                tokens = None if words is None else _all_tokens(found, words) or _some_tokens(found, words)
                return _report(manifest, found, crew, stages, tokens, missing=missing)
            folder, tokenizer, every_token = model, words, _all_tokens(found, words)
        log(f"plan         scoring a sample of {len(chosen):,} documents with {crew.scoring} workers")
        tried = _try_stages(manifest, found, parts, crew, folder, tokenizer)
    tokens = every_token or estimate_total(tried.scored.counts("tokens"), found.document_count, found.error)
    sites = estimate_total(tried.selected.counts("sites"), found.document_count, found.error).times(tried.left)
    stages += _scaled(manifest, found, crew, tried, tokens, sites)
    return _report(manifest, found, crew, stages, tokens, sites=sites, tried=tried)


class _Tried(NamedTuple):
    """What the last three stages did with a sample of documents."""

    rules: SelectConfig
    every_position: bool
    """Whether all positions were selected, since the proxy tried is not the one that a run would make."""
    scored: Team
    devices: list[str]
    """Of the workers that scored."""
    selected: Team
    made: Team
    share: float
    """Documents of the corpus per document of the sample."""
    left: float
    """Share of the selected sites that the rules over the whole corpus keep."""


def _try_stages(
    manifest: Manifest, found: Estimate, parts: Sequence[Any], crew: Crew, folder: Path, tokenizer: Path
) -> _Tried:
    """Score, select and materialize a sample of documents with a proxy and its tokenizer."""
    proxy = manifest.proxy
    scored = crew.run(partial(try_scores, manifest, str(folder), str(tokenizer), TRY_SECONDS), parts, accelerated=True)
    devices = list(crew.executor.devices)
    # A proxy after a few steps, or of a part of the corpus, finds others hard: an upper bound is all positions.
    every = proxy.train is not None or (proxy.made_here is not None and not found.complete)
    rules = manifest.select.model_copy(update={"where": "true", "validation_where": "true"} if every else {})
    selected = crew.run(partial(try_select, rules, bool(manifest.corpus.sources)), scored.trials)
    policy = manifest.materialize
    if policy.policy_tokenizer == PROXYS_OWN:
        policy = policy.model_copy(update={"policy_tokenizer": str(tokenizer), "policy_tokenizer_revision": None})
    made = crew.run(partial(try_materialize, policy), selected.trials)
    share = found.document_count / len(scored.counts("tokens"))
    return _Tried(rules, every, scored, devices, selected, made, share, kept_share(rules, selected.trials, share))


def _scaled(
    manifest: Manifest, found: Estimate, crew: Crew, tried: _Tried, tokens: Total, sites: Total
) -> list[dict[str, Any]]:
    """Return the costs of the last three stages for the whole corpus."""
    shards, share, kept = _shards(manifest, found), tried.share, tried.share * tried.left
    examples = estimate_total(tried.made.counts("examples"), found.document_count, found.error).times(tried.left)
    pace = sum(trial.pace or 0.0 for trial in tried.scored.trials) / len(tried.scored.trials)
    passes = 3 if needs_corpus_pass(manifest.select) else 1
    busy = tokens.value * pace, tried.selected.busy * share, tried.made.busy * kept
    return [
        crew.stage("score", "tokens", tokens.value, busy[0], shards, tried.scored, share, accelerated=True),
        crew.stage("select", "sites", sites.value, busy[1], shards, tried.selected, kept, passes=passes),
        crew.stage("materialize", "examples", examples.value, busy[2], shards, tried.made, kept),
    ]


def _report(
    manifest: Manifest,
    found: Estimate,
    crew: Crew,
    stages: list[dict[str, Any]],
    tokens: Total | None,
    *,
    sites: Total | None = None,
    tried: _Tried | None = None,
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the plan as JSON values; without the proxy's weights there are no sites, and nothing was tried."""
    scored = tried.scored.counts("tokens") if tried else []
    return {
        "manifest": manifest.name,
        "documents": found.document_count,
        "tokens": asdict(tokens) if tokens else None,
        "sites": asdict(sites) if sites else None,
        "sites_are_at_most": tried is not None and bool(tried.every_position or tried.rules.thin or tried.rules.strata),
        "not_reached": list(dict.fromkeys(missing)),
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages),
        "bytes": sum(stage["bytes"] for stage in stages),
        "shards": _shards(manifest, found),
        "sample": {
            "source_bytes": found.bytes,
            "records_read": found.read,
            "complete": found.complete,
            "documents": len(scored),
            "tokens": sum(scored),
        },
        "machine": {
            "cores": cores(),
            "workers": crew.light,
            "scoring_workers": crew.scoring,
            "devices": tried.devices if tried else [],
        },
    }


def _shards(manifest: Manifest, found: Estimate) -> int:
    return math.ceil(found.document_count / manifest.corpus.shard_documents)


def _proxy(proxy: ProxyConfig) -> tuple[Path | None, Path | None, list[str]]:
    """Return the tokenizer and the model of a proxy, and what could not be reached; None for what is missing."""
    missing: list[str] = []

    def found(name: str, revision: str | None, files: Sequence[str]) -> Path | None:
        try:
            return resolve_model(name, revision, files=files)
        except UserError as error:
            missing.append(str(error))
            return None

    model = str(proxy.model)
    folder = found(model, proxy.revision, MODEL_FILES)
    if folder is not None and not any(folder.glob("*.safetensors")):
        missing.append(f"weights of the proxy: {model}")
        folder = None
    own, revision = (proxy.tokenizer, None) if proxy.tokenizer else (model, proxy.revision)
    return folder if folder and not proxy.tokenizer else found(own, revision, TOKENIZER_FILES), folder, missing


def _all_tokens(found: Estimate, tokenizer: Path) -> Total | None:
    """Return the tokens of a corpus that was read whole, all counted; None if only a part was read."""
    if not found.complete:
        return None
    count = float(sum(count_tokens(str(tokenizer), [row["text"] for row in found.documents])))
    return Total(count, count, count)


def _some_tokens(found: Estimate, tokenizer: Path) -> Total:
    """Return the tokens of a corpus, estimated from a sample of its documents."""
    texts = [row["text"] for row in found.documents[:SAMPLE]]
    return estimate_total(count_tokens(str(tokenizer), texts), found.document_count, found.error)


def _ingest(manifest: Manifest, found: Estimate, ingested: Team, crew: Crew) -> dict[str, Any]:
    """Return the costs of ingest: workers read the files, then three or four passes follow, one of them serial."""
    config, documents = manifest.corpus, found.document_count
    share = documents / len(ingested.counts("documents"))
    shards = _shards(manifest, found)
    passes = 4 if config.near_duplicates or config.decontaminate else 3
    stage = crew.stage("ingest", "documents", documents, ingested.busy * share, shards, ingested, share, passes=passes)
    stage["seconds"] += wall_seconds(found.seconds, found.shards, crew.light)
    stage["worker_seconds"] += found.seconds
    stage["hours"] += crew.hours(found.seconds)
    return stage


def _fit(config: TrainProxyConfig, found: Estimate, scratch: Path, crew: Crew) -> dict[str, Any]:
    """Return the costs of fitting: folds run in parallel, one per worker, each on its share of the sample."""
    from pipeline.scoring.fit import steps_for

    texts = [row["text"] for row in found.documents]  # at most `estimate.READ_BYTES`
    tried = sum(len(text.encode()) for text in texts)
    share = min(config.sample_bytes / tried, found.document_count / len(texts))
    count = min(config.folds, crew.light)
    begin = time.monotonic()
    trials = list(
        crew.executor.map(partial(try_fit, config, texts, texts[:100]), [scratch / str(n) for n in range(count)])
    )
    worked = max(trial.rest + FIT_STEPS * trial.step for trial in trials)
    start = max(0.0, time.monotonic() - begin - worked)
    step, rest = (sum(values) / count for values in zip(*((t.step, t.rest) for t in trials), strict=True))
    of_others = (config.folds - 1) / config.folds if config.folds > 1 else 1.0
    steps = steps_for(round(trials[0].tokens * share * of_others), config)
    busy = config.folds * (steps * step + rest * share)
    return {
        "stage": "proxy",
        "count": float(config.folds * steps * config.batch_tokens),
        "unit": "tokens",
        "seconds": start + wall_seconds(busy, config.folds, crew.light),
        "worker_seconds": busy,
        "hours": crew.hours(busy),
        "of": "core",
        "bytes": config.folds * size_of(scratch / "0"),
    }


def _made_here(proxy: ProxyConfig, found: Estimate, scratch: Path, crew: Crew, stages: list[dict[str, Any]]) -> Path:
    """Make the proxy of a part of the corpus, add the costs to the stages, and return its folder."""
    train = proxy.auto.train if proxy.auto else proxy.train
    counts = proxy.auto.count if proxy.auto else proxy.count
    size = found.document_count / len(found.documents) * sum(len(row["text"].encode()) for row in found.documents)
    if train and (proxy.auto is None or size >= proxy.auto.fit_from_bytes):
        log("plan         fitting a proxy for a few steps")
        stages.append(_fit(train, found, scratch, crew))
    if counts:
        log("plan         counting what was read")
        stages.append(_count(counts, found, scratch, crew))
        return scratch / "counts"
    return scratch / "0"


def _count(config: CountProxyConfig, found: Estimate, scratch: Path, crew: Crew) -> dict[str, Any]:
    """Return the costs of counting, which one worker does; time and bytes are proportional to the text."""
    texts = [row["text"] for row in found.documents]
    begin = time.monotonic()
    (tokens,) = crew.executor.map(partial(try_count, config, texts), [scratch / "counts"])
    share = found.document_count / len(texts)
    busy = (time.monotonic() - begin) * share
    return {
        "stage": "proxy",
        "count": tokens * share,
        "unit": "tokens",
        "seconds": busy,
        "worker_seconds": busy,
        "hours": crew.hours(busy),
        "of": "core",
        "bytes": round(size_of(scratch / "counts") * share),
    }
