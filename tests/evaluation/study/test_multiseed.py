"""Intervals over seeds and documents: hand-computed, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy.stats import t

from pipeline.evaluation.intervals import proportion
from pipeline.evaluation.study.multiseed import difference_over_seeds, share_over_seeds

HITS = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=bool)
DOCUMENTS = ["a", "a", "b", "c"]


def test_by_hand():
    # means over seeds 1, 2/3, 1/3, 0; mean 1/2. Documents' errors: 1/2 + 1/6, −1/6, −1/2: squares 26/36.
    # between documents 3/2 · (26/36) / 16; runs 1/2, 1/4, 3/4: variance 1/16, of the mean 1/48
    documents, seeds = 3 / 2 * (26 / 36) / 16, 1 / 48
    freedom = (documents + seeds) ** 2 / (documents**2 / 2 + seeds**2 / 2)
    reach = t.ppf(0.975, freedom) * math.sqrt(documents + seeds)
    estimate = share_over_seeds(HITS, DOCUMENTS)
    assert (estimate.value, estimate.low, estimate.high) == (0.5, max(0, 0.5 - reach), min(1, 0.5 + reach))
    other = np.zeros((1, 4), dtype=bool)
    other[0, 3] = True
    change = difference_over_seeds(HITS, other, DOCUMENTS)
    # gains 1, 2/3, 1/3, −1: mean 1/4; documents' errors 7/6, 1/12, −5/4
    documents = 3 / 2 * ((7 / 6) ** 2 + (1 / 12) ** 2 + (5 / 4) ** 2) / 16
    assert change.value == pytest.approx(0.25) and change.standard_error == pytest.approx(math.sqrt(documents + seeds))
    freedom = (documents + seeds) ** 2 / (documents**2 / 2 + seeds**2 / 2)
    assert change.p_value == pytest.approx(2 * t.sf(0.25 / math.sqrt(documents + seeds), freedom))


def test_one_seed_and_no_variance_are_the_plain_interval():
    assert share_over_seeds(HITS[:1], DOCUMENTS) == proportion(HITS[0], DOCUMENTS)
    never = share_over_seeds(np.zeros((3, 4), dtype=bool), DOCUMENTS)
    assert never == proportion(np.zeros(4), DOCUMENTS) and never.high > 0
    assert share_over_seeds(HITS[:, :0], []) is None and difference_over_seeds(HITS[:, :0], HITS[:, :0], []) is None


def test_what_never_differed_may_differ_elsewhere():
    same = difference_over_seeds(HITS[:1], HITS[:1], DOCUMENTS)
    # three documents: (1 − bound)³ = 0.025
    assert (same.value, same.p_value, same.high) == (0.0, 1.0, pytest.approx(1 - 0.025 ** (1 / 3)))
    assert same.low == -same.high


def test_intervals_hold_the_truth_for_other_seeds_and_documents():
    rng = np.random.default_rng(0)
    inside, trials = 0, 300
    for _ in range(trials):
        difficulty_D, skill_S = rng.normal(0, 0.15, 60), rng.normal(0, 0.05, 3)
        rates_SN = (0.5 + skill_S[:, None] + np.repeat(difficulty_D, 3)).clip(0, 1)
        estimate = share_over_seeds(rng.random(rates_SN.shape) < rates_SN, np.repeat(np.arange(60), 3).astype(str))
        inside += estimate.low <= 0.5 <= estimate.high
    assert 0.92 * trials <= inside <= 0.995 * trials
