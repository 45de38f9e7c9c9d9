"""The law of compute: planted parameters come back within their intervals, and what is no law is not called one."""

import re

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.evaluation.scaling import fit_law, objections

UNIT = 3.2e12
PLANTED = {"amplitude": -0.08, "alpha": 0.6, "plateau": 0.62}
COMPUTE = np.geomspace(1 / 16, 1, 12) * UNIT


def accuracy(compute, noise=0.0, seed=0):
    law = PLANTED["amplitude"] * (compute / UNIT) ** -PLANTED["alpha"] + PLANTED["plateau"]
    return law + np.random.default_rng(seed).normal(0, noise, len(compute)) if noise else law


def test_planted_parameters_lie_within_their_intervals_in_95_of_100_draws():
    inside = dict.fromkeys(PLANTED, 0)
    for seed in range(200):
        law = fit_law(COMPUTE, accuracy(COMPUTE, 0.006, seed), seed=seed)
        for name, value in PLANTED.items():
            found = getattr(law, name)
            assert found.low <= found.value <= found.high
            inside[name] += found.low <= value <= found.high
        assert not objections(law)
    assert min(inside.values()) >= 190, inside
    assert min(inside.values()) < 200, "intervals that always hold the truth say nothing"


def test_without_noise_the_law_itself_comes_back():
    law = fit_law([0.0, *COMPUTE], [0.1, *accuracy(COMPUTE)])
    assert (law.points, law.unit) == (12, UNIT), "the untrained policy is no point of the law"
    for name, value in PLANTED.items():
        assert getattr(law, name).value == pytest.approx(value, rel=0.03)
    assert law.r2 == pytest.approx(1.0, abs=1e-4)
    (ahead,) = law.at([4 * UNIT])
    assert ahead.value == pytest.approx(0.62 - 0.08 * 4**-0.6, abs=2e-3)


def test_extrapolation_is_wider_than_interpolation():
    law = fit_law(COMPUTE, accuracy(COMPUTE, 0.006))
    within, beyond = law.at([UNIT / 4, 16 * UNIT])
    assert beyond.low < 0.62 - 0.08 * 16**-0.6 < beyond.high
    assert beyond.high - beyond.low > 2 * (within.high - within.low)


@pytest.mark.parametrize(
    ("compute", "values", "why"),
    [
        (COMPUTE[::3], accuracy(COMPUTE[::3]), "4 points, at least 6"),
        (np.linspace(0.5, 1, 8), accuracy(np.linspace(0.5, 1, 8) * UNIT), "factor of 2.0, at least 4"),
        (COMPUTE, accuracy(COMPUTE, 0.08, 3), "R² is"),
        (COMPUTE, 1 - accuracy(COMPUTE), "does not rise"),
        (COMPUTE, 0.1 + 0.05 * np.log(COMPUTE / COMPUTE[0]), "P\\* is not determined"),
        (COMPUTE, np.full(12, 0.3), "R² is 0.000"),
    ],
)
def test_what_is_no_law_is_objected_to(compute, values, why):
    found = objections(fit_law(compute, values))
    assert any(re.search(why, line) for line in found), found


def test_three_parameters_fit_any_three_points():
    with pytest.raises(UserError, match="3 points for a law with 3 parameters"):
        fit_law([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.31])
