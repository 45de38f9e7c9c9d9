"""Power by simulation: what is called detectable is seen as often as said."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.intervals import t_quantile
from pipeline.evaluation.study.multiseed import difference_over_seeds
from pipeline.evaluation.study.power import AIM, POWER, detectable, seeds_needed


@pytest.mark.parametrize("seeds", [3, 6, 30])
def test_what_is_detectable_is_seen_as_often_as_said(seeds: int) -> None:
    rng, trials = np.random.default_rng(seeds), 20_000
    true = detectable(2 / seeds**0.5, seeds - 1)
    found = rng.normal(true, 2, (trials, seeds))
    error = found.std(axis=1, ddof=1) / seeds**0.5
    seen = (found.mean(axis=1) - t_quantile(seeds - 1) * error > 0).mean()
    assert seen == pytest.approx(POWER, abs=0.012), "four standard deviations"


def test_the_fewest_seeds_that_see_five_points() -> None:
    def error_of(seeds: int) -> tuple[float, float]:
        return 0.05 / seeds**0.5, seeds - 1

    needed = seeds_needed(error_of)
    assert needed is not None
    assert detectable(*error_of(needed)) <= AIM < detectable(*error_of(needed - 1))
    assert seeds_needed(lambda seeds: (0.05, 1e6)) is None, "the documents alone vary too much"


def test_a_difference_over_seeds_says_what_it_could_see() -> None:
    rng = np.random.default_rng(0)
    documents_N = np.repeat(np.arange(200), 2).astype(str)
    after_SN, before_SN = rng.random((3, 400)) < 0.4, rng.random((3, 400)) < 0.4
    after_SN[0] |= rng.random(400) < 0.2  # one seed is much better: the seeds vary more than the documents
    few = difference_over_seeds(after_SN, before_SN, documents_N)
    alike = difference_over_seeds(after_SN[1:], before_SN, documents_N)
    assert few and alike and few.detectable and alike.detectable
    assert few.detectable > 2.8 * (few.standard_error or 0) and few.detectable > alike.detectable
    assert few.seeds_needed is None or few.seeds_needed > 3
    same = difference_over_seeds(before_SN[:1], before_SN[:1], documents_N)
    assert same and same.detectable is None and same.seeds_needed is None
