"""Warm-up: training sites and a policy → the policy, taught the form of a response by supervision, before RL.

Input:   the `train` shards of materialize; with `warmup.thoughts: sampled`, the right responses that screen has kept;
         the held-out `documents` of ingest, on whose plain text `eval/next_token_loss` is measured.
Output:  `runs/<recipe>-warmup/`, laid out as a run of `rpt train`: `metrics.jsonl`, checkpoints, `policy/`.
Command: rpt warmup RECIPE [--manifest MANIFEST] [--ranks N]; then rpt train RECIPE --policy runs/<recipe>-warmup/policy

A response has a thought, its end, and the true next token in a box; in a task without thinking, only the box. Thoughts
are written by rule (`pipeline/grpo/data/rule_thoughts.py`) or sampled from the policy itself and kept where they led to
the right prediction. Each example is learned once, unless a budget asks for more. It trains as `rpt sft` does: a killed
run resumes from its last checkpoint and takes the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.config.task import SitesConfig
from pipeline.config.training import SupervisedConfig
from pipeline.core.artifact import Record, published_record
from pipeline.grpo.data.pass_rates import last_screening, read_pass_rates, read_right_responses, screening_of
from pipeline.grpo.run.flops import ComputeBudget
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.spec import TrainingSpec


def warmup(
    recipe: Recipe,
    documents: Record,
    shards: Record,
    *,
    run: Path,
    budget: ComputeBudget,
    screening: Record | None = None,
    deepspeed_config: Path | None = None,
) -> Path | None:
    """Teach the recipe's policy the form of responses, from the last checkpoint in `run` if there is one.

    Every rank calls it; a single one needs no launcher.

    Args:
        recipe: as `warmup_recipe` returns it.
        documents: record of `ingest`.
        shards: record of `materialize`.
        run: the run's folder.
        budget: when to stop; by default after all examples.
        screening: record of `screen`, as `screening_for` returns it.
        deepspeed_config: topology; by default ZeRO-3 for the devices there are.

    Returns:
        The folder of the trained policy; None if the run was asked to stop (SIGTERM) and saved a checkpoint instead.

    Raises:
        UserError: `run` belongs to another run, no site matches, no right response is stored for those that do, or the
            loss is not finite.
    """
    from pipeline.grpo.policy import distributed

    distributed.prepare_environment()
    from pipeline.grpo.data.warmup_examples import warmup_examples
    from pipeline.grpo.run.imitation import Learner, imitate
    from pipeline.shards.reader import ShardReader

    learner = Learner.of("warmup", recipe, shards, run)
    rates = read_pass_rates(screening) if screening else None
    sites = ShardReader(shards.files("train"), recipe.sites.where, pass_rates=rates)
    responses = read_right_responses(screening) if screening and recipe.warmup.thoughts == "sampled" else None
    answers = warmup_examples(recipe, sites, responses, learner.prompts, learner.tokens, learner.ends.of_response)
    learner = replace(learner, recipe=for_one_pass(learner.recipe, [example.length for example in answers]))
    return imitate(
        "warmup",
        learner,
        answers,
        "the shards",
        documents,
        shards,
        run=run,
        budget=budget,
        deepspeed_config=deepspeed_config,
    )


def warmup_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the warm-up: that of the run, with the sites, batches and learning rate of `warmup`."""
    own = recipe.warmup
    optimizer = recipe.optimizer.model_copy(update={"lr": own.lr})
    sites = SitesConfig(where=own.where or recipe.sites.where)
    supervised = _supervised(own.batch_tokens, own.plain_text, recipe.supervised.window)
    changed = {"sites": sites, "curriculum": (), "optimizer": optimizer, "supervised": supervised}
    return recipe.model_copy(update=changed)


def for_one_pass(recipe: Recipe, lengths: Sequence[int]) -> Recipe:
    """Return the recipe with steps of about `batch_tokens` that take examples of these lengths (tokens) once.

    What is left of a step's tokens is plain text, if the recipe asks for it. The learning rate rises over the first
    tenth of the steps.
    """
    share = 1 - recipe.supervised.plain_text
    total, longest = sum(lengths), max(lengths)
    steps = max(1, round(total / max(longest, share * recipe.supervised.batch_tokens)))
    batch_tokens = ceil(max(longest, ceil(total / steps)) / share)
    supervised = _supervised(batch_tokens, recipe.supervised.plain_text, recipe.supervised.window)
    optimizer = recipe.optimizer.model_copy(update={"warmup_steps": steps // 10})
    budget = recipe.budget.model_copy(update={"steps": steps})
    return recipe.model_copy(update={"supervised": supervised, "optimizer": optimizer, "budget": budget})


def _supervised(batch_tokens: int, plain_text: float, window: int) -> SupervisedConfig:
    """Return steps of so many tokens, with pieces of plain text that fit into its share of a step."""
    text_tokens = round(plain_text * batch_tokens) or batch_tokens
    return SupervisedConfig(batch_tokens=batch_tokens, window=max(2, min(text_tokens, window)), plain_text=plain_text)


def screening_for(recipe: Recipe, shards: Record, work: Path) -> Record | None:
    """Return the screening whose responses or pass rates the warm-up needs; None if it needs none.

    Raises:
        UserError: it needs one, and the sites were not screened.
    """
    if recipe.warmup.thoughts == "sampled":
        return last_screening(shards, work, "warmup.thoughts: sampled")
    return screening_of(recipe, shards, work)


class WarmupSpec(TrainingSpec):
    """The specification of a run of `rpt warmup`; its recipe is that of `warmup_recipe`."""

    documents: Path
    """Output of `ingest`."""
    shards: Path
    """Output of `materialize`."""
    screening: Path | None = None
    """Output of `screen`, if the warm-up needs one (`screening_for`)."""
    budget: ComputeBudget = ComputeBudget()
    """When to stop; by default after all examples."""


def main(spec: WarmupSpec) -> None:
    """Run one rank, as started by `rpt warmup`, `torchrun` or `deepspeed`."""
    warmup(
        spec.recipe,
        published_record(spec.documents),
        published_record(spec.shards),
        run=spec.run,
        budget=spec.budget,
        screening=published_record(spec.screening) if spec.screening else None,
        deepspeed_config=spec.deepspeed_config,
    )


if __name__ == "__main__":
    run_rank(WarmupSpec, main)
