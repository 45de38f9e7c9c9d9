"""Next-token pre-training: training documents of a corpus and a policy → the policy, trained on the plain text.

Input:   the `documents` of ingest; a `transformers` folder of the policy.
Output:  `runs/<recipe>-ntp/`, laid out as a run of `rpt train`: `metrics.jsonl`, checkpoints, `policy/`.
Command: rpt ntp RECIPE [--manifest MANIFEST] [--flops-of RUN] [--ranks N]

The baseline that RPT has to beat on the same text with the same compute. Documents are cut into windows of at most
`supervised.window` tokens, which never cross a document; a step takes about `supervised.batch_tokens` of them. Steps
are a function of (recipe, documents, policy, step): a killed run resumes from its last checkpoint and repeats them.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record, published_record
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.rollout.response_ends import response_ends
from pipeline.grpo.run.flops import ComputeBudget
from pipeline.grpo.run.launch import run_rank
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.spec import TrainingSpec


def ntp(
    recipe: Recipe, documents: Record, *, run: Path, budget: ComputeBudget, deepspeed_config: Path | None = None
) -> Path | None:
    """Train the recipe's policy on the training documents, from the last checkpoint in `run` if there is one.

    Every rank calls it; a single one needs no launcher.

    Args:
        recipe: its `policy`, `optimizer`, `supervised`, `budget` and `seed` are used.
        documents: record of `ingest`.
        run: the run's folder.
        budget: when to stop.
        deepspeed_config: topology; by default ZeRO-3 for the devices there are.

    Returns:
        The folder of the trained policy; None if the run was asked to stop (SIGTERM) and saved a checkpoint instead.

    Raises:
        UserError: `run` belongs to another run, there is no training document, or the loss is not finite.
    """
    from pipeline.grpo.policy import distributed

    distributed.prepare_environment()
    from pipeline.grpo.data.examples import EpochSampler, subsample, text_examples
    from pipeline.grpo.run.supervised import TrainingData, train_supervised

    recipe = with_dtype(recipe, "ntp", run)
    base, supervised = resolve_model(recipe.policy.model, recipe.policy.revision), recipe.supervised
    tokens = CorpusTokenizer.load(base)
    ends = response_ends(base, tokens)
    files, window = documents.files("documents"), supervised.window
    training, held_out = (
        text_examples(files, split, tokens, ends.of_text, window) for split in ("train", "validation")
    )
    data = TrainingData(
        streams=(EpochSampler(training, recipe.seed, supervised.batch_tokens, "the training documents"),),
        held_out=subsample(held_out, recipe.evaluate.progress_sites, recipe.seed),
        made_from={"documents": documents},
    )
    own = {
        "recipe": {key: recipe.identity()[key] for key in ("policy", "optimizer", "supervised", "seed")},
        "documents": documents.content,
        "policy": model_digest(base),
        "ends": sorted(ends.ids),
    }
    return train_supervised("ntp", recipe, data, base, own, run=run, budget=budget, deepspeed_config=deepspeed_config)


class NtpSpec(TrainingSpec):
    """The specification of a run of `rpt ntp`."""

    documents: Path
    """Output of `ingest`."""
    budget: ComputeBudget = ComputeBudget()
    """When to stop."""


def main(spec: NtpSpec) -> None:
    """Run one rank, as started by `rpt ntp`, `torchrun` or `deepspeed`."""
    documents = published_record(spec.documents)
    ntp(spec.recipe, documents, run=spec.run, budget=spec.budget, deepspeed_config=spec.deepspeed_config)


if __name__ == "__main__":
    run_rank(NtpSpec, main)
