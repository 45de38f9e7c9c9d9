"""The whole objective: a micro-batch's sum with everything a recipe can add, against single tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.grpo.algorithm.loss import LOSSES, ClipRange
from pipeline.grpo.algorithm.objective import Objective, entropy_threshold
from pipeline.grpo.model.batch import batch_of, text_batches
from tests.grpo.models import some_groups

RECIPES = Path(__file__).parent.parent.parent.parent / "recipes"


def test_kl_and_entropy_weigh_as_the_loss_does() -> None:
    batch = batch_of(some_groups(3, 2))
    generator = torch.Generator().manual_seed(1)
    logprobs_RT, entropy_RT, reference_RT = (-torch.rand(batch.mask_RT.shape, generator=generator) for _ in range(3))
    objective = Objective(LOSSES["grpo"], ClipRange(0.2, 0.2), 1.0, max_new_tokens=8, kl=0.3, entropy=0.1)
    expected = 0.0
    for r, mask_T in enumerate(batch.mask_RT):
        difference_T = (reference_RT - logprobs_RT)[r][mask_T]
        kl_T = difference_T.exp() - difference_T - 1
        expected += float((-batch.advantages_R[r] + 0.3 * kl_T - 0.1 * entropy_RT[r][mask_T]).mean())
    found = objective.summed(batch, logprobs_RT, entropy_RT, reference_RT)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_tokens_that_the_sampler_overrated_count_less_and_none_counts_more_than_the_cap() -> None:
    batch = batch_of(some_groups(3, 2))
    generator = torch.Generator().manual_seed(1)
    trainer_RT, sampler_RT = (-2 * torch.rand(batch.mask_RT.shape, generator=generator) for _ in range(2))
    batch = replace(batch, sampled_logprobs_RT=sampler_RT)
    objective = Objective(LOSSES["grpo"], ClipRange(0.2, 0.2), 1.0, max_new_tokens=8, importance_cap=1.5)
    expected, weights = 0.0, []
    for r, mask_T in enumerate(batch.mask_RT):
        ratios = [min(1.5, math.exp(gap)) for gap in (trainer_RT - sampler_RT)[r][mask_T].tolist()]
        expected += sum(-float(batch.advantages_R[r]) * ratio for ratio in ratios) / len(ratios)
        weights += ratios
    assert objective.summed(batch, trainer_RT, trainer_RT).item() == pytest.approx(expected, rel=1e-5)
    assert 1.5 in weights and min(weights) < 0.5


@pytest.mark.parametrize(("clip_high", "surrogate"), [("0.28", 1.28), ("null", 1.2), ("1.0", 1.5)])
def test_a_recipe_decides_how_far_up_a_good_token_is_pushed(clip_high: str, surrogate: float) -> None:
    """ρ is 1.5 for every token, A is 1, and there is one response per group: the loss is −min(1.5, 1 + clip_high)."""
    recipe = load(Recipe, RECIPES / "demo.yaml", [f"objective.clip_high={clip_high}", "objective.clip=0.2"])
    batch = batch_of([replace(group, advantages=(1.0,)) for group in some_groups(1, 1)])
    old_RT = torch.full(batch.mask_RT.shape, math.log(0.5))
    objective = replace(Objective.of(recipe), loss=LOSSES["grpo"])
    summed = objective.summed(replace(batch, old_logprobs_RT=old_RT), old_RT + math.log(1.5), torch.zeros(old_RT.shape))
    assert summed.item() == pytest.approx(-surrogate)
    with_lower = replace(batch, old_logprobs_RT=old_RT, advantages_R=torch.tensor([-1.0]))
    assert objective.summed(with_lower, old_RT + math.log(0.5), old_RT).item() == pytest.approx(0.8), "1 − clip"


def test_the_cap_compares_the_sampler_with_the_policy_that_sampled_not_with_the_updated_one() -> None:
    batch = batch_of(some_groups(1, 1))
    sampled_RT, old_RT, new_RT = (torch.full(batch.mask_RT.shape, math.log(p)) for p in (0.5, 0.6, 0.66))
    batch = replace(batch, sampled_logprobs_RT=sampled_RT, old_logprobs_RT=old_RT, advantages_R=torch.tensor([1.0]))
    objective = Objective(LOSSES["grpo"], ClipRange(0.2, 0.2), 1.0, max_new_tokens=8, importance_cap=2.0)
    assert objective.summed(batch, new_RT, new_RT).item() == pytest.approx(-1.1 * 1.2), "ρ = 0.66/0.6, weight 0.6/0.5"


def test_responses_cut_at_the_limit_are_compared_with_but_not_learned_from() -> None:
    groups = some_groups(2, 3)
    cut = replace(groups[0], responses=(replace(groups[0].responses[0], finished=False), *groups[0].responses[1:]))
    everything, finished = batch_of([cut, groups[1]]), batch_of([cut, groups[1]], learn_unfinished=False)
    assert everything.loss_mask_RT.equal(everything.mask_RT)
    assert not finished.loss_mask_RT[0].any() and finished.loss_mask_RT[1:].equal(finished.mask_RT[1:])
    assert finished.mask_RT.equal(everything.mask_RT), "they are read as before"


@given(st.lists(st.floats(0, 3), min_size=1, max_size=30), st.floats(0.01, 1))
def test_the_most_uncertain_tokens_reach_the_threshold(entropies: list[float], share: float) -> None:
    values = torch.tensor(entropies)
    chosen = values >= entropy_threshold(values, share)
    below = values[~chosen]
    assert chosen.sum() >= share * len(values), "at least the share, more only by ties"
    assert (values > values[chosen].min()).sum() < share * len(values)
    assert not len(below) or below.max() < values[chosen].min()


def test_texts_are_read_whole() -> None:
    (batch,) = text_batches([[5], [5, 6, 7, 3], [8, 9], [8, 9, 4]], 1000)
    rows = [
        (batch.inputs_RT[r][mask_T].tolist(), batch.targets_RT[r][mask_T].tolist())
        for r, mask_T in enumerate(batch.mask_RT)
    ]
    assert sorted(rows) == [([6, 7], [7, 3]), ([9], [4])]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"`objective\.loss`: no 'dr_grop', did you mean `dr_grpo`\?"):
        load(Recipe, RECIPES / "demo.yaml", ["objective.loss=dr_grop"])


def test_rewards_that_read_probabilities_refuse_another_sampler() -> None:
    policy = PolicyConfig(model="a")
    with pytest.raises(ValueError, match=r"rollout\.sampler"):
        Recipe(name="a", policy=policy, task={"reward": "dense"}, rollout={"sampler": "vllm"})  # type: ignore[arg-type]
