from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.config.training import ObjectiveConfig
from pipeline.grpo.algorithm.advantage import ADVANTAGES, EPSILON, group_std, mean_only, rloo

REWARDS = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.sampled_from([0.0, 0.1, 1.0]))


def test_group_std_by_hand() -> None:
    # mean 0.25; squared deviations 0.5625 + 3 · 0.0625 = 0.75; / (4 − 1) = 0.25; std 0.5
    expected = [0.75 / (0.5 + EPSILON), *[-0.25 / (0.5 + EPSILON)] * 3]
    np.testing.assert_allclose(group_std(np.array([[1.0, 0, 0, 0]])), [expected], rtol=1e-12)


def test_mean_only_by_hand() -> None:
    np.testing.assert_allclose(mean_only(np.array([[1.0, 1, 0, 0, 0]])), [[0.6, 0.6, -0.4, -0.4, -0.4]], rtol=1e-12)


@given(rewards_PG=REWARDS)
def test_rloo_is_the_reward_less_the_mean_of_the_others(rewards_PG: np.ndarray) -> None:
    advantages_PG = rloo(rewards_PG)
    for rewards_G, advantages_G in zip(rewards_PG, advantages_PG, strict=True):
        for g, reward in enumerate(rewards_G):
            assert advantages_G[g] == pytest.approx(reward - np.delete(rewards_G, g).mean(), abs=1e-9)


def test_every_name_of_the_recipe_is_there() -> None:
    assert set(get_args(ObjectiveConfig.model_fields["advantage"].annotation)) == set(ADVANTAGES)


@pytest.mark.parametrize("name", ADVANTAGES)
@given(rewards_PG=REWARDS)
def test_only_comparison_counts(name: str, rewards_PG: np.ndarray) -> None:
    advantages_PG = ADVANTAGES[name](rewards_PG)
    np.testing.assert_allclose(advantages_PG.sum(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(ADVANTAGES[name](rewards_PG + 3), advantages_PG, atol=1e-9)
    equal = np.ptp(rewards_PG, axis=1) == 0
    assert (advantages_PG[equal] == 0).all(), "exactly zero: such a group is left out"
    assert (advantages_PG[~equal] != 0).any(axis=1).all()


def test_equal_rewards_whose_mean_is_rounded_are_exactly_zero() -> None:
    rewards_PG = np.full((1, 6), 0.1)
    assert rewards_PG.mean() != 0.1, "the case this test is about"
    assert not group_std(rewards_PG).any()
