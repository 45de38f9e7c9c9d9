"""Supervised training on responses: what `rpt sft` and `rpt warmup` share around their examples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pipeline.config.recipe import Recipe
from pipeline.core.artifact import Record
from pipeline.core.model_files import model_digest, resolve_model
from pipeline.core.progress import log
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.examples import EpochSampler, Example, subsample, text_examples
from pipeline.grpo.policy.rendezvous import is_first_rank
from pipeline.grpo.rollout.prompt import PromptBuilder, PromptText, keep_prompt, kept_prompt
from pipeline.grpo.rollout.response_ends import ResponseEnds, response_ends
from pipeline.grpo.rollout.thinking_choice import with_thinking
from pipeline.grpo.run.flops import ComputeBudget
from pipeline.grpo.run.policy_dtype import with_dtype
from pipeline.grpo.run.run_folder import policy_tokenizer, spoken
from pipeline.grpo.run.supervised import TrainingData, train_supervised


@dataclass(frozen=True)
class Learner:
    """A policy before training, and how its prompts and responses are written."""

    recipe: Recipe
    base: Path
    """Folder of the policy."""
    tokens: CorpusTokenizer
    ends: ResponseEnds
    text: PromptText
    prompts: PromptBuilder

    @classmethod
    def of(cls, command: str, recipe: Recipe, shards: Record, run: Path) -> Learner:
        """Return the recipe's policy with the prompt that the run keeps, or that the recipe's template renders now.

        Raises:
            UserError: the policy cannot be read, or the shards were cut with another tokenizer.
        """
        recipe = with_dtype(recipe, command, run)
        base = resolve_model(recipe.policy.model, recipe.policy.revision)
        tokens = policy_tokenizer(base, shards)
        recipe = with_thinking(recipe, base, tokens, command)
        text = kept_prompt(run, base, tokens, recipe.task)
        prompts = PromptBuilder(AutoTokenizer.from_pretrained(base), tokens, text)
        return cls(recipe, base, tokens, response_ends(base, tokens), text, prompts)


def imitate(
    command: str,
    learner: Learner,
    answers: Sequence[Example],
    what: str,
    documents: Record,
    shards: Record,
    *,
    run: Path,
    budget: ComputeBudget,
    deepspeed_config: Path | None = None,
) -> Path | None:
    """Train the policy on responses, from the last checkpoint in `run` if there is one. Every rank calls it.

    Args:
        command: its name, for messages.
        learner: the policy; of its recipe `policy`, `task`, `sites`, `optimizer`, `supervised`, `budget` and `seed` are
            used.
        answers: what is learned, besides the share of plain text that `supervised.plain_text` asks for.
        what: names the answers in error messages.
        documents: record of `ingest`, whose held-out documents show what imitation costs.
        shards: record of `materialize`.
        run: the run's folder.
        budget: when to stop.
        deepspeed_config: topology; by default ZeRO-3 for the devices there are.

    Returns:
        The folder of the trained policy; None if the run was asked to stop (SIGTERM) and saved a checkpoint instead.

    Raises:
        UserError: `run` belongs to another run, there is no answer, or the loss is not finite.
    """
    recipe, files, ends = learner.recipe, documents.files("documents"), learner.ends
    supervised = recipe.supervised
    text_tokens = round(supervised.plain_text * supervised.batch_tokens)
    streams = [EpochSampler(answers, recipe.seed, supervised.batch_tokens - text_tokens, what)]
    if text_tokens:
        plain = text_examples(files, "train", learner.tokens, ends.of_text, supervised.window)
        streams.append(EpochSampler(plain, recipe.seed, text_tokens, "the training documents"))
    held_out = text_examples(files, "validation", learner.tokens, ends.of_text, supervised.window)
    data = TrainingData(
        streams=tuple(streams),
        held_out=subsample(held_out, recipe.evaluate.progress_sites, recipe.seed),
        made_from={"shards": shards, "documents": documents},
    )
    if is_first_rank():
        log(f"{command:<12} {len(answers):,} examples, {sum(answer.length for answer in answers):,} tokens")
        keep_prompt(run, learner.text, learner.base, learner.tokens, recipe.task)
    kept = ("policy", "task", "sites", "optimizer", "supervised", "seed")
    own: Mapping[str, Any] = {
        "recipe": {key: recipe.identity()[key] for key in kept},
        "shards": shards.content,
        "documents": documents.content,
        "examples": digest_of(answers),
        "policy": model_digest(learner.base),
        **spoken(learner.text, ends),
    }
    return train_supervised(
        command, recipe, data, learner.base, own, run=run, budget=budget, deepspeed_config=deepspeed_config
    )


def digest_of(examples: Sequence[Example]) -> str:
    """Return a hash of the examples' token ids, which says whether two runs learn the same."""
    hashed = hashlib.sha256()
    for example in examples:
        for ids in (example.prompt, example.response):
            hashed.update(len(ids).to_bytes(4, "little") + ids.tobytes())
    return hashed.hexdigest()
