"""The draw by forecasts: who is drawn, how often, and what that is worth for means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.grpo.data.foretold_draw import inclusion, systematic

FORECASTS = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(FORECASTS, st.data())
def test_inclusion_sums_to_the_draw_and_never_falls_below_the_floor(
    forecasts: list[float], data: st.DataObject
) -> None:
    take, floor = data.draw(st.integers(1, len(forecasts))), data.draw(st.floats(0.01, 1))
    probability_M = np.array(forecasts)
    inclusion_M = inclusion(probability_M, take, floor)
    assert inclusion_M.sum() == pytest.approx(take)
    assert inclusion_M.min() >= floor * take / len(forecasts) * (1 - 1e-12) and inclusion_M.max() <= 1 + 1e-12
    order = np.argsort(-probability_M, kind="stable")
    assert (np.diff(inclusion_M[order]) <= 0).all(), "a higher forecast is never drawn less often"


@given(FORECASTS, st.data())
def test_a_draw_takes_that_many_different_candidates(forecasts: list[float], data: st.DataObject) -> None:
    take, floor = data.draw(st.integers(1, len(forecasts))), data.draw(st.floats(0.01, 1))
    start = data.draw(st.floats(0, 1, exclude_max=True))
    chosen = systematic(inclusion(np.array(forecasts), take, floor), start)
    assert len(chosen) == len(set(chosen.tolist())) == take
    assert chosen.min() >= 0 and chosen.max() < len(forecasts)


def test_a_start_that_rounds_up_to_the_end_of_the_line_draws_the_last_candidate() -> None:
    assert systematic(np.ones(3), np.nextafter(1.0, 0.0)).tolist() == [0, 1, 2]


def test_each_candidate_is_drawn_exactly_as_often_as_said_and_weighted_means_are_exact() -> None:
    """Inclusion in twentieths, and twenty starts that stand for all: no chance is left."""
    probability_M = np.random.default_rng(0).random(40)
    inclusion_M = inclusion(probability_M, take=8, floor=0.25)
    assert set((inclusion_M * 20).round(9)) == {1.0, 16.0}
    draws = [systematic(inclusion_M, (start + 0.5) / 20) for start in range(20)]
    drawn_M = np.bincount(np.concatenate(draws), minlength=40)
    assert (drawn_M == (inclusion_M * 20).round()).all()
    value_M, importance_M = np.arange(40.0) ** 2, inclusion_M * 40 / 8
    means = [(value_M[chosen] / importance_M[chosen]).mean() for chosen in draws]
    assert np.mean(means) == pytest.approx(value_M.mean())
    assert np.mean([value_M[chosen].mean() for chosen in draws]) != pytest.approx(value_M.mean(), rel=0.05)
