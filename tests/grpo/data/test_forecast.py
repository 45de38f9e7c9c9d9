"""Forecasts: rates by hand, and a world whose probabilities are known and change."""

from __future__ import annotations

from math import log
from typing import NamedTuple

import numpy as np
import pytest

from pipeline.grpo.data.forecast import HALF_LIFE, LEAST, PRIOR, Rates, calibration, enough, foretell
from pipeline.grpo.data.foretold_draw import inclusion, systematic
from pipeline.grpo.data.outcomes import REMEMBERED, GroupOutcome, Outcomes, with_newest
from pipeline.grpo.data.site_features import SiteFeatures


def test_rates_by_hand() -> None:
    rates = Rates(np.array([[0], [0], [1], [2]]))
    rates.add(np.array([0, 1, 2]), np.array([True, True, False]), np.array([0.5, 0.25, 1.0]))
    rates.age(int(HALF_LIFE))  # every group counts half
    everywhere, right = (1 + 1) / (1.5 + 2), (0.875 + 1) / (1.5 + 2)
    seen = (1 + PRIOR * everywhere) / (1 + PRIOR)
    other = (0 + PRIOR * everywhere) / (0.5 + PRIOR)
    expected = [
        [log(seen / (1 - seen)), (0.375 + PRIOR * right) / (1 + PRIOR), log(2)],
        [log(other / (1 - other)), (0.5 + PRIOR * right) / (0.5 + PRIOR), log(1.5)],
        [log(everywhere / (1 - everywhere)), right, 0],
    ]
    np.testing.assert_allclose(rates.of(np.array([1, 2, 3])), expected)


def test_nothing_is_foretold_from_a_few_groups_or_from_equal_ones() -> None:
    live, dead = GroupOutcome(0, 0, 0, True, 0.5), GroupOutcome(0, 0, 1, False, 0.0)
    assert enough((live,) * LEAST + (dead,) * LEAST)
    assert not enough((live,) * LEAST + (dead,) * (LEAST - 1)) and not enough((live,) * 500) and not enough(())


def test_only_the_newest_outcomes_are_remembered() -> None:
    old = tuple(GroupOutcome(0, 0, row, True, 0.5) for row in range(REMEMBERED))
    new = [GroupOutcome(1, 0, 7, False, 0.0), GroupOutcome(1, 0, 8, False, 1.0)]
    assert with_newest(old, new) == (*old[2:], *new)


def test_calibration_by_hand() -> None:
    foretold, live, importance = np.array([0.9, 0.6, 0.2, 0.1]), np.array([True, False, True, False]), [2, 2, 0.5, 0.5]
    assert calibration(foretold, live, np.array(importance)) == pytest.approx(
        {
            "foretold/expected": 0.45,
            "foretold/observed": 0.5,
            "foretold/brier": (0.01 + 0.36 + 0.64 + 0.01) / 4,
            "foretold/uniform": (1 / 2 + 1 / 0.5) / 4,
            "foretold/auc": 3 / 4,  # of the four pairs only (0.2, 0.6) is in the wrong order
        }
    )
    assert "foretold/auc" not in calibration(foretold, np.ones(4, dtype=bool), np.ones(4))


