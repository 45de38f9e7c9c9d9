"""Collect the rollouts of a step: draw sites, sample and reward responses, divide them into mini-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.recipe import Recipe
from pipeline.grpo.algorithm.advantage import ADVANTAGES
from pipeline.grpo.data.curriculum import Curriculum
from pipeline.grpo.model.batch import consecutive_parts, micro_batches, text_batches
from pipeline.grpo.policy import distributed
from pipeline.grpo.policy.update import MiniBatch
from pipeline.grpo.rollout.rewards import RewardContext, compute_rewards
from pipeline.grpo.rollout.rollouts import Rollout, group_advantages, roll_out
from pipeline.grpo.rollout.sampled_site import SampledSite
from pipeline.grpo.run.metrics import Stopwatch


@dataclass(frozen=True)
class Collected:
    """The rollouts of a step."""

    sampled: Mapping[int, Rollout]
    """The rollouts of this rank, keyed by their number among those of all ranks, in the order of drawing."""
    chosen: Mapping[int, Rollout]
    """The rollouts to learn from: they have a gradient, and all ranks together have at most `sites_per_step`."""
    sampled_by_all: int
    """Rollouts that all ranks have sampled."""
    chosen_by_all: int
    """Rollouts that all ranks learn from."""
    draws: int
    """Draws done since the run began."""


def collect(
    reader: RewardContext, curriculum: Curriculum, recipe: Recipe, step: int, draws: int, clock: Stopwatch
) -> Collected:
    """Draw, sample and score the rollouts of a step; with dynamic sampling, until enough groups have a gradient."""
    objective, room = recipe.objective, recipe.rollout.sites_per_step
    dynamic = objective.dynamic_sampling_from is not None and step >= objective.dynamic_sampling_from
    drawn: list[SampledSite] = []
    sampled: dict[int, Rollout] = {}
    chosen: dict[int, Rollout] = {}
    trained = 0
    for _ in range(objective.dynamic_sampling_rounds if dynamic else 1):
        sites, draws = curriculum.draw(step, draws, drawn), draws + 1
        mine, before = distributed.shard(sites), len(drawn)
        drawn += sites
        with clock("sample"):
            answered = roll_out(reader.sampler, reader.prompts, mine, recipe, step)
        with clock("score"):
            outcomes = compute_rewards(recipe.task, reader, answered, step, recipe.rollout.max_new_tokens)
            rollouts = group_advantages(answered, outcomes, ADVANTAGES[objective.advantage])
        sampled |= dict(zip(distributed.shard(range(before, len(drawn))), rollouts, strict=True))
        informative = distributed.all_gather([rollout.group.has_gradient for rollout in rollouts])
        taken = [index for index, has_gradient in enumerate(informative) if has_gradient][: room - trained]
        for number, index in enumerate(taken, start=trained):
            if distributed.owns_item(index):
                chosen[number] = rollouts[index // distributed.world_size()]
        trained += len(taken)
        if trained == room:
            break
    return Collected(sampled, chosen, len(drawn), trained, draws)


def mini_batches(collected: Collected, texts: Mapping[int, Sequence[int]], recipe: Recipe) -> list[MiniBatch]:
    """Return the mini-batches of a step: what each update learns from on this rank.

    Groups and texts are divided in the order of drawing, so that it does not depend on the number of ranks.

    Args:
        collected: the step's rollouts.
        texts: token ids of the texts of the next-token loss, by the numbers of `collected.sampled`.
        recipe: how many updates, and how much fits into a micro-batch.
    """
    updates, room = recipe.optimizer.updates_per_step, recipe.optimizer.micro_batch_tokens
    chosen = consecutive_parts(collected.chosen, collected.chosen_by_all, updates)
    read = consecutive_parts(texts, collected.sampled_by_all, updates)
    return [
        MiniBatch(
            micro_batches(
                [rollout.group for rollout in rollouts], room, learn_unfinished=recipe.objective.learn_unfinished
            ),
            text_batches(own_texts, room),
        )
        for rollouts, own_texts in zip(chosen, read, strict=True)
    ]
