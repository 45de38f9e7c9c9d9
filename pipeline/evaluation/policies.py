"""The policies of an evaluation, those that the user names or those before and after a run, and what they predict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.model_files import resolve_model
from pipeline.core.progress import Throughput, log, progress_bar
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.evaluation.predictions import (
    Predictions,
    Samples,
    predict_direct,
    predict_samples,
    predict_with_reasoning,
)
from pipeline.grpo.rollout.prompt import PromptText
from pipeline.grpo.run.policy_loading import load_sampler
from pipeline.shards.reader import Site

WARM_UP = "warm-up"
"""Name of the policy that a run started from, if `rpt warmup` trained it."""


def before_and_after(recipe: Recipe, run: Path) -> dict[str, Path]:
    """Return the folders of the recipe's policy before training and of the run's policy after it.

    If the run started from the policy of a warm-up, `before` is what that one started from, and `warm-up` is between.
    """
    trained = run / "policy"
    if not trained.is_dir():
        raise UserError("the run has no trained policy yet", where=trained, hint="run `rpt train` first")
    if (warm_up := warm_up_of(run)) is None:
        return {"before": resolve_model(recipe.policy.model, recipe.policy.revision), "after": trained}
    base, warmed = warm_up["base"], resolve_model(str(Path(warm_up["run"]) / "policy"))
    return {"before": resolve_model(base["model"], base["revision"]), WARM_UP: warmed, "after": trained}


def warm_up_of(run: Path) -> dict[str, Any] | None:
    """Return what the warm-up was and took whose policy a run started from (`origin_of`); None if there was none."""
    try:
        origin = json.loads((run / "run.json").read_text(encoding="utf-8")).get("policy_from")
    except (OSError, ValueError):
        return None
    return origin if origin and origin["command"] == "warmup" else None


def named_policies(arguments: Sequence[str]) -> dict[str, Path]:
    """Return the policies given as `NAME=FOLDER` (or `NAME=HUB-ID`), in their order.

    Raises:
        UserError: a name is missing or repeated.
    """
    policies: dict[str, Path] = {}
    for argument in arguments:
        name, separator, folder = argument.partition("=")
        if not separator or not name.strip() or name.strip() in policies:
            raise UserError("policies are given as NAME=FOLDER, each name once", where=argument)
        policies[name.strip()] = resolve_model(folder)
    return policies


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