def test_what_came_last_counts_more_than_what_came_often() -> None:
    """For as many steps as every group at `a` had a gradient, and none at `b`, it was then the other way round."""
    a, b = SiteFeatures((0.0,), ("a",)), SiteFeatures((0.0,), ("b",))
    outcomes = tuple(GroupOutcome(step, 0, row, row == step // 10, 0.5) for step in range(20) for row in (0, 1) * 5)
    of_a, of_b = foretell(outcomes, [(a, b)[outcome.row] for outcome in outcomes], [a, b], step=20)
    assert of_a < 0.35 and of_b > 0.65, "without a half-life both are 0.5"


SITES, KINDS, TAKE, CANDIDATES, STEPS, CHANGE = 4000, 40, 64, 512, 32, 16


class Step(NamedTuple):
    foretold_D: np.ndarray | None
    importance_D: np.ndarray
    live_D: np.ndarray


class World:
    """Every site is of one of forty kinds, which decides its chance of a gradient; at `CHANGE` all are reversed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind_S = self.rng.integers(KINDS, size=SITES)
        self.of_kind = self.rng.permutation(np.linspace(0.02, 0.8, KINDS))
        noise_SF = self.rng.normal(size=(SITES, 3))  # tells nothing, like the second likeness
        other_S = self.rng.integers(9, size=SITES)
        alike = zip(self.kind_S.tolist(), other_S.tolist(), strict=True)
        self.features = [SiteFeatures(tuple(noise), of) for noise, of in zip(noise_SF.tolist(), alike, strict=True)]

    def probability(self, step: int) -> np.ndarray:
        of_kind = self.of_kind if step < CHANGE else 0.82 - self.of_kind
        return of_kind[self.kind_S]

    def run(self) -> list[Step]:
        outcomes: Outcomes = ()
        steps = []
        for step in range(STEPS):
            rows_M = self.rng.permutation(SITES)[:CANDIDATES]
            foretold_M, floor = np.zeros(CANDIDATES), 1.0
            if known := enough(outcomes):
                seen = [self.features[outcome.row] for outcome in outcomes]
                foretold_M, floor = foretell(outcomes, seen, [self.features[row] for row in rows_M], step), 0.2
            inclusion_M = inclusion(foretold_M, TAKE, floor)
            chosen = systematic(inclusion_M, self.rng.random())
            live_D = self.rng.random(TAKE) < self.probability(step)[rows_M[chosen]]
            found = zip(rows_M[chosen].tolist(), live_D.tolist(), strict=True)
            outcomes = with_newest(outcomes, [GroupOutcome(step, 0, row, live, 0.4 * live) for row, live in found])
            importance_D = inclusion_M[chosen] * CANDIDATES / TAKE
            steps.append(Step(foretold_M[chosen] if known else None, importance_D, live_D))
        return steps


@pytest.fixture(scope="module", params=[0, 1])
def run(request: pytest.FixtureRequest) -> tuple[World, list[Step]]:
    world = World(request.param)
    return world, world.run()


def share(steps: list[Step]) -> float:
    return float(np.mean([step.live_D for step in steps]))


def test_more_of_the_groups_have_a_gradient_also_after_the_world_has_changed(run: tuple[World, list[Step]]) -> None:
    """Uniform drawing has 0.41 all along; an oracle with the same floor has about 0.68."""
    _, steps = run
    assert share(steps[8:CHANGE]) > 0.53  # seen over 20 seeds: 0.61 to 0.71
    assert share(steps[CHANGE + 9 :]) > 0.53  # 0.58 to 0.69


def test_forecasts_are_calibrated(run: tuple[World, list[Step]]) -> None:
    _, steps = run
    settled = steps[8:CHANGE] + steps[CHANGE + 9 :]
    expected = np.mean([step.foretold_D for step in settled])
    assert abs(expected - share(settled)) < 0.1  # seen over 20 seeds: 0.00 to 0.05 below


def test_the_means_over_all_sites_are_estimated_without_bias(run: tuple[World, list[Step]]) -> None:
    """Weighted by the inverse of their importance, the drawn sites tell what uniform drawing would have found."""
    world, steps = run
    errors = [
        np.mean(step.live_D / step.importance_D) - world.probability(number).mean()
        for number, step in enumerate(steps)
        if step.foretold_D is not None
    ]
    plain = share(steps[8:CHANGE]) - world.probability(0).mean()
    mean, error = np.mean(errors), np.std(errors, ddof=1) / len(errors) ** 0.5
    assert abs(mean) < 4 * error and abs(mean) < plain / 2, "the unweighted mean is clearly biased"
