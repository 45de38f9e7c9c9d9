"""Collect the rollouts of a step: draw sites, sample and reward responses, divide them into mini-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.config.recipe import Recipe
from pipeline.grpo.algorithm.advantage import ADVANTAGES
from pipeline.grpo.data.curriculum import Curriculum
from pipeline.grpo.data.forecast import calibration
from pipeline.grpo.data.outcomes import GroupOutcome
from pipeline.grpo.model.batch import consecutive_parts, micro_batches, text_batches
from pipeline.grpo.policy import distributed
from pipeline.grpo.policy.update import MiniBatch
from pipeline.grpo.rollout.rewards import RewardContext, compute_rewards
from pipeline.grpo.rollout.rollouts import Rollout, group_advantages, roll_out
from pipeline.grpo.rollout.sampled_site import Pick, SampledSite
from pipeline.grpo.run.metrics import Metrics, Stopwatch
from pipeline.grpo.run.run_state import RunState


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
    outcomes: Sequence[GroupOutcome]
    """What became of every group that all ranks have sampled, in the order of drawing."""
    foretold: Metrics
    """`forecast.calibration` of the step; empty if nothing was foretold."""


def collect(
    reader: RewardContext, curriculum: Curriculum, recipe: Recipe, state: RunState, clock: Stopwatch
) -> Collected:
    """Draw, sample and score the rollouts of a step; with dynamic sampling, until enough groups have a gradient."""
    objective, room, step, draws = recipe.objective, recipe.rollout.sites_per_step, state.step, state.draws
    dynamic = objective.dynamic_sampling_from is not None and step >= objective.dynamic_sampling_from
    drawn: list[SampledSite] = []
    outcomes: list[GroupOutcome] = []
    sampled: dict[int, Rollout] = {}
    chosen: dict[int, Rollout] = {}
    trained = 0
    for _ in range(objective.dynamic_sampling_rounds if dynamic else 1):
        with clock("draw"):
            # One rank decides for all: on another kind of processor a forecast may round differently.
            picks = [curriculum.pick(step, draws, state.outcomes)] if distributed.rank() == 0 else []
            sites = curriculum.take(distributed.all_gather(picks)[0], draws, drawn)
        mine, before, draws = distributed.shard(sites), len(drawn), draws + 1
        drawn += sites
        with clock("sample"):
            answered = roll_out(reader.sampler, reader.prompts, mine, recipe, step)
        with clock("score"):
            rewards = compute_rewards(recipe.task, reader, answered, step, recipe.rollout.max_new_tokens)
            rollouts = group_advantages(answered, rewards, ADVANTAGES[objective.advantage])
        sampled |= dict(zip(distributed.shard(range(before, len(drawn))), rollouts, strict=True))
        own = [outcome_of(step, draw.pick, rollout) for draw, rollout in zip(mine, rollouts, strict=True)]
        outcomes += (found := distributed.all_gather(own))
        taken = [index for index, outcome in enumerate(found) if outcome.live][: room - trained]
        for number, index in enumerate(taken, start=trained):
            if distributed.owns_item(index):
                chosen[number] = rollouts[index // distributed.world_size()]
        trained += len(taken)
        if trained == room:
            break
    return Collected(sampled, chosen, len(drawn), trained, draws, outcomes, calibration_of(drawn, outcomes))


def outcome_of(step: int, pick: Pick, rollout: Rollout) -> GroupOutcome:
    """Return what became of the group at a picked site."""
    return GroupOutcome(step, pick.phase, pick.row, rollout.group.has_gradient, rollout.right, pick.foretold)


def calibration_of(drawn: Sequence[SampledSite], outcomes: Sequence[GroupOutcome]) -> Metrics:
    """Return `calibration` of the sites that were drawn by a forecast; empty if none was."""
    if drawn[0].pick.foretold is None:
        return {}
    picks = [draw.pick for draw in drawn]
    foretold, importance = (np.array([getattr(pick, name) for pick in picks]) for name in ("foretold", "importance"))
    return calibration(foretold, np.array([outcome.live for outcome in outcomes]), importance)


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
