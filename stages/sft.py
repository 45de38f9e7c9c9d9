"""Supervised fine-tuning: train a policy on (context, reasoning, continuation).

Input:   the correct responses among a run's rollouts (`--rollouts RUN`); without it, the `train` shards of materialize,
         whose true tokens are learned without reasoning; with `supervised.plain_text` also the `documents` of ingest.
Output:  `runs/<recipe>-sft/`, laid out as a run of `rpt train`: `metrics.jsonl`, checkpoints, `policy/`.
Command: rpt sft RECIPE [--manifest MANIFEST] [--rollouts RUN] [--flops-of RUN] [--ranks N]

The prompt is the one of `rpt train` and has no loss. `eval/next_token_loss` is measured on the plain text of held-out
documents and shows what imitation costs. A killed run resumes from its last checkpoint and takes the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record, published_record
from pipeline.grpo.data.pass_rates import read_pass_rates
from pipeline.grpo.run.flops import ComputeBudget
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.spec import TrainingSpec


def sft(
    recipe: Recipe,
    documents: Record,
    shards: Record,
    rollouts: Sequence[Path],
    *,
    run: Path,
    budget: ComputeBudget,
    screening: Record | None = None,
    deepspeed_config: Path | None = None,
) -> Path | None:
    """Train the recipe's policy to give correct responses, from the last checkpoint in `run` if there is one.

    Every rank calls it; a single one needs no launcher.

    Args:
        recipe: its `policy`, `task`, `sites`, `optimizer`, `supervised`, `budget` and `seed` are used.
        documents: record of `ingest`.
        shards: record of `materialize`.
        rollouts: tables of rollouts; if empty, the true tokens of the shards are learned.
        run: the run's folder.
        budget: when to stop.
        screening: record of `screen`, if the recipe chooses its sites by pass rate.
        deepspeed_config: topology; by default ZeRO-3 for the devices there are.

    Returns:
        The folder of the trained policy; None if the run was asked to stop (SIGTERM) and saved a checkpoint instead.

    Raises:
        UserError: `run` belongs to another run, no rollout is correct, no site matches, or the loss is not finite.
    """
    from pipeline.grpo.policy import distributed

    distributed.prepare_environment()
    from pipeline.grpo.data.examples import answer_examples, thought_examples
    from pipeline.grpo.run.imitation import Learner, imitate
    from pipeline.shards.reader import ShardReader

    learner = Learner.of("sft", recipe, shards, run)
    if rollouts:
        answers, what = thought_examples(rollouts, learner.prompts, learner.tokens), "the rollouts"
    else:
        rates = read_pass_rates(screening) if screening else None
        sites = ShardReader(shards.files("train"), recipe.sites.where, pass_rates=rates)
        answers, what = answer_examples(sites, learner.prompts, learner.tokens, learner.ends.of_response), "the shards"
    return imitate(
        "sft", learner, answers, what, documents, shards, run=run, budget=budget, deepspeed_config=deepspeed_config
    )


def tables_of(rollouts: Path) -> list[Path]:
    """Return the tables of rollouts that a run saved, or the table itself.

    Raises:
        UserError: there are no rollouts.
    """
    found = [rollouts] if rollouts.is_file() else sorted((rollouts / "rollouts").glob("*.parquet"))
    if not found:
        raise UserError(
            "no rollouts", where=rollouts, hint="give the folder of a run of `rpt train`, or a Parquet file"
        )
    return found


class SftSpec(TrainingSpec):
    """The specification of a run of `rpt sft`."""

    documents: Path
    """Output of `ingest`."""
    shards: Path
    """Output of `materialize`."""
    rollouts: tuple[Path, ...] = ()
    """Runs, or tables of rollouts, whose correct responses are learned; empty: the true tokens of the shards."""
    screening: Path | None = None
    """Output of `screen`, if the recipe chooses its sites by pass rate."""
    budget: ComputeBudget = ComputeBudget()
    """When to stop."""


def main(spec: SftSpec) -> None:
    """Run one rank, as started by `rpt sft`, `torchrun` or `deepspeed`."""
    sft(
        spec.recipe,
        published_record(spec.documents),
        published_record(spec.shards),
        [table for rollouts in spec.rollouts for table in tables_of(rollouts)],
        run=spec.run,
        budget=spec.budget,
        screening=published_record(spec.screening) if spec.screening else None,
        deepspeed_config=spec.deepspeed_config,
    )


if __name__ == "__main__":
    run_rank(SftSpec, main)
