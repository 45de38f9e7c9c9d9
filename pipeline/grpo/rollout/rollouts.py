"""Rollouts: sites → prompts → responses → rewards → groups. Shape names: P sites, G responses per site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config.recipe import Recipe
from pipeline.core.files import atomic_replacement
from pipeline.core.parquet import write_rows
from pipeline.grpo.algorithm.advantage import Advantage
from pipeline.grpo.policy import distributed
from pipeline.grpo.rollout.prompt import PromptBuilder
from pipeline.grpo.rollout.rewards import Outcomes, RolloutGroup
from pipeline.grpo.rollout.sampled_site import SampledSite
from pipeline.grpo.rollout.token_sampling import rollout_seed
from pipeline.grpo.types import Group, ResponseSampler, SamplingRequest
from pipeline.shards.reader import Site
from pipeline.task.reward import Outcome

ROLLOUTS = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("site_id", pa.string(), nullable=False),
        pa.field("band", pa.string(), nullable=False),
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
        pa.field("importance", pa.float32(), nullable=False),
    ]
)
"""Schema of the rollout tables, one row per response.

`context` and `response` are for display: bytes that are not valid UTF-8 appear as U+FFFD, and a response begins with
what was given (`task.prefill`), which belongs to `prompt_ids`. `prediction` (null if there is none), `target` and the
ids are exact. `importance` is how much more often the site is drawn than by uniform drawing: weigh by its inverse for
means over all sites.
"""


@dataclass(frozen=True)
class Rollout:
    """A site, the group of responses to it with their advantages, and the outcome [G] of each response."""

    site: Site
    group: Group
    outcomes: tuple[Outcome, ...]
    importance: float = 1.0
    """How much more often the site is drawn than by uniform drawing."""

    @property
    def right(self) -> float:
        """Return the share of responses that are right."""
        return sum(outcome.right for outcome in self.outcomes) / len(self.outcomes)

    @property
    def text(self) -> str:
        """Return the site's context and continuation as text, without characters cut at either end."""
        return (self.site.context + self.site.continuation).decode("utf-8", errors="ignore")


def roll_out(
    sampler: ResponseSampler, prompts: PromptBuilder, draws: Sequence[SampledSite], recipe: Recipe, step: int
) -> list[RolloutGroup]:
    """Sample the responses to each drawn site; their noise depends on seed, step, site and sample number alone."""
    size = recipe.rollout.group_size
    ids = [tuple(prompts.ids(draw.site.context)) for draw in draws]
    seeds = [
        rollout_seed(recipe.seed, step, draw.site.site_id, draw.repeat * size + g)
        for draw in draws
        for g in range(size)
    ]
    responses = sampler.sample(
        SamplingRequest(ids, size, recipe.rollout.temperature, recipe.rollout.max_new_tokens, seeds)
    )
    return [
        RolloutGroup(draw.site, prompt, tuple(responses[p * size : (p + 1) * size]), draw.pick.importance)
        for p, (draw, prompt) in enumerate(zip(draws, ids, strict=True))
    ]


def group_advantages(
    rollout_groups: Sequence[RolloutGroup], outcomes_PG: Outcomes, advantage: Advantage
) -> list[Rollout]:
    """Return the rollouts with advantages, computed from the rewards within each group."""
    if not rollout_groups:
        return []
    advantages_PG = advantage(np.array([[outcome.reward for outcome in group] for group in outcomes_PG]))
    return [
        Rollout(a.site, Group(a.prompt, a.responses, tuple(advantages)), tuple(outcomes), a.importance)
        for a, advantages, outcomes in zip(rollout_groups, advantages_PG.tolist(), outcomes_PG, strict=True)
    ]


def rollout_rows(rollouts: Sequence[Rollout], step: int, prefill: str) -> list[dict[str, object]]:
    """Return rows of `ROLLOUTS`, one per response; `prefill` is the given beginning of all."""
    return [
        {
            "step": step,
            "site_id": rollout.site.site_id,
            "band": rollout.site.band,
            "sample": sample,
            "prompt_ids": rollout.group.prompt,
            "response_ids": response.ids,
            "context": rollout.site.context.decode("utf-8", errors="replace"),
            "response": prefill + response.text.decode("utf-8", errors="replace"),
            "target": rollout.site.target,
            "prediction": outcome.prediction,
            "reward": outcome.reward,
            "reason": outcome.reason,
            "advantage": advantage,
            "finished": response.finished,
            "length": len(response.ids),
            "importance": rollout.importance,
        }
        for rollout in rollouts
        for sample, (response, outcome, advantage) in enumerate(
            zip(rollout.group.responses, rollout.outcomes, rollout.group.advantages, strict=True)
        )
    ]


def write_rollouts(run: Path, step: int, rollouts: Sequence[Rollout], prefill: str) -> None:
    """Write `rollouts/step-<step>.parquet`, on rank 0 only; `prefill` is the given beginning of all responses."""
    if distributed.rank() == 0:
        path = run / "rollouts" / f"step-{step:06d}.parquet"
        with atomic_replacement(path) as temporary:
            write_rows(temporary, ROLLOUTS, rollout_rows(rollouts, step, prefill))
