"""Load the policy that a run trains: engine, sampler, prompts and reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.recipe import Recipe
from pipeline.grpo.run.flops import ModelSize

if TYPE_CHECKING:
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.data.curriculum import Curriculum
    from pipeline.grpo.rollout.prompt import PromptBuilder, PromptText
    from pipeline.grpo.rollout.sampler import Sampler
    from pipeline.grpo.types import ResponseSampler


@dataclass(frozen=True)
class Policy:
    """A policy in its two forms, to learn and to sample, with the builder of its prompts."""

    engine: Any
    sampler: ResponseSampler
    prompts: PromptBuilder
    tokens: CorpusTokenizer
    reference: Any
    """The policy before training, if the objective has a KL term; else None."""
    size: ModelSize


def load_policy(
    recipe: Recipe,
    base: Path,
    topology: dict[str, Any],
    tokens: CorpusTokenizer,
    curriculum: Curriculum,
    longest_context: int,
    text: PromptText,
) -> Policy:
    """Load both forms of the policy in `base` and check that they agree.

    Raises:
        UserError: they disagree, or the policy has too few positions for a site's prompt and the response to it.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.policy.agreement import verify
    from pipeline.grpo.rollout.positions import sites_must_fit
    from pipeline.grpo.rollout.prompt import PromptBuilder
    from pipeline.grpo.rollout.sampler import Sampler

    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts, room = PromptBuilder(tokenizer, tokens, text), recipe.rollout.max_new_tokens
    longest = prompts.longest(longest_context, room)
    sites_must_fit(AutoConfig.from_pretrained(base), prompts, curriculum.sites(), longest, room)
    engine = ds.build(base, recipe.policy, recipe.optimizer, topology, longest=longest)
    dtype, rows = getattr(torch, recipe.policy.dtype), recipe.rollout.batch_rows
    sampler = Sampler.load(base, tokens, dtype=dtype, device=engine.device, batch_rows=rows, longest=longest)
    probe = prompts.ids(curriculum.draw(step=0, number=0)[0].site.context)
    verify(engine, ds.gathered_weights(engine), sampler.model, probe, recipe.rollout.temperature)
    reference = None
    if recipe.objective.kl:
        reference = ds.build_reference(engine, base, recipe.policy, topology, longest=longest)
    return Policy(engine, sampler, prompts, tokens, reference, ModelSize.of(base))


def with_vllm(
    policy: Policy,
    recipe: Recipe,
    base: Path,
    tokens: CorpusTokenizer,
    curriculum: Curriculum,
    longest_context: int,
    server: str | None,
) -> Policy:
    """Return the policy with vLLM in place of the built-in sampler, once it agrees with the trainer.

    Raises:
        UserError: vLLM is not installed, or its log-probabilities differ.
    """
    from pipeline.grpo.policy import engine as ds
    from pipeline.grpo.policy.agreement import sampler_gap
    from pipeline.grpo.rollout.vllm_sampler import start_vllm
    from pipeline.grpo.types import SamplingRequest

    prompt = policy.prompts.ids(curriculum.draw(step=0, number=0)[0].site.context)
    sampler = start_vllm(
        base,
        tokens,
        policy.sampler.eos_ids,
        recipe.rollout,
        dtype=recipe.policy.dtype,
        max_tokens=policy.prompts.longest(longest_context, recipe.rollout.max_new_tokens),
        server=server,
    )
    sampler.load_weights(ds.gathered_weights(policy.engine))
    response = sampler.sample(
        SamplingRequest([prompt], 1, recipe.rollout.temperature, min(8, recipe.rollout.max_new_tokens), [0])
    )[0]
    sampler_gap(policy.engine, response, prompt, recipe.rollout.temperature)
    return replace(policy, sampler=sampler)


def load_sampler(
    folder: Path, text: PromptText, *, dtype: str, batch_rows: int, longest_context: int, max_new_tokens: int
) -> tuple[Sampler, PromptBuilder]:
    """Load the policy in a folder only to sample, with the builder of its prompts.

    Args:
        folder: the policy's folder.
        text: its rendered prompt.
        dtype: number format to compute in.
        batch_rows: responses sampled at a time.
        longest_context: tokens of the longest context.
        max_new_tokens: maximum length of a response.
    """
    import torch
    from transformers import AutoTokenizer

    from pipeline.core.hardware import torch_device
    from pipeline.core.tokenizer import CorpusTokenizer
    from pipeline.grpo.rollout.prompt import PromptBuilder
    from pipeline.grpo.rollout.sampler import Sampler

    tokens = CorpusTokenizer.load(folder)
    prompts = PromptBuilder(AutoTokenizer.from_pretrained(folder), tokens, text)
    sampler = Sampler.load(
        folder,
        tokens,
        dtype=getattr(torch, dtype),
        device=torch_device(),
        batch_rows=batch_rows,
        longest=prompts.longest(longest_context, max_new_tokens),
    )
    return sampler, prompts
