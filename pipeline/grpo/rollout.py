"""Rollouts: sites → prompts → responses → rewards → groups. Shape names: P sites, G responses a site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.core.config import Recipe
from pipeline.grpo.advantage import Advantage
from pipeline.grpo.curriculum import Draw
from pipeline.grpo.prompt import PromptBuilder
from pipeline.grpo.sampler import Sampler, rollout_seed
from pipeline.grpo.types import Group, Response
from pipeline.shards.reader import Site
from pipeline.task.reward import Outcome, score_response

ROLLOUTS = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("response_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("context", pa.large_string(), nullable=False),
        pa.field("response", pa.large_string(), nullable=False),
        pa.field("target", pa.binary(), nullable=False),
        pa.field("prediction", pa.binary()),
        pa.field("reward", pa.float32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("advantage", pa.float32(), nullable=False),
        pa.field("finished", pa.bool_(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
    ]
)
"""A row is a response. `context` and `response` are for reading: bytes that are no UTF-8 appear as U+FFFD there;
`prediction` (null if there is none), `target` and the ids are exact."""


@dataclass(frozen=True)
class Rollout:
    """A site, the group of responses to it, and what each earned [G]."""

    site: Site
    group: Group
    outcomes: tuple[Outcome, ...]


def roll_out(
    sampler: Sampler, prompts: PromptBuilder, draws: Sequence[Draw], recipe: Recipe, step: int
) -> list[tuple[tuple[int, ...], list[Response]]]:
    """The prompt of each drawn site, and its responses, each with the noise of (seed, step, site, sample)."""
    size = recipe.rollout.group_size
    ids = [tuple(prompts.ids(draw.site.context)) for draw in draws]
    seeds = [
        rollout_seed(recipe.seed, step, draw.site.site_id, draw.repeat * size + g)
        for draw in draws
        for g in range(size)
    ]
    responses = sampler.sample(ids, size, recipe.rollout.temperature, recipe.rollout.max_new_tokens, seeds)
    return [(prompt, responses[p * size : (p + 1) * size]) for p, prompt in enumerate(ids)]


def score(
    draws: Sequence[Draw], answered: Sequence[tuple[tuple[int, ...], list[Response]]], advantage: Advantage
) -> list[Rollout]:
    """Reward every response, and compare it with its group."""
    outcomes_PG = [
        [score_response(r.text, r.finished, draw.site.continuation, draw.site.boundaries) for r in responses]
        for draw, (_, responses) in zip(draws, answered, strict=True)
    ]
    if not outcomes_PG:
        return []
    advantages_PG = advantage(np.array([[outcome.reward for outcome in group] for group in outcomes_PG]))
    return [
        Rollout(draw.site, Group(prompt, tuple(responses), tuple(advantages)), tuple(outcomes))
        for draw, (prompt, responses), advantages, outcomes in zip(
            draws, answered, advantages_PG.tolist(), outcomes_PG, strict=True
        )
    ]


def rollout_rows(rollouts: Sequence[Rollout], step: int) -> list[dict[str, object]]:
    """Rows of `ROLLOUTS`, one a response."""
    return [
        {
            "step": step,
            "site_id": rollout.site.site_id,
            "sample": sample,
            "prompt_ids": rollout.group.prompt,
            "response_ids": response.ids,
            "context": rollout.site.context.decode("utf-8", errors="replace"),
            "response": response.text.decode("utf-8", errors="replace"),
            "target": rollout.site.target,
            "prediction": outcome.prediction,
            "reward": outcome.reward,
            "reason": outcome.reason,
            "advantage": advantage,
            "finished": response.finished,
            "length": len(response.ids),
        }
        for rollout in rollouts
        for sample, (response, outcome, advantage) in enumerate(
            zip(rollout.group.responses, rollout.outcomes, rollout.group.advantages, strict=True)
        )
    ]
