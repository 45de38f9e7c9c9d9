"""Clustered intervals: hand-computed numbers, degenerate cases, and how often they cover the truth."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pipeline.evaluation.intervals import Estimate, difference, proportion, sign_flip_test


def sites(hits_by_document):
    """Hits and documents from one string a document: "110" is a document with two hits and a miss."""
    hits = np.array([site == "1" for document in hits_by_document for site in document])
    return hits, [f"d{i}" for i, document in enumerate(hits_by_document) for _ in document]


def wilson(hits, n, z=1.959963984540054):
    """The textbook formula, term by term."""
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


@pytest.mark.parametrize(("hits", "n"), [(8, 10), (1, 30), (29, 30), (0, 12), (12, 12), (50, 100), (1, 1), (0, 1)])
def test_equals_wilson_with_one_site_a_document(hits, n):
    estimate = proportion(*sites(["1"] * hits + ["0"] * (n - hits)))
    assert (estimate.value, estimate.sites, estimate.documents) == (hits / n, n, n)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(hits, n), abs=1e-12)


def test_hand_computed_clusters():
    # 12 sites in 4 documents: 111, 110, 100, 000. p = 6/12. Errors hits − p·sites: 1.5, 0.5, −0.5, −1.5, squares 5.
    # variance = 4/3 · 5 / 12² = 0.0462963; of independent sites 0.25/11 = 0.0227273; design effect 2.037037
    # 12 / 2.037037 = 5.890909; t(11) = 2.200985, t(3) = 3.182446 by tables: times 0.478312 → 2.817696
    # Wilson at p = 0.5 and n = 2.817696: half = 1.959964 · sqrt(0.25/n + 0.960365/n²) / (1 + 3.841459/n)
    n, z2 = 2.817696, 3.841459
    half = 1.959964 * math.sqrt(0.25 / n + z2 / (4 * n * n)) / (1 + z2 / n)
    assert half == pytest.approx(0.37976, abs=1e-5)
    estimate = proportion(*sites(["111", "110", "100", "000"]))
    assert estimate.value == 0.5
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-5)


def test_doubling_every_site_tells_nothing_new_about_documents():
    once = proportion(*sites(["1", "0"] * 20))
    twice = proportion(*sites(["11", "00"] * 20))
    independent = wilson(40, 80)
    assert once.value == twice.value
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high), abs=4e-3)
    assert twice.high - twice.low > 1.3 * (independent[1] - independent[0])


@pytest.mark.parametrize(
    ("documents", "value", "interval"),
    [
        (["111", "111"], 1.0, wilson(2, 2)),  # all hits: two documents, two observations
        (["000", "0", "00"], 0.0, wilson(0, 3)),
        (["1100"], 0.5, wilson(0.5, 1)),  # one document, one observation
        (["1111"], 1.0, wilson(1, 1)),
        (["10", "01", "10"], 0.5, wilson(3, 6)),  # documents more alike than chance: never narrower than Wilson
        (["10", "10", "10", "1100", "110"], 7 / 13, wilson(7, 13)),
    ],
)
def test_degenerate(documents, value, interval):
    estimate = proportion(*sites(documents))
    assert estimate.value == value
    assert (estimate.low, estimate.high) == pytest.approx(interval, abs=1e-12)


def test_no_sites_is_no_estimate():
    assert proportion(np.array([], dtype=bool), []) is None
    assert difference(np.array([], dtype=bool), np.array([], dtype=bool), []) is None


@given(st.lists(st.text("01", min_size=1, max_size=5), min_size=1, max_size=12), st.randoms())
def test_intervals_hold_their_value_and_do_not_depend_on_order(documents, random):
    hits, names = sites(documents)
    estimate = proportion(hits, names)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    order = random.sample(range(len(hits)), len(hits))
    shuffled = proportion(hits[order], [names[i] for i in order])
    assert (shuffled.low, shuffled.high) == pytest.approx((estimate.low, estimate.high))


def test_overlap():
    at = lambda low, high: Estimate((low + high) / 2, low, high, 10, 5)  # noqa: E731
    assert at(0.1, 0.3).overlaps(at(0.3, 0.4)) and at(0.3, 0.4).overlaps(at(0.1, 0.3))
    assert at(0.1, 0.9).overlaps(at(0.4, 0.5)) and at(0.4, 0.5).overlaps(at(0.1, 0.9))
    assert not at(0.1, 0.2).overlaps(at(0.21, 0.3)) and not at(0.21, 0.3).overlaps(at(0.1, 0.2))


def test_difference_equals_newcombe_with_one_site_a_document():
    # 36 pairs both +, 12 only first, 2 only second, 0 neither: an example of Newcombe 1998 (Statistics in Medicine
    # 17:2635), difference 0.2, by method 10 from 0.0569 to 0.3404
    after, names = sites(["1"] * 48 + ["0"] * 2)
    before, _ = sites(["1"] * 36 + ["0"] * 12 + ["1"] * 2)
    change = difference(after, before, names)
    assert change.value == pytest.approx(0.2)
    assert (change.low, change.high) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_difference_hand_computed_standard_error():
    # per document after − before: +2 of 2, +1 of 2, 0 of 2; δ = 3/6. Errors 1, 0, −1: 3/2 · 2 / 36 = 1/12
    after, names = sites(["11", "11", "10"])
    before, _ = sites(["00", "01", "10"])
    change = difference(after, before, names)
    assert change.value == pytest.approx(0.5)
    assert change.standard_error == pytest.approx(math.sqrt(1 / 12))
    assert (change.sites, change.documents) == (6, 3)


def test_difference_degenerate():
    hits, names = sites(["10", "1", "001"])
    same = difference(hits, hits, names)
    assert (same.value, same.standard_error) == (0, 0)
    assert same.low <= 0 <= same.high and same.high - same.low < 0.3
    all_after, none_before = np.ones(6, dtype=bool), np.zeros(6, dtype=bool)
    certain = difference(all_after, none_before, names)
    assert certain.value == 1.0 and certain.low < 0.5, "three documents never make a difference certain"
    assert difference(all_after[:2], none_before[:2], ["d", "d"]).standard_error is None


@pytest.mark.parametrize("mean", [0.05, 0.3])
def test_intervals_cover_the_truth_in_95_of_100_corpora(mean):
    """Simulated corpora of 40 documents with 1 to 11 sites, hits correlated within them (beta-binomial, ρ = 1/4)."""
    random = np.random.default_rng(7)
    covered = naive = difference_covered = 0
    for _ in range(400):
        sites_D = 1 + random.binomial(10, 0.4, 40)
        ease_D = random.beta(3 * mean, 3 * (1 - mean), 40)
        names = np.repeat(np.arange(40), sites_D).astype(str)
        before = random.random(sites_D.sum()) < np.repeat(ease_D, sites_D)
        after = random.random(sites_D.sum()) < np.repeat(0.2 + 0.7 * ease_D, sites_D)
        estimate, change = proportion(before, names), difference(after, before, names)
        covered += estimate.low <= mean <= estimate.high
        low, high = wilson(before.sum(), len(before))
        naive += low <= mean <= high
        difference_covered += change.low <= 0.2 - 0.3 * mean <= change.high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)
    assert difference_covered / 400 == pytest.approx(0.95, abs=0.03)
    assert naive / 400 < 0.88, "the simulation must be hard enough to tell clustered from independent sites"


@pytest.mark.parametrize(("wins", "losses"), [(8, 2), (5, 5), (12, 0), (1, 0), (0, 0), (3, 17)])
def test_sign_flips_of_single_sites_are_mcnemars_exact_test(wins, losses):
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    gains = np.array([1] * wins + [-1] * losses + [0] * 5)
    assert sign_flip_test(gains) == pytest.approx(expected)


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_sign_flips_by_enumeration(gains):
    sums = [abs(sum(g * s for g, s in zip(gains, signs, strict=True))) for signs in product((-1, 1), repeat=len(gains))]
    assert sign_flip_test(np.array(gains)) == pytest.approx(sum(s >= abs(sum(gains)) for s in sums) / len(sums))


def test_a_difference_has_the_p_value_of_its_documents():
    after, documents = sites(["11", "10", "11", "1"])
    before, _ = sites(["00", "10", "01", "0"])
    # gains 2, 0, 1, 1 sum to 4: only all three signs equal reach it, 2 of 8
    assert difference(after, before, documents).p_value == 0.25
    assert difference(after, after, documents).p_value == 1.0
