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
from pipeline.core.artifact import Record, content_hash, published_record
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.grpo.data.pass_rates import read_pass_rates
from pipeline.grpo.rollout.response_ends import response_ends
from pipeline.grpo.rollout.thinking_choice import with_thinking
from pipeline.grpo.run.flops import ComputeBudget
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.run_folder import policy_tokenizer, spoken
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
    from transformers import AutoTokenizer

    from pipeline.grpo.data.examples import EpochSampler, answer_examples, subsample, text_examples, thought_examples
    from pipeline.grpo.rollout.prompt import PromptBuilder, kept_prompt
    from pipeline.grpo.run.supervised import TrainingData, train_supervised
    from pipeline.shards.reader import ShardReader

    recipe = with_dtype(recipe, "sft", run)
    base, supervised = resolve_model(recipe.policy.model, recipe.policy.revision), recipe.supervised
    tokens, tokenizer = policy_tokenizer(base, shards), AutoTokenizer.from_pretrained(base)
    recipe = with_thinking(recipe, base, tokens, "sft")
    ends, text = response_ends(base, tokens), kept_prompt(run, base, tokens, recipe.task)
    prompts = PromptBuilder(tokenizer, tokens, text)
    if rollouts:
        answers, what = thought_examples(rollouts, prompts, tokens), "the rollouts"
    else:
        rates = read_pass_rates(screening) if screening else None
        sites = ShardReader(shards.files("train"), recipe.sites.where, pass_rates=rates)
        answers, what = answer_examples(sites, prompts, tokens, ends.of_response), "the shards"

    files, window = documents.files("documents"), supervised.window
    text_tokens = round(supervised.plain_text * supervised.batch_tokens)
    streams = [EpochSampler(answers, recipe.seed, supervised.batch_tokens - text_tokens, what)]
    if text_tokens:
        plain = text_examples(files, "train", tokens, ends.of_text, window)
        streams.append(EpochSampler(plain, recipe.seed, text_tokens, "the training documents"))
    held_out = text_examples(files, "validation", tokens, ends.of_text, window)
    data = TrainingData(
        streams=tuple(streams),
        held_out=subsample(held_out, recipe.evaluate.progress_sites, recipe.seed),
        made_from={"shards": shards, "documents": documents},
    )
    kept = ("policy", "task", "sites", "optimizer", "supervised", "seed")
    own = {
        "recipe": {key: recipe.identity()[key] for key in kept},
        "shards": shards.content,
        "documents": documents.content,
        "rollouts": [content_hash(file) for file in rollouts],
        "policy": model_digest(base),
        **spoken(text, ends),
    }
    return train_supervised("sft", recipe, data, base, own, run=run, budget=budget, deepspeed_config=deepspeed_config)


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
